"""Finds the data files of `configuration/`, in a source checkout or in an installed wheel."""

from importlib import resources
from pathlib import Path


def configuration_path(*parts: str) -> Path:
    """
    Path of a file under `configuration/`: of the checkout if there is one, otherwise of the installed package.

    Args:
        *parts: path components below `configuration/`, for example `("tasks", "e2e_nlg.yaml")`.

    Raises:
        FileNotFoundError: naming the file and what exists beside it.
    """
    checkout = Path(__file__).resolve().parents[2] / "configuration"
    root = checkout if checkout.is_dir() else Path(str(resources.files("modeling_yan"))) / "configuration"
    path = root.joinpath(*parts)
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no {'/'.join(parts)} in the configuration folder; there is: {', '.join(beside)}")
    return path
