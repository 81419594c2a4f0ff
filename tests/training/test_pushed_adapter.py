"""An adapter trained by the script, pushed to a Hub on loopback, and loaded from there by somebody else."""

import pytest
import torch
from datasets import load_dataset
from peft import AutoPeftModelForSeq2SeqLM

from ..helpers import E2E_DATA, ON_CPU, ROOT, YAN_E2E, run_process, succeeded
from ..hub_server import hub_on_loopback

PULL = """
import torch
from peft import AutoPeftModelForSeq2SeqLM
model = AutoPeftModelForSeq2SeqLM.from_pretrained("org/yan-lora", trust_remote_code=True, dtype=torch.float32).eval()
print(model(input_ids=torch.arange(4, 12)[None]).logits.double().abs().sum().item())
"""


def test_adapter_reaches_the_hub_with_a_card_that_names_its_base(tmp_path):
    (tmp_path / "data").mkdir()
    load_dataset(str(E2E_DATA))["test"].select(range(24)).to_parquet(tmp_path / "data" / "train.parquet")
    # The Hub's address is read when huggingface_hub is imported, so that both sides are processes of their own.
    with hub_on_loopback(tmp_path / "cache") as (environment, repositories):
        trained = run_process(
            ROOT / "examples" / "run_flow.py",
            cwd=tmp_path,
            environment=environment,
            model_name_or_path=YAN_E2E,
            task="e2e_nlg",
            dataset_name="data",
            output_dir="out",
            max_steps=3,
            learning_rate=0.01,
            use_lora=True,
            per_device_train_batch_size=8,
            save_strategy="no",
            push_to_hub=True,
            hub_model_id="org/yan-lora",
            **ON_CPU,
        )
        succeeded(trained)
        card = repositories["org/yan-lora"]["README.md"].decode()
        assert f"base_model: {YAN_E2E}" in card
        assert "library_name: peft" in card
        assert "trained from scratch" not in card
        pulled = succeeded(run_process("-c", PULL, cwd=tmp_path, environment=environment))
    local = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    logits = local.eval()(input_ids=torch.arange(4, 12)[None]).logits
    with local.disable_adapter():
        assert not torch.allclose(local(input_ids=torch.arange(4, 12)[None]).logits, logits)
    assert float(pulled.stdout) == pytest.approx(logits.double().abs().sum().item(), rel=1e-5)
