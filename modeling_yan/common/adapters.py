"""Folders that hold a PEFT adapter alone: whose it is, and the model that both make."""

import json
import os
import warnings
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, is_peft_available

CONFIG, ADAPTER, OPTIONS = "config.json", "adapter_config.json", "generation_config.json"


def find(name: str | os.PathLike, file: str, *, stored_only: bool = False) -> str | None:
    """
    Path of a model's file, in its folder or in the cache of the Hub; None where it has none.

    Args:
        name: folder or Hub name.
        stored_only: ask no Hub, and answer None where nothing is known of the model.

    Raises:
        OSError: for a Hub name that is none, and where the Hub cannot be asked.
    """
    options = {"local_files_only": True, "_raise_exceptions_for_connection_errors": False} if stored_only else {}
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)


def adapter_base(name: str | os.PathLike) -> str | None:
    """
    The model that an adapter belongs to, as its adapter_config.json names it; None for what is no adapter or holds a
    whole model, too.

    Args:
        name: folder or Hub name.

    Raises:
        ValueError: for an adapter that names no model.
        OSError: for a Hub name that is none.
    """
    file = find(name, ADAPTER, stored_only=True)
    if find(name, CONFIG, stored_only=file is not None) is not None:
        return None
    file = file or find(name, ADAPTER)
    if file is None:
        return None
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            "its adapter_config.json has no base_model_name_or_path; write the folder or Hub name of the model that "
            "the adapter was trained on there"
        )
    return base


def with_adapter(model: PreTrainedModel, name: str | os.PathLike) -> PreTrainedModel:
    """
    A model with an adapter merged into its weights, so that it is as fast as without. Generation options that were
    saved beside the adapter take the place of the model's.

    Args:
        model: what the adapter belongs to; it is changed.
        name: folder or Hub name of the adapter.

    Raises:
        ValueError: if PEFT is not installed, if weights of the adapter are missing, and for an adapter that cannot be
            merged.
        OSError: if there are no weights.
    """
    if not is_peft_available():
        raise ValueError("it is an adapter, which needs PEFT: pip install peft")
    # Only here: whole models are read without PEFT.
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT goes on with random weights and a warning.
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, str(name))
        except UserWarning as warning:
            raise ValueError(f"weights of the adapter are missing: {warning!s:.200}") from None
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise ValueError(f"an adapter of type {kind} cannot be merged into a model; use LoRA, DoRA or IA3")
    merged = adapted.merge_and_unload()
    if find(name, OPTIONS) is not None:
        merged.generation_config = GenerationConfig.from_pretrained(name)
    return merged
