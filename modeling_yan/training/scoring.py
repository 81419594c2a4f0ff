"""What a trained model writes for held-out rows, scored."""

from collections.abc import Mapping

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.data.tasks import Task
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.text_generation import generate_texts


def answer_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    task: Task,
    *,
    batch_size: int,
    seed: int | None = None,
    **options,
) -> list[str]:
    """
    An answer to each row's source, within the task's lengths.

    Args:
        rows: column `source`.
        seed: of a generator for what is drawn, for models whose `generate()` takes one (YAN); none by default.
        **options: handed to `generate_texts`.
    """
    if seed is not None:
        options["generator"] = torch.Generator(model.device).manual_seed(seed)
    return generate_texts(
        model,
        tokenizer,
        rows["source"],
        batch_size=batch_size,
        max_source_length=task.max_source_length,
        max_new_tokens=task.max_target_length,
        **options,
    )


def score_splits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Dataset], task: Task, **options
) -> dict[str, dict]:
    """
    Answers and scores each split.

    Args:
        splits: name -> rows with columns `source` and `references` (`evaluation_rows`).
        **options: of `answer_rows`: `batch_size`, `seed` and options of `generate_texts`.

    Returns:
        Name -> `rows`, the number of them, and the scores of `score_texts`.
    """
    scores = {}
    for name, rows in splits.items():
        texts = answer_rows(model, tokenizer, rows, task, **options)
        scores[name] = {"rows": len(rows), **score_texts(texts, rows["references"])}
    return scores
