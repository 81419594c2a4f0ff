"""Two real processes over gloo: the loss curve and the weights of one process with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file

from modeling_yan import YanForConditionalGeneration
from modeling_yan.training.checkpoints import last_complete_checkpoint
from modeling_yan.training.tokenization import train_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).parent / "two_processes.py")
CONFIGS = ROOT / "configuration" / "accelerate"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def execute(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-90:])
    return done.stdout + done.stderr


def accelerate_launch() -> list[str]:
    port = ["--main_process_port", str(free_port())]
    return ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu_2proc.yaml"), *port]


def torchrun() -> list[str]:
    return ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]


def results(folder: Path) -> tuple[list[float], dict]:
    curve = [entry["loss"] for entry in json.loads((folder / "logs.json").read_text())]
    return curve, load_file(folder / "final" / "model.safetensors")


def same(one: Path, two: Path) -> None:
    """Sums over processes round differently, and Adam turns the last bits of tiny gradients into steps."""
    (curve, weights), (curve_2, weights_2) = results(one), results(two)
    assert curve[0] > curve[-1]
    assert curve_2 == pytest.approx(curve, rel=2e-4)
    assert weights.keys() == weights_2.keys()
    for name, value in weights.items():
        assert (value - weights_2[name]).abs().max() < 5e-4, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "arguments": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
            "config": {"flow_mixer": "mamba"},
        },
        pytest.param({"arguments": {"bf16": True}}, marks=pytest.mark.slow),
    ],
    ids=["plain", "accumulated-checkpointed-mamba", "bf16"],
)
def test_two_data_parallel_processes_train_like_one(tmp_path, options):
    execute(SCRIPT, "ddp", "one", json.dumps(options), cwd=tmp_path)
    execute(*accelerate_launch(), SCRIPT, "ddp", "two", json.dumps(options), cwd=tmp_path)
    if options.get("arguments", {}).get("bf16"):
        (curve, _), (curve_2, _) = results(tmp_path / "one"), results(tmp_path / "two")
        assert curve_2 == pytest.approx(curve, rel=0.02)
    else:
        same(tmp_path / "one", tmp_path / "two")
    # What two processes saved, one loads.
    checkpoint = last_complete_checkpoint(tmp_path / "two")
    assert checkpoint.name == "checkpoint-4"
    assert (checkpoint / "rng_state_1.pth").exists()
    YanForConditionalGeneration.from_pretrained(checkpoint)


@pytest.mark.slow
def test_compiled_training_gives_the_same_curve(tmp_path):
    """Traced by dynamo and run by its eager backend, which needs no compiler on the machine."""
    execute(SCRIPT, "ddp", "plain", "{}", cwd=tmp_path)
    compiled = {"arguments": {"torch_compile": True, "torch_compile_backend": "eager"}}
    execute(SCRIPT, "ddp", "compiled", json.dumps(compiled), cwd=tmp_path)
    same(tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.parametrize(
    "config",
    [pytest.param({}, marks=pytest.mark.slow), {"encoder_mixer": "mamba", "flow_mixer": "mamba"}],
    ids=["attention", "mamba"],
)
def test_two_sharded_processes_train_like_one(tmp_path, config):
    options = json.dumps({"config": config})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    execute(SCRIPT, "fsdp2", "one", options, cwd=tmp_path)
    execute(*torchrun(), SCRIPT, "fsdp2", "two", options, cwd=tmp_path)
    same(tmp_path / "one", tmp_path / "two")
    texts = [json.loads((tmp_path / name / "text.json").read_text()) for name in ("one", "two")]
    assert len(texts[1]) == len(texts[0]) == 2
    YanForConditionalGeneration.from_pretrained(tmp_path / "two" / "final")


def test_the_training_script_under_accelerate_launch(tmp_path):
    texts = ["a cheap pub near the river", "an expensive restaurant", "the Vaults", "kid friendly coffee in the centre"]
    train_tokenizer(texts, 300, 32).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    rows = [{"source": s, "target": t} for s in texts for t in texts]
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    Dataset.from_list(rows[:3]).to_parquet(tmp_path / "data" / "test.parquet")
    execute(
        *accelerate_launch(), str(ROOT / "examples" / "run_flow.py"), "--task", "pairs", "--dataset_name", "data",
        "--tokenizer_name", "tokenizer", "--max_source_length", "32", "--max_target_length", "32", "--config_overrides",
        "{hidden_size: 16, encoder_layers: 1, flow_layers: 2, max_position_embeddings: 32}", "--output_dir", "out",
        "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "2",
        "--eval_strategy", "steps", "--eval_steps", "2", "--report_to", "none", "--disable_tqdm", "True", "--use_cpu",
        cwd=tmp_path,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["updates"], report["processes"], report["batch_size"]) == (4, 2, 4)
    YanForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_every_accelerate_config_is_one():
    from accelerate.commands.config.config_args import load_config_from_file

    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {"cpu_2proc", "ddp", "fsdp2", "deepspeed_zero3"}
    for name in names:
        loaded = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
        assert loaded.num_machines == 1
    from .two_processes import WRAPPED

    wrapped = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    assert tuple(wrapped.split(",")) == WRAPPED
