"""
Every command that a page, a card, a docstring or the Makefile prints is one: its script is there and reads it, and the
files, tasks, presets and lengths that it names exist and fit.
"""

import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from modeling_yan import YanConfig
from modeling_yan.common.overrides import load_preset, parse_overrides
from modeling_yan.data.tasks import Task

from .helpers import ROOT, parse_command

PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md"),
    *sorted(ROOT.glob("examples/models/*/README.md")),
    *sorted(ROOT.glob("CONTRIBUTING.md")),
]
SCRIPTS = sorted(path for folder in ("examples", "benchmarks", "conversion") for path in (ROOT / folder).glob("*.py"))
RECIPES = sorted((ROOT / "configuration").glob("*/*.yaml"))
SCRIPT = r"(?:examples|benchmarks|conversion)/\w+\.py"
COMMAND = re.compile(rf"(?:\w+=\S+ )*(?:python|(?:accelerate launch|torchrun)\b[^#]*?) (?P<line>{SCRIPT}(?: .*)?)$")
# The console command's, over the same code.
CONSOLE = {"train": "run_flow", "distill": "run_distillation", "evaluate": "run_evaluation"}
# What stands for a value of the reader's own.
PLACEHOLDERS = {"N": "1", "X": "1", "TASK": "pairs", "NAME": "pairs"}
# Folders of this repository; what else a command names is the reader's, or written by another command.
OURS = re.compile(r"(?:configuration|examples|benchmarks|conversion|docs|tests)/")


@dataclass(frozen=True)
class Command:
    """
    Args:
        place: file that prints it.
        script: what it runs.
        arguments: those of the script.
        elided: whether the line leaves arguments out ("…").
    """

    place: str
    script: str
    arguments: tuple[str, ...]
    elided: bool

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join([self.script, *self.arguments])}"


def shell_lines(text: str) -> Iterator[str]:
    """
    Lines with their continuations joined, prompts and indentation removed, variables and loops of this text
    filled in: `A=b`, and `for A in b c; do` until `done`.
    """
    values: dict[str, list[str]] = {}
    for raw in re.sub(r"\\\n\s*", "", text).splitlines():
        line = raw.strip().removeprefix("$ ")
        if loop := re.match(r"for (\w+) in (.+); *do$", line):
            values[loop[1]] = loop[2].split()
        elif set_ := re.match(r"(?:export )?([A-Z]\w*)=(\"[^\"]*\"|'[^']*'|[^\s\"']*)(?:\s+#.*)?$", line):
            values[set_[1]] = list(expand(set_[2].strip("\"'"), values))
        else:
            yield from expand(line, values)


def expand(line: str, values: dict[str, list[str]]) -> Iterator[str]:
    """One line for each combination of its variables' values; an unknown variable stands for its name."""
    names = sorted(set(re.findall(r"\$\{?(\w+)\}?", line)), key=len, reverse=True)
    for combination in itertools.product(*(values.get(name, [name]) for name in names)):
        filled = line
        for name, value in zip(names, combination, strict=True):
            filled = re.sub(rf"\$(?:\{{{name}\}}|{name}\b)", lambda _, value=value: value, filled)
        yield filled


def commands_of(place: str, text: str) -> Iterator[Command]:
    """Commands on lines of their own and in `inline code`; optional parts are left out once and kept once."""
    inline = re.findall(rf"(?<!`)`((?:python|accelerate launch) [^`]*?{SCRIPT}[^`]*)`", text.replace("\n", " "))
    for line in [*shell_lines(text), *inline]:
        line = re.sub(rf"^yan ({'|'.join(CONSOLE)})\b", lambda yan: f"python examples/{CONSOLE[yan[1]]}.py", line)
        match = COMMAND.match(line)
        if match is None:
            continue
        optional = re.compile(r"(?<=\s)\[([^\]]*)\]")
        for form in dict.fromkeys((optional.sub("", match["line"]), optional.sub(r"\1", match["line"]))):
            script, *arguments = shlex.split(form, comments=True)
            elided = bool({"…", "..."} & set(arguments))
            arguments = [PLACEHOLDERS.get(a, a) for a in arguments if a not in ("…", "...")]
            yield Command(place, script, tuple(arguments), elided)


def all_commands() -> list[Command]:
    texts = {path: path.read_text(encoding="utf-8") for path in PAGES}
    texts |= {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in SCRIPTS}
    texts[ROOT / "Makefile"] = (ROOT / "Makefile").read_text().replace("$(BIN)/", "")
    for path in RECIPES:
        comments = re.findall(r"^# ?(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        texts[path] = "\n".join(comments)
    found = [c for path, text in texts.items() for c in commands_of(str(path.relative_to(ROOT)), text)]
    return list(dict.fromkeys(found))


COMMANDS = all_commands()


@pytest.fixture(scope="module")
def by_place() -> dict[str, list[Command]]:
    return {place: list(group) for place, group in itertools.groupby(COMMANDS, key=lambda command: command.place)}


def config_of(parsed) -> YanConfig | None:
    """Of the model that a command reads or makes, where this repository knows it."""
    folder = getattr(parsed, "model", None) or getattr(parsed, "model_name_or_path", None)
    overrides = parse_overrides(getattr(parsed, "config_overrides", None))
    if folder is None:
        return load_preset(parsed.preset, **overrides) if getattr(parsed, "preset", None) else None
    path = ROOT / folder / "config.json"
    return YanConfig.from_dict(json.loads(path.read_text()), **overrides) if path.is_file() else None


def check(command: Command) -> None:
    """
    Raises:
        AssertionError: for a command that cannot be run as it is printed.
        ValueError: for a task, a preset or an override that there is not.
        OSError: as ValueError.
    """
    assert (ROOT / command.script).is_file(), f"there is no {command.script}"
    for argument in command.arguments:
        if OURS.match(argument) and not argument.startswith("benchmarks/results"):
            assert (ROOT / argument.split(":")[0]).exists(), f"there is no {argument}"
    parsed = parse_command(command.script, *command.arguments, only_flags=command.elided)
    if command.elided:
        return
    if getattr(parsed, "task", None):
        Task.load(str(ROOT / parsed.task) if parsed.task.endswith(".yaml") else parsed.task)
    config = config_of(parsed)
    # The benchmarks make a preset as long as they need it.
    if config is None or (command.script.startswith("benchmarks/") and getattr(parsed, "model", None) is None):
        return
    read = max(lengths_of(parsed, "source_length", "max_source_length", "max_length"), default=0)
    written = max(lengths_of(parsed, "lengths", "length", "target_length", "max_target_length"), default=0)
    longest = config.max_position_embeddings
    assert read <= longest, f"{read} tokens are read, the model has {longest} positions"
    assert written * config.canvas_ratio <= longest, (
        f"{written} tokens are written on {config.canvas_ratio} positions each, the model has {longest} positions"
    )


def lengths_of(parsed, *names: str) -> list[int]:
    values = [getattr(parsed, name, None) for name in names]
    return [n for value in values for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]


@pytest.mark.parametrize("place", sorted({command.place for command in COMMANDS}))
def test_every_printed_command_is_one(place, by_place):
    wrong = []
    for command in by_place[place]:
        try:
            check(command)
        except (AssertionError, ValueError, OSError) as error:
            wrong.append(f"{command}\n    {error}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_commands_are_found_in_every_script_and_in_the_readme():
    """A pattern that no longer matched would let everything pass."""
    places = {command.place for command in COMMANDS}
    assert {"README.md", "Makefile"} <= places
    assert {c.script for c in COMMANDS if c.place == "docs/own_data.md"} == {
        f"examples/{n}.py" for n in ("run_batch_inference", "run_evaluation", "run_flow")
    }
    without = {"examples/rewards.py"}
    assert {str(path.relative_to(ROOT)) for path in SCRIPTS} - places <= without
    assert len(COMMANDS) > 40


def test_the_reader_of_commands_knows_continuations_comments_loops_and_optional_parts():
    text = r"""
    CUT="--max_rows 3"
    for A in x y; do
      python examples/run_a.py --model $A $CUT \
          --n N  # it's a note
    done
and `python conversion/b.py "name[A], food[B]" [--flag]` or `accelerate launch --p 2 examples/c.py …`
"""
    text = "    yan train --max_steps 3\n    yan dream\n" + text
    found = [(c.script, c.arguments, c.elided) for c in commands_of("here", text)]
    assert found == [
        ("examples/run_flow.py", ("--max_steps", "3"), False),
        ("examples/run_a.py", ("--model", "x", "--max_rows", "3", "--n", "1"), False),
        ("examples/run_a.py", ("--model", "y", "--max_rows", "3", "--n", "1"), False),
        ("conversion/b.py", ("name[A], food[B]",), False),
        ("conversion/b.py", ("name[A], food[B]", "--flag"), False),
        ("examples/c.py", (), True),
    ]


def test_every_make_target_that_is_named_is_one():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?:^    |^\s*\$ |`)make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, page
