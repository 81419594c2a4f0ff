"""The quickstart as a user starts it: in a process of its own, offline."""

from ..helpers import ROOT, run_process, succeeded


def test_it_runs_offline(tmp_path):
    script = ROOT / "examples" / "quickstart.py"
    done = succeeded(run_process(script, cwd=tmp_path, finetuning_seconds=2, rows=20, speed_calls=2))
    assert done.stdout.count("draft after step 3") == 10
    assert "tokens per second" in done.stdout
    assert "are equal" in done.stdout
    assert "adapter weights" in done.stdout
