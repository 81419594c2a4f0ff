"""The models: shapes, padding, losses, gradients, half precision, gradient checkpointing and accumulation."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_yan import (
    YanForConditionalGeneration,
    YanForMaskedLM,
    YanForQuestionAnswering,
    YanForSequenceClassification,
    YanForTokenClassification,
    YanModel,
)
from modeling_yan.losses_yan import LOSS_TERMS
from modeling_yan.velocity_field_yan import YanExperts, YanTimeEmbedding, route_tokens

from .helpers import VOCAB_SIZE, source_batch, tiny_config, tiny_model

# Every term of a canvas where tokens have their places.
ALL_TERMS = {term.weight_name: term.weight or 0.1 for term in LOSS_TERMS.values() if not term.needs_blanks}
ALL_TERMS["label_smoothing"] = 0.1


def target_labels(lengths=(6, 3, 5), seed: int = 1) -> torch.Tensor:
    ids, mask = source_batch(lengths, seed)
    return ids.masked_fill(mask == 0, -100)


def pinned_draws(labels: torch.Tensor, width: int = 16, experts: int = 3, seed: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "prior_noise": torch.randn(*labels.shape, width, generator=generator),
        "timesteps": torch.rand(len(labels), generator=generator),
        "expert_indices": torch.randint(experts, labels.shape, generator=generator),
    }


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_side_amount_and_batch_mates_change_nothing(model_of_positions, attention):
    model = model_of_positions
    model.set_attn_implementation(attention)
    lengths = (7, 4, 5)
    right, right_mask = source_batch(lengths)
    left, left_mask = source_batch(lengths, side="left")
    x_t = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([0.1, 0.5, 0.9])
    together = model.model(right, right_mask, x_t=x_t, timesteps=times)
    padded_left = model.model(left, left_mask, x_t=x_t, timesteps=times)
    for row, length in enumerate(lengths):
        alone = model.model(right[row : row + 1, :length], x_t=x_t[row : row + 1], timesteps=times[row : row + 1])
        for name in ("velocities", "gate_probs"):
            torch.testing.assert_close(together[name][row], alone[name][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(padded_left[name][row], alone[name][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[0][row, :length], alone[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded_left[0][row, -length:], alone[0][0], atol=1e-5, rtol=1e-5)
    model.set_attn_implementation("sdpa")


def test_canvas_padding_changes_nothing(model_of_positions):
    model = model_of_positions
    ids, mask = source_batch()
    labels = target_labels()
    canvas = (labels != -100).long()
    whole = model(ids, mask, labels=labels, decoder_attention_mask=canvas, **pinned_draws(labels))
    wider = torch.nn.functional.pad(labels, (0, 4), value=-100)
    draws = pinned_draws(labels)
    draws["decoder_attention_mask"] = torch.nn.functional.pad(canvas, (0, 4))
    draws["prior_noise"] = torch.nn.functional.pad(draws["prior_noise"], (0, 0, 0, 4), value=7.0)
    draws["expert_indices"] = torch.nn.functional.pad(draws["expert_indices"], (0, 4))
    padded = model(ids, mask, labels=wider, **draws)
    torch.testing.assert_close(padded.loss, whole.loss)
    valid = labels != -100
    torch.testing.assert_close(padded.logits[:, :6][valid], whole.logits[valid], atol=1e-5, rtol=1e-5)


def test_every_loss_term_is_there_and_adds_up():
    model = tiny_model(**ALL_TERMS)
    ids, mask = source_batch()
    labels = target_labels()
    outputs = model(ids, mask, labels=labels, **pinned_draws(labels))
    terms = [term for term in LOSS_TERMS.values() if not term.needs_blanks]
    weights = model.config.training_config.weights
    total = sum(term.sign * weights[term.name] * outputs[term.name] for term in terms)
    torch.testing.assert_close(outputs.loss.detach(), total)
    assert outputs.bigram_loss is None
    assert outputs.logits.shape == (3, 6, VOCAB_SIZE)
    assert outputs.length_logits.shape == (3, 32)
    assert outputs.latents.shape == (3, 6, 16)


def test_a_term_without_weight_is_not_computed():
    model = tiny_model(mse_loss_weight=0, length_head=False)
    ids, mask = source_batch()
    outputs = model(ids, mask, labels=target_labels())
    assert outputs.mse_loss is None
    assert outputs.length_loss is None
    assert outputs.length_logits is None


@pytest.mark.parametrize("model_class", [YanForConditionalGeneration, YanForMaskedLM])
def test_loss_in_chunks_equals_the_plain_one_in_value_and_gradients(model_class):
    """In training mode, where it is used; 5 does not divide the number of positions."""
    ids, mask = source_batch()
    labels = target_labels() if model_class is YanForConditionalGeneration else ids.masked_fill(mask == 0, -100)
    draws = pinned_draws(labels) if model_class is YanForConditionalGeneration else {}
    results = []
    for chunk_size in (None, 5):
        options = {**ALL_TERMS, "mmd_loss_weight": 0, "latent_noise": 0.0, "loss_chunk_size": chunk_size}
        model = tiny_model(model_class, **options).train()
        outputs = model(ids, mask, labels=labels, **draws)
        outputs.loss.backward()
        results.append((outputs, gradients(model)))
    (plain, expected), (chunked, ours) = results
    assert plain.logits is not None
    assert chunked.logits is None
    torch.testing.assert_close(chunked.loss, plain.loss)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert model.eval()(ids, mask, labels=labels).logits is not None


def test_training_on_the_likelihood_alone_does_not_unroll(monkeypatch):
    ids, mask = source_batch()
    labels = target_labels()
    draws = pinned_draws(labels)
    options = {"mse_loss_weight": 0, "ce_loss_weight": 0, "latent_noise": 0.0}
    model = tiny_model(**options)
    expected = model(ids, mask, labels=labels, **draws).loss
    passes, trunk = [], model.model.flow.trunk
    monkeypatch.setattr(model.model.flow, "trunk", lambda *a, **k: passes.append(1) or trunk(*a, **k))
    outputs = model.train()(ids, mask, labels=labels, **draws)
    torch.testing.assert_close(outputs.loss, expected)
    assert len(passes) == 1
    assert outputs.logits is None
    assert outputs.latents is None


@pytest.mark.parametrize(("term", "encodings"), [("mse_loss", 2), ("ce_loss", 1)])
def test_training_on_the_endpoint_alone_computes_nothing_else(monkeypatch, term, encodings):
    ids, mask = source_batch()
    labels = target_labels()
    draws = pinned_draws(labels)
    del draws["expert_indices"]
    weights = {f"{name}_weight": 0 for name in ("nll_loss", "mse_loss", "ce_loss")}
    model = tiny_model(**{**weights, f"{term}_weight": 1.0, "latent_noise": 0.0, "unroll_steps": 3})

    def loss_and_gradients() -> tuple:
        model.zero_grad()
        outputs = model(ids, mask, labels=labels, generator=torch.Generator().manual_seed(0), **draws)
        outputs.loss.backward()
        return outputs, gradients(model)

    full, expected = loss_and_gradients()
    calls, trunk = [], model.model.flow.trunk
    monkeypatch.setattr(model.model.flow, "trunk", lambda *a, **k: calls.append("trunk") or trunk(*a, **k))
    model.get_encoder().register_forward_hook(lambda *a: calls.append("encoder"))
    model.train()
    outputs, found = loss_and_gradients()
    assert (calls.count("trunk"), calls.count("encoder")) == (3, encodings)
    torch.testing.assert_close(outputs.loss, full.loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}")
    # The gate that the experts were drawn from.
    torch.testing.assert_close(outputs.expert_usage.sum(), torch.tensor(1.0))
    assert outputs.nll_loss is None


def test_expert_usage_and_gate_entropy_are_those_of_the_target_tokens():
    model = tiny_model()
    ids, mask = source_batch()
    labels = target_labels()
    draws = pinned_draws(labels)
    outputs = model(ids, mask, labels=labels, **draws)
    valid = labels != -100
    x_1 = model.get_encoder()(labels.masked_fill(~valid, 0), valid.long()).last_hidden_state
    times = draws["timesteps"][:, None, None]
    x_t = (1 - times) * draws["prior_noise"] + times * x_1
    gate = model.model(ids, mask, x_t=x_t, timesteps=draws["timesteps"], decoder_attention_mask=valid).gate_probs[valid]
    torch.testing.assert_close(outputs.expert_usage, gate.mean(0))
    torch.testing.assert_close(outputs.gate_entropy, -(gate * gate.log()).sum(-1).mean())


def test_length_loss_is_the_cross_entropy_of_the_number_of_labels(model):
    ids, mask = source_batch()
    labels = target_labels()
    outputs = model(ids, mask, labels=labels)
    lengths = (labels != -100).sum(-1)
    per_row = -outputs.length_logits.log_softmax(-1)[torch.arange(3), lengths - 1]
    torch.testing.assert_close(outputs.length_loss, ((per_row * lengths).sum() / lengths.sum()).detach())


def test_unrolled_endpoint_is_the_plain_euler_solution_with_all_experts(model_of_positions):
    model = model_of_positions
    ids, mask = source_batch()
    labels = target_labels()
    draws = pinned_draws(labels)
    canvas = (labels != -100).long()
    outputs = model(ids, mask, labels=labels, decoder_attention_mask=canvas, **draws)
    x = draws["prior_noise"]
    index = draws["expert_indices"][..., None, None].expand(-1, -1, 1, 16)
    for step in range(3):
        out = model.model(ids, mask, x_t=x, timesteps=torch.full((3,), step / 3), decoder_attention_mask=canvas)
        x = x + out.velocities.gather(2, index).squeeze(2) / 3
    torch.testing.assert_close(outputs.latents[canvas.bool()], x[canvas.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction_type", ["velocity", "data"])
def test_losses_and_gradients_are_finite(dtype, prediction_type):
    model = tiny_model(prediction_type=prediction_type, **ALL_TERMS).to(dtype).train()
    ids, mask = source_batch()
    labels = target_labels()
    # A row without any label must not poison the others.
    labels[2] = -100
    outputs = model(ids, mask, labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(v.isfinite().all() for k, v in outputs.items() if k.endswith(("loss", "entropy", "balance", "l2")))
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_positions_from_the_end_tell_how_far_it_is():
    model = tiny_model(YanForMaskedLM, reverse_positions=True, encoder_layers=1)
    table = model.model.encoder.embeddings
    whole, masked = table.positions(4, None), table.positions(6, torch.tensor([[0, 1, 1, 1, 1, 0]]))
    torch.testing.assert_close(masked[:, 1:5], whole)
    ends = whole[0] * 2**0.5 - table.position_embeddings.weight[:4]
    torch.testing.assert_close(ends, table.end_position_embeddings.weight[:4].flip(0))


def test_no_gradient_reaches_the_target_latents():
    # With the source given, only a path through the latents of the target could move the encoder.
    model = tiny_model(ce_loss_weight=0.0, length_loss_weight=0.0).train()
    ids, mask = source_batch()
    encoded = model.get_encoder()(ids, mask)
    encoded.last_hidden_state = encoded.last_hidden_state.detach()
    model(attention_mask=mask, labels=target_labels(), encoder_outputs=encoded).loss.backward()
    moved = [name for name, g in gradients(model).items() if name.startswith("model.encoder.layers")]
    assert not moved


def test_every_parameter_learns():
    model = tiny_model().train()
    ids, mask = source_batch()
    model(ids, mask, labels=target_labels(), generator=torch.Generator().manual_seed(0)).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_micro_batches_add_up_to_the_gradient_of_the_batch():
    model = tiny_model(gate_entropy_weight=0.1, latent_l2_weight=0.1, denoising_ce_loss_weight=0.5, latent_noise=0.0)
    ids, mask = source_batch()
    labels = target_labels()
    draws = pinned_draws(labels)
    model(ids, mask, labels=labels, **draws).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    count = (labels != -100).sum()
    for part in (slice(0, 1), slice(1, 3)):
        pinned = {name: value[part] for name, value in draws.items()}
        model(ids[part], mask[part], labels=labels[part], num_items_in_batch=count, **pinned).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    ids, mask = source_batch()
    labels = target_labels()
    results = []
    for checkpointing in (False, True):
        model = tiny_model(latent_noise=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        outputs = model(ids, mask, labels=labels, **pinned_draws(labels))
        outputs.loss.backward()
        results.append((outputs.loss, gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, msg=name)


def test_evaluation_draws_nothing_without_labels_and_the_same_with_them(model):
    ids, mask = source_batch()
    labels = target_labels()
    state = torch.get_rng_state()
    assert torch.equal(model(ids, mask).logits, model(ids, mask).logits)
    assert torch.equal(model(ids, mask, labels=labels).loss, model(ids, mask, labels=labels).loss)
    assert torch.equal(state, torch.get_rng_state())


def test_training_draws_come_from_the_generator():
    model = tiny_model().train()
    ids, mask = source_batch()
    losses = [
        model(ids, mask, labels=target_labels(), generator=torch.Generator().manual_seed(seed)).loss
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_encoder_outputs_and_inputs_embeds_replace_the_source(model):
    ids, mask = source_batch()
    labels = target_labels()
    expected = model(ids, mask, labels=labels)
    encoded = model.get_encoder()(ids, mask)
    torch.testing.assert_close(model(attention_mask=mask, labels=labels, encoder_outputs=encoded).loss, expected.loss)
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(attention_mask=mask, labels=labels, inputs_embeds=embeds).loss, expected.loss)


def test_hidden_states_and_attentions_are_recorded(model):
    ids, mask = source_batch()
    model.set_attn_implementation("eager")
    outputs = model(ids, mask, labels=target_labels(), output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation("sdpa")
    assert len(outputs.hidden_states) == 3
    assert len(outputs.attentions) == 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(3, 2, 7))


@pytest.mark.parametrize("implementation", ["loop", "grouped_mm", "dense"])
def test_only_the_chosen_expert_counts_and_equals_its_slice(implementation):
    experts = tiny_model(experts_implementation=implementation).model.flow.experts
    states = torch.randn(2, 7, 16, requires_grad=True)
    chosen = torch.randint(3, (2, 7))
    chosen[chosen == 1] = 2  # one expert has no tokens
    everything = experts(states)
    expected = everything.gather(2, chosen[..., None, None].expand(-1, -1, 1, 16)).squeeze(2)
    routed = experts(states, route_tokens(chosen, 3))
    torch.testing.assert_close(routed, expected, atol=1e-6, rtol=1e-5)
    inputs = (states, experts.up_proj, experts.down_proj)
    weights = torch.randn_like(routed)
    for fast, plain in zip(
        torch.autograd.grad((routed * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)


def test_time_embedding_distinguishes_times_and_is_sines_then_cosines():
    embedding = YanTimeEmbedding(tiny_config())
    with torch.no_grad():
        embedding.proj.weight.copy_(torch.eye(16))
        embedding.proj.bias.zero_()
    embedding.act_fn = torch.nn.Identity()
    out = embedding(torch.tensor([0.0, 0.5]))
    frequencies = 10000.0 ** (-torch.arange(8) / 7)
    torch.testing.assert_close(out[0], torch.cat([torch.zeros(8), torch.ones(8)]))
    torch.testing.assert_close(out[1], torch.cat([(0.5 * frequencies).sin(), (0.5 * frequencies).cos()]))


def test_padded_tokens_get_the_uniform_gate(model):
    ids, mask = source_batch()
    canvas = torch.tensor([[1, 1, 1, 0]] * 3)
    x_t = torch.randn(3, 4, 16)
    gate = model.model(ids, mask, x_t=x_t, timesteps=torch.zeros(3), decoder_attention_mask=canvas).gate_probs
    torch.testing.assert_close(gate[:, 3], torch.full((3, 3), 1 / 3))
    assert (gate[:, :3] - 1 / 3).abs().max() > 1e-3


def test_initial_weights_have_the_documented_scales():
    torch.manual_seed(0)
    model = YanForConditionalGeneration(tiny_config(hidden_size=64, intermediate_size=128))
    std = {name: p.std().item() for name, p in model.named_parameters()}
    assert std["model.encoder.embeddings.word_embeddings.weight"] == pytest.approx(1, abs=0.05)
    assert std["model.encoder.embeddings.position_embeddings.weight"] == pytest.approx(1, abs=0.05)
    assert std["model.encoder.layers.0.mixer.q_proj.weight"] == pytest.approx((3 * 64) ** -0.5, rel=0.1)
    assert std["model.flow.experts.down_proj"] == pytest.approx((3 * 128) ** -0.5, rel=0.1)
    bias = model.model.flow.layers[0].modulation.bias.view(6, 64)
    assert (bias[0::2] == 1).all()
    assert (bias[1::2] == 0).all()
    assert isinstance(model.model.flow.experts, YanExperts)
    cross = model.model.flow.layers[0].cross_attention
    for projection in (cross.q_proj, cross.k_proj, cross.v_proj, cross.out_proj):
        rest = projection.weight - torch.eye(64)
        assert rest.std().item() == pytest.approx(0.5 * (3 * 64) ** -0.5, rel=0.1)


@pytest.mark.parametrize("model_class", [YanForMaskedLM, YanForConditionalGeneration])
def test_a_new_models_head_reads_the_latents_of_clean_text(model_class):
    torch.manual_seed(0)
    model = model_class(tiny_config(hidden_size=64, intermediate_size=128)).eval()
    ids, mask = source_batch((9, 6, 12))
    latents = model.model.encoder(ids, mask).last_hidden_state
    assert (model.decoder(latents).argmax(-1) == ids)[mask.bool()].float().mean() > 0.95
    # Wrong tokens have logits of standard deviation 1.
    assert model.decoder.lm_head.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
def test_new_experts_of_data_prediction_pass_on_what_they_read(activation):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "hidden_act": activation}
    states = torch.randn(2, 5, 64)
    experts = YanForConditionalGeneration(tiny_config(prediction_type="data", **sizes)).model.flow.experts
    assert (experts(states) - states.unsqueeze(2)).std() < 0.2
    experts = YanForConditionalGeneration(tiny_config(prediction_type="velocity", **sizes)).model.flow.experts
    assert (experts(states) - states.unsqueeze(2)).std() > 0.9


def test_a_new_flow_of_data_prediction_copies_its_source(tmp_path):
    """From noise, untrained: also behind an autoencoder, whose checkpoint has no flow yet."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=256, num_attention_heads=4, intermediate_size=512, prediction_type="data")
    YanForMaskedLM(config).save_pretrained(tmp_path)
    ids, mask = source_batch((9, 6, 12))
    for model in (YanForConditionalGeneration(config), YanForConditionalGeneration.from_pretrained(tmp_path)):
        noise = torch.randn(*ids.shape, 256, generator=torch.Generator().manual_seed(0))
        written = model.eval()(ids, mask, decoder_attention_mask=mask, prior_noise=noise).logits.argmax(-1)
        assert (written == ids)[mask.bool()].float().mean() > 0.8


def test_masked_lm_learns_from_labels_and_reports_latents():
    model = tiny_model(YanForMaskedLM, mmd_loss_weight=0.5, latent_l2_weight=0.1).train()
    ids, mask = source_batch()
    labels = ids.masked_fill(mask == 0, -100)
    outputs = model(ids, mask, labels=labels, generator=torch.Generator().manual_seed(0))
    total = outputs.ce_loss + 0.5 * outputs.mmd_loss + 0.1 * outputs.latent_l2
    torch.testing.assert_close(outputs.loss.detach(), total)
    assert outputs.logits.shape == (3, 7, VOCAB_SIZE)
    assert outputs.latents.shape == (3, 7, 16)
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("model_class", "labels", "shape"),
    [
        (YanForSequenceClassification, {"labels": torch.tensor([0, 3, 2])}, (3, 4)),
        (YanForTokenClassification, {"labels": torch.randint(4, (3, 7))}, (3, 7, 4)),
        (
            YanForQuestionAnswering,
            {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([3, 2, 4])},
            (3, 7),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_heads_on_the_encoder(model_class, labels, shape):
    model = tiny_model(model_class, num_labels=4)
    ids, mask = source_batch()
    outputs = model(ids, mask, **labels)
    assert outputs[1].shape == shape
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    left, left_mask = source_batch(side="left")
    if model_class is YanForSequenceClassification:
        torch.testing.assert_close(model(left, left_mask).logits, outputs.logits, atol=1e-5, rtol=1e-5)


def test_vocabulary_can_be_resized(model):
    model = tiny_model()
    ids, mask = source_batch()
    before = model(ids, mask).logits
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    after = model(ids, mask).logits
    assert model.config.vocab_size == after.shape[-1] == VOCAB_SIZE + 7
    torch.testing.assert_close(after[..., :VOCAB_SIZE], before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"reverse_positions": True, "encoder_config": {"model_type": "bert", "hidden_size": 16}}, "reverse_positions"),
        ({"num_attention_heads": 3}, "num_attention_heads=3"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"cross_attention_layers": [0, 3]}, "cross_attention_layers"),
        ({"cross_attention_layers": [1, 1]}, "cross_attention_layers"),
        ({"pad_token_id": 53}, "pad_token_id=53"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"attention_conv_size": 7}, "attention_conv_size=7 is no setting any more"),
        ({"prior_std": float("nan")}, "prior_std=nan must be a finite number"),
        ({"training_config": {"velocity_std": float("inf")}}, "velocity_std=inf must be a finite number"),
        ({"training_config": {"unroll_stepz": 1}}, r"no \['unroll_stepz'\]; its settings are"),
        ({"initializer_range": -0.1}, "initializer_range=-0.1"),
        ({"mamba_intermediate_size": 0}, "mamba_intermediate_size=0"),
        ({"velocity_std": -1.0}, "velocity_std"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"ce_loss_weight": -1.0}, "ce_loss_weight"),
        ({"unroll_steps": 0}, "unroll_steps"),
    ],
)
def test_config_rejects_what_does_not_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize("overrides", [{"encoder_mixer": "rnn"}, {"hidden_size": "16"}, {"cross_attention_layers": 3}])
def test_config_rejects_wrong_types(overrides):
    with pytest.raises(StrictDataclassError, match=next(iter(overrides))):
        tiny_config(**overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"input_ids": torch.full((1, 40), 5)}, "max_position_embeddings=32"),
        ({"input_ids": torch.full((2, 4), 5), "labels": torch.full((3, 4), 5)}, "agree"),
        ({"input_ids": torch.full((2, 4), 5), "labels": torch.full((2, 40), 5)}, "target has 40"),
        ({"input_ids": torch.full((2, 4), 5), "prior_noise": torch.zeros(2, 4, 3)}, "prior_noise"),
    ],
)
def test_forward_rejects_bad_input(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_model_without_flow_rejects_a_canvas():
    model = YanModel(tiny_config(), add_velocity_field=False)
    with pytest.raises(ValueError, match="without velocity field"):
        model(torch.full((1, 4), 5), x_t=torch.zeros(1, 4, 16), timesteps=torch.zeros(1))
    with pytest.raises(ValueError, match="timesteps"):
        tiny_model(YanModel)(torch.full((1, 4), 5), x_t=torch.zeros(1, 4, 16))


@pytest.mark.parametrize(
    "model_class",
    [
        YanModel,
        YanForMaskedLM,
        YanForSequenceClassification,
        YanForTokenClassification,
        YanForQuestionAnswering,
    ],
)
def test_a_config_may_ask_for_tuples(model_class):
    model, (ids, mask) = tiny_model(model_class), source_batch()
    expected = model(ids, mask).to_tuple()
    model.config.return_dict = False
    found = model(ids, mask)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
