"""A demo as a Space of the Hub: a folder with the app, the package, the models, and what they need."""

import importlib.metadata
import json
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from packaging.requirements import Requirement

import modeling_yan
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.evaluation.peers import CONVERTED

# Beside a Space's app: the options that it starts with. Folders in it are relative to it.
SETTINGS = "app.json"
CODE = "https://arxiv.org/abs/2604.15009"

CARD = """---
title: {title}
emoji: ⚡
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
pinned: false
short_description: Text in a few steps of mixture-of-experts flow matching
---

# {title}

A source goes in, and [YAN]({code}) writes the whole answer at once: noise becomes text in a few steps.
To start it elsewhere:

    pip install -r requirements.txt
    python app.py
"""


def space_requirements(with_ctranslate2: bool = False) -> list[str]:
    """
    What the app needs of an index: the package's own requirements and those of its extra `app`.

    Args:
        with_ctranslate2: whether CTranslate2 computes the baseline; of the extra `benchmark` that alone is needed.

    Raises:
        ValueError: if the package that is installed here is older than the extra.
    """
    try:
        extras = importlib.metadata.metadata("modeling-yan").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        extras = []
    if "app" not in extras:
        raise ValueError(
            "export_space reads the requirements of the installed package, and there is none with the extra app; "
            'pip install -c constraints.txt -e ".[app]" first'
        )
    needed = [Requirement(line) for line in importlib.metadata.requires("modeling-yan")]
    chosen = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": "app"})]
    if with_ctranslate2:
        chosen += [r for r in needed if r.name == "ctranslate2"]
    return sorted(f"{r.name}{r.specifier}" for r in chosen)


def copy_model(name: str, folder: Path) -> None:
    """Copies a model's folder, or downloads it from the Hub."""
    if Path(name).is_dir():
        shutil.copytree(name, folder)
    else:
        snapshot_download(name, local_dir=folder)


def write_space(
    folder: Path,
    *,
    app: Path,
    licence: Path,
    model: str,
    baseline: str | None = None,
    baseline_compute_type: str | None = None,
    infilling: bool = False,
) -> None:
    """
    Writes a folder that is a Space as it stands: an app, the package, the models, and what they need.

    Args:
        folder: empty, or not there.
        app: the script that a Space starts; it reads its options from `app.json` beside it.
        licence: of the code.
        model, baseline: folders or Hub names, copied.

    Raises:
        ValueError: if the folder holds something, and what `space_requirements` raises.
        OSError: if a model is not there.
    """
    check_destination(folder)
    converted = baseline is not None and (Path(baseline) / CONVERTED).is_file()
    requirements = space_requirements(with_ctranslate2=converted or baseline_compute_type is not None)
    options = {"model": model, "baseline": baseline}
    title = f"YAN {Path(model).name}"
    with whole_folder(folder) as written:
        for kind, name in options.items():
            if name is not None:
                copy_model(name, written / kind)
        package = Path(modeling_yan.__file__).parent
        shutil.copytree(package, written / "modeling_yan", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(app, written / "app.py")
        shutil.copy(licence, written)
        settings = {kind: kind for kind, name in options.items() if name is not None}
        settings |= {"name": Path(model).name, "infilling": infilling, "baseline_compute_type": baseline_compute_type}
        (written / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (written / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        (written / "README.md").write_text(
            CARD.format(title=title, gradio=importlib.metadata.version("gradio"), code=CODE), encoding="utf-8"
        )
