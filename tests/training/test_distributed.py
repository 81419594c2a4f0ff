"""Two real processes over gloo: the loss curve and the weights of one process with the same global batch."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from safetensors.torch import load_file

from modeling_yan import YanForConditionalGeneration
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.checkpoints import last_complete_checkpoint

from ..helpers import ON_CPU, ROOT, TEXTS, accelerate_launch, run_process, run_two_processes, succeeded
from .two_processes import WRAPPED, build, run_jobs

SCRIPT = Path(__file__).parent / "two_processes.py"
CONFIGS = ROOT / "configuration" / "accelerate"
MAMBA = {"encoder_mixer": "mamba", "flow_mixer": "mamba"}
JOBS = {
    "plain": {"kind": "ddp"},
    "grouped-by-length": {"kind": "ddp", "arguments": {"train_sampling_strategy": "group_by_length"}},
    "accumulated-checkpointed-mamba": {
        "kind": "ddp",
        "arguments": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        "config": {"flow_mixer": "mamba"},
    },
    "sharded-mamba": {"kind": "fsdp2", "config": MAMBA},
}
LONG_JOBS = {"bf16": {"kind": "ddp", "arguments": {"bf16": True}}, "sharded-attention": {"kind": "fsdp2"}}


def run_in_one_and_two_processes(folder: Path, jobs: dict[str, dict]) -> Path:
    """What a job writes is below `one` and `two`. All jobs of two processes share one start."""
    one, two = (
        [{**job, "output": str(folder / count / name)} for name, job in jobs.items()] for count in ("one", "two")
    )
    run_jobs(one)
    run_two_processes(SCRIPT, json.dumps(two), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return run_in_one_and_two_processes(tmp_path_factory.mktemp("distributed"), JOBS)


def results(folder: Path) -> tuple[list[float], dict]:
    curve = [entry["loss"] for entry in json.loads((folder / "logs.json").read_text())]
    return curve, load_file(folder / "final" / "model.safetensors")


def same(one: Path, two: Path) -> None:
    """Sums over processes round differently, and Adam turns the last bits of tiny gradients into steps."""
    (curve, weights), (curve_2, weights_2) = results(one), results(two)
    start = build(YanForConditionalGeneration.from_pretrained(one / "final").config.to_dict()).state_dict()
    assert len(curve) == 4
    assert any((value - start[name]).abs().max() > 0.01 for name, value in weights.items())
    assert curve_2 == pytest.approx(curve, rel=2e-4)
    assert weights.keys() == weights_2.keys()
    for name, value in weights.items():
        assert (value - weights_2[name]).abs().max() < 5e-4, name


def loads(folder: Path) -> None:
    """What two processes saved, one loads."""
    checkpoint = last_complete_checkpoint(folder)
    assert checkpoint.name == "checkpoint-4"
    assert (checkpoint / "rng_state_1.pth").exists()
    YanForConditionalGeneration.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job["kind"] == "ddp"])
def test_two_data_parallel_processes_train_like_one(trained, name):
    same(trained / "one" / name, trained / "two" / name)
    loads(trained / "two" / name)


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job["kind"] == "fsdp2"])
def test_two_sharded_processes_train_and_write_like_one(trained, name):
    same_when_sharded(trained, name)


def same_when_sharded(folder: Path, name: str) -> None:
    same(folder / "one" / name, folder / "two" / name)
    texts = [json.loads((folder / count / name / "text.json").read_text()) for count in ("one", "two")]
    assert len(texts[1]) == len(texts[0]) == 2
    YanForConditionalGeneration.from_pretrained(folder / "two" / name / "final")


@pytest.mark.slow
def test_half_precision_and_sharded_attention_train_like_one(tmp_path):
    run_in_one_and_two_processes(tmp_path, LONG_JOBS)
    (curve, _), (curve_2, _) = results(tmp_path / "one" / "bf16"), results(tmp_path / "two" / "bf16")
    assert curve_2 == pytest.approx(curve, rel=0.02)
    loads(tmp_path / "two" / "bf16")
    same_when_sharded(tmp_path, "sharded-attention")


@pytest.mark.slow
def test_compiled_training_gives_the_same_curve(tmp_path):
    """Traced by dynamo and run by its eager backend, which needs no compiler on the machine."""
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    jobs = {"plain": {"kind": "ddp"}, "compiled": {"kind": "ddp", "arguments": compiled}}
    succeeded(run_process(SCRIPT, json.dumps([{**job, "output": name} for name, job in jobs.items()]), cwd=tmp_path))
    same(tmp_path / "plain", tmp_path / "compiled")


def test_the_training_script_under_accelerate_launch(tmp_path):
    train_tokenizer(TEXTS, 300, 32).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    rows = [{"source": s, "target": t, "references": [t]} for s in TEXTS for t in TEXTS]
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    Dataset.from_list(rows[:3]).to_parquet(tmp_path / "data" / "test.parquet")
    sizes = "{hidden_size: 16, encoder_layers: 1, flow_layers: 2, max_position_embeddings: 32}"
    succeeded(
        run_process(
            *accelerate_launch(),
            ROOT / "examples" / "run_flow.py",
            cwd=tmp_path,
            task="pairs",
            dataset_name="data",
            tokenizer_name="tokenizer",
            max_source_length=32,
            max_target_length=32,
            config_overrides=sizes,
            output_dir="out",
            max_steps=4,
            save_steps=2,
            logging_steps=1,
            per_device_train_batch_size=2,
            eval_strategy="steps",
            eval_steps=2,
            disable_tqdm="True",
            **ON_CPU,
        )
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["updates"], report["processes"], report["batch_size"]) == (4, 2, 4)
    YanForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_every_accelerate_config_is_one():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {"cpu_2proc", "ddp", "fsdp2", "deepspeed_zero3"}
    for name in names:
        assert load_config_from_file(str(CONFIGS / f"{name}.yaml")).num_machines == 1
    wrapped = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    assert tuple(wrapped.split(",")) == WRAPPED
