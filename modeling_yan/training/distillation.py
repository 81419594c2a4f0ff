"""
Sequence-level distillation (Kim and Rush 2016): a teacher's answers as a data set, one for each distinct source.
Interrupted writing resumes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import HfArgumentParser, PreTrainedTokenizerBase, Seq2SeqTrainingArguments

from modeling_yan.common.arguments import ModelArguments, parse_arguments
from modeling_yan.common.building import check_model_arguments, load_tokenizer
from modeling_yan.common.hub import TOKENIZER_FILES, read_tokenizer
from modeling_yan.common.settings import SETTINGS_FILE, fingerprint_files, settle
from modeling_yan.data.loading import first_rows
from modeling_yan.data.pairs import FILES, load_pairs
from modeling_yan.data.sources import cross_fields, drop_fields
from modeling_yan.data.tasks import Task, evaluation_rows, group_references
from modeling_yan.data.tokenization import mask_token_of, set_truncation_side
from modeling_yan.evaluation.text_generation import iterate_answers, load_text_model
from modeling_yan.training.flow import FlowDataArguments, check_flow_arguments, train_flow

# Answers so far, hidden: whoever loads the folder as a data set would take them for the whole.
ANSWERS = ".answers.jsonl"
# Says how the data set is read.
TASK_FILE = "pairs.yaml"
# Files that decide what a teacher answers.
TEACHER_FILES = ("*config.json", "*.safetensors", "*.bin", *TOKENIZER_FILES)
DESCRIPTION = """
Writes a teacher's answers as a data set, one for each distinct source, and trains a model on them. Interrupted writing
resumes.

    %(prog)s --teacher DIR --distilled_dir DIR --train_file my.csv --source_column question --target_column answer

What is not given is a recipe's, or else that of configuration/training/default.yaml. From --output_dir on, options are
those of transformers' Seq2SeqTrainingArguments.
"""


@dataclass
class DistillationArguments:
    """Whose answers are written, to which sources, and where."""

    teacher: str = field(metadata={"help": "Folder or Hub name of the teacher."})
    distilled_dir: str = field(metadata={"help": "Where the data set of the teacher's answers goes."})
    teacher_batch_size: int = field(default=64, metadata={"help": "Sources a generate() call of the teacher answers."})
    teacher_beams: int = field(default=1, metadata={"help": "Beams of the teacher; 1 is greedy."})
    extra_sources: int = field(
        default=0, metadata={"help": "Sources made by dropping fields of training sources, for the teacher to answer."}
    )
    crossed_sources: int = field(
        default=0, metadata={"help": "Sources made of the fields of two training sources, for the teacher to answer."}
    )
    field_separator: str = field(
        default=", ", metadata={"help": "What separates the fields of a source, for extra_sources and crossed_sources."}
    )
    only_write: bool = field(default=False, metadata={"help": "Write the data set and stop."})


def read_answers(path: Path, sources: list[str]) -> int:
    """
    Cuts a file of answers after its last complete line.

    Returns:
        How many sources are answered in it.

    Raises:
        ValueError: if its answers are not to the first of these sources.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    if [json.loads(line)["source"] for line in lines] != sources[: len(lines)]:
        raise ValueError(f"{path} holds answers to other sources; choose another distilled_dir or delete it")
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return len(lines)


def teacher_settings(arguments: DistillationArguments, task: Task) -> dict:
    """
    All that decides what the teacher answers to a source, as JSON keeps it.

    Args:
        task: with the lengths in the teacher's tokens.
    """
    folder = Path(arguments.teacher)
    return {
        "teacher": str(folder.resolve()) if folder.is_dir() else arguments.teacher,
        "files of the teacher": fingerprint_files(folder, *TEACHER_FILES) if folder.is_dir() else None,
        "teacher_beams": arguments.teacher_beams,
        "max_source_length": task.max_source_length,
        "max_target_length": task.max_target_length,
        "truncation_side": task.truncation_side,
    }


def lengths_for_teacher(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], targets: Sequence[str]
) -> tuple[int, int]:
    """The longest source and the longest target, with a token to end it, in the teacher's tokens."""
    longest = [max(map(len, tokenizer(list(texts), verbose=False)["input_ids"])) for texts in (sources, targets)]
    return longest[0], longest[1] + 1


def write_answers(
    arguments: DistillationArguments,
    sources: list[str],
    task: Task,
    path: Path,
    device: torch.device,
    trust_remote_code: bool = False,
    lengths: tuple[int | None, int | None] = (None, None),
    targets: Sequence[str] | None = None,
) -> None:
    """
    Appends the teacher's answers, computed on `device`, to a file of JSON lines, going on where it ends.

    Args:
        trust_remote_code: whether code that comes with the teacher may run.
        lengths: tokens of a source and of an answer, instead of the task's.
        targets: texts that are as long as answers get, where the task says nothing of lengths.

    Raises:
        ValueError: if the file holds answers to other sources, or that were written with other settings.
    """
    rest = sources[read_answers(path, sources) :]
    tokenizer = read_tokenizer(arguments.teacher, trust_remote_code=trust_remote_code)
    set_truncation_side(tokenizer, task.truncation_side)
    if targets is not None:
        task = task.with_lengths(*lengths_for_teacher(tokenizer, sources, targets))
    task = task.with_lengths(*lengths)
    if len(rest) == len(sources):
        # No answer is there that settings have decided.
        for begun in (path, path.parent / SETTINGS_FILE):
            begun.unlink(missing_ok=True)
    settle(path.parent, teacher_settings(arguments, task), argument="--distilled_dir", written=path.name)
    if not rest:
        return
    teacher = load_text_model(arguments.teacher, trust_remote_code=trust_remote_code).to(device)
    answers = iterate_answers(
        teacher,
        tokenizer,
        rest,
        batch_size=arguments.teacher_batch_size,
        max_source_length=task.max_source_length,
        max_new_tokens=task.max_target_length,
        num_beams=arguments.teacher_beams,
        do_sample=False,
        progress="teacher",
    )
    remaining = iter(rest)
    with path.open("a", encoding="utf-8") as file:
        for batch in answers:
            rows = ({"source": next(remaining), "target": target} for target in batch)
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()


def write_distilled_data(
    arguments: DistillationArguments,
    task: Task,
    splits: Mapping[str, Dataset],
    *,
    seed: int,
    device: torch.device,
    trust_remote_code: bool = False,
    lengths: tuple[int | None, int | None] = (None, None),
    fits_lengths: bool = False,
) -> int:
    """
    Makes `distilled_dir` a data set, with the task that reads it in `pairs.yaml`: the teacher's answers are the targets
    to train on, and the references of made-up sources; given sources and the other splits keep their own references.

    Args:
        task, splits: the data whose sources are answered, of `load_pairs`.
        seed: of made-up sources.
        device: of the teacher.
        trust_remote_code: whether code that comes with the teacher may run.
        lengths: tokens of a source and of an answer, instead of the task's.
        fits_lengths: whether other lengths than these are the texts' own, in the teacher's tokens.

    Returns:
        The number of answers that are not empty.

    Raises:
        ValueError: if there is no answer, or a file of answers to other sources or written with other settings.
    """
    train = splits["train"]
    folder = Path(arguments.distilled_dir)
    folder.mkdir(parents=True, exist_ok=True)
    given = list(dict.fromkeys(train["source"]))
    held_out = {source for name, split in splits.items() if name != "train" for source in split["source"]}
    sources = list(given)
    for make, count in ((drop_fields, arguments.extra_sources), (cross_fields, arguments.crossed_sources)):
        if count:
            sources += make(given, count, arguments.field_separator, seed, held_out | set(sources))
    targets = train["target"] if fits_lengths else None
    write_answers(arguments, sources, task, folder / ANSWERS, device, trust_remote_code, lengths, targets)
    rows = [json.loads(line) for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines()]
    known = {row["source"]: row["references"] for row in group_references(train)}
    rows = [{**row, "references": known.get(row["source"], [row["target"]])} for row in rows if row["target"]]
    if not rows:
        raise ValueError(f"teacher {arguments.teacher} answered every source with nothing; is it trained on this task?")
    kept = ("max_source_length", "max_target_length", "metric", "truncation_side")
    read_as = {"source": "{source}", "target": "{target}", "references": "references"}
    Task("pairs", **read_as, **{name: getattr(task, name) for name in kept}).save(folder / TASK_FILE)
    # What is trained on comes last, so that a folder that has it is whole.
    for name, split in {**evaluation_rows(splits), "train": Dataset.from_list(rows)}.items():
        partial = folder / f".{name}.parquet"
        split.to_parquet(partial)
        partial.replace(folder / f"{name}.parquet")
    return len(rows)


def check_mask_token(mask_token: str | None, model_arguments: ModelArguments) -> None:
    """
    Raises:
        ValueError: if the model would not know the mask token of the teacher's sources, which it learns to read.
    """
    known = model_arguments.tokenizer_name or model_arguments.model_name_or_path or model_arguments.encoder
    own = mask_token_of(load_tokenizer(model_arguments) if known else None)
    if own != mask_token:
        raise ValueError(
            f"the teacher masks words with {mask_token!r}, the model with {own!r}, and both read the same sources; "
            "give --tokenizer_name the teacher's"
        )


def distill(
    arguments: DistillationArguments,
    model_arguments: ModelArguments,
    data: FlowDataArguments,
    training: Seq2SeqTrainingArguments,
) -> None:
    """
    Writes the teacher's answers and, unless `only_write`, trains a flow on them (`train_flow`).

    Raises:
        ValueError: for arguments that do not go together, before the teacher is asked where that can be told.
    """
    check_flow_arguments(data, model_arguments)
    if data.targets != "all":
        raise ValueError(
            f"targets={data.targets} chooses among the answers of the data, and training is on the teacher's; leave it "
            "out"
        )
    if not arguments.only_write:
        check_model_arguments(model_arguments)
    with training.main_process_first(local=False, desc="the teacher's answers"):
        if training.process_index == 0:
            trusted = model_arguments.trust_remote_code
            mask_token = read_tokenizer(arguments.teacher, trust_remote_code=trusted).mask_token
            task, splits = load_pairs(data, mask_token, training.seed)
            splits["train"] = first_rows(splits["train"], data.max_train_samples)
            if task.masks_text:
                check_mask_token(mask_token, model_arguments)
            count = write_distilled_data(
                arguments,
                task,
                splits,
                seed=training.seed,
                device=training.device,
                trust_remote_code=trusted,
                lengths=(data.max_source_length, data.max_target_length),
                fits_lengths=data.task is None,
            )
            print(f"{count:,} answers of {arguments.teacher} in {arguments.distilled_dir}", flush=True)
    if not arguments.only_write:
        train_flow(model_arguments, answers_as_data(data, arguments.distilled_dir), training)


def answers_as_data(data: FlowDataArguments, folder: str) -> FlowDataArguments:
    """Arguments for training on all answers in a folder, with lengths that fit them where none were asked for."""
    left_out = dict.fromkeys((*FILES, "source_column", "target_column", "dataset_config_name", "max_train_samples"))
    answers = replace(data, **left_out, task=str(Path(folder) / TASK_FILE), dataset_name=folder)
    answers.fits_lengths = True
    return answers


def main() -> None:
    """`examples/run_distillation.py` and `yan distill`."""
    kinds = (DistillationArguments, ModelArguments, FlowDataArguments, Seq2SeqTrainingArguments)
    parser = HfArgumentParser(kinds, description=DESCRIPTION)
    distill(*parse_arguments(parser, use_defaults=True))
