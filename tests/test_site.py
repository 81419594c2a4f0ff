"""The site of docs/: it builds without a warning, loads nothing from elsewhere, and links lead where they should."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers import ROOT

REPOSITORY = "https://example.org/yan"


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


def build(folder: Path, **environment) -> Path:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", **environment}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("site"), REPO_URL="")


def test_every_page_is_there_and_the_reference_has_the_public_classes(site):
    pages = [*(ROOT / "docs").rglob("*.md"), *(Path("docs") / page for page in hooks.PAGES_ELSEWHERE.values())]
    for page in pages:
        name = "" if page.stem == "index" else page.stem
        folder = "api" if page.parent.name == "api" else ""
        assert (site / folder / name / "index.html").is_file(), page
    models = (site / "api" / "models" / "index.html").read_text(encoding="utf-8")
    for name in ("forward", "from_encoder", "log_likelihood"):
        assert f'id="modeling_yan.modeling_yan.YanForConditionalGeneration.{name}"' in models
    fields = (site / "api" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert "(<code>int</code>, <em>optional</em>)" in fields
    assert "<code>`" not in fields


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(https?:|//)|<link\b[^>]*\bhref=\"?(https?:|//)")
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8"), sheet


def test_files_that_are_no_pages_are_copied_where_the_repository_has_no_address(site):
    recipe = (site / "files" / "configuration" / "training" / "default.yaml" / "index.html").read_text(encoding="utf-8")
    assert "per_device_train_batch_size" in recipe
    assert (site / "files" / "benchmarks" / "results" / "own_data.json").is_file()


@pytest.mark.parametrize(
    ("link", "alone", "with_address"),
    [
        ("[a](training.md#the-loss)", "[a](training.md#the-loss)", None),
        ("[a](#here) [b](https://arxiv.org)", "[a](#here) [b](https://arxiv.org)", None),
        ("[a](../CONTRIBUTING.md#code)", "[a](contributing.md#code)", None),
        ("![a](../benchmarks/results/scan_cpu.png)", "![a](files/benchmarks/results/scan_cpu.png)", None),
        (
            "[`a`](../configuration/training/default.yaml)",
            "[`a`](files/configuration/training/default.yaml.md)",
            f"[`a`]({REPOSITORY}/blob/main/configuration/training/default.yaml)",
        ),
        (
            "[a](../benchmarks/results/own_data.json)",
            "[a](files/benchmarks/results/own_data.json)",
            f"[a]({REPOSITORY}/blob/main/benchmarks/results/own_data.json)",
        ),
        ("in [tasks](../configuration/tasks)", "in tasks", f"in [tasks]({REPOSITORY}/tree/main/configuration/tasks)"),
        ("`x[0](training.md)`", "`x[0](training.md)`", None),
        ("```python\n[a](../LICENSE)\n```\n", "```python\n[a](../LICENSE)\n```\n", None),
    ],
)
def test_links_lead_to_what_the_site_has(link, alone, with_address):
    assert hooks.rewrite_links(link, "docs/page.md", None) == alone
    assert hooks.rewrite_links(link, "docs/page.md", REPOSITORY) == (with_address or alone)


def test_links_of_pages_that_lie_elsewhere_are_read_from_their_place():
    text = "[a](docs/own_data.md) ![b](docs/images/architecture.svg)"
    assert hooks.rewrite_links(text, "README.md", None) == "[a](own_data.md) ![b](images/architecture.svg)"
    card = "examples/models/yan-e2e/README.md"
    assert hooks.rewrite_links("[a](../../../docs/log.md#x)", card, None) == "[a](log.md#x)"
    assert hooks.rewrite_links("[a](../own_data.md)", "docs/api/training.md", None) == "[a](../own_data.md)"


def test_a_link_to_nothing_is_a_warning(caplog):
    text = "[a](../configuration/nothing.yaml)"
    assert hooks.rewrite_links(text, "docs/page.md", None) == text
    assert "docs/page.md links to configuration/nothing.yaml" in caplog.text


def test_a_notebook_becomes_texts_code_and_what_it_printed():
    notebook = """{"cells": [
        {"cell_type": "markdown", "source": ["# Title\\n", "Text."]},
        {"cell_type": "code", "source": ["print(1)\\n", "2"], "outputs": [
            {"output_type": "stream", "text": ["1\\n"]},
            {"output_type": "stream", "name": "stderr", "text": ["a warning"]},
            {"output_type": "execute_result", "data": {"text/plain": ["2"]}}
        ]}]}"""
    printed = "``` { .text .printed }\n"
    page = f"# Title\nText.\n\n```python\nprint(1)\n2\n```\n\n{printed}1\n```\n\n{printed}2\n```\n"
    assert hooks.notebook_page(notebook) == page
