"""Model folders: read whole and without running what is in them, written all or nothing, uploaded."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub import HfApi
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.common.adapters import adapter_base, with_adapter
from modeling_yan.common.files import whole_folder

# One of these is in every folder of a model, and of a tokenizer.
MODEL_FILES = ("config.json", "adapter_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer*", "vocab*", "*.model", "spm*", "merges*")
# Weights that an error names.
NAMED_WEIGHTS = 3


@contextlib.contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """
    Around what reads a model's files: the many errors of libraries about files that are damaged, cut off or of another
    kind become one that says which model it is.

    Raises:
        ValueError: naming the model and the reason.
        OSError: the same, for files that are not there.
    """
    # What libraries say of a folder that is not there is about the Hub.
    where = "" if Path(name).exists() else f" (there is no folder {name} in {Path.cwd()})"
    try:
        yield
    except OSError as error:
        raise OSError(f"{name} cannot be read{where}: {error}") from error
    except (SafetensorError, RuntimeError, KeyError, UnpicklingError, EOFError, StrictDataclassError) as error:
        raise ValueError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} brings code of its own, which runs only with --trust_remote_code; read it before"
            ) from None
        raise ValueError(f"{name} cannot be read{where}: {error}") from error
    except Exception as error:
        # The tokenizers library has no other type.
        if type(error) is not Exception:
            raise
        raise ValueError(f"{name} cannot be read: {error}") from error


def has_file(folder: str | Path, *wanted: str) -> bool:
    """Whether a folder has a file of one of these patterns."""
    return any(file for pattern in wanted for file in Path(folder).glob(pattern))


def check_folder(name: str | Path, *wanted: str) -> None:
    """
    Raises:
        ValueError: for a folder that has no file of these patterns, such as one that a failed run left empty.
    """
    if Path(name).is_dir() and not has_file(name, *wanted):
        raise ValueError(
            f"{name} is a folder without {wanted[0]}: what was to be saved there is not; see whether the run before "
            "ended well"
        )


def check_config_file(name: str | Path, model_class: type | None = None) -> None:
    """
    Raises:
        ValueError: for a folder without a model; whose config.json is none; or whose model is not of the given class.
    """
    check_folder(name, *MODEL_FILES)
    file = Path(name) / "config.json"
    if not file.is_file():
        # A name on the Hub, or an adapter.
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not keys and values")
    wanted, found = getattr(model_class, "config_class", None), content.get("model_type")
    if wanted is not None and found != wanted.model_type:
        raise ValueError(f"{name} holds a model of type {found!r}; {model_class.__name__} is of {wanted.model_type!r}")


@contextlib.contextmanager
def readable_base(name: str | Path, base: str) -> Iterator[None]:
    """
    Around what reads the model that an adapter belongs to.

    Raises:
        ValueError, OSError: naming both.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(
            f"{name} is an adapter of {base}, and {error}; bring the model there, or name it as "
            f"base_model_name_or_path in {name}/adapter_config.json"
        ) from error


def base_of(name: str | Path) -> str | None:
    """
    The model of a folder or Hub name that holds an adapter alone; None for a model.

    Raises:
        ValueError: for a folder without a model, and for an adapter that names none.
    """
    check_folder(name, *MODEL_FILES)
    with readable(name):
        return adapter_base(name)


def read_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """
    The config of a folder or Hub name; of an adapter, that of its model.

    Raises:
        ValueError: if it cannot be read, or only by running code that comes with it.
        OSError: if there is none.
    """
    check_config_file(name)
    base = base_of(name)
    with contextlib.nullcontext() if base is None else readable_base(name, base), readable(base or name):
        return AutoConfig.from_pretrained(base or name, trust_remote_code=trust_remote_code)


def read_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """As `read_config`, the tokenizer; of a folder with an adapter and no tokenizer, that of its model."""
    if (Path(name) / "adapter_config.json").is_file() and not has_file(name, *TOKENIZER_FILES):
        base = base_of(name)
        if base is not None:
            with readable_base(name, base):
                return read_tokenizer(base, trust_remote_code=trust_remote_code)
    check_folder(name, *TOKENIZER_FILES)
    with readable(name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def read_model_and_gaps(
    model_class: type, name: str | Path, *, trust_remote_code: bool = False, **options
) -> tuple[PreTrainedModel, list[str]]:
    """
    As `read_model`, for a model that may lack weights.

    Returns:
        The model, and the names of the weights that it lacked, which are random.

    Raises:
        ValueError: for a model of another kind, files that cannot be read, and weights of other shapes than the config
            says.
    """
    check_config_file(name, model_class)
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with readable(name):
        model, info = model_class.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    for weight, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name}: {weight} has shape {tuple(found)}, the config asks for {tuple(expected)}; the weights are those "
            "of another config"
        )
    return model, sorted(info["missing_keys"])


def refuse_gaps(name: str | Path, missing: list[str], model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: if weights are missing, naming the first.
    """
    if missing:
        kind, first = type(model).__name__, ", ".join(missing[:NAMED_WEIGHTS])
        more = ", …" if len(missing) > NAMED_WEIGHTS else ""
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {kind}, which would be random: {first}{more}; name a folder that "
            f"was saved from a whole {kind}"
        )


def read_model(model_class: type, name: str | Path, *, trust_remote_code: bool = False, **options) -> PreTrainedModel:
    """
    A model, in evaluation mode, whose weights are all there. An adapter is merged into the model that it belongs to.

    Args:
        model_class: an Auto class, or a class of this package.
        name: folder or Hub name, of a model or of an adapter.
        trust_remote_code: whether code that comes with it may run. Models of this package need none.
        **options: of `from_pretrained`.

    Raises:
        ValueError: if a file cannot be read, only by running code that comes with it, or lacks weights.
        OSError: if there is no such model.
    """
    base = base_of(name)
    with contextlib.nullcontext() if base is None else readable_base(name, base):
        model, missing = read_model_and_gaps(model_class, base or name, trust_remote_code=trust_remote_code, **options)
        refuse_gaps(base or name, missing, model)
    if base is not None:
        with readable(name):
            model = with_adapter(model, name)
    return model.eval()


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    card: str,
    check: Callable[[PreTrainedModel], None],
) -> None:
    """
    Writes model, code, tokenizer and card, loads the model again, and lets the folder appear only when `check` (which
    raises) has nothing against the loaded one.
    """
    with whole_folder(folder) as written:
        model.save_pretrained(written)
        if tokenizer is not None:
            tokenizer.save_pretrained(written)
        (written / "README.md").write_text(card, encoding="utf-8")
        check(read_model(type(model), written, dtype=model.dtype))


def push_folder(folder: Path, repository: str, *, repo_type: str = "model") -> None:
    """
    Uploads a folder to a repository of the Hub, which is created if it is not there.

    Args:
        repo_type: "model", or "space" for a folder with a Gradio app.
    """
    api = HfApi()
    api.create_repo(
        repository, exist_ok=True, repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None
    )
    api.upload_folder(repo_id=repository, folder_path=folder, repo_type=repo_type)
