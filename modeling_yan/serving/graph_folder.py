"""What a folder of exported graphs says about itself, so that graphs of another model or version are not run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from modeling_yan import YanConfig

# Raised when the graphs' inputs or outputs change.
GRAPH_VERSION = 2
MANIFEST = "yan_export.json"
ENCODER = "encoder"
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
# What a config holds beside the network: a folder that was edited there still has its graphs.
BESIDE_THE_NETWORK = (
    "training_config",
    "transformers_version",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "_name_or_path",
)


def canvas_graph(steps: int) -> str:
    """Name of the graph that writes in so many steps."""
    return f"canvas_{steps}_step{'s' * (steps > 1)}"


def config_fingerprint(config: YanConfig) -> str:
    """Changes with every field of a config that says something about the network."""
    fields = {name: value for name, value in config.to_dict().items() if name not in BESIDE_THE_NETWORK}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Manifest:
    """
    Args:
        format: "onnx" or "pt2".
        steps: numbers of solver steps, each of which has a graph.
        solver, time_shift: of all of them.
        config: fingerprint of the model's config.
        files: digest of every file of the graphs, by name.
        version: of the graphs' inputs and outputs.
    """

    format: str
    steps: list[int]
    solver: str
    time_shift: float
    config: str
    files: dict[str, str]
    version: int = GRAPH_VERSION

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            ValueError: for a folder without graphs, and for graphs of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{folder} holds no {MANIFEST}, so no graphs; write them with `yan export`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.get("version", 1)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error}; export the model again") from None
        if version != GRAPH_VERSION:
            raise ValueError(
                f"{folder} holds graphs of version {version}, this package runs version {GRAPH_VERSION}; export the "
                "model again"
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path} cannot be read: {error}; export the model again") from None

    def check(self, folder: Path, config: YanConfig) -> None:
        """
        Raises:
            ValueError: where the config is not the graphs', or a file is missing or another.
        """
        if config_fingerprint(config) != self.config:
            raise ValueError(
                f"config.json of {folder} is not that of the model whose graphs are there; export it again"
            )
        for name, digest in self.files.items():
            if not (folder / name).is_file():
                raise ValueError(f"{folder} lacks {name}; export the model again")
            if file_digest(folder / name) != digest:
                raise ValueError(f"{name} in {folder} is not the graph that was exported there; export the model again")
