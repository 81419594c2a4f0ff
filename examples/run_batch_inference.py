r"""
Answers every source of a data set and writes JSON lines, in as many processes as accelerate starts. Interrupted, the
same command goes on where it stopped.

    python examples/run_batch_inference.py --model examples/models/yan-e2e --dataset_name ../shared/data/e2e_nlg \
        --split test --task e2e_nlg --output_dir outputs/answers
    accelerate launch --config_file configuration/accelerate/ddp.yaml examples/run_batch_inference.py …

Process r of n writes `answers-r-of-n.jsonl`: `{"index", "source", "answer", "tokens"}`, the index being the row's in
the split. An answer depends on the seed and the source alone, not on the number of processes or the batch size; only
the answers to repeated sources depend on what shares their batch. What decides the answers is kept in the folder
(`.settings.json`): a run that would write others is refused, and so is a second run at the same time.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.files import locked
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.settings import fingerprint, settle
from modeling_yan.data.loading import load_data, select_split
from modeling_yan.data.pairs import check_column
from modeling_yan.data.tasks import Task
from modeling_yan.evaluation.speed import synchronize
from modeling_yan.evaluation.text_generation import count_tokens

# Options of `generate()` that a command may change.
GENERATION_OPTIONS = ("num_inference_steps", "num_length_candidates")
# Of a config: where it was read, and by what, does not change an answer.
NOT_FINGERPRINTED = ("_name_or_path", "transformers_version", "dtype")


def load_sources(arguments: argparse.Namespace, mask_token: str | None) -> tuple[list[str], int | None]:
    """
    The sources of the split, in its order, with the model's mask token where a task masks text; and the longest that is
    read, in tokens, None for the tokenizer's limit. Answers need not be there.

    Raises:
        ValueError: for a split or columns that are not there, and for a row without a source.
    """
    rows = select_split(load_data(arguments.dataset_name), arguments.split, arguments.dataset_name)
    if not arguments.task:
        check_column(rows, arguments.column, "column", f"{arguments.dataset_name}, split {arguments.split}")
        return [str(text) for text in rows[arguments.column]], arguments.max_source_length
    task = Task.load(arguments.task).without_answers()
    return list(task.build(rows, mask_token)["source"]), arguments.max_source_length or task.max_source_length


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


def weight_parts(model: PreTrainedModel) -> Iterator:
    """Name, type and bytes of every weight."""
    for name, value in model.state_dict().items():
        yield f"{name} {value.dtype}"
        yield value.cpu().contiguous().flatten().view(torch.uint8).numpy()


def model_fingerprints(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Of the weights as they are used, and of all other files that decide what a model writes."""
    configs = (model.config.to_dict(), model.generation_config.to_dict())
    kept = [{name: value for name, value in part.items() if name not in NOT_FINGERPRINTED} for part in configs]
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    return {
        "weights": fingerprint(weight_parts(model)),
        "configs": fingerprint([json.dumps(kept, sort_keys=True, default=str)]),
        "tokenizer": fingerprint([vocabulary]),
    }


def run_settings(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    max_length: int | None,
    num_processes: int,
) -> dict:
    """All that decides which answers a run writes, and to which file, as JSON keeps it."""
    folder = Path(arguments.model)
    return {
        "model": str(folder.resolve()) if folder.is_dir() else arguments.model,
        **model_fingerprints(model, tokenizer),
        "dtype": str(model.dtype),
        "task": arguments.task,
        "sources": f"{len(sources)} rows, {fingerprint(sources)}",
        "max_source_length": max_length,
        **{name: getattr(arguments, name) for name in GENERATION_OPTIONS},
        "seed": arguments.seed,
        "processes": num_processes,
        # Only the answers to repeated sources depend on it.
        "batch_size": arguments.batch_size if len(set(sources)) < len(sources) else None,
    }


def lines_to_keep(path: Path, indices: list[int], batch_size: int) -> int:
    """
    Cuts a shard back to whole batches and returns how many of its rows are done.

    Raises:
        ValueError: if its lines are not those of this run.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        rows = [json.loads(line)["index"] for line in lines]
    except (ValueError, KeyError, TypeError):
        rows = [None]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    add = parser.add_argument
    add("--model", required=True, help="a YAN folder or Hub name")
    add("--dataset_name", required=True, help="Hub name, local folder or file")
    add("--split", default="test", help="split that is answered")
    add("--task", help="name in configuration/tasks or a YAML file; without it --column is the source")
    add("--column", default="source", help="column that is read where there is no task")
    add("--output_dir", type=Path, required=True, help="folder for the answers")
    add("--batch_size", type=int, default=64, help="rows that are answered at once")
    add("--max_source_length", type=int, help="tokens of a source, instead of the task's or the tokenizer's")
    add("--num_inference_steps", type=int, help="solver steps; the model's by default")
    add("--num_length_candidates", type=int, help="lengths that are tried; the model's by default")
    add("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    add("--seed", type=int, default=0, help="of the noise")
    arguments = parser.parse_args()
    check_positive(arguments, "batch_size", "max_source_length", "num_inference_steps", "num_length_candidates")
    return arguments


def write_answers(
    shard: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: dict[int, str],
    max_length: int | None,
    arguments: argparse.Namespace,
    progress: bool,
) -> tuple[int, int]:
    """
    Appends the answers that a shard still lacks.

    Args:
        sources: index of a row -> its source, of all rows of the shard.

    Returns:
        The number of rows that were there, and the number of tokens that were written.
    """
    indices = list(sources)
    done, tokens = lines_to_keep(shard, indices, arguments.batch_size), 0
    options = {name: getattr(arguments, name) for name in GENERATION_OPTIONS}
    with shard.open("a", encoding="utf-8") as file:
        for first in tqdm(range(done, len(indices), arguments.batch_size), desc="batches", disable=not progress):
            rows = indices[first : first + arguments.batch_size]
            texts = [sources[index] for index in rows]
            generator = torch.Generator(model.device).manual_seed(arguments.seed)
            written = answers(model, tokenizer, texts, max_length, generator=generator, **options)
            for index, source, (answer, count) in zip(rows, texts, written, strict=True):
                tokens += count
                row = {"index": index, "source": source, "answer": answer, "tokens": count}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    return done, tokens


def main() -> None:
    arguments = parse()
    state, folder = PartialState(cpu=not torch.cuda.is_available()), arguments.output_dir
    trust = {"trust_remote_code": arguments.trust_remote_code}
    tokenizer = read_tokenizer(arguments.model, **trust)
    sources, max_length = load_sources(arguments, tokenizer.mask_token)
    shard = choose_shard(folder, state)
    with locked(folder / f".lock-{state.process_index:05d}"):
        dtype = arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
        model = read_model(AutoModelForSeq2SeqLM, arguments.model, dtype=dtype, **trust).to(state.device)
        settings = run_settings(arguments, model, tokenizer, sources, max_length, state.num_processes)
        # Nobody writes before every process has its lock.
        state.wait_for_everyone()
        with state.main_process_first():
            settle(
                folder,
                settings,
                argument="--output_dir",
                written="answers-*-of-*.jsonl",
                writes=state.is_main_process,
            )
        own = {index: sources[index] for index in range(state.process_index, len(sources), state.num_processes)}
        start = time.perf_counter()
        done, tokens = write_answers(shard, model, tokenizer, own, max_length, arguments, state.is_main_process)
        synchronize()
        seconds = time.perf_counter() - start
    print(
        f"process {state.process_index}: {len(own) - done:,} rows ({done:,} were there), {tokens:,} tokens, "
        f"{tokens / seconds:,.0f} tokens per second, tokenising and writing included"
    )


if __name__ == "__main__":
    run_script(main)
