"""
Fine-tunes a pretrained encoder to mark where an answer begins and ends, which is what most people would try first where
answers stand in the text, and scores the texts it marks as YAN's answers are scored.

    python benchmarks/run_span_baseline.py --encoder NAME_OR_DIR --dataset_name ../shared/data/squad \
        --learning_rate 1e-4 --output_dir outputs/span-squad
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from modeling_yan.common.arguments import parse_arguments, run_script
from modeling_yan.common.hub import read_tokenizer, readable
from modeling_yan.data.loading import first_rows, load_data, require_columns, select_split
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.trainer import KnownLengthsTrainer

# Tokens of the longest answer that is marked.
LONGEST_ANSWER = 30


@dataclass
class SpanArguments:
    encoder: str = field(metadata={"help": "Folder or Hub name of the pretrained encoder."})
    dataset_name: str = field(
        metadata={"help": "Hub name or local folder with SQuAD's columns: question, context, answers."}
    )
    max_source_length: int = field(default=256, metadata={"help": "Tokens of question and context."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    training_flops: float | None = field(
        default=None, metadata={"help": "Train for this many FLOPs instead of max_steps."}
    )


def encode(tokenizer: PreTrainedTokenizerBase, questions: list[str], contexts: list[str], longest: int):
    """Question and context as one text of two parts; of the context as much as fits."""
    return tokenizer(questions, contexts, truncation="only_second", max_length=longest, return_offsets_mapping=True)


def mark_answers(rows: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int) -> Dataset:
    """Ids of each row, and the tokens that its shortest answer begins and ends with; (0, 0) where it was cut off."""

    def mark(batch: dict) -> dict:
        encoded = encode(tokenizer, batch["question"], batch["context"], longest)
        offsets, starts, ends = encoded.pop("offset_mapping"), [], []
        for row, answers in enumerate(batch["answers"]):
            text, begin = min(zip(answers["text"], answers["answer_start"], strict=True), key=lambda pair: len(pair[0]))
            parts = encoded.sequence_ids(row)
            held = [
                token
                for token, (left, right) in enumerate(offsets[row])
                if parts[token] == 1 and left < begin + len(text) and right > begin
            ]
            whole = bool(held) and offsets[row][held[-1]][1] >= begin + len(text)
            starts.append(held[0] if whole else 0)
            ends.append(held[-1] if whole else 0)
        return {**encoded, "start_positions": starts, "end_positions": ends}

    return rows.map(mark, batched=True, remove_columns=rows.column_names, desc="mark answers")


def best_span(start: torch.Tensor, end: torch.Tensor, allowed: torch.Tensor) -> tuple[int, int]:
    """The most probable pair of ends (L,), (L,), both at `allowed` tokens (L,) and in their order."""
    scores = start.unsqueeze(1) + end.unsqueeze(0)
    ordered = torch.ones_like(scores, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    scores = scores.masked_fill(~(ordered & allowed.unsqueeze(1) & allowed), -torch.inf)
    return divmod(int(scores.argmax()), len(start))


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, longest: int, batch_size: int
) -> list[str]:
    """The marked text of each row."""
    model.eval()
    found = []
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        encoded = encode(tokenizer, batch["question"], batch["context"], longest)
        offsets = encoded.pop("offset_mapping")
        outputs = model(**tokenizer.pad(encoded, return_tensors="pt").to(model.device))
        for row, context in enumerate(batch["context"]):
            allowed = torch.tensor([part == 1 for part in encoded.sequence_ids(row)])
            logits = (x[row, : len(allowed)].float().cpu() for x in (outputs.start_logits, outputs.end_logits))
            first, last = best_span(*logits, allowed)
            found.append(context[offsets[row][first][0] : offsets[row][last][1]])
    return found


def main() -> None:
    arguments, training = parse_arguments(HfArgumentParser((SpanArguments, TrainingArguments)))
    resume = prepare_run(training)
    tokenizer = read_tokenizer(arguments.encoder)
    splits = load_data(arguments.dataset_name)
    rows = select_split(splits, "train", arguments.dataset_name)
    require_columns(rows.column_names, ("question", "context", "answers"), arguments.dataset_name)
    with readable(arguments.encoder):
        model = AutoModelForQuestionAnswering.from_pretrained(arguments.encoder, dtype=torch.float32)
    trainer = KnownLengthsTrainer(
        model=model,
        args=training,
        train_dataset=mark_answers(rows, tokenizer, arguments.max_source_length),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    report = {"architecture": "span", "train_rows": len(rows)}
    report |= run_training(trainer, training_flops=arguments.training_flops, resume=resume)
    for name in sorted({"validation", "test"} & {*splits}):
        held_out = first_rows(splits[name], arguments.max_eval_samples)
        marked = answer(model, tokenizer, held_out, arguments.max_source_length, training.per_device_eval_batch_size)
        references = [answers["text"] for answers in held_out["answers"]]
        report[name] = {"rows": len(held_out), **score_texts(marked, references)}
    finish_run(trainer, report)


if __name__ == "__main__":
    run_script(main)
