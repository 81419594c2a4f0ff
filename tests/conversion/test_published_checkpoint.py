"""The published format, read and reproduced: fixtures hold what the published computation gives."""

import copy
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from modeling_yan.flow_matching_yan import masked_mean, mixture_nll

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "yan_transformer.pt"


def convert(checkpoint: Path, folder: Path) -> subprocess.CompletedProcess:
    script = ROOT / "conversion" / "convert_published_checkpoint.py"
    command = [sys.executable, str(script), "--checkpoint", str(checkpoint), "--output_dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "yan"
    done = convert(FIXTURE, folder)
    assert done.returncode == 0, done.stderr
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def expected() -> dict:
    return torch.load(FIXTURE.with_suffix(".expected.pt"), weights_only=True)


def close(ours: torch.Tensor, theirs: torch.Tensor, valid: torch.Tensor | None = None) -> None:
    if valid is not None:
        ours, theirs = ours[valid.bool()], theirs[valid.bool()]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encoder_velocities_gate_and_likelihood(converted, expected):
    e, target = expected, expected["att_mask"]
    out = converted.model(e["enc_ids"], e["enc_att_mask"], x_t=e["xt"], timesteps=e["t"], decoder_attention_mask=target)
    close(out.last_hidden_state, e["h_enc"], e["enc_att_mask"])
    close(out.velocities, e["vec_fields"].transpose(1, 2), target)
    close(out.gate_probs, e["gate_pi"], target)
    x_1 = converted.get_encoder()(e["tgt_ids"], target).last_hidden_state
    close(x_1, e["x1"], target)
    nll = mixture_nll(e["x1"] - e["x0"], out.velocities, out.gate_probs.log(), converted.config.velocity_std)
    close(masked_mean(nll, target.bool()), e["moe_nll"])
    close(converted.decoder(e["x1"]), e["reconstruction_logits"], target)


@torch.no_grad()
def test_three_step_endpoint_and_logits_in_forward_and_generate(converted, expected):
    e = expected
    start = converted.model(e["enc_ids"], e["enc_att_mask"], x_t=e["x0"], timesteps=torch.zeros(3))
    close(start.gate_probs, e["gate_pi_at_t0"])
    out = converted(e["enc_ids"], e["enc_att_mask"], prior_noise=e["x0"], expert_indices=e["expert_idx"])
    close(out.latents, e["x1_hat"])
    close(out.logits, e["logits"])
    generated = converted.generate(
        e["enc_ids"],
        e["enc_att_mask"],
        prior_noise=e["x0"],
        expert_selection="argmax",
        return_dict_in_generate=True,
        output_trajectory=True,
    )
    assert generated.num_evaluations == e["n_timesteps"] - 1
    close(generated.trajectory[-1], e["x1_hat"])


def test_settings_travel(converted):
    assert converted.generation_config.num_inference_steps == 3
    assert converted.generation_config.length_mode == "canvas"
    assert converted.config.time_sampling_beta == 1.5
    assert converted.config.max_position_embeddings == 65


def test_autoencoder_checkpoints_become_masked_lms(tmp_path):
    checkpoint = torch.load(FIXTURE, weights_only=True)
    checkpoint["model"] = {k: v for k, v in checkpoint["model"].items() if not k.startswith("flow.")}
    torch.save(checkpoint, tmp_path / "autoencoder.pt")
    done = convert(tmp_path / "autoencoder.pt", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "YanForMaskedLM"
    assert torch.equal(model.decoder.lm_head.weight, checkpoint["model"]["decoder.lm_head.weight"])


def broken(change):
    checkpoint = copy.deepcopy(torch.load(FIXTURE, weights_only=True))
    change(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("flow.gate.0.bias"), "flow.gate.0.bias"),
        (lambda c: c["model"].update({"flow.gate.9.bias": torch.zeros(1)}), "flow.gate.9.bias"),
        (lambda c: c["model"].update({"flow.gate.0.bias": torch.zeros(3)}), "shape"),
        (lambda c: c["model"].update({"flow.shared_pos_emb.weight": torch.zeros(65, 32)}), "differs"),
        (lambda c: c["model_config"].update({"rope": True}), "rope"),
        (lambda c: c["model_config"].pop("d_model"), "d_model"),
        (lambda c: c["model_config"].update({"attention_heads": 5}), "num_attention_heads"),
        (lambda c: c["model_config"].update({"flow_use_mamba": True}), "Mamba"),
        (lambda c: c.pop("model_config"), "not a YAN checkpoint"),
    ],
)
def test_bad_checkpoints_are_refused_and_leave_nothing(tmp_path, change, message):
    torch.save(broken(change), tmp_path / "bad.pt")
    refused(tmp_path, message)


def refused(tmp_path: Path, message: str) -> None:
    """In this process, which saves the interpreter's start; the exit status is checked once below."""
    script = runpy.run_path(str(ROOT / "conversion" / "convert_published_checkpoint.py"))
    arguments = ["convert", "--checkpoint", str(tmp_path / "bad.pt"), "--output_dir", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(ValueError, match=re.escape(message)):
            script["main"]()
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pt"]


def test_truncated_foreign_and_pickled_files(tmp_path):
    whole = FIXTURE.read_bytes()
    (tmp_path / "bad.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "cannot be read")
    (tmp_path / "bad.pt").write_text("hello")
    refused(tmp_path, "bad.pt")
    torch.save({"model": {}, "model_config": {"path": Path("x")}}, tmp_path / "bad.pt")
    refused(tmp_path, "other than tensors")


def test_an_occupied_folder_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    done = convert(FIXTURE, tmp_path / "out")
    assert done.returncode == 2
    assert next(line for line in done.stderr.splitlines() if line.startswith("error: ")).endswith("is not empty")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
