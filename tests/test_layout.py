"""
The house: imports run one way, Hub files travel alone, and nothing reaches into what is private to another module.
"""

import ast
import sys
from pathlib import Path

import pytest

from .helpers import HUB_FILES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_yan"
# Each may import from those before it, and from itself.
LAYERS = ["common", "data", "evaluation", "training", "serving"]
SCRIPTS = ["conversion", "examples", "benchmarks"]
INNER_FILES = sorted(path for layer in LAYERS for path in (PACKAGE / layer).glob("*.py"))
SCRIPT_FILES = sorted(path for folder in SCRIPTS for path in (ROOT / folder).glob("*.py"))
TRAVELS_WITH = {"torch", "transformers", "huggingface_hub"}
# What other libraries keep private and have no public door for.
ALLOWED_PRIVATE = {
    "_attn_implementation",  # PreTrainedConfig
    "_prepare_inputs",  # Trainer
    "_get_output_dir",
    "_actions",  # ArgumentParser
    "_overloadpacket",  # torch's dispatched functions
    "_extract_corpus_statistics",  # sacrebleu, to score resampled rows
    "_compute_score_from_stats",
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_import_each_other_flat_and_nothing_else_of_ours(path):
    for level, module in imports(path):
        if level:
            assert level == 1
            assert (PACKAGE / f"{module}.py").exists(), module
        else:
            top = module.split(".")[0]
            assert top in TRAVELS_WITH or top in sys.stdlib_module_names, module


def test_hub_files_import_each_other_without_a_circle():
    graph = {path.stem: {module for level, module in imports(path) if level} for path in HUB_FILES}
    while graph:
        free = {name for name, needed in graph.items() if not needed & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in free}


@pytest.mark.parametrize("path", INNER_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_inside_the_package_run_one_way(path):
    own = LAYERS.index(path.parent.name)
    for level, module in imports(path):
        parts = module.split(".")
        assert level == 0
        assert parts[0] not in SCRIPTS
        if parts[0] == "modeling_yan" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS.index(parts[1]) <= own, module


@pytest.mark.parametrize("path", SCRIPT_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_script_imports_another(path):
    names = {other.stem for other in SCRIPT_FILES}
    assert not [module for _, module in imports(path) if module.split(".")[0] in {*names, *SCRIPTS}]


@pytest.mark.parametrize("path", [*INNER_FILES, *SCRIPT_FILES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_reaches_into_what_is_private_to_another(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else None
        if owner in ("self", "cls") or node.attr in defined | ALLOWED_PRIVATE:
            continue
        raise AssertionError(f"line {node.lineno}: {ast.unparse(node)}")
