"""An adapter trained by the script, pushed to a Hub on loopback, and loaded from there by somebody else."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import AutoPeftModelForSeq2SeqLM

from ..hub_server import hub_on_loopback

ROOT = Path(__file__).parents[2]
BASE = str(ROOT / "examples" / "models" / "yan-e2e")


def test_adapter_reaches_the_hub_with_a_card_that_names_its_base(tmp_path):
    rows = load_dataset(str(ROOT / "examples" / "data" / "e2e_nlg"))["test"].select(range(24))
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    with hub_on_loopback(tmp_path / "cache") as (environment, repositories):
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable, str(ROOT / "examples" / "run_flow.py"), "--model_name_or_path", BASE, "--task", "e2e_nlg",
            "--dataset_name", "data", "--output_dir", "out", "--max_steps", "3", "--learning_rate", "0.01", "--use_lora", "--use_cpu",
            "--report_to", "none", "--per_device_train_batch_size", "8", "--save_strategy", "no", "--push_to_hub",
            "--hub_model_id", "org/yan-lora",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        pushed = repositories["org/yan-lora"]
        card = pushed["README.md"].decode()
        assert f"base_model: {BASE}" in card
        assert "library_name: peft" in card
        assert "trained from scratch" not in card
        code = (
            "import torch; from peft import AutoPeftModelForSeq2SeqLM as A;"
            "m = A.from_pretrained('org/yan-lora', trust_remote_code=True, dtype=torch.float32).eval();"
            "print(m(input_ids=torch.arange(4, 12)[None]).logits.double().abs().sum().item())"
        )
        pulled = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert pulled.returncode == 0, pulled.stderr[-2000:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    local = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    logits = local.eval()(input_ids=torch.arange(4, 12)[None]).logits
    with local.disable_adapter():
        assert not torch.allclose(local(input_ids=torch.arange(4, 12)[None]).logits, logits)
    assert abs(float(pulled.stdout) / logits.double().abs().sum().item() - 1) < 1e-5
