"""The notebooks run from top to bottom. What they print depends on the machine and is not compared."""

import nbformat
import pytest
from nbclient import NotebookClient

from .helpers import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# What makes a notebook quick here: a line of it, and what stands in its place.
SHORTER = {"train_on_your_csv.ipynb": {"updates = 200\n": "updates = 2\n", "range(2_200)": "range(200)"}}


def test_there_are_notebooks_and_their_pages_have_outputs():
    assert {path.name for path in NOTEBOOKS} == {"first_steps.ipynb", "train_on_your_csv.ipynb"}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert {output.output_type for output in printed} <= {"stream", "execute_result"}
        assert len(printed) > 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    # Remote code, temporary folders and data are this test's own; one thread, since another test runs beside it.
    for name in ("HF_HOME", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TMPDIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    for line, shorter in SHORTER.get(path.name, {}).items():
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and line in cell.source)
        cell.source = cell.source.replace(line, shorter)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
