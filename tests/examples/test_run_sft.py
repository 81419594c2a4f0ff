"""TRL's supervised fine-tuning by the script."""

from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from ..helpers import ON_CPU, ran, refused

SCRIPT = "examples/run_sft.py"


def test_it_trains_an_adapter_on_conversations(workspace):
    rows = load_dataset(str(workspace / "data"))["train"]
    roles = {"user": "meaning_representation", "assistant": "human_reference"}
    turns = [{"messages": [{"role": role, "content": row[c]} for role, c in roles.items()]} for row in rows]
    (workspace / "chat").mkdir()
    Dataset.from_list(turns).to_parquet(workspace / "chat" / "train.parquet")
    options = {
        "model_name_or_path": "autoencoder",
        "dataset_name": "chat",
        "output_dir": "sft",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "max_length": 64,
        "use_lora": True,
        "bf16": False,
        **ON_CPU,
    }
    assert "chat_template" in refused(SCRIPT, cwd=workspace, **options)
    tokenizer = AutoTokenizer.from_pretrained(workspace / "autoencoder")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(workspace / "templated")
    ran(SCRIPT, cwd=workspace, tokenizer_name="templated", **options)
    assert (workspace / "sft" / "adapter_model.safetensors").exists()
