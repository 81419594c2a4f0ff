"""States of a frozen encoder, computed once and kept on disk, so that an update costs the flow alone."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, TrainingArguments

from modeling_yan.common.flops import WorkCounter
from modeling_yan.encoder_yan import YanHostedEncoder

# Trainer uploads nothing whose name begins with an underscore.
STATES_FILE = "_encoder_states.f32"
# Column that says which row of the file belongs to a training row.
ROW = "row"


@dataclass
class EncoderStates:
    """
    States of the sources of a data set, one row behind the other.

    Args:
        values: (tokens, d) float32, memory-mapped.
        starts: where each row begins, and where the last one ends (rows + 1,).
        flops, minutes: what it cost to compute them.
    """

    values: np.ndarray
    starts: np.ndarray
    flops: float = 0.0
    minutes: float = 0.0

    def of(self, row: int) -> torch.Tensor:
        """(tokens of the row, d), a copy."""
        return torch.from_numpy(np.array(self.values[self.starts[row] : self.starts[row + 1]]))


@dataclass
class StatesCollator(DataCollatorForSeq2Seq):
    """As `DataCollatorForSeq2Seq`; rows that have stored states bring them as `encoder_outputs`."""

    states: EncoderStates | None = None

    def __call__(self, features, return_tensors=None):
        rows = [feature.get(ROW) for feature in features]
        features = [{name: value for name, value in feature.items() if name != ROW} for feature in features]
        batch = super().__call__(features, return_tensors)
        if rows[0] is not None:
            side = self.tokenizer.padding_side
            batch["encoder_outputs"] = (
                pad_sequence([self.states.of(row) for row in rows], batch_first=True, padding_side=side),
            )
        return batch


def is_frozen(model: PreTrainedModel) -> bool:
    """Whether no update changes what the encoder gives for a source."""
    encoder = model.get_encoder()
    # The canvas's positions, which stand beside a hosted encoder, do not change its states.
    reader = encoder.backbone if isinstance(encoder, YanHostedEncoder) else encoder
    return not any(parameter.requires_grad for parameter in reader.parameters())


def row_starts(rows: Dataset) -> np.ndarray:
    """Where each row's tokens begin in the file, and where the last one's end (rows + 1,)."""
    return np.cumsum([0, *map(len, rows["input_ids"])])


def room_for(rows: Dataset, width: int, folder: Path) -> bool:
    """Whether a folder's disk holds the states of all rows, and as much again."""
    needed = 4 * width * sum(map(len, rows["input_ids"]))
    return shutil.disk_usage(folder).free > 2 * needed


@torch.no_grad()
def store_states(model: PreTrainedModel, rows: Dataset, folder: Path, batch_size: int) -> None:
    """
    Reads every source once, without dropout, and writes its states to `folder`.

    Args:
        model: with `get_encoder()`; stays in the mode that it is in.
        rows: column `input_ids`, lists of ids without padding.
        batch_size: sources read at a time, of similar lengths.
    """
    encoder, starts = model.get_encoder(), row_starts(rows)
    lengths = np.diff(starts)
    shape = (int(starts[-1]), model.config.hidden_size)
    values = np.memmap(folder / STATES_FILE, dtype=np.float32, mode="w+", shape=shape)
    was_training = encoder.training
    encoder.eval()
    for indices in np.array_split(lengths.argsort(kind="stable"), -(-len(lengths) // batch_size)):
        sources = [torch.tensor(ids) for ids in rows.select(indices)["input_ids"]]
        ids = pad_sequence(sources, batch_first=True).to(model.device)
        mask = pad_sequence([torch.ones_like(source) for source in sources], batch_first=True).to(model.device)
        states = encoder(ids, mask).last_hidden_state.float().cpu().numpy()
        for index, row in zip(indices, states, strict=True):
            values[starts[index] : starts[index + 1]] = row[: lengths[index]]
    encoder.train(was_training)
    values.flush()


def load_states(rows: Dataset, width: int, folder: Path, *, flops: float = 0.0, minutes: float = 0.0) -> EncoderStates:
    """What `store_states` wrote for the same rows, in another process, and what that cost."""
    starts = row_starts(rows)
    values = np.memmap(folder / STATES_FILE, dtype=np.float32, mode="r", shape=(int(starts[-1]), width))
    return EncoderStates(values, starts, flops, minutes)


def states_of_frozen_encoder(
    model: PreTrainedModel, rows: Dataset, training: TrainingArguments
) -> tuple[Dataset, EncoderStates | None]:
    """
    Where the encoder is frozen, the training rows with a column that says which states are theirs, and those states,
    which the first process computes for all; else, and where the disk is too small, the rows as they are, and None.

    Args:
        model: to be trained, frozen parts and all.
        rows: tokenised.
        training: its `output_dir` holds the file until `remove_states`.
    """
    folder, width = Path(training.output_dir), model.config.hidden_size
    # Sources that are drawn anew (`RedrawnPairs`) have other states each time.
    if not isinstance(rows, Dataset) or not is_frozen(model) or not room_for(rows, width, folder):
        return rows, None
    model.to(training.device)
    start = time.perf_counter()
    with training.main_process_first(desc="states of the frozen encoder"), WorkCounter() as counter:
        if training.process_index == 0:
            store_states(model, rows, folder, 2 * training.train_batch_size)
    flops, minutes = broadcast_object_list([counter.flops, (time.perf_counter() - start) / 60])
    # Trainer knows the columns that forward takes alone.
    training.remove_unused_columns = False
    states = load_states(rows, width, folder, flops=flops, minutes=minutes)
    return rows.add_column(ROW, list(range(len(rows)))), states


def with_reading(report: dict, states: EncoderStates | None) -> dict:
    """The report of a training run, with what the states of a frozen encoder cost where there are any."""
    if states is None:
        return report
    minutes = round(report["train_minutes"] + states.minutes, 2)
    return {**report, "train_flops": report["train_flops"] + states.flops, "train_minutes": minutes}


def remove_states(folder: str | Path) -> None:
    """Removes the file of `store_states`, where there is one."""
    (Path(folder) / STATES_FILE).unlink(missing_ok=True)
