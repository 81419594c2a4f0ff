"""Reports of scripts: JSON files, and the machine and versions that their numbers were measured with."""

import json
from datetime import date
from pathlib import Path

import torch
import transformers


def device_name(device: torch.device) -> str:
    """What a report calls a device: the GPU's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine(device: torch.device) -> dict:
    """
    What a report says of where it was made.

    Returns:
        `date` (ISO), `device`, `threads` of the CPU, and the versions `torch`, `transformers`.
    """
    return {
        "date": date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_report(report: dict | list, path: str | Path) -> None:
    """Writes a report as indented JSON; the folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_report(folder: str | Path) -> dict | None:
    """The `report.json` that training wrote beside a model; None where there is none."""
    path = Path(folder) / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
