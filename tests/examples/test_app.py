"""The demo without a browser: what is shown, what is refused, and the folder that is a Space."""

import json
import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_yan import YanForConditionalGeneration, restore
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.evaluation.drafts import Position, Writing, write_with_drafts
from modeling_yan.evaluation.peers import Lane, read_peer
from modeling_yan.serving import demo_page

from ..helpers import (
    ROOT,
    YAN_E2E,
    YAN_RESTORE,
    ran,
    refused,
    run_process,
    save_tiny_peer,
    script_functions,
    succeeded,
)
from ..hub_server import hub_on_loopback, used_by_this_process

APP = "examples/app.py"
SOURCE = "name[The Vaults], eatType[pub], food[Japanese], area[riverside]"
LANE = Lane("YAN, 1 step", "eager torch", 3_381_828, "a <b>pub</b>", 5, 20.0, (19.0, 21.5), 10)


class Elements(HTMLParser):
    """All elements with their attributes, and the text; fails where a tag is not closed in its place."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, kind: str) -> list[dict]:
        return [attributes for _, attributes in self.found if kind in attributes.get("class", "").split()]


@pytest.fixture(scope="module")
def app():
    return SimpleNamespace(**script_functions(APP))


@pytest.fixture(scope="module")
def yan():
    return read_model(YanForConditionalGeneration, YAN_E2E, dtype=torch.float32), read_tokenizer(YAN_E2E)


@pytest.fixture(scope="module")
def demo(app, yan, tmp_path_factory):
    folder = save_tiny_peer(tmp_path_factory.mktemp("peer") / "tiny-bart", tokenizer=yan[1])
    return app.Demo(*yan, read_peer(str(folder)), step_seconds=0)


@pytest.fixture
def writing():
    noise = [Position("<i>", 5, 0, 0.25), Position("", 0, 1, 0.5), Position(" pub", 6, 1, 0.125)]
    first = [Position("a", 7, 0, 0.75), Position("", 0, 1, 0.5), Position(" pub", 6, 1, 0.875)]
    last = [Position("a", 7, 0, 1.0), Position(" big", 8, 1, 0.5), Position(" pub", 6, 1, 1.0)]
    return Writing([noise, first, last], num_experts=2, source_tokens=4, answer_tokens=3, milliseconds=12.4)


# What is shown


def test_positions_are_coloured_by_expert_and_confidence(writing):
    shown = Elements(demo_page.show_writing(writing, 2, "expert"))
    tokens = shown.of("yan-t")
    hues = [demo_page.hue(expert, 2) for expert in (0, 1)]
    assert abs(hues[0] - hues[1]) == 180
    assert [token["style"] for token in tokens] == [
        f"--h:{hues[0]};--p:100%",
        f"--h:{hues[1]};--p:50%",
        f"--h:{hues[1]};--p:100%",
    ]
    assert tokens[1]["title"] == "expert 2, probability 0.50"
    assert [key["style"] for key in shown.of("yan-k")] == [f"--h:{value}" for value in hues]
    assert len(shown.of("by-expert")) == 1
    assert "expert 2" in shown.text
    sure = Elements(demo_page.show_writing(writing, 2, "confidence"))
    assert len(sure.of("by-confidence")) == len(sure.of("yan-scale")) == 1
    assert not sure.of("yan-k")


def test_steps_fill_the_canvas_and_mark_what_they_changed(writing):
    noise, first, last = (Elements(demo_page.show_writing(writing, step, "expert")) for step in range(3))
    assert len(noise.of("yan-noise")) == 1
    assert not last.of("yan-noise")
    assert [len(shown.of("yan-b")) for shown in (noise, first, last)] == [1, 1, 0]
    assert [len(shown.of("yan-new")) for shown in (noise, first, last)] == [0, 1, 1]
    assert "12 ms" not in first.text
    assert "3 tokens in 12 ms" in last.text
    assert [step["class"] for step in first.of("yan-step")] == ["yan-step seen", "yan-step now", "yan-step "]
    html = demo_page.show_writing(writing, 2, "expert")
    assert "<span>a <u>big</u> pub</span>" in html
    assert "<span>a pub</span>" in html
    # What a model writes is text, never markup.
    assert "<i>" in noise.text
    assert "&lt;i&gt;" in html


def test_as_many_hues_as_experts():
    for count in (1, 4, 16):
        assert len({demo_page.hue(expert, count) for expert in range(count)}) == count


def test_what_cannot_be_shown_is_refused(writing):
    with pytest.raises(ValueError, match="coloring='size' must be one of"):
        demo_page.show_writing(writing, 0, "size")
    with pytest.raises(ValueError, match="step=3 must be between 0 and 2"):
        demo_page.show_writing(writing, 3, "expert")


def test_a_race_tells_who_won_and_how_it_was_measured():
    peer = Lane("bart", "CTranslate2 int8", None, "one two three four", 6, 80.0, (70.0, 95.0), 8)
    html = demo_page.show_race(LANE, peer, 2)
    shown = Elements(html)
    assert "YAN, 1 step had its answer 4.0 times sooner than bart" in shown.text
    assert "Both on 2 threads" in shown.text
    assert "50 times slower than the clocks" in shown.text
    assert "3.4 M parameters · eager torch · 5 tokens · median of 10 calls, quartiles 19.0 to 21.5 ms" in shown.text
    assert "80.0 ms" in shown.text
    assert "CTranslate2 int8 · 6 tokens · median of 8 calls" in shown.text
    assert "a <b>pub</b>" in shown.text
    # YAN's text comes at once at its end, the peer's word by word until its own.
    delays = [float(delay) for delay in re.findall(r"animation-delay:([\d.]+)s", html)]
    assert delays == [1.0, 1.0, 2.0, 3.0, 4.0]
    assert re.findall(r"width:([\d.]+)%", html) == ["25.0", "100.0"]
    lost = Elements(demo_page.show_race(peer, LANE, 1))
    assert "YAN, 1 step had its answer 4.0 times sooner than bart" in lost.text
    assert "Both on 1 thread," in lost.text


# What the buttons do


def test_writing_shows_every_step_and_the_text_of_the_model(app, demo, yan):
    shown = list(demo.write(SOURCE, 2, 0, "expert"))
    assert len(shown) == 3
    assert all(writing.text == write_with_drafts(*yan, SOURCE, steps=2).text for _, writing in shown)
    assert shown[-1][1].text in Elements(shown[-1][0]).text
    assert demo.recolor(shown[-1][1], "confidence") != shown[-1][0]
    assert "by-confidence" in demo.recolor(shown[-1][1], "confidence")
    assert demo.recolor(None, "confidence") == app.gr.skip()


def test_a_model_that_restores_shows_what_restore_keeps(app):
    model, tokenizer = read_model(YanForConditionalGeneration, YAN_RESTORE), read_tokenizer(YAN_RESTORE)
    demo = app.Demo(model, tokenizer, step_seconds=0)
    source = "where is teh station\n\n  - its at 9:30, see https://example.org/a-b?x=1"
    *before, (shown, writing) = demo.write(source, 1, 0, "expert")
    restored = restore(model, tokenizer, source, num_inference_steps=1).text
    assert "https://example.org/a-b?x=1" in restored != writing.text
    assert f"after restore(){restored}" in Elements(shown).text
    assert f"after restore(){restored}" in Elements(demo.recolor(writing, "confidence")).text
    assert not any("after restore()" in html for html, _ in before)


@pytest.mark.parametrize(
    ("source", "seed", "message"),
    [
        ("", 0, "source is empty; write at least one word"),
        ("pub " * 400, 0, "this model reads at most 192; shorten it by"),
        (SOURCE, None, "seed=None must be a whole number"),
        (SOURCE, -3, "seed=-3 must be a whole number"),
    ],
)
def test_bad_input_is_told_where_the_answer_would_be(demo, source, seed, message):
    for shown in ([html for html, _ in demo.write(source, 1, seed, "expert")], [demo.race(source, 1, seed)]):
        assert len(shown) == 1
        assert message in Elements(shown[0]).text
        assert Elements(shown[0]).of("yan-error")[0]["role"] == "alert"


def test_other_failures_are_not_swallowed(demo, monkeypatch):
    monkeypatch.setattr(demo.model, "generate", None)
    with pytest.raises(TypeError):
        list(demo.write(SOURCE, 1, 0, "expert"))


def test_both_race(demo):
    shown = Elements(demo.race(SOURCE, 1, 0))
    assert len(shown.of("yan-lane")) == 2
    assert "tiny-bart" in shown.text
    assert f"Both on {torch.get_num_threads()} thread" in shown.text


def test_selected_words_become_masks(demo, yan):
    assert demo.words("a pub  here") == [("a", 0), ("pub", 1), ("here", 2)]
    shown = list(demo.fill(SOURCE, [1, 2], 1, 0, "expert"))
    masked = "name[The <mask> food[Japanese], area[riverside]"
    assert {source for source, *_ in shown} == {masked}
    assert shown[-1][2].text == write_with_drafts(*yan, masked, steps=1).text
    for chosen, message in (([], "no word is selected"), ([0, 1, 2, 3, 4], "every word is selected")):
        [(source, html, writing)] = demo.fill(SOURCE, chosen, 1, 0, "expert")
        assert source == ""
        assert writing is None
        assert message in Elements(html).text


def test_tabs_are_there_where_they_make_sense(app, demo, yan):
    def tabs(*arguments) -> list[str]:
        page = app.build_app(*arguments)
        return [block.label for block in page.blocks.values() if isinstance(block, app.gr.Tab)]

    assert tabs(app.Demo(*yan), "yan-e2e") == ["Write"]
    assert tabs(demo, "yan-e2e", [SOURCE]) == ["Write", "Race"]
    assert tabs(app.Demo(*yan), "yan-e2e", (), True) == ["Write", "Fill in"]


def test_nothing_comes_from_elsewhere(app, demo):
    page = app.build_app(demo, "yan-e2e", [SOURCE], True)
    assert page.analytics_enabled is False
    assert not app.theme()._stylesheets
    assert "http" not in demo_page.CSS
    assert "url(" not in demo_page.CSS


def test_examples_are_those_of_the_card(app, tmp_path):
    assert len(app.examples_of(str(YAN_E2E))) == 4
    assert app.examples_of(str(tmp_path)) == []
    (tmp_path / "README.md").write_text("# no front matter")
    assert app.examples_of(str(tmp_path)) == []


# The command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nowhere"}, "nowhere"),
        ({"baseline": "nowhere"}, "nowhere"),
        ({"baseline": str(YAN_E2E)}, "does not write from left to right"),
        ({"baseline_compute_type": "int8"}, "--baseline_compute_type int8 is for a baseline"),
        ({"push_space": "org/space"}, "--push_space org/space needs the folder to push"),
        ({"port": 70000}, "--port 70000 must be between 1 and 65535"),
        ({"export_space": str(ROOT / "docs")}, "is not an empty folder"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    assert message in refused(APP, cwd=tmp_path, **options)


def test_infilling_needs_a_mask(tmp_path):
    model = shutil.copytree(YAN_E2E, tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (model / name).exists():
            content = json.loads((model / name).read_text())
            content.pop("mask_token", None)
            (model / name).write_text(json.dumps(content))
    assert "has no mask token" in refused(APP, cwd=tmp_path, model="model", infilling=True)


# As a Space

START = """
import runpy, sys, gradio
def launch(self, **options):
    import modeling_yan
    print("package", modeling_yan.__file__)
    print("tabs", [b.label for b in self.blocks.values() if isinstance(b, gradio.Tab)])
    print("host", options["server_name"], options["server_port"])
gradio.Blocks.launch = launch
sys.argv = ["app.py"]
sys.path.insert(0, ".")
runpy.run_path("app.py", run_name="__main__")
"""


def test_the_space_is_whole_and_reaches_the_hub(tmp_path):
    save_tiny_peer(tmp_path / "tiny-bart")
    with hub_on_loopback(tmp_path / "cache") as (environment, repositories):
        options = {
            "baseline": "tiny-bart",
            "baseline_compute_type": "int8",
            "export_space": "space",
            "push_space": "org/yan",
        }
        with used_by_this_process(environment):
            shown = ran(APP, "--infilling", cwd=tmp_path, **options)
        assert shown.splitlines() == ["a Space is in space", "and on the Hub as org/yan"]
    space = tmp_path / "space"
    files = {str(path.relative_to(space)): path.read_bytes() for path in space.rglob("*") if path.is_file()}
    assert repositories["spaces/org/yan"] == files
    assert not any("__pycache__" in name for name in files)
    assert files["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    card = ModelCard.load(space / "README.md", repo_type="space").data.to_dict()
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == version("gradio")
    assert card["python_version"] == "3.12"
    assert (space / card["app_file"]).read_bytes() == (ROOT / APP).read_bytes()
    assert len(card["short_description"]) <= 60
    needed = (space / "requirements.txt").read_text().splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in needed}
    assert names >= {"ctranslate2", "gradio", "psutil", "pyyaml", "torch", "transformers"}
    assert not names & {"pytest", "ray", "datasets"}
    # Somebody else's machine: the package is the Space's own.
    del environment["PYTHONPATH"]
    started = succeeded(run_process("-c", START, cwd=space, environment={**environment, "HF_HUB_OFFLINE": "1"}))
    lines = started.stdout.splitlines()
    assert f"package {space / 'modeling_yan' / '__init__.py'}" in lines
    assert "tabs ['Write', 'Race', 'Fill in']" in lines
    # A Space says in its environment where it listens.
    assert "host None None" in lines
