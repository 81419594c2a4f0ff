"""generate(compile=True): one graph without breaks, and the plain path's tokens."""

import pytest
import torch
from transformers import CompileConfig

from modeling_yan.compilation_yan import CompiledFunctions, next_power_of_two, round_up

from .helpers import seeded, source_batch, tiny_model

# Traces into one graph as every other backend does, and compiles nothing: seconds instead of minutes.
TRACED = CompileConfig(backend="eager")


def small_model(**options):
    """A layer of each kind, two steps: what is traced is all of it, and takes seconds a layer and step."""
    model = tiny_model(**{"encoder_layers": 1, "flow_layers": 1, "cross_attention_layers": [0], **options})
    model.generation_config.num_inference_steps = 2
    return model


def written(model, ids, mask=None, **options):
    return model.generate(
        ids,
        mask,
        generator=seeded(),
        return_dict_in_generate=True,
        output_trajectory=True,
        max_new_tokens=21,
        **options,
    )


def assert_same(compiled, plain):
    assert torch.equal(compiled.sequences, plain.sequences)
    assert torch.equal(compiled.target_lengths, plain.target_lengths)
    torch.testing.assert_close(compiled.sequences_scores, plain.sequences_scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(compiled.token_scores, plain.token_scores, atol=1e-5, rtol=1e-4)
    for row, length in enumerate(plain.target_lengths.tolist()):
        torch.testing.assert_close(
            compiled.trajectory[:, row, :length], plain.trajectory[:, row, :length], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("mixer", ["attention", "conv_attention", "mamba"])
def test_traced_without_breaks_and_with_the_plain_tokens(mixer):
    # Positions of both kinds: from the beginning, on a canvas of the source's tokens, in the middle case, from both
    # ends, with tokens that are copied, in the others.
    options = {"reverse_positions": True, "copy_mechanism": True}
    if mixer == "conv_attention":
        options = {"canvas_ratio": 1.5, "length_head": "source", "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
    # With attention to the source and without.
    layers = {"flow_layers": 2, "cross_attention_layers": [1]}
    model, graphs = small_model(encoder_mixer=mixer, flow_mixer=mixer, **layers, **options), []
    for side in ("right", "left"):
        ids, mask = source_batch((7, 4, 5), side=side)
        assert_same(written(model, ids, mask, compile_config=TRACED), written(model, ids, mask))
        graphs.append(len(CompiledFunctions.of(model)))
    # The same for both sides.
    assert graphs[0] == graphs[1] >= 2


@pytest.fixture(scope="module")
def of_data():
    """A model that keeps its graphs from test to test."""
    return small_model(prediction_type="data")


@pytest.mark.parametrize(
    "options",
    [
        {"num_candidates": 2, "num_return_sequences": 2, "num_length_candidates": 3},
        {"do_sample": True, "temperature": 0.8, "top_k": 9, "top_p": 0.9},
        {"solver": "midpoint", "time_shift": 1.5, "expert_selection": "argmax"},
        {"length_mode": "canvas", "min_new_tokens": 3},
        {"target_lengths": [6, 21, 1], "num_inference_steps": 1},
    ],
)
def test_every_option_gives_the_plain_tokens(of_data, options):
    ids, mask = source_batch()
    assert_same(written(of_data, ids, mask, compile_config=TRACED, **options), written(of_data, ids, mask, **options))


def test_inductor_gives_the_plain_tokens():
    model = small_model()
    ids, mask = source_batch((7, 4))
    options = {"target_lengths": 5, "num_inference_steps": 1}
    plain = model.generate(ids, mask, generator=seeded(), **options)
    assert torch.equal(model.generate(ids, mask, generator=seeded(), compile=True, **options), plain)


@pytest.mark.parametrize("implementation", ["grouped_mm", "dense"])
def test_half_precision_and_every_way_to_compute_experts(implementation):
    model = small_model(experts_implementation=implementation).to(torch.bfloat16)
    ids, mask = source_batch()
    assert torch.equal(written(model, ids, mask, compile_config=TRACED).sequences, written(model, ids, mask).sequences)


def test_encoder_outputs_can_be_given():
    model = small_model()
    ids, mask = source_batch()
    states = model.get_encoder()(ids, mask)
    plain = model.generate(encoder_outputs=states, attention_mask=mask, generator=seeded())
    compiled = model.generate(encoder_outputs=states, attention_mask=mask, generator=seeded(), compile_config=TRACED)
    assert torch.equal(plain, compiled)


def test_disable_compile_wins(model):
    assert model.generation_options(compile=True).compile_options is not None
    assert model.generation_options(compile=True, disable_compile=True).compile_options is None


def test_sizes_are_rounded_up_within_limits():
    assert [round_up(n, 16, 40) for n in (1, 16, 17, 33, 40, 50)] == [16, 16, 32, 40, 40, 50]
    assert [next_power_of_two(n) for n in (1, 2, 3, 4, 5, 8)] == [1, 2, 4, 4, 8, 8]
