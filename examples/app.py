"""
A demo to look at in a browser, offline: the canvas fills step by step, and races a baseline of your own. docs/app.md
shows it, and how it becomes a Space.

    python examples/app.py
    python examples/app.py --model examples/models/yan-e2e --export_space outputs/space

With the extra `app`: pip install -c constraints.txt -e ".[app]"
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import gradio as gr
import torch
from huggingface_hub import ModelCard, snapshot_download
from packaging.requirements import Requirement
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

import modeling_yan
from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import check_config_file, push_folder, read_model, read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.data.masking import mask_words
from modeling_yan.evaluation.drafts import CALLS, Position, Writing, draft_text, write_with_drafts
from modeling_yan.evaluation.peers import COMPUTE_TYPES, CONVERTED, Lane, Peer, race, read_peer
from modeling_yan.evaluation.speed import default_device

HERE = Path(__file__).resolve().parent
# Beside a Space's app: the options that it starts with. Folders in it are relative to it.
SETTINGS = HERE / "app.json"
FOLDERS = ("model", "baseline")
MOST_STEPS = 8
COLORINGS = ("expert", "confidence")
# Seconds that a step is shown for before the next, and that the slower lane of a race is replayed in.
STEP_SECONDS, RACE_SECONDS = 0.9, 4.0
EMPTY = '<div class="yan"><div class="yan-empty">{}</div></div>'
CODE = "https://arxiv.org/abs/2604.15009"

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.yan-head h1 { font-size: 1.9rem; font-weight: 750; letter-spacing: -.02em; margin: 0; }
.yan-head p { margin: .15rem 0 0; opacity: .72; }
.yan { --yan-line: rgba(120, 120, 140, .22); --l: 86%; --s: 78%; --sure: #7dd3c0; --unsure: #ffc66b; --ink: #16181d;
  font-size: 1rem; line-height: 1.5; }
.dark .yan { --l: 27%; --s: 48%; --sure: #12564c; --unsure: #8a5a0a; --ink: #f2f3f5; }
.yan-panel, .yan-empty, .yan-error { border: 1px solid var(--yan-line); border-radius: 14px; padding: 18px 20px;
  background: var(--background-fill-primary); }
.yan-empty { display: grid; place-items: center; min-height: 250px; opacity: .6; text-align: center; }
.yan-error { border-color: #e5484d; border-left-width: 5px; }
.yan-top { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; margin-bottom: 14px; min-height: 34px; }
.yan-step { border: 1px solid var(--yan-line); border-radius: 999px; padding: 1px 12px; font-size: .82rem;
  opacity: .55; }
.yan-step.seen { opacity: 1; }
.yan-step.now { background: var(--ink); color: var(--background-fill-primary); opacity: 1; }
.yan-clock { margin-left: auto; font-size: .86rem; opacity: .8; font-variant-numeric: tabular-nums; }
.yan-clock b { font-size: 1.35rem; opacity: 1; }
.yan-canvas { min-height: 136px; line-height: 2.35; font-size: 1.08rem; }
.yan-t { color: var(--ink); border-radius: 6px; padding: 3px 5px; margin: 0 2px; white-space: pre-wrap;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.by-expert .yan-t, .by-expert .yan-b, .by-expert .yan-k { background: hsl(var(--h) var(--s) var(--l)); }
.by-confidence .yan-t, .by-confidence .yan-b { background: color-mix(in oklab, var(--sure) var(--p), var(--unsure)); }
.yan-b { display: inline-block; width: 6px; height: 6px; border-radius: 50%; margin: 0 2px; vertical-align: middle;
  filter: saturate(1.3) brightness(.93); }
.dark .yan-b { filter: saturate(1.3) brightness(1.35); }
.yan-noise .yan-t { filter: blur(.55px); opacity: .62; }
.yan-new { animation: yan-pop .45s ease-out; }
@keyframes yan-pop { from { opacity: .1; filter: blur(4px); } }
.yan-legend { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 14px; margin-top: 14px; padding-top: 10px;
  border-top: 1px solid var(--yan-line); font-size: .82rem; }
.yan-legend span { display: inline-flex; align-items: center; gap: 6px; }
.yan-k { width: 14px; height: 14px; border-radius: 4px; display: inline-block; }
.yan-scale { width: 110px; height: 12px; border-radius: 6px;
  background: linear-gradient(90deg in oklab, var(--unsure), var(--sure)); }
.yan-dot { width: 6px; height: 6px; border-radius: 50%; background: currentColor; opacity: .5; }
.yan-rows { margin-top: 14px; font-size: .9rem; }
.yan-rows div { display: grid; grid-template-columns: 62px 1fr; gap: 10px; padding: 5px 0;
  border-top: 1px solid var(--yan-line); }
.yan-rows div > b { opacity: .6; font-weight: 500; }
.yan-rows .noise { opacity: .55; display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical;
  overflow: hidden; }
.yan-rows u { text-decoration-thickness: 2px; text-underline-offset: 3px; text-decoration-color: #e08a00; }
.yan-lane { border: 1px solid var(--yan-line); border-radius: 14px; padding: 16px 20px; margin-bottom: 12px; }
.yan-lane header { display: flex; align-items: baseline; gap: 10px; flex-wrap: wrap; }
.yan-lane header b { font-size: 1.05rem; }
.yan-lane header .ms { margin-left: auto; font-size: 1.5rem; font-weight: 700; font-variant-numeric: tabular-nums; }
.yan-lane small { opacity: .7; display: block; }
.yan-track { height: 8px; border-radius: 4px; background: var(--yan-line); margin: 10px 0; overflow: hidden; }
.yan-track i { display: block; height: 100%; border-radius: 4px; background: hsl(250 70% 62%);
  animation: yan-run linear both; transform-origin: left; }
.yan-lane.peer .yan-track i { background: hsl(28 85% 55%); }
@keyframes yan-run { from { transform: scaleX(0); } }
.yan-lane p { min-height: 3em; margin: 6px 0 0; overflow-wrap: anywhere; }
.yan-lane p span { animation: yan-show 1ms both; }
@keyframes yan-show { from { opacity: 0; } }
.yan-verdict { font-size: 1.05rem; margin: 4px 2px 10px; }
#coloring .wrap { flex-wrap: nowrap; gap: 6px; }
#coloring label { padding: 6px 9px; }
#words .wrap { gap: 5px; }
#words label { padding: 3px 9px; }
#words input { display: none; }
#words span { margin-left: 0; }
#canvas, #lanes, #filled, #canvas > div, #lanes > div, #filled > div { padding: 0 !important; }
#examples button { text-align: left; font-size: .82rem; line-height: 1.35; padding: 6px 10px; }
@media (prefers-reduced-motion: reduce) { .yan *, .yan { animation: none !important; } }
"""


# What is shown, as HTML: functions of what was written, tested without a browser.


def hue(expert: int, num_experts: int) -> int:
    """Degrees on the colour wheel, as far apart for all experts as there is room."""
    return round(265 + 360 * expert / num_experts) % 360


def show_position(position: Position, num_experts: int, is_new: bool) -> str:
    """A coloured token, or a dot for a position that adds nothing to the text."""
    style = f"--h:{hue(position.expert, num_experts)};--p:{100 * position.probability:.0f}%"
    facts = f"expert {position.expert + 1}, probability {position.probability:.2f}"
    text = position.text.strip()
    kind = ("yan-t" if text else "yan-b") + (" yan-new" if is_new and text else "")
    return f'<span class="{kind}" style="{style}" title="{facts}">{escape(text)}</span>'


def changed(draft: Sequence[Position], before: Sequence[Position] | None) -> list[bool]:
    """Which positions hold another piece of the text than in the draft before; none where there is none before."""
    if before is None:
        return [False] * len(draft)
    return [new.text.strip() != old.text.strip() for new, old in zip(draft, before, strict=True)]


def show_canvas(draft: Sequence[Position], before: Sequence[Position] | None, num_experts: int) -> str:
    """All positions in a row; what the step changed stands out for a moment. Tokens of one word stay together."""
    shown = ""
    for position, new in zip(draft, changed(draft, before), strict=True):
        gap = " " if position.text[:1].isspace() or not position.text else ""
        shown += gap + show_position(position, num_experts, new)
    return shown


def show_legend(coloring: str, num_experts: int) -> str:
    """What the colours mean."""
    dot = '<span><i class="yan-dot"></i>a blank position</span>'
    if coloring == "confidence":
        return f'<span>unsure<i class="yan-scale"></i>sure (the decoder’s probability of the token)</span>{dot}'
    keys = "".join(
        f'<span><i class="yan-k" style="--h:{hue(expert, num_experts)}"></i>expert {expert + 1}</span>'
        for expert in range(num_experts)
    )
    return keys + dot


def show_rows(writing: Writing, step: int) -> str:
    """The drafts up to a step as plain text, changes underlined."""
    rows = f'<div><b>noise</b><span class="noise">{escape(draft_text(writing.drafts[0]))}</span></div>'
    for number in range(1, step + 1):
        before = writing.drafts[number - 1] if number > 1 else None
        draft = writing.drafts[number]
        text = "".join(
            re.sub(r"\S.*", r"<u>\g<0></u>", escape(position.text)) if new else escape(position.text)
            for position, new in zip(draft, changed(draft, before), strict=True)
        )
        rows += f"<div><b>step {number}</b><span>{text.strip()}</span></div>"
    return rows


def show_writing(writing: Writing, step: int, coloring: str) -> str:
    """
    The canvas after a step, the clock, the legend, and the drafts so far.

    Args:
        step: 0 for the noise.
        coloring: one of `COLORINGS`.

    Raises:
        ValueError: for another coloring, and for a step that there is not.
    """
    if coloring not in COLORINGS:
        raise ValueError(f"coloring={coloring!r} must be one of {COLORINGS}")
    steps = len(writing.drafts) - 1
    if not 0 <= step <= steps:
        raise ValueError(f"step={step} must be between 0 and {steps}")
    names = ["noise", *(f"step {number}" for number in range(1, steps + 1))]
    kinds = ["now" if number == step else "seen" if number < step else "" for number in range(steps + 1)]
    pills = "".join(f'<span class="yan-step {kind}">{name}</span>' for kind, name in zip(kinds, names, strict=True))
    clock = how = ""
    if step == steps:
        clock = f"{writing.answer_tokens} tokens in <b>{writing.milliseconds:.0f} ms</b>"
        how = f"median of {CALLS} calls, after two to warm up"
    before = writing.drafts[step - 1] if step else None
    canvas = show_canvas(writing.drafts[step], before, writing.num_experts)
    return (
        f'<div class="yan by-{coloring}"><div class="yan-panel">'
        f'<div class="yan-top">{pills}<span class="yan-clock" title="{how}">{clock}</span></div>'
        f'<div class="yan-canvas{"" if step else " yan-noise"}">{canvas}</div>'
        f'<div class="yan-legend">{show_legend(coloring, writing.num_experts)}</div></div>'
        f'<div class="yan-rows">{show_rows(writing, step)}</div></div>'
    )


def show_error(error: Exception) -> str:
    """What was wrong with the input, where the answer would have been."""
    return f'<div class="yan"><div class="yan-error" role="alert">{escape(str(error))}</div></div>'


def show_lane(lane: Lane, kind: str, slowdown: float) -> str:
    """
    A lane of a race, replayed by the browser: "yan" shows its text at its end, "peer" token by token, evenly over its
    time.
    """
    seconds = slowdown * lane.milliseconds / 1e3
    words = lane.text.split(" ") if kind == "peer" else [lane.text]
    text = " ".join(
        f'<span style="animation-delay:{seconds * number / len(words):.2f}s">{escape(word)}</span>'
        for number, word in enumerate(words, 1)
    )
    size = "" if lane.parameters is None else f"{lane.parameters / 1e6:,.1f} M parameters · "
    low, high = lane.quartiles
    return (
        f'<div class="yan-lane {kind}"><header><b>{escape(lane.name)}</b>'
        f'<span class="ms">{lane.milliseconds:.1f} ms</span></header>'
        f"<small>{size}{escape(lane.runtime)} · {lane.tokens} tokens · median of {lane.calls} calls, quartiles "
        f'{low:.1f} to {high:.1f} ms</small><div class="yan-track"><i style="animation-duration:{seconds:.2f}s;'
        f'width:{100 * seconds / RACE_SECONDS:.1f}%"></i></div><p>{text}</p></div>'
    )


def show_race(yan: Lane, peer: Lane, threads: int) -> str:
    """Both lanes, who was faster, and how it was measured."""
    fast, slow = sorted((yan, peer), key=lambda lane: lane.milliseconds)
    slowdown = 1e3 * RACE_SECONDS / slow.milliseconds
    ratio = slow.milliseconds / fast.milliseconds
    verdict = f"<b>{escape(fast.name)}</b> had its answer {ratio:.1f} times sooner than {escape(slow.name)}."
    how = (
        f"Both on {threads} thread{'s' * (threads != 1)}, batch size 1, warmed up, timed in turns, each as "
        f"long an answer as it finds right. The replay is {slowdown:.0f} times slower than the clocks; the words of "
        "the baseline are spread evenly over its time."
    )
    return (
        f'<div class="yan"><div class="yan-verdict">{verdict}</div>{show_lane(yan, "yan", slowdown)}'
        f"{show_lane(peer, 'peer', slowdown)}<small>{how}</small></div>"
    )


# What happens


class Demo:
    """
    What the buttons do.

    Args:
        model, tokenizer: YAN's.
        peer: what it races; None for no race.
        step_seconds: pause between the steps of a replay.
    """

    def __init__(
        self,
        model: YanForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        peer: Peer | None = None,
        step_seconds: float = STEP_SECONDS,
    ):
        self.model, self.tokenizer, self.peer, self.step_seconds = model, tokenizer, peer, step_seconds
        # A clock is not to run for two.
        self._one_at_a_time = threading.Lock()

    def write(self, source: str, steps: int, seed: int | None, coloring: str) -> Iterator[tuple[str, Writing | None]]:
        """The canvas after every step as HTML, beginning with the noise; or what is wrong with the input."""
        try:
            with self._one_at_a_time:
                writing = write_with_drafts(self.model, self.tokenizer, source, steps=int(steps), seed=seed)
        except ValueError as error:
            yield show_error(error), None
            return
        for step in range(len(writing.drafts)):
            if step:
                time.sleep(self.step_seconds)
            yield show_writing(writing, step, coloring), writing

    def recolor(self, writing: Writing | None, coloring: str) -> str | dict:
        """The last canvas in other colours; nothing where there is none."""
        if writing is None:
            return gr.skip()
        return show_writing(writing, len(writing.drafts) - 1, coloring)

    def race(self, source: str, steps: int, seed: int | None) -> str:
        """Both lanes as HTML; or what is wrong with the input."""
        try:
            with self._one_at_a_time:
                lanes = race(self.model, self.tokenizer, self.peer, source, steps=int(steps), seed=seed)
        except ValueError as error:
            return show_error(error)
        return show_race(*lanes, torch.get_num_threads())

    def words(self, text: str) -> list[tuple[str, int]]:
        """The words of a text with their places, to choose among."""
        return [(word, index) for index, word in enumerate(text.split())]

    def mask(self, text: str, masked: Sequence[int]) -> str:
        """
        The source in which the chosen words are masks.

        Raises:
            ValueError: if no word is chosen, or every one.
        """
        if not masked:
            raise ValueError("no word is selected; select the words that YAN shall write anew")
        if len(masked) >= len(text.split()):
            raise ValueError("every word is selected; leave some for YAN to read")
        return mask_words(text, set(masked), self.tokenizer.mask_token)

    def fill(
        self, text: str, masked: Sequence[int], steps: int, seed: int | None, coloring: str
    ) -> Iterator[tuple[str, str, Writing | None]]:
        """The source with its masks, and what `write` gives for it."""
        try:
            source = self.mask(text, masked)
        except ValueError as error:
            yield "", show_error(error), None
            return
        for shown, writing in self.write(source, steps, seed, coloring):
            yield source, shown, writing


def examples_of(model: str) -> list[str]:
    """The example sources that a model's card has (`widget`, as the Hub reads it)."""
    card = Path(model) / "README.md"
    if not card.is_file():
        return []
    entries = ModelCard.load(card, ignore_metadata_errors=True).data.get("widget") or []
    return [entry["text"] for entry in entries if isinstance(entry, dict) and entry.get("text")]


def theme() -> gr.themes.Base:
    """With the fonts that a reader's system has: nothing is loaded from elsewhere."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["Inter", "system-ui", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued",
        block_title_padding="0",
        block_title_text_weight="500",
    )


def build_app(demo: Demo, name: str, examples: Sequence[str] = (), infilling: bool = False) -> gr.Blocks:
    """
    The page.

    Args:
        name: of the model, for the heading.
        examples: sources to click on.
        infilling: whether the model was trained to fill masks in its source.
    """
    model, hidden = demo.model, {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title=f"YAN · {name}", analytics_enabled=False) as app:
        gr.HTML(
            f'<div class="yan-head"><h1>YAN writes the whole answer at once</h1><p>{escape(name)} · '
            f"{model.num_parameters() / 1e6:,.1f} M parameters · {model.config.num_experts} experts · "
            f'{escape(device_name(model.device))} · <a href="{CODE}">mixture-of-experts flow matching</a></p></div>',
            apply_default_css=False,
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                source = gr.Textbox(
                    label="Source", lines=4, elem_id="source", value=examples[0] if examples else "", max_lines=12
                )
                steps = gr.Slider(1, MOST_STEPS, value=3, step=1, label="Steps", elem_id="steps")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=80, scale=2)
                    coloring = gr.Radio(
                        list(COLORINGS),
                        value=COLORINGS[0],
                        label="Colour tokens by",
                        elem_id="coloring",
                        min_width=200,
                        scale=5,
                    )
                if examples:
                    gr.Examples(
                        [[text] for text in examples],
                        [source],
                        label="Examples",
                        elem_id="examples",
                        api_visibility="private",
                    )
            with gr.Column(scale=7, min_width=420), gr.Tabs():
                with gr.Tab("Write", id="write"):
                    button = gr.Button("Write", variant="primary", elem_id="write")
                    canvas = gr.HTML(EMPTY.format("The canvas"), elem_id="canvas", apply_default_css=False)
                    last = gr.State(None)
                    inputs = [source, steps, seed, coloring]
                    gr.on([button.click, source.submit], demo.write, inputs, [canvas, last], **hidden)
                    coloring.change(demo.recolor, [last, coloring], canvas, **hidden)
                if demo.peer is not None:
                    with gr.Tab("Race", id="race"):
                        start = gr.Button("Race", variant="primary", elem_id="start")
                        lanes = gr.HTML(EMPTY.format("Two lanes"), elem_id="lanes", apply_default_css=False)
                        start.click(demo.race, [source, steps, seed], lanes, api_visibility="private")
                if infilling:
                    with gr.Tab("Fill in", id="fill"):
                        words = gr.CheckboxGroup(
                            demo.words(source.value or ""), label="Select what YAN shall write anew", elem_id="words"
                        )
                        fill = gr.Button("Fill in", variant="primary", elem_id="fill")
                        masked = gr.Textbox(label="What YAN reads", interactive=False)
                        filled = gr.HTML(EMPTY.format("The canvas"), elem_id="filled", apply_default_css=False)
                        last_fill = gr.State(None)
                        source.change(
                            lambda text: gr.CheckboxGroup(demo.words(text), value=[]),
                            source,
                            words,
                            trigger_mode="always_last",
                            **hidden,
                        )
                        chosen = [source, words, steps, seed, coloring]
                        fill.click(demo.fill, chosen, [masked, filled, last_fill], **hidden)
                        coloring.change(demo.recolor, [last_fill, coloring], filled, **hidden)
    return app


# As a Space

CARD = """---
title: {title}
emoji: ⚡
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
pinned: false
short_description: Text in a few steps of mixture-of-experts flow matching
---

# {title}

A source goes in, and [YAN]({code}) writes the whole answer at once: noise becomes text in a few steps.
To start it elsewhere:

    pip install -r requirements.txt
    python app.py
"""


def space_requirements(with_ctranslate2: bool = False) -> list[str]:
    """
    What the app needs of an index: the package's own requirements and those of its extra `app`.

    Args:
        with_ctranslate2: whether CTranslate2 computes the baseline; of the extra `benchmark` that alone is needed.

    Raises:
        ValueError: if the package that is installed here is older than the extra.
    """
    try:
        extras = importlib.metadata.metadata("modeling-yan").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        extras = []
    if "app" not in extras:
        raise ValueError(
            "export_space reads the requirements of the installed package, and there is none with the extra app; "
            'pip install -c constraints.txt -e ".[app]" first'
        )
    needed = [Requirement(line) for line in importlib.metadata.requires("modeling-yan")]
    chosen = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": "app"})]
    if with_ctranslate2:
        chosen += [r for r in needed if r.name == "ctranslate2"]
    return sorted(f"{r.name}{r.specifier}" for r in chosen)


def copy_model(name: str, folder: Path) -> None:
    """Copies a model's folder, or downloads it from the Hub."""
    if Path(name).is_dir():
        shutil.copytree(name, folder)
    else:
        snapshot_download(name, local_dir=folder)


def write_space(
    folder: Path,
    *,
    model: str,
    baseline: str | None = None,
    baseline_compute_type: str | None = None,
    infilling: bool = False,
) -> None:
    """
    Writes a folder that is a Space as it stands: this app, the package, the models, and what they need.

    Args:
        folder: empty, or not there.
        model, baseline: folders or Hub names, copied.

    Raises:
        ValueError: if the folder holds something, and what `space_requirements` raises.
        OSError: if a model is not there.
    """
    check_destination(folder)
    converted = baseline is not None and (Path(baseline) / CONVERTED).is_file()
    requirements = space_requirements(with_ctranslate2=converted or baseline_compute_type is not None)
    options = {"model": model, "baseline": baseline}
    title = f"YAN {Path(model).name}"
    with whole_folder(folder) as written:
        for kind, name in options.items():
            if name is not None:
                copy_model(name, written / kind)
        package = Path(modeling_yan.__file__).parent
        shutil.copytree(package, written / "modeling_yan", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__), written / "app.py")
        shutil.copy(HERE.parent / "LICENSE", written)
        settings = {kind: kind for kind, name in options.items() if name is not None}
        settings |= {"name": Path(model).name, "infilling": infilling, "baseline_compute_type": baseline_compute_type}
        (written / SETTINGS.name).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (written / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        (written / "README.md").write_text(CARD.format(title=title, gradio=gr.__version__, code=CODE), encoding="utf-8")


# The command line


def parser() -> argparse.ArgumentParser:
    """What the command line says; beside a Space's app, its settings are the defaults."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp, allow_abbrev=False)
    made.add_argument("--model", default=str(HERE / "models" / "yan-e2e"), help="folder or Hub name of a YAN")
    made.add_argument("--name", help="of the model, for the heading; that of its folder by default")
    made.add_argument("--baseline", help="folder or Hub name of a model that writes from left to right, to race")
    made.add_argument(
        "--baseline_compute_type",
        choices=COMPUTE_TYPES,
        help="run the baseline through CTranslate2 (extra benchmark); eager torch by default",
    )
    made.add_argument("--infilling", action="store_true", help="the model was trained to fill masks in its source")
    made.add_argument("--port", type=int, help="7860 or the next that is free by default")
    made.add_argument("--host", help="127.0.0.1 by default; 0.0.0.0 to be reached from elsewhere")
    made.add_argument("--export_space", type=Path, metavar="FOLDER", help="write a Space there instead of starting")
    made.add_argument("--push_space", metavar="NAME", help="with --export_space: push it to the Hub under this name")
    if SETTINGS.is_file():
        settings = json.loads(SETTINGS.read_text(encoding="utf-8"))
        made.set_defaults(**{n: str(HERE / v) if n in FOLDERS else v for n, v in settings.items()})
    return made


def check_arguments(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: for arguments that lack another, and for a port that is none.
    """
    if arguments.baseline_compute_type and not arguments.baseline:
        raise ValueError(
            f"--baseline_compute_type {arguments.baseline_compute_type} is for a baseline; give --baseline DIR"
        )
    if arguments.push_space and not arguments.export_space:
        raise ValueError(f"--push_space {arguments.push_space} needs the folder to push; give --export_space DIR")
    if arguments.port is not None and not 0 < arguments.port < 2**16:
        raise ValueError(f"--port {arguments.port} must be between 1 and {2**16 - 1}")


def load_demo(arguments: argparse.Namespace) -> Demo:
    """
    The models, each having written once.

    Raises:
        ValueError: for a model that cannot be read or used as it is asked for.
        OSError: if there is no such model.
    """
    device = default_device()
    check_config_file(arguments.model, YanForConditionalGeneration)
    tokenizer = read_tokenizer(arguments.model)
    if arguments.infilling and tokenizer.mask_token is None:
        raise ValueError(f"--infilling: the tokenizer of {arguments.model} has no mask token; leave it out")
    model = read_model(YanForConditionalGeneration, arguments.model, dtype=torch.float32).to(device)
    peer = None
    if arguments.baseline:
        peer = read_peer(arguments.baseline, arguments.baseline_compute_type, device=device)
    demo = Demo(model, tokenizer, peer)
    for source in examples_of(arguments.model)[:1]:
        write_with_drafts(model, tokenizer, source, steps=1)
    return demo


def main() -> None:
    arguments = parser().parse_args()
    check_arguments(arguments)
    logging.disable_progress_bar()
    if arguments.export_space:
        check_config_file(arguments.model, YanForConditionalGeneration)
        options = ("model", "baseline", "baseline_compute_type", "infilling")
        write_space(arguments.export_space, **{name: getattr(arguments, name) for name in options})
        print(f"a Space is in {arguments.export_space}")
        if arguments.push_space:
            push_folder(arguments.export_space, arguments.push_space, repo_type="space")
            print(f"and on the Hub as {arguments.push_space}")
        return
    # Nothing is sent anywhere.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    demo = load_demo(arguments)
    name = arguments.name or Path(arguments.model).name
    app = build_app(demo, name, examples_of(arguments.model), arguments.infilling)
    app.queue(default_concurrency_limit=4)
    app.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        theme=theme(),
        css=CSS,
        ssr_mode=False,
        share=False,
        footer_links=[],
    )


if __name__ == "__main__":
    run_script(main)
