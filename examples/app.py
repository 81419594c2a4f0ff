"""
A demo to look at in a browser, offline: the canvas fills step by step, and races a baseline of your own. docs/app.md
shows it, and how it becomes a Space.

    python examples/app.py
    python examples/app.py --model examples/models/yan-e2e --export_space outputs/space

With the extra `app`: pip install -c constraints.txt -e ".[app]"
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import gradio as gr
import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_yan import Lexicon, YanForConditionalGeneration, restore
from modeling_yan.common.arguments import run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import check_config_file, push_folder, read_model, read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.data.masking import mask_words
from modeling_yan.evaluation.drafts import Writing, write_with_drafts
from modeling_yan.evaluation.peers import COMPUTE_TYPES, Peer, race, read_peer
from modeling_yan.evaluation.speed import default_device
from modeling_yan.serving.addresses import check_port_number
from modeling_yan.serving.demo_page import COLORINGS, CSS, EMPTY, show_error, show_race, show_writing
from modeling_yan.serving.space import CODE, SETTINGS, write_space

HERE = Path(__file__).resolve().parent
FOLDERS = ("model", "baseline")
MOST_STEPS = 8
# Seconds that a step is shown for before the next.
STEP_SECONDS = 0.9


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
        # A model that restores texts: how it is used shows beside what it writes by itself.
        self.restores = Lexicon.of_model(model) is not None
        # A clock is not to run for two.
        self._one_at_a_time = threading.Lock()

    def write(self, source: str, steps: int, seed: int | None, coloring: str) -> Iterator[tuple[str, Writing | None]]:
        """The canvas after every step as HTML, beginning with the noise; or what is wrong with the input."""
        try:
            with self._one_at_a_time:
                writing = write_with_drafts(self.model, self.tokenizer, source, steps=int(steps), seed=seed)
                if self.restores:
                    options = {"num_inference_steps": int(steps), "seed": int(seed)}
                    restored = restore(self.model, self.tokenizer, source, **options).text
                    writing = replace(writing, restored=restored)
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
    experts, own_steps = model.config.num_experts, model.generation_options().sampling.num_inference_steps
    with gr.Blocks(title=f"YAN · {name}", analytics_enabled=False) as app:
        gr.HTML(
            f'<div class="yan-head"><h1>YAN writes the whole answer at once</h1><p>{escape(name)} · '
            f"{model.num_parameters() / 1e6:,.1f} M parameters · {experts} expert{'s' * (experts > 1)} · "
            f'{escape(device_name(model.device))} · <a href="{CODE}">mixture-of-experts flow matching</a></p></div>',
            apply_default_css=False,
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                source = gr.Textbox(
                    label="Source", lines=4, elem_id="source", value=examples[0] if examples else "", max_lines=12
                )
                steps = gr.Slider(
                    1, MOST_STEPS, value=min(own_steps, MOST_STEPS), step=1, label="Steps", elem_id="steps"
                )
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
    beside = HERE / SETTINGS
    if beside.is_file():
        settings = json.loads(beside.read_text(encoding="utf-8"))
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
    check_port_number(arguments.port)


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
        chosen = {name: getattr(arguments, name) for name in options}
        write_space(arguments.export_space, app=Path(__file__), licence=HERE.parent / "LICENSE", **chosen)
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
