r"""
Answers every source of a data set and writes JSON lines, in as many processes as accelerate starts. Interrupted, the
same command goes on where it stopped.

    python examples/run_batch_inference.py --model examples/models/yan-e2e --dataset_name ../shared/data/e2e_nlg \
        --split test --task e2e_nlg --output_dir outputs/answers
    accelerate launch --config_file configuration/accelerate/ddp.yaml examples/run_batch_inference.py …

Process r of n writes `answers-r-of-n.jsonl`: `{"index", "source", "answer", "tokens"}`, the index being the row's in
the split. An answer depends on the seed and the source alone, not on the number of processes or the batch size; only
the answers to repeated sources depend on what shares their batch.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import modeling_yan  # noqa: F401  (the Auto classes)
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.data.loading import load_data, require_columns, select_split
from modeling_yan.data.tasks import Task
from modeling_yan.evaluation.speed import count_tokens, synchronize


def load_sources(arguments: argparse.Namespace) -> tuple[list[str], int | None]:
    """
    The sources of the split, in its order, and the longest that is read, in tokens; None for the tokenizer's limit.
    """
    rows, column = select_split(load_data(arguments.dataset_name), arguments.split, arguments.dataset_name), "source"
    if not arguments.task:
        column = arguments.column
        require_columns(rows.column_names, [column], arguments.dataset_name)
        return [str(text) for text in rows[column]], arguments.max_source_length
    task = Task.load(arguments.task)
    return list(task.build(rows)[column]), arguments.max_source_length or task.max_source_length


def choose_shard(folder: Path, state: PartialState) -> Path:
    """
    The file of this process.

    Raises:
        ValueError: if the folder holds shards of another number of processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / f"answers-{state.process_index:05d}-of-{state.num_processes:05d}.jsonl"
    ending = f"-of-{state.num_processes:05d}.jsonl"
    others = [path.name for path in folder.glob("answers-*-of-*.jsonl") if not path.name.endswith(ending)]
    if others:
        raise ValueError(f"--output_dir {folder} holds shards of another number of processes: {others[0]}")
    return shard


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


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: list[str], max_length: int | None, **options
) -> Iterator[tuple[str, int]]:
    """
    Answer and number of tokens of every source of a batch.

    Args:
        max_length: longest source, in tokens.
        **options: of `generate()`; None leaves one to the model.
    """
    cut = {"truncation": True, "max_length": max_length}
    batch = tokenizer(sources, return_tensors="pt", padding=True, **cut).to(model.device)
    ids = model.generate(**batch, **{name: value for name, value in options.items() if value is not None})
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for text, row in zip(texts, ids, strict=True):
        yield text.strip(), count_tokens(row.unsqueeze(0), tokenizer.pad_token_id, tokenizer.eos_token_id)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="a YAN folder or Hub name")
    add("--dataset_name", required=True, help="Hub name, local folder or file")
    add("--split", default="test")
    add("--task", help="name in configuration/tasks or a YAML file; without it --column is the source")
    add("--column", default="source")
    add("--output_dir", type=Path, required=True)
    add("--batch_size", type=int, default=64)
    add("--max_source_length", type=int)
    add("--num_inference_steps", type=int)
    add("--num_length_candidates", type=int)
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check_positive(arguments, "batch_size", "max_source_length", "num_inference_steps", "num_length_candidates")
    return arguments


def main() -> None:
    arguments = parse()
    state = PartialState(cpu=not torch.cuda.is_available())
    sources, max_length = load_sources(arguments)
    shard = choose_shard(arguments.output_dir, state)
    indices = list(range(state.process_index, len(sources), state.num_processes))
    done = lines_to_keep(shard, indices, arguments.batch_size)
    dtype = arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=dtype).to(state.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    options = {name: getattr(arguments, name) for name in ("num_inference_steps", "num_length_candidates")}
    tokens, start = 0, time.perf_counter()
    with shard.open("a", encoding="utf-8") as file:
        starts = range(done, len(indices), arguments.batch_size)
        for first in tqdm(starts, desc="batches", disable=not state.is_main_process):
            rows = indices[first : first + arguments.batch_size]
            texts = [sources[index] for index in rows]
            generator = torch.Generator(model.device).manual_seed(arguments.seed)
            written = answers(model, tokenizer, texts, max_length, generator=generator, **options)
            for index, source, (answer, count) in zip(rows, texts, written, strict=True):
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
