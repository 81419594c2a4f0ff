"""
Turns a fine-tuned causal or sequence-to-sequence model into a YAN: writes the teacher's answers as a data set, one per
distinct source (sequence-level distillation, Kim and Rush 2016), and trains YAN on them. Interrupted writing resumes.

    python examples/run_distillation.py --teacher outputs/gpt2-e2e --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --distilled_dir outputs/distilled-e2e --model_name_or_path outputs/autoencoder --output_dir outputs/yan-e2e
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from run_flow import DataArguments, train
from transformers import (
    AutoTokenizer,
    HfArgumentParser,
    Seq2SeqTrainingArguments,
)

from modeling_yan.evaluation.text_generation import iterate_answers, load_text_model
from modeling_yan.training.scripts import ModelArguments, parse_arguments, run_script
from modeling_yan.training.sources import cross_fields, drop_fields
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.training.tokenization import set_truncation_side


@dataclass
class DistillationArguments:
    teacher: str = field(metadata={"help": "Folder or Hub name of the teacher."})
    distilled_dir: str = field(metadata={"help": "Where the data set of the teacher's answers goes."})
    teacher_batch_size: int = field(default=64, metadata={"help": "Rows a generate() call of the teacher answers."})
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


def write_answers(
    arguments: DistillationArguments, sources: list[str], task: Task, folder: Path, device: torch.device
) -> None:
    """Appends the teacher's answers, written on `device`, to answers.jsonl, going on after the last complete line."""
    path = folder / "answers.jsonl"
    done = []
    if path.exists():
        lines = path.read_bytes().split(b"\n")[:-1]
        done = [json.loads(line) for line in lines]
        if [row["source"] for row in done] != sources[: len(done)]:
            raise ValueError(f"{path} holds answers to other sources; choose another distilled_dir or delete it")
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    if len(done) == len(sources):
        return
    teacher = load_text_model(arguments.teacher).to(device)
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher, trust_remote_code=True)
    set_truncation_side(tokenizer, task.truncation_side)
    rest = sources[len(done) :]
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
    with path.open("a", encoding="utf-8") as file:
        position = 0
        for batch in answers:
            for source, target in zip(rest[position : position + len(batch)], batch, strict=True):
                file.write(json.dumps({"source": source, "target": target}) + "\n")
            position += len(batch)
            file.flush()


def write_data_set(arguments: DistillationArguments, data: DataArguments, seed: int, device: torch.device) -> None:
    """
    `distilled_dir` becomes a data set: the teacher's answers as targets to train on, and as references of made-up sources; given ones
    and the other splits keep their own references.
    """
    task = Task.load(data.task)
    splits = load_splits(data.dataset_name, task)
    folder = Path(arguments.distilled_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sources = list(dict.fromkeys(splits["train"]["source"]))
    held_out = {source for name, split in splits.items() if name != "train" for source in split["source"]}
    given = list(sources)
    for make, count in ((drop_fields, arguments.extra_sources), (cross_fields, arguments.crossed_sources)):
        if count:
            sources += make(given, count, arguments.field_separator, seed, held_out | set(sources))
    write_answers(arguments, sources, task, folder, device)
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    known = {row["source"]: row["references"] for row in group_references(splits["train"])}
    rows = [{**row, "references": known.get(row["source"], [row["target"]])} for row in rows if row["target"]]
    if not rows:
        raise ValueError(f"teacher {arguments.teacher} answered every source with nothing; is it trained on this task?")
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    for name in [s for s in ("validation", "test") if s in splits]:
        group_references(splits[name]).to_parquet(folder / f"{name}.parquet")
    print(f"{len(rows):,} answers of {arguments.teacher} in {folder}")


def main() -> None:
    parser = HfArgumentParser((DistillationArguments, ModelArguments, DataArguments, Seq2SeqTrainingArguments))
    arguments, model_arguments, data, training = parse_arguments(parser)
    write_data_set(arguments, data, training.seed, training.device)
    if not arguments.only_write:
        training.predict_with_generate = True
        data.task, data.dataset_name = "pairs", arguments.distilled_dir
        train(model_arguments, data, training)


if __name__ == "__main__":
    run_script(main)
