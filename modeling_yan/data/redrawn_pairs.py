"""Training pairs that are derived anew each time they are read, for tasks with `redraw`."""

import random
from abc import ABC, abstractmethod

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from modeling_yan.data.tasks import Task
from modeling_yan.data.tokenization import end_token_id, target_ids


class RedrawnTexts(TorchDataset, ABC):
    """
    Pairs of texts, drawn and encoded at every access. The draws follow one another: a run is repeated by its seed, and
    one that is resumed goes on with other draws. A subclass says in `encode` what a model reads.

    Args:
        rows: columns `source` and `row`, as `task.build` makes them.
        task: with the lengths in tokens that longer rows are cut to.
        seed: of all draws.

    Attributes:
        lengths: tokens of the first draw's sources, for batches of similar lengths.
    """

    def __init__(self, rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0):
        self.rows = rows.select_columns(["row"])
        self.task = task
        self.tokenizer = tokenizer
        self.draw = random.Random(seed)
        self.lengths = [len(self.source_ids(source)) for source in rows["source"]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        seed = self.draw.getrandbits(32)
        texts = self.task.render(self.rows[index]["row"], self.tokenizer.mask_token, seed=seed)
        input_ids, labels = self.encode(texts["source"], texts["target"])
        return {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), "labels": labels}

    def source_ids(self, source: str) -> list[int]:
        return self.tokenizer(source, max_length=self.task.max_source_length, truncation=True)["input_ids"]

    @abstractmethod
    def encode(self, source: str, target: str) -> tuple[list[int], list[int]]:
        """Ids and labels of a pair."""


class RedrawnPairs(RedrawnTexts):
    """
    What `tokenize_pairs` gives, drawn anew at every access.

    Args:
        rows, task, tokenizer, seed: as `RedrawnTexts` takes them.
        end_id: of the token that ends a text; the tokenizer's by default.
    """

    def __init__(
        self,
        rows: Dataset,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        end_id: int | None = None,
    ):
        super().__init__(rows, task, tokenizer, seed=seed)
        self.end_id = end_token_id(tokenizer) if end_id is None else end_id

    def encode(self, source: str, target: str) -> tuple[list[int], list[int]]:
        labels = target_ids(self.tokenizer, [target], self.end_id, self.task.max_target_length)[0]
        return self.source_ids(source), labels
