"""The published format, read and reproduced: fixtures hold what the published computation gives."""

import copy
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from modeling_yan.common.published_format import published_config
from modeling_yan.flow_matching_yan import masked_mean, mixture_nll

from ..helpers import ROOT, YAN_E2E, ran, refused, run_process, script_functions, succeeded, tiny_config, tiny_model
from ..hub_server import hub_on_loopback, used_by_this_process

FIXTURES = ROOT / "tests" / "fixtures"
FIXTURE, MAMBA_FIXTURE = FIXTURES / "yan_transformer.pt", FIXTURES / "yan_mamba.pt"
SCRIPT = "conversion/convert_published_checkpoint.py"


@pytest.fixture(scope="module", params=[FIXTURE, MAMBA_FIXTURE], ids=["transformer", "mamba"])
def fixture(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def converted(fixture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    ran(SCRIPT, cwd=folder, checkpoint=fixture, output_dir="yan")
    return AutoModelForSeq2SeqLM.from_pretrained(folder / "yan").eval()


@pytest.fixture(scope="module")
def expected(fixture) -> dict:
    """Inputs and outputs; of the Mamba fixture the row without padding, for the published one leaks."""
    values = torch.load(fixture.with_suffix(".expected.pt"), weights_only=True)
    if fixture == FIXTURE:
        return values
    values.pop("moe_nll")
    return {name: value[:1] if torch.is_tensor(value) else value for name, value in values.items()}


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
    nll = mixture_nll(
        e["x1"] - e["x0"], out.velocities, out.gate_probs.log(), converted.config.training_config.velocity_std
    )
    if "moe_nll" in e:
        close(masked_mean(nll, target.bool()), e["moe_nll"])
    close(converted.decoder(e["x1"]), e["reconstruction_logits"], target)


@torch.no_grad()
def test_three_step_endpoint_and_logits_in_forward_and_generate(converted, expected):
    e = expected
    start = converted.model(e["enc_ids"], e["enc_att_mask"], x_t=e["x0"], timesteps=torch.zeros(len(e["x0"])))
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
    assert converted.config.training_config.time_sampling_beta == 1.5
    assert converted.config.max_position_embeddings == 65


def test_autoencoder_checkpoints_become_masked_lms(tmp_path):
    checkpoint = torch.load(FIXTURE, weights_only=True)
    checkpoint["model"] = {k: v for k, v in checkpoint["model"].items() if not k.startswith("flow.")}
    torch.save(checkpoint, tmp_path / "autoencoder.pt")
    ran(SCRIPT, cwd=tmp_path, checkpoint="autoencoder.pt", output_dir="out")
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
        (lambda c: c["model_config"].update({"flow_use_mamba": True}), "flow.mamba_blocks.0.self_mixer.fwd.A_log"),
        (lambda c: c["model"].update({"flow.gate.0.bias": "zeros"}), "not tensors"),
        (lambda c: c.pop("model_config"), "not a YAN checkpoint"),
    ],
)
def test_bad_checkpoints_are_refused_and_leave_nothing(tmp_path, change, message):
    torch.save(broken(change), tmp_path / "bad.pt")
    refuses(tmp_path, message)


def with_weight(change):
    """A checkpoint's change that replaces one weight."""
    name = "flow.gate.0.bias"
    return lambda c: c["model"].update({name: change(c["model"][name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_weight(lambda w: w.bool()), "flow.gate.0.bias has dtype torch.bool"),
        (with_weight(lambda w: w.long()), "flow.gate.0.bias has dtype torch.int64"),
        (with_weight(lambda w: w.double()), "flow.gate.0.bias has dtype torch.float64"),
        (with_weight(lambda w: w * torch.nan), "flow.gate.0.bias holds numbers that are not finite"),
        (with_weight(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)), "is a quantised tensor"),
        (with_weight(lambda w: w.to_sparse()), "is a sparse tensor"),
        (with_weight(lambda w: w.to("meta")), "is a tensor without numbers"),
        (
            lambda c: c["model"].update({"flow.expert_out_proj.1.layers.0.bias": torch.zeros(3)}),
            "flow.expert_out_proj.1.layers.0.bias has shape (3,), the config asks for (128,)",
        ),
        (lambda c: c["model"].update({3: torch.zeros(3)}), "3"),
        (lambda c: c["model_config"].update({"encoder_n_trf_blocks": 10**9}), "encoder_n_trf_blocks=1000000000"),
        (lambda c: c["model_config"].update({"n_trf_blocks": 10**9}), "n_trf_blocks=1000000000"),
        (lambda c: c["model_config"].update({"moe_n_experts": 2**40}), "moe_n_experts"),
        (lambda c: c["model_config"].update({"vocab_size": 10**5}), "shared_tok_emb.weight has shape (97, 32)"),
        (lambda c: c["model_config"].update({"vocab_size": 2**62}), "vocab_size"),
        (lambda c: c["model_config"].update({"max_length": 2**40}), "max_position_embeddings="),
        (lambda c: c["model_config"].update({"ode_steps": 100_000}), "ode_steps=100000 must be from 2 to 1001"),
        (lambda c: c["model_config"].update({"ode_steps": 1}), "ode_steps=1 must be from 2 to 1001"),
        (lambda c: c["model_config"].update({"ode_steps": True}), "ode_steps=True"),
        (lambda c: c["model_config"].update({"max_length": "x"}), "max_length='x' must be a whole number"),
        (lambda c: c["model_config"].update({"d_model": 32.0}), "d_model=32.0"),
        (lambda c: c["model_config"].update({"flow_use_mamba": "no"}), "flow_use_mamba='no'"),
        (lambda c: c["model_config"].update({"dropout": torch.ones(2)}), "dropout"),
        (lambda c: c["model_config"].update({7: 1}), "unknown keys"),
        (lambda c: c.update({"loss_config": [1.0]}), "loss_config is of type list"),
        (lambda c: c["loss_config"].update({"lambda_ce": "much"}), "ce_loss_weight"),
    ],
)
def test_odd_weights_and_settings_are_named_before_memory_goes(tmp_path, change, message):
    torch.save(broken(change), tmp_path / "bad.pt")
    refuses(tmp_path, message)
    refuses(tmp_path, "bad.pt")


def test_a_damaged_archive_is_found_by_its_checksums(tmp_path):
    """torch reads such a file, and one weight is another."""
    content = bytearray(FIXTURE.read_bytes())
    place = content.index(torch.load(FIXTURE, weights_only=True)["model"]["flow.gate.0.weight"].numpy().tobytes())
    content[place : place + 64] = bytes(64)
    (tmp_path / "bad.pt").write_bytes(content)
    torch.load(tmp_path / "bad.pt", weights_only=True)
    refuses(tmp_path, "bad.pt is damaged: the checksum of")


def test_a_file_of_no_bytes_is_refused(tmp_path):
    (tmp_path / "bad.pt").touch()
    refuses(tmp_path, "bad.pt cannot be read as a checkpoint: it is empty")


def test_torchs_older_format_and_half_precision_are_read(tmp_path):
    checkpoint = torch.load(FIXTURE, weights_only=True)
    checkpoint["model"] = {name: value.bfloat16() for name, value in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    ran(SCRIPT, cwd=tmp_path, checkpoint="old.pt", output_dir="out")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.decoder.lm_head.weight, checkpoint["model"]["decoder.lm_head.weight"].float())


def refuses(tmp_path: Path, message: str, **options) -> None:
    """The script ends with one line and leaves nothing behind."""
    assert message in refused(SCRIPT, cwd=tmp_path, checkpoint="bad.pt", output_dir="out", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pt"]


def test_truncated_foreign_and_pickled_files(tmp_path):
    whole = FIXTURE.read_bytes()
    (tmp_path / "bad.pt").write_bytes(whole[: len(whole) // 2])
    refuses(tmp_path, "cannot be read")
    (tmp_path / "bad.pt").write_text("hello")
    refuses(tmp_path, "bad.pt")
    torch.save({"model": {}, "model_config": {"path": Path("x")}}, tmp_path / "bad.pt")
    refuses(tmp_path, "other than tensors")


def test_an_occupied_folder_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    line = refused(SCRIPT, cwd=tmp_path, checkpoint=FIXTURE, output_dir="out")
    assert line.endswith("choose another or empty it")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def published_state(options: dict, has_flow: bool, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under the names that the published code writes, spelled out here a second time."""
    generator = torch.Generator().manual_seed(seed)
    d, state = options["d_model"], {}

    def put(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        put(f"{name}.weight", outputs, inputs)
        if bias:
            put(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        put(f"{name}.scale", d)
        put(f"{name}.shift", d)

    def attention(name: str) -> None:
        for letter in "qkv":
            linear(f"{name}.W_{letter}", d, d, options["qkv_bias"])
        linear(f"{name}.out_proj", d, d)

    def mamba(name: str) -> None:
        inner, states, rank = options["mamba_expand"] * d, options["mamba_d_state"], -(-d // 16)
        for direction in ("fwd", "bwd"):
            put(f"{name}.{direction}.A_log", inner, states)
            put(f"{name}.{direction}.D", inner)
            linear(f"{name}.{direction}.in_proj", 2 * inner, d, bias=False)
            put(f"{name}.{direction}.conv1d.weight", inner, 1, options["mamba_d_conv"])
            put(f"{name}.{direction}.conv1d.bias", inner)
            linear(f"{name}.{direction}.x_proj", rank + 2 * states, inner, bias=False)
            linear(f"{name}.{direction}.dt_proj", inner, rank)
            linear(f"{name}.{direction}.out_proj", d, inner, bias=False)
        linear(f"{name}.proj", d, 2 * d)

    def block(part: str, index: int, is_mamba: bool) -> str:
        name = f"{part}.{'mamba' if is_mamba else 'trf'}_blocks.{index}"
        if is_mamba:
            mamba(f"{name}.self_mixer")
        else:
            attention(f"{name}.self_att")
        inner = d * (options["mamba_ff_mult"] if is_mamba else 4)
        linear(f"{name}.ff.layers.0", inner, d)
        linear(f"{name}.ff.layers.{3 if is_mamba else 2}", d, inner)
        return name

    put("shared_tok_emb.weight", options["vocab_size"], d)
    put("shared_pos_emb.weight", options["max_length"] + 1, d)
    for repeat in ("encoder.shared_tok_emb", "encoder.shared_pos_emb") + ("flow.shared_pos_emb",) * has_flow:
        state[f"{repeat}.weight"] = state[f"{repeat.split('.')[1]}.weight"].clone()
    for index in range(options["encoder_n_trf_blocks"]):
        name = block("encoder", index, options["encoder_use_mamba"])
        norm(f"{name}.norm_self" + ("" if options["encoder_use_mamba"] else "_att"))
        norm(f"{name}.norm_ff")
    norm("encoder.final_norm")
    for index in range(options["decoder_n_resi_blocks"]):
        norm(f"decoder.resi_blocks.{index}.norm")
        linear(f"decoder.resi_blocks.{index}.ff.layers.0", 4 * d, d)
        linear(f"decoder.resi_blocks.{index}.ff.layers.2", d, 4 * d)
    linear("decoder.lm_head", options["vocab_size"], d)
    if not has_flow:
        return state
    linear("flow.time_emb.1", d, d)
    for index in range(options["n_trf_blocks"]):
        name = block("flow", index, options["flow_use_mamba"])
        crosses = index in options["cross_att_idx"]
        if crosses:
            attention(f"{name}.cross_att")
        linear(f"{name}.adaLN.1", (6 if crosses else 4) * d, d)
    norm("flow.final_norm")
    for expert in range(options["moe_n_experts"]):
        linear(f"flow.expert_out_proj.{expert}.layers.0", 4 * d, d)
        linear(f"flow.expert_out_proj.{expert}.layers.2", d, 4 * d)
    inner = options["moe_gate_dim_multiplier"] * d
    linear("flow.gate.0", inner, 3 * d)
    linear("flow.gate.2", options["moe_n_experts"], inner)
    return state


def random_checkpoint(seed: int, **fixed) -> dict:
    """A checkpoint of the published code with random sizes; `fixed` pins some."""
    draw = random.Random(seed)
    heads = draw.choice((1, 2, 3, 4))
    flow_layers = draw.randint(1, 4)
    options = {
        "vocab_size": draw.randint(13, 90),
        "d_model": 2 * heads * draw.randint(2, 9),
        "max_length": draw.randint(12, 40),
        "dropout": draw.choice((0.0, 0.1)),
        "attention_heads": heads,
        "qkv_bias": draw.random() < 0.5,
        "encoder_n_trf_blocks": draw.randint(1, 3),
        "decoder_n_resi_blocks": draw.randint(1, 3),
        "latent_noise": draw.choice((0.0, 0.2)),
        "n_trf_blocks": flow_layers,
        "cross_att_idx": sorted(draw.sample(range(flow_layers), draw.randint(0, flow_layers))),
        "moe_n_experts": draw.randint(1, 5),
        "moe_gate_temperature": draw.choice((0.5, 1.0)),
        "moe_gate_dim_multiplier": draw.randint(1, 3),
        "moe_sigma": draw.choice((0.5, 1.0)),
        "init_noise": draw.choice((0.8, 1.0)),
        "ode_steps": draw.randint(2, 6),
        "beta_a": 1.0,
        "beta_b": draw.choice((1.0, 2.0)),
        "encoder_use_mamba": draw.random() < 0.5,
        "flow_use_mamba": draw.random() < 0.5,
        "mamba_d_state": draw.randint(1, 9),
        "mamba_d_conv": draw.randint(1, 5),
        "mamba_expand": draw.randint(1, 3),
        "mamba_ff_mult": draw.randint(1, 4),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mask_token_id": 3,
        **{f"freeze_{part}": draw.random() < 0.5 for part in ("enc", "flow", "dec", "tok_emb", "pos_emb")},
    } | fixed
    options["cross_att_idx"] = [i for i in options["cross_att_idx"] if i < options["n_trf_blocks"]]
    state = published_state(options, has_flow=draw.random() < 0.8 or bool(fixed), seed=seed)
    losses = {"lambda_vf": 0.5, "lambda_distill": 2.0, "lambda_ce": 1.5}
    return {"model": state, "model_config": options, "loss_config": losses, "trainer_config": {"lr": 1e-4}, "step": 7}


HYBRID = {"encoder_use_mamba": False, "flow_use_mamba": True, "moe_n_experts": 5, "qkv_bias": True, "d_model": 48}


@pytest.mark.parametrize(
    ("seed", "fixed"), [(0, HYBRID), (1, {**HYBRID, "encoder_use_mamba": True, "flow_use_mamba": False})]
)
def test_hybrids_with_other_sizes_convert_and_come_back(tmp_path, seed, fixed):
    there_and_back(tmp_path, random_checkpoint(seed, **fixed))


@pytest.mark.parametrize("seed", range(2, 14))
def test_random_configs_convert_and_come_back(tmp_path, seed):
    there_and_back(tmp_path, random_checkpoint(seed))


def there_and_back(tmp_path: Path, checkpoint: dict) -> None:
    """Published -> folder -> published: every tensor and setting is the same, and so are the outputs."""
    torch.save(checkpoint, tmp_path / "published.pt")
    ran(SCRIPT, cwd=tmp_path, checkpoint="published.pt", output_dir="folder")
    ran(SCRIPT, cwd=tmp_path, checkpoint="folder", output_dir="back", reverse=True)
    back = torch.load(tmp_path / "back" / "checkpoint.pt", weights_only=True)
    assert back["model"].keys() == checkpoint["model"].keys()
    assert all(torch.equal(back["model"][name], value) for name, value in checkpoint["model"].items())
    settings = {k: v for k, v in checkpoint["model_config"].items() if not k.startswith("freeze_")}
    assert back["model_config"] == settings
    has_flow = "flow.gate.0.bias" in checkpoint["model"]
    model = (AutoModelForSeq2SeqLM if has_flow else AutoModelForMaskedLM).from_pretrained(tmp_path / "folder").eval()
    again = script_functions(SCRIPT)["convert"](back)
    ids = torch.arange(8).view(2, 4)
    close(again(ids).logits, model(ids).logits)
    assert {name for name, p in model.named_parameters() if not p.isfinite().all()} == set()
    if has_flow:
        assert back["loss_config"] == checkpoint["loss_config"]
        steps = checkpoint["model_config"]["ode_steps"] - 1
        out = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True, expert_selection="argmax")
        assert out.num_evaluations == steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"prediction_type": "data"}, "prediction_type"), ({"length_head": True}, "length_head")],
)
def test_what_the_published_format_cannot_hold_is_refused(tmp_path, overrides, message):
    tiny_model(**{"intermediate_size": 64, "gate_hidden_size": 16, "length_head": False, **overrides}).save_pretrained(
        tmp_path / "bad.pt"
    )
    refuses(tmp_path, message, reverse=True)


def test_a_tokenizer_too_large_for_the_checkpoint_is_refused(tmp_path):
    assert "97" in refused(SCRIPT, cwd=tmp_path, checkpoint=FIXTURE, output_dir="out", tokenizer=YAN_E2E)
    assert list(tmp_path.iterdir()) == []


PULL = """
import torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained("org/yan-tiny", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules")
print(model(torch.arange(8).view(2, 4)).logits.double().sum().item())
"""


def test_pushed_folder_loads_from_the_hub_with_a_card(tmp_path):
    options = {"checkpoint": FIXTURE, "output_dir": "out", "push_to_hub": "org/yan-tiny"}
    with hub_on_loopback(tmp_path / "cache") as (environment, repositories):
        with used_by_this_process(environment):
            ran(SCRIPT, cwd=tmp_path, **options)
        pushed = repositories["org/yan-tiny"]
        assert {"config.json", "generation_config.json", "model.safetensors", "modeling_yan.py"} <= pushed.keys()
        assert 'from_pretrained("org/yan-tiny", trust_remote_code=True)' in pushed["README.md"].decode()
        # The address that a download uses is read when huggingface_hub is imported.
        pulled = succeeded(run_process("-c", PULL, cwd=tmp_path, environment=environment))
    local = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert float(pulled.stdout) == pytest.approx(local(torch.arange(8).view(2, 4)).logits.double().sum().item())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"flow_mixer": "conv_attention"}, "'flow_mixer': 'conv_attention'"),
        ({"prediction_type": "data"}, "'prediction_type': 'data'"),
    ],
)
def test_what_the_published_format_cannot_hold_is_named(changed, named):
    config = tiny_config(**{"intermediate_size": 64, "gate_hidden_size": 16, "length_head": False, **changed})
    with pytest.raises(ValueError, match="published format cannot hold") as error:
        published_config(config)
    assert named in str(error.value)
