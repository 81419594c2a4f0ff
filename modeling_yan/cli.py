"""
The console command, over the same code as the scripts in `examples/`.

    yan train --train_file my.csv --source_column question --target_column answer
    yan train flow_labels.yaml --dataset_name DATA
    yan distill --teacher DIR --distilled_dir DIR --train_file my.csv --source_column question --target_column answer
    yan evaluate --model outputs/yan --test_file test.csv
    yan generate --model outputs/yan "a text of your own"
    yan restore --model examples/models/yan-restore notes.txt > restored.txt
    yan export --model outputs/yan --output_dir outputs/onnx
    yan serve --model outputs/yan --port 8000
    yan lm-eval --model yan --model_args pretrained=outputs/yan --include_path my_tasks --tasks my_task
"""

import argparse
import functools
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration, restore
from modeling_yan.common.arguments import check_positive, not_installed, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.evaluation.text_generation import iterate_answers


class Command(NamedTuple):
    """
    Args:
        module, function: what reads `sys.argv`; imported when the command is run, since answering needs nothing of what
            training needs.
        extra: of the package, what has to be installed; None where nothing has.
        description: for people.
    """

    module: str
    function: str
    extra: str | None
    description: str


COMMANDS = {
    "train": Command("modeling_yan.training.flow", "main", "train", "train a model on source-target pairs"),
    "distill": Command("modeling_yan.training.distillation", "main", "train", "train on the answers of a teacher"),
    "evaluate": Command("modeling_yan.evaluation.evaluate", "main", "eval", "measure quality and speed on a task"),
    "generate": Command("modeling_yan.cli", "generate", None, "answer texts"),
    "restore": Command("modeling_yan.cli", "restore_document", None, "give a document back restored"),
    "export": Command("modeling_yan.serving.export", "main", "export", "write a model as graphs for ONNX Runtime"),
    "serve": Command("modeling_yan.serving.server", "main", "serving", "answer over HTTP, as OpenAI's completions API"),
    "lm-eval": Command("modeling_yan.cli", "lm_eval", "lm-eval", "run EleutherAI's harness, with the model yan"),
}


def generate() -> None:
    """
    `yan generate`: one line for each text, from the command line or else from standard input.

    Raises:
        ValueError: for an empty text.
    """
    parser = argparse.ArgumentParser(description="Answers texts, one line each.", formatter_class=ScriptHelp)
    parser.add_argument("--model", required=True, help="Folder or Hub name, of a model or of an adapter.")
    parser.add_argument("--num_inference_steps", type=int, help="Solver steps; those of the model by default.")
    parser.add_argument("--batch_size", type=int, default=32, help="Texts that are answered at once.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run code that comes with a tokenizer.")
    parser.add_argument("texts", nargs="*", help="Sources; the lines of standard input by default.")
    arguments = parser.parse_args()
    check_positive(arguments, "num_inference_steps", "batch_size")
    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin]
    trust = {"trust_remote_code": arguments.trust_remote_code}
    tokenizer = read_tokenizer(arguments.model, **trust)
    model = read_model(YanForConditionalGeneration, arguments.model, **trust)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    check_texts(texts, tokenizer)
    options = {"generator": torch.Generator(model.device).manual_seed(arguments.seed)}
    if arguments.num_inference_steps is not None:
        options["num_inference_steps"] = arguments.num_inference_steps
    for answers in iterate_answers(model, tokenizer, texts, batch_size=arguments.batch_size, **options):
        print(*answers, sep="\n", flush=True)


def check_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Says which texts are read in part.

    Raises:
        ValueError: for an empty text, to which there is no answer.
    """
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"text {number} is empty; leave it out")
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if tokens > tokenizer.model_max_length:
            print(
                f"text {number} has {tokens:,} tokens, of which the first {tokenizer.model_max_length:,} are read",
                file=sys.stderr,
            )


def restore_document() -> None:
    """
    `yan restore`: a document from a file, else from standard input, to standard output.

    Raises:
        ValueError: for a file that cannot be read as UTF-8.
    """
    parser = argparse.ArgumentParser(
        description="Restores punctuation, capitals and typing errors of a document of any length.",
        formatter_class=ScriptHelp,
    )
    parser.add_argument("--model", required=True, help="Folder or Hub name.")
    parser.add_argument("--min_confidence", type=float, help="Edits that are less probable are left out, 0 to 1.")
    parser.add_argument("--split_lines", action="store_true", help="Every line is a text of its own.")
    parser.add_argument("--batch_size", type=int, default=32, help="Pieces that are restored at once.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run code that comes with a tokenizer.")
    parser.add_argument("file", nargs="?", type=Path, help="UTF-8; standard input by default.")
    arguments = parser.parse_args()
    check_positive(arguments, "batch_size")
    try:
        # As bytes: reading as text would change line breaks.
        text = (sys.stdin.buffer.read() if arguments.file is None else arguments.file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file {arguments.file or 'standard input'}: {error}; pass a text in UTF-8") from error
    trust = {"trust_remote_code": arguments.trust_remote_code}
    tokenizer = read_tokenizer(arguments.model, **trust)
    model = read_model(YanForConditionalGeneration, arguments.model, **trust)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    options = {"min_confidence": arguments.min_confidence, "split_lines": arguments.split_lines}
    restored = restore(model, tokenizer, text, batch_size=arguments.batch_size, **options)
    sys.stdout.write(restored.text)


def lm_eval() -> None:
    """
    `yan lm-eval`: lm-eval's own command line, after the model `yan` was put into its table. Releases of lm-eval after
    0.4.13 find the model themselves, by the entry point of this package.
    """
    importlib.import_module("modeling_yan.evaluation.lm_eval_adapter")
    importlib.import_module("lm_eval.__main__").cli_evaluate()


def run(name: str) -> None:
    """
    Runs a command, which reads the arguments.

    Raises:
        ValueError: where packages that it needs are not installed.
    """
    command = COMMANDS[name]
    try:
        getattr(importlib.import_module(command.module), command.function)()
    except ModuleNotFoundError as error:
        if command.extra is None:
            raise
        raise not_installed(f"yan {name}", error.name, command.extra) from error


def main() -> None:
    """Runs a subcommand; `yan COMMAND --help` lists its arguments."""
    listed = "\n".join(f"    yan {name:10}{command.description}" for name, command in COMMANDS.items())
    description = f"Mixture-of-experts flow matching for text.\n\n{listed}"
    parser = argparse.ArgumentParser(prog="yan", description=description, formatter_class=ScriptHelp)
    parser.add_argument("command", choices=COMMANDS, help="What to do; yan COMMAND --help lists its options.")
    command = parser.parse_args(sys.argv[1:2]).command
    # What stands behind it is the subcommand's, which calls itself by both words.
    sys.argv = [f"yan {command}", *sys.argv[2:]]
    run_script(functools.partial(run, command))


if __name__ == "__main__":
    main()
