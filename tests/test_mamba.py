"""The selective scan three ways, and the bidirectional Mamba mixer in encoder and flow."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from modeling_yan import YanForConditionalGeneration
from modeling_yan import selective_scan_yan as scans
from modeling_yan.mixers_yan import YanMamba

from .helpers import source_batch, tiny_config, tiny_model

NAMES = ("u", "delta", "A", "B", "C")
HYBRIDS = [("mamba", "mamba"), ("attention", "mamba"), ("mamba", "attention")]


def scan_inputs(
    batch=2, length=13, groups=2, channels=5, states=3, dtype=torch.float32, step=0.5
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + length)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    values = (
        draw(batch, length, groups, channels).to(dtype),
        (step * F.softplus(draw(batch, length, groups, channels))).to(dtype),
        -draw(groups, channels, states).exp(),
        draw(batch, length, groups, states).to(dtype),
        draw(batch, length, groups, states).to(dtype),
    )
    return [value.requires_grad_() for value in values]


def run(scan, values, **options) -> list[torch.Tensor]:
    """Output and gradients under a loss that treats no position like another."""
    for value in values:
        value.grad = None
    y = scan(*values, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    (y * weights).sum().backward()
    return [y.detach(), *(value.grad.clone() for value in values)]


@pytest.mark.parametrize("length", [1, 2, 13, 64, 65])
@pytest.mark.parametrize(("chunk_length", "num_blocks"), [(1, 1), (4, 1), (7, 3), (32, 1), (64, 8), (16, 16), (256, 5)])
def test_chunked_scan_equals_the_sequential_one_in_outputs_and_gradients(length, chunk_length, num_blocks):
    values = scan_inputs(length=length)
    expected = run(scans.sequential_scan, values)
    chunked = run(scans.chunked_scan, values, chunk_length=chunk_length, num_blocks=num_blocks)
    for name, ours, theirs in zip(("y", *NAMES), chunked, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("length", [2, 13, 64, 65])
def test_doubling_scan_equals_the_sequential_one_in_outputs_and_gradients(length):
    values = scan_inputs(length=length)
    expected, ours = run(scans.sequential_scan, values), run(scans.doubling_scan, values)
    for name, a, b in zip(("y", *NAMES), ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_sequential_scan_is_the_recurrence():
    u, delta, A, B, C = (value.detach() for value in scan_inputs(batch=1, length=4, groups=1, channels=1, states=1))
    state, expected = 0.0, []
    for t in range(4):
        state = float((delta[0, t] * A[0]).exp()) * state + float(delta[0, t] * B[0, t] * u[0, t])
        expected.append(state * float(C[0, t]))
    ours = scans.sequential_scan(u, delta, A, B, C).flatten()
    torch.testing.assert_close(ours, torch.tensor(expected))


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_nothing_overflows_at_steps_that_forget_everything(num_blocks):
    values = scan_inputs(length=200, step=200.0)
    results = run(scans.chunked_scan, values, chunk_length=50, num_blocks=num_blocks)
    assert all(result.isfinite().all() for result in results)
    for ours, theirs in zip(results, run(scans.sequential_scan, values), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_half_precision_inputs_keep_float32_states():
    values = scan_inputs(length=100, dtype=torch.bfloat16)
    ours, theirs = run(scans.chunked_scan, values), run(scans.sequential_scan, values)
    assert ours[0].dtype == torch.float32
    assert [g.dtype for g in ours[1:]] == [value.dtype for value in values]
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-5, rtol=2e-5)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=2e-2)


def test_autocast_does_not_reach_into_the_scan():
    values = scan_inputs(length=40)
    expected = run(scans.chunked_scan, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(scans.chunked_scan, values)
    assert all(torch.equal(a, b) for a, b in zip(inside, expected, strict=True))


def test_only_the_state_before_each_chunk_is_kept():
    values = scan_inputs(length=96)
    y = scans.chunked_scan(*values, chunk_length=32)
    assert [state.shape for state in y.grad_fn.states] == [(2, 2, 5, 3)] * 3
    assert sum(tensor.numel() for tensor in y.grad_fn.saved_tensors) == sum(value.numel() for value in values)


def test_causal_convolution_is_the_grouped_one():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 9, 6), (6, 4), (6,)))
    grouped = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=6)[..., :9]
    torch.testing.assert_close(scans.causal_convolution(x, weight, bias), F.silu(grouped).transpose(1, 2))


@pytest.fixture(autouse=True)
def packages_are_looked_up_again():
    scans.is_installed.cache_clear()
    yield
    scans.is_installed.cache_clear()


def fake_kernels(monkeypatch, calls: list) -> None:
    """
    Stand-ins with the interface of mamba-ssm and causal-conv1d, which need CUDA: they check the layouts those document
    and compute with the reference.
    """

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        batch, channels, length = u.shape
        assert delta.shape == u.shape
        assert u.dtype == delta.dtype == B.dtype == C.dtype
        assert A.dtype == torch.float32
        states, groups = A.shape[1], B.shape[1]
        assert A.shape[0] == channels
        assert B.shape == C.shape == (batch, groups, states, length)
        assert all(x.is_contiguous() for x in (u, delta, A, B, C))
        calls.append("scan")
        split = [x.transpose(1, 2).unflatten(2, (groups, channels // groups)) for x in (u, delta)]
        y = scans.sequential_scan(*split, A.unflatten(0, (groups, -1)), *(x.permute(0, 3, 1, 2) for x in (B, C)))
        return y.flatten(2).transpose(1, 2).to(u.dtype)

    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        assert activation == "silu"
        assert weight.shape[0] == x.shape[1] == len(bias)
        calls.append("convolution")
        return scans.causal_convolution(x.transpose(1, 2), weight, bias).transpose(1, 2)

    packages = {
        "mamba_ssm": types.ModuleType("mamba_ssm"),
        "mamba_ssm.ops": types.ModuleType("mamba_ssm.ops"),
        "mamba_ssm.ops.selective_scan_interface": types.SimpleNamespace(selective_scan_fn=selective_scan_fn),
        "causal_conv1d": types.SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn),
    }
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
    scans.is_installed.cache_clear()
    monkeypatch.setattr(scans.importlib.util, "find_spec", lambda name: object() if name in packages else None)


def test_kernels_get_the_layout_they_document_and_give_the_same_model(monkeypatch):
    model = tiny_model(encoder_mixer="mamba", flow_mixer="mamba")
    ids, mask = source_batch()
    labels = ids.masked_fill(mask == 0, -100)

    def loss_and_gradient():
        model.zero_grad()
        loss = model(ids, mask, labels=labels, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        return loss.detach(), model.model.flow.layers[0].mixer.bwd.A_log.grad.clone()

    expected, calls = loss_and_gradient(), []
    fake_kernels(monkeypatch, calls)
    assert scans.choose_scan("auto", torch.device("cuda")) == "kernel"
    for name in ("scans", "mixers"):
        module = scans if name == "scans" else sys.modules[YanMamba.__module__]
        monkeypatch.setattr(module, "choose_scan", lambda *_: "kernel")
    for ours, theirs in zip(loss_and_gradient(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert set(calls) == {"scan", "convolution"}


def test_choice_of_the_scan_is_automatic_visible_and_forced_by_the_config(monkeypatch):
    assert scans.choose_scan("auto", torch.device("cpu")) == "chunked"
    assert scans.choose_scan("auto", torch.device("cuda")) == "chunked"
    assert scans.choose_scan("sequential", torch.device("cuda")) == "sequential"
    with pytest.raises(ValueError, match="not installed"):
        scans.choose_scan("kernel", torch.device("cuda"))
    fake_kernels(monkeypatch, [])
    with pytest.raises(ValueError, match="got cpu"):
        scans.choose_scan("kernel", torch.device("cpu"))
    with pytest.raises(ValueError, match="fastest"):
        scans.choose_scan("fastest", torch.device("cpu"))
    model = tiny_model(flow_mixer="mamba", mamba_scan="sequential")
    assert "scan='sequential'" in repr(model)
    called = []
    monkeypatch.setitem(scans.IMPLEMENTATIONS, "sequential", lambda *a: called.append(1) or scans.sequential_scan(*a))
    ids, mask = source_batch()
    model(ids, mask)
    assert called


@pytest.mark.parametrize("scan", ["sequential", "chunked", "doubling"])
@pytest.mark.parametrize(("encoder", "flow"), [*HYBRIDS, ("conv_attention", "conv_attention")])
def test_padding_on_either_side_and_batch_mates_change_nothing(encoder, flow, scan):
    model = tiny_model(encoder_mixer=encoder, flow_mixer=flow, mamba_scan=scan)
    lengths, generator = (7, 1, 5), torch.Generator().manual_seed(5)
    x_t, times = torch.randn(3, 6, 16, generator=generator), torch.tensor([0.1, 0.5, 0.9])
    canvas = torch.arange(6) < torch.tensor([[6], [3], [1]])
    together = {}
    for side in ("right", "left"):
        ids, mask = source_batch(lengths, side=side)
        canvas_mask = canvas if side == "right" else canvas.flip(1)
        states = x_t if side == "right" else torch.stack([x.roll(6 - int(m.sum()), 0) for x, m in zip(x_t, canvas)])
        together[side] = (ids, mask, canvas_mask, states)
    for ids, mask, canvas_mask, states in together.values():
        out = model.model(ids, mask, x_t=states, timesteps=times, decoder_attention_mask=canvas_mask)
        for row in range(3):
            tokens, positions = mask[row].bool(), canvas_mask[row]
            alone = model.model(
                ids[row, tokens][None], x_t=states[row, positions][None], timesteps=times[row : row + 1]
            )
            pairs = [
                (out.last_hidden_state[row, tokens], alone.last_hidden_state[0]),
                (out.velocities[row, positions], alone.velocities[0]),
                (out.gate_probs[row, positions], alone.gate_probs[0]),
            ]
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_both_directions_see_the_whole_sequence():
    model = tiny_model(encoder_mixer="mamba", encoder_layers=1)
    ids, _ = source_batch((9,))
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    states = model.get_encoder()(inputs_embeds=embeds)[0]
    for position in (0, 4, 8):
        (gradient,) = torch.autograd.grad(states[0, position].sum(), embeds, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("mode", ["oracle", "candidates"])
def test_generation_with_rows_of_different_length(mode):
    model = tiny_model(encoder_mixer="mamba", flow_mixer="mamba")
    ids, mask = source_batch()
    options = {"target_lengths": [5, 3, 8]} if mode == "oracle" else {"num_length_candidates": 3, "num_candidates": 2}
    together = model.generate(
        ids, mask, generator=torch.Generator().manual_seed(0), return_dict_in_generate=True, **options
    )
    for row in range(3):
        own = {k: v[row] if isinstance(v, list) else v for k, v in options.items()}
        alone = model.generate(
            ids[row, mask[row].bool()][None],
            generator=torch.Generator().manual_seed(0),
            return_dict_in_generate=True,
            **own,
        )
        written = alone.sequences[0]
        assert torch.equal(together.sequences[row, : len(written)], written)
        torch.testing.assert_close(together.sequences_scores[row], alone.sequences_scores[0], atol=1e-4, rtol=1e-4)


def test_initial_decays_and_step_sizes_are_mambas():
    torch.manual_seed(0)
    model = YanForConditionalGeneration(tiny_config(hidden_size=64, flow_mixer="mamba", mamba_d_state=8))
    direction = model.model.flow.layers[0].mixer.bwd
    torch.testing.assert_close(direction.A_log.exp(), torch.arange(1.0, 9.0).expand(128, 8))
    assert torch.equal(direction.D, torch.ones(128))
    steps = F.softplus(direction.dt_proj.bias)
    assert 0.0009 < steps.min() < 0.003
    assert 0.03 < steps.max() < 0.11
    assert direction.dt_proj.weight.abs().max() <= 4**-0.5
    with torch.device("meta"):
        empty = YanForConditionalGeneration(tiny_config(flow_mixer="mamba"))
    empty.to_empty(device="cpu").init_weights()
    assert all(p.isfinite().all() for p in empty.parameters())


def test_every_parameter_learns_and_save_and_load_are_bit_equal(tmp_path):
    model = tiny_model(encoder_mixer="mamba", flow_mixer="mamba").train()
    ids, mask = source_batch()
    model(
        ids, mask, labels=ids.masked_fill(mask == 0, -100), generator=torch.Generator().manual_seed(0)
    ).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    model.save_pretrained(tmp_path)
    again = YanForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(dtype):
    model = tiny_model(encoder_mixer="mamba", flow_mixer="mamba")
    ids, mask = source_batch()
    whole = model(ids, mask).logits
    half = model.to(dtype)(ids, mask).logits.float()
    valid = mask.bool()
    assert half.isfinite().all()
    assert (half - whole)[valid].abs().mean() < 0.1 * whole[valid].abs().mean()


def test_adapters_and_gradient_checkpointing_on_mamba_layers():
    model = tiny_model(encoder_mixer="mamba", flow_mixer="mamba").train()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["in_proj", "x_proj", "dt_proj", "out_proj"]))
    adapted.gradient_checkpointing_enable()
    ids, mask = source_batch()
    adapted(
        input_ids=ids,
        attention_mask=mask,
        labels=ids.masked_fill(mask == 0, -100),
        generator=torch.Generator().manual_seed(0),
    ).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is not None}
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        assert any(f"mixer.fwd.{name}.lora_A" in parameter for parameter in trained)
