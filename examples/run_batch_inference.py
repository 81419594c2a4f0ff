"""
Answers every source of a data set and writes JSON lines, in as many processes as accelerate starts. Interrupted, the same command
goes on where it stopped.

    python examples/run_batch_inference.py --model examples/models/yan-e2e --dataset_name ../shared/data/e2e_nlg --split test \
        --task e2e_nlg --output_dir outputs/answers
    accelerate launch --config_file configuration/accelerate/ddp.yaml examples/run_batch_inference.py …

Process r of n writes `answers-r-of-n.jsonl`: `{"index", "source", "answer", "tokens"}`, the index being the row's in the split. An
answer depends on the seed and the source alone, not on the number of processes or the batch size; only the answers to repeated
sources depend on what shares their batch.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import modeling_yan  # noqa: F401  (the Auto classes)
from modeling_yan.evaluation.speed import count_tokens, synchronize
from modeling_yan.training.scripts import run_script
from modeling_yan.training.tasks import Task


def lines_to_keep(path: Path, indices: list[int], batch_size: int) -> int:
    """
    Cuts a shard back to whole batches and returns how many of its rows are done.

    Raises:
        ValueError: if its lines are not those of this run.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = [json.loads(line)["index"] for line in lines]
    if rows != indices[: len(rows)]:
        raise ValueError(f"{path} holds other rows than this run would write; choose another --output_dir")
    done = len(rows) if len(rows) == len(indices) else len(rows) // batch_size * batch_size
    path.write_bytes(b"".join(line + b"\n" for line in lines[:done]))
    return done


def answers(model, tokenizer, sources: list[str], arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Answer and number of tokens of every source of a batch."""
    batch = tokenizer(
        sources, return_tensors="pt", padding=True, truncation=True, max_length=arguments.max_source_length
    ).to(model.device)
    options = {name: getattr(arguments, name) for name in ("num_inference_steps", "num_length_candidates")}
    ids = model.generate(
        **batch,
        generator=torch.Generator(model.device).manual_seed(arguments.seed),
        **{name: value for name, value in options.items() if value is not None},
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for text, row in zip(texts, ids):
        yield text.strip(), count_tokens(row.unsqueeze(0), tokenizer.pad_token_id, tokenizer.eos_token_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YAN folder or Hub name")
    parser.add_argument("--dataset_name", required=True, help="Hub name or local folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--task", help="name in configuration/tasks or a YAML file; without it --column is the source")
    parser.add_argument("--column", default="source")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_source_length", type=int)
    parser.add_argument("--num_inference_steps", type=int)
    parser.add_argument("--num_length_candidates", type=int)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    state = PartialState(cpu=not torch.cuda.is_available())
    splits = load_dataset(arguments.dataset_name)
    if arguments.split not in splits:
        raise ValueError(f"--split {arguments.split} is not in {arguments.dataset_name}; it has {sorted(splits)}")
    data, column = splits[arguments.split], arguments.column
    if arguments.task:
        task = Task.load(arguments.task)
        data, column = task.build(data), "source"
        arguments.max_source_length = arguments.max_source_length or task.max_source_length
    if column not in data.column_names:
        raise ValueError(f"--column {column} is not in the data; it has {data.column_names}")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    shard = arguments.output_dir / f"answers-{state.process_index:05d}-of-{state.num_processes:05d}.jsonl"
    others = [p.name for p in arguments.output_dir.glob("answers-*-of-*.jsonl") if p.name[-10:] != shard.name[-10:]]
    if others:
        raise ValueError(
            f"--output_dir {arguments.output_dir} holds shards of another number of processes: {others[0]}"
        )
    indices = list(range(state.process_index, len(data), state.num_processes))
    done = lines_to_keep(shard, indices, arguments.batch_size)
    dtype = arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=dtype).to(state.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokens, start = 0, time.perf_counter()
    with shard.open("a", encoding="utf-8") as file:
        starts = range(done, len(indices), arguments.batch_size)
        for first in tqdm(starts, desc="batches", disable=not state.is_main_process):
            rows = indices[first : first + arguments.batch_size]
            sources = [str(text) for text in data[rows][column]]
            for index, source, (answer, count) in zip(rows, sources, answers(model, tokenizer, sources, arguments)):
                tokens += count
                row = {"index": index, "source": source, "answer": answer, "tokens": count}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    synchronize()
    seconds = time.perf_counter() - start
    print(
        f"process {state.process_index}: {len(indices) - done:,} rows ({done:,} were there), {tokens:,} tokens, "
        f"{tokens / seconds:,.0f} tokens per second, tokenising and writing included"
    )


if __name__ == "__main__":
    run_script(main)
