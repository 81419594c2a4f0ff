"""What several test files share: tiny models and inputs, pinned draws, scripts run in this process or in their own."""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import random
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from modeling_yan import YanConfig, YanForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
# What travels with a saved model.
HUB_FILES = [*sorted((ROOT / "modeling_yan").glob("*_yan.py")), ROOT / "modeling_yan" / "handler.py"]
YAN_E2E, YAN_RESTORE = (ROOT / "examples" / "models" / name for name in ("yan-e2e", "yan-restore"))
E2E_DATA = ROOT / "examples" / "data" / "e2e_nlg"
VOCAB_SIZE = 53
# Short texts to train a tokenizer on, and to answer each other with.
TEXTS = ["a cheap pub near the river", "an expensive restaurant", "the Vaults", "kid friendly coffee in the centre"]
# Options of every training script. The precision is named: to measure which is faster takes seconds in each process.
ON_CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}
# Loss terms that are not defined on a canvas with blanks.
WITH_BLANKS = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}


# Models and inputs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_config(**overrides) -> YanConfig:
    options = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "encoder_layers": 2,
        "flow_layers": 3,
        "decoder_layers": 1,
        "cross_attention_layers": [0, 2],
        "num_experts": 3,
        "gate_hidden_size": 20,
        "hidden_dropout_prob": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mask_token_id": 3,
    }
    return YanConfig(**{**options, **overrides})


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter, biases and norms included, values that no symmetry hides behind."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_model(model_class=YanForConditionalGeneration, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    return randomize(model_class(tiny_config(**overrides)), seed).eval()


def source_batch(lengths=(7, 4, 5), seed: int = 0, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, max length) and mask, padded on one side."""
    generator = seeded(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(ids.shape[1] - length, None)
        ids[row, place] = torch.randint(4, VOCAB_SIZE, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def target_labels(lengths=(6, 3, 5), seed: int = 1, side: str = "right") -> torch.Tensor:
    """Labels (B, max length), padded with -100 on one side."""
    ids, mask = source_batch(lengths, seed, side)
    return ids.masked_fill(mask == 0, -100)


def pinned_draws(rows: int, positions: int, seed: int = 0, hidden_size: int = 16, num_experts: int = 3) -> dict:
    """All that training draws, as keyword arguments of `forward`."""
    generator = seeded(seed)
    return {
        "prior_noise": torch.randn(rows, positions, hidden_size, generator=generator),
        "timesteps": torch.rand(rows, generator=generator),
        "expert_indices": torch.randint(num_experts, (rows, positions), generator=generator),
    }


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: CLS begins a text and SEP ends it; there is no EOS."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "pub", "##s", "near"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def tiny_bert(folder: Path | None = None, seed: int = 0, **sizes) -> BertModel:
    """A BERT over the entries of `word_piece_tokenizer`, saved to a folder with it where one is given."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": 9,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
    }
    bert = randomize(BertModel(BertConfig(**{**options, **sizes}))).eval()
    if folder is not None:
        bert.save_pretrained(folder)
        word_piece_tokenizer().save_pretrained(folder)
    return bert


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word for every id of a tiny model: w4, w5, … behind padding, BOS, EOS and mask; EOS ends a text."""
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    words = [*special, *(f"w{i}" for i in range(len(special), VOCAB_SIZE))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w4"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tiny_peer(folder: Path, kind: str = "bart", tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """A random BART or GPT-2 with a tokenizer, that of `word_tokenizer` by default; its answers are long."""
    tokenizer = tokenizer or word_tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if kind == "bart":
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        ffn = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 1, "forced_eos_token_id": None}
        peer = BartForConditionalGeneration(BartConfig(d_model=16, max_position_embeddings=130, **sizes, **ffn, **ids))
    else:
        peer = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=130, **ids))
    randomize(peer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fingerprint(model: torch.nn.Module) -> str:
    """Changes with any weight, flag, field of the config or generation option."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode())
        digest.update(value.detach().contiguous().view(torch.uint8).numpy())
    flags = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    settings = [model.training, flags, model.config.to_dict(), model.generation_config.to_dict()]
    digest.update(json.dumps(settings, default=str, sort_keys=True).encode())
    return digest.hexdigest()


# Scripts


@dataclass
class Finished:
    """What is left of a command: as `subprocess.CompletedProcess`, for one that ran in this process, too."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def no_traces() -> Iterator[None]:
    """Puts back what code changes in this process: seeds, threads, dtype, environment, logging, accelerate's state."""
    environment = dict(os.environ)
    states = random.getstate(), torch.get_rng_state()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    reset_accelerate()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        transformers_logging.set_verbosity(verbosity)
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
        reset_accelerate()


def reset_accelerate() -> None:
    """One process has one device, precision and number of processes, unless it is made to forget them."""
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@contextlib.contextmanager
def logs_to(stream: io.TextIOBase) -> Iterator[None]:
    """What libraries log goes where a process of its own would have its stderr."""
    names = list(logging.root.manager.loggerDict)
    handlers = [h for name in names for h in logging.getLogger(name).handlers if type(h) is logging.StreamHandler]
    before = [handler.setStream(stream) for handler in handlers]
    # A process of its own would show warnings that no handler takes.
    warnings = logging.StreamHandler(stream)
    warnings.setLevel(logging.WARNING)
    logging.root.addHandler(warnings)
    try:
        yield
    finally:
        logging.root.removeHandler(warnings)
        for handler, old in zip(handlers, before):
            if old is not None:
                handler.setStream(old)


def flags(**options) -> list[str]:
    """Options as a command line has them: `steps=[1, 3], use_lora=True` is `--steps 1 3 --use_lora`."""
    arguments = []
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{name}", *map(str, values)]
    return arguments


def run_script_main(path: str | Path, *arguments, cwd: Path, **options) -> Finished:
    """
    `python path arguments... --options` in the folder `cwd`, but in this process: starting an interpreter and importing
    take longer than most tests. `run_process` is for the few that need a process.

    Args:
        path: below the root of the repository, or absolute.
        *arguments: anything with a text form.
        cwd: the folder to run in.
        **options: see `flags`.
    """
    script = ROOT / path
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_traces())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(logs_to(err))
        patch.setattr(sys, "argv", [str(script), *map(str, arguments), *flags(**options)])
        patch.setenv("COLUMNS", "200")
        patch.chdir(cwd)
        try:
            runpy.run_path(str(script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = 0 if end.code is None else end.code
            if not isinstance(status, int):
                print(status, file=sys.stderr)
                status = 1
    return Finished(status, out.getvalue(), err.getvalue())


def ran(path: str | Path, *arguments, cwd: Path, **options) -> str:
    """Runs a script that must succeed; returns what it prints."""
    done = run_script_main(path, *arguments, cwd=cwd, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def refused(path: str | Path, *arguments, cwd: Path, **options) -> str:
    """Runs a script that must end with status 2 and one line of explanation, which is returned."""
    return the_error(run_script_main(path, *arguments, cwd=cwd, **options))


def the_error(done: Finished | subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]


def script_functions(path: str | Path) -> dict:
    """What a script defines, without running it."""
    return runpy.run_path(str(ROOT / path))


class Parsed(BaseException):
    """Leaves a script as soon as it has read its command line; nothing in it catches this."""

    def __init__(self, parser: argparse.ArgumentParser, values: dict):
        self.parser, self.values = parser, values


def parse_command(path: str | Path, *arguments, cwd: Path = ROOT, only_flags: bool = False) -> SimpleNamespace:
    """
    What a script's own parser makes of a command line; the script goes no further.

    Args:
        path: the script.
        *arguments: of the command line.
        cwd: the folder that recipes are looked up in.
        only_flags: check no more than that the script has these flags; for a command that leaves some out.

    Returns:
        Every option by its name.
    """
    on_cpu = not torch.cuda.is_available()
    parse_args, parse_dataclasses = argparse.ArgumentParser.parse_args, HfArgumentParser.parse_args_into_dataclasses

    def stop_after_arguments(parser, args=None, namespace=None):
        raise Parsed(parser, {} if only_flags else vars(parse_args(parser, args, namespace)))

    def stop_after_dataclasses(parser, args=None, **options):
        if only_flags:
            raise Parsed(parser, {})
        args = list(sys.argv[1:] if args is None else args)
        # bf16 is refused where neither a GPU nor use_cpu says that it is meant.
        args += ["--use_cpu"] if on_cpu and "--use_cpu" in parser._option_string_actions else []
        # Without it unknown flags are an error.
        options.pop("return_remaining_strings", None)
        filled = parse_dataclasses(parser, args=args, **options)
        fields = [(part, field.name) for part in filled for field in dataclasses.fields(part)]
        raise Parsed(parser, {name: getattr(part, name) for part, name in fields})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_after_arguments)
        patch.setattr(HfArgumentParser, "parse_args_into_dataclasses", stop_after_dataclasses)
        try:
            done = run_script_main(path, *arguments, cwd=cwd)
        except Parsed as parsed:
            if only_flags:
                known = parsed.parser._option_string_actions
                unknown = [a for a in map(str, arguments) if a.startswith("--") and a.split("=")[0] not in known]
                assert not unknown, f"{path} has no {unknown}"
            return SimpleNamespace(**parsed.values)
    raise AssertionError(f"{path} does not read {list(map(str, arguments))}: {done.stderr[-2000:]}")


def process_environment(**variables: str) -> dict[str, str]:
    """This process's environment with the package in reach, offline, on as many threads as this process has."""
    threads = str(torch.get_num_threads())
    fixed = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "COLUMNS": "200"}
    return {**os.environ, **fixed, **variables}


def run_process(
    *command, cwd: Path, environment: dict[str, str] | None = None, **options
) -> subprocess.CompletedProcess:
    """`python command... --options` in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, command), *flags(**options)],
        cwd=cwd,
        env=environment or process_environment(),
        capture_output=True,
        text=True,
    )


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-90:])
    return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accelerate_launch() -> list[str]:
    """What starts two processes on a CPU; a script and its arguments follow."""
    config = str(ROOT / "configuration" / "accelerate" / "cpu_2proc.yaml")
    return ["-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", str(free_port())]


def run_two_processes(*command, cwd: Path, **options) -> None:
    """
    `python command... --options` in two processes over gloo, which must succeed. They get the environment that
    `accelerate launch` would give them, without a third process that imports torch to start them.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = [sys.executable, *map(str, command), *flags(**options)]
    with contextlib.ExitStack() as stack:
        logs, processes = [], []
        for rank in map(str, range(2)):
            environment = process_environment(**shared, RANK=rank, LOCAL_RANK=rank, ACCELERATE_USE_CPU="true")
            logs.append(stack.enter_context(tempfile.TemporaryFile("w+")))
            process = subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=logs[-1], stderr=subprocess.STDOUT)
            # A process whose peer has failed would wait for it.
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        while None in (ended := [process.poll() for process in processes]) and not any(ended):
            time.sleep(0.05)
        for log, status in zip(logs, ended, strict=True):
            log.seek(0)
            assert not status, "\n".join(log.read().splitlines()[-90:])


class Stranger:
    """
    A Python process that cannot import modeling_yan, with an empty cache of remote code: somebody else's machine. It is
    started once and runs every piece of code it is given in fresh globals.
    """

    PROGRAM = """
        import contextlib, io, json, os, sys, traceback

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "modeling_yan":
                    raise ModuleNotFoundError("modeling_yan is not installed here")

        sys.meta_path.insert(0, Blocked())
        # The pipes are for requests and answers alone: whatever asks a question reads nothing.
        requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        for line in requests:
            request = json.loads(line)
            os.chdir(request["cwd"])
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    exec(request["code"], {"__name__": "__main__"})
                answer = {"out": out.getvalue()}
            except BaseException:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)
    """

    def __init__(self, folder: Path):
        self._log = (folder / "stderr.txt").open("w+")
        environment = process_environment(HF_MODULES_CACHE=str(folder / "modules"))
        del environment["PYTHONPATH"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.PROGRAM)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def run(self, code: str, cwd: Path) -> str:
        """Runs code in a folder; returns what it prints."""
        request = {"code": textwrap.dedent(code), "cwd": str(cwd)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the process ended: {self._log.read()[-3000:]}")
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["out"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()


# Folders


def copies(folder: Path, **sources: Path) -> Path:
    """Copies of shared folders, so that a test may do with them what it likes."""
    for name, source in sources.items():
        shutil.copytree(source, folder / name)
    return folder
