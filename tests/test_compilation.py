"""generate(compile=True): one graph without breaks, the plain path's tokens, and caches that neither grow, stick nor leak."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CompileConfig

from modeling_yan.compilation_yan import CompiledFunctions, next_power_of_two, round_up

from .conftest import randomize, source_batch, tiny_model

# Traces into one graph as every other backend does, and compiles nothing: seconds instead of minutes.
TRACED = CompileConfig(backend="eager")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    for row, length in enumerate(plain.target_lengths.tolist()):
        torch.testing.assert_close(
            compiled.trajectory[:, row, :length], plain.trajectory[:, row, :length], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("mixer", ["attention", "conv_attention", "mamba"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_traced_without_breaks_and_with_the_plain_tokens(mixer, side):
    # Positions of both kinds: from the beginning and on a canvas with room for blanks in the middle case, from both ends in the others.
    options = {"end_positions": True}
    if mixer == "conv_attention":
        options = {"canvas_ratio": 1.5, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer, **options)
    ids, mask = source_batch((7, 4, 5), side=side)
    assert_same(written(model, ids, mask, compile_config=TRACED), written(model, ids, mask))
    assert len(CompiledFunctions.of(model)) >= 2


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
def test_every_option_gives_the_plain_tokens(options):
    model = tiny_model(prediction_type="data")
    ids, mask = source_batch()
    assert_same(written(model, ids, mask, compile_config=TRACED, **options), written(model, ids, mask, **options))


def test_inductor_gives_the_plain_tokens():
    model = tiny_model(encoder_layers=1, flow_layers=1, cross_attention_layers=[0])
    ids, mask = source_batch((7, 4))
    options = {"target_lengths": 5, "num_inference_steps": 2}
    plain = model.generate(ids, mask, generator=seeded(), **options)
    assert torch.equal(model.generate(ids, mask, generator=seeded(), compile=True, **options), plain)


@pytest.mark.parametrize("implementation", ["grouped_mm", "dense"])
def test_half_precision_and_every_way_to_compute_experts(implementation):
    model = tiny_model(experts_implementation=implementation).to(torch.bfloat16)
    ids, mask = source_batch()
    assert torch.equal(written(model, ids, mask, compile_config=TRACED).sequences, written(model, ids, mask).sequences)


def test_encoder_outputs_can_be_given(model):
    ids, mask = source_batch()
    states = model.get_encoder()(ids, mask)
    plain = model.generate(encoder_outputs=states, attention_mask=mask, generator=seeded())
    compiled = model.generate(encoder_outputs=states, attention_mask=mask, generator=seeded(), compile_config=TRACED)
    assert torch.equal(plain, compiled)


def test_near_shapes_share_a_graph_and_others_do_not():
    model = tiny_model()
    functions = CompiledFunctions.of(model)
    for length, rows, target in ((7, 3, 5), (5, 3, 9), (6, 4, 16), (8, 4, 2)):
        ids, mask = source_batch((length,) * rows)
        model.generate(ids, mask, target_lengths=target, compile_config=TRACED)
    assert len(functions) == 2  # one encoder, one writer
    ids, mask = source_batch((7, 3, 5))
    model.generate(ids, mask, target_lengths=17, compile_config=TRACED)
    assert len(functions) == 3
    model.generate(ids, mask, target_lengths=17, num_inference_steps=2, compile_config=TRACED)
    assert len(functions) == 4


def test_replaced_modules_are_never_answered_by_a_stale_graph():
    model = tiny_model()
    ids, mask = source_batch()
    before = written(model, ids, mask, compile_config=TRACED)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["up_proj"], r=4))
    randomize(adapted, 7)
    options = {"input_ids": ids, "attention_mask": mask, "target_lengths": 9}
    plain = adapted.generate(**options, generator=seeded())
    assert torch.equal(adapted.generate(**options, generator=seeded(), compile_config=TRACED), plain)
    merged = adapted.merge_and_unload()
    assert_same(written(merged, ids, mask, compile_config=TRACED), written(merged, ids, mask))
    assert not torch.equal(before.trajectory[-1], written(merged, ids, mask).trajectory[-1])
    merged.to(torch.float64)
    assert_same(written(merged, ids, mask, compile_config=TRACED), written(merged, ids, mask))


def test_copies_start_without_graphs_and_answer_for_themselves():
    model = tiny_model()
    ids, mask = source_batch()
    model.generate(ids, mask, compile_config=TRACED)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert len(CompiledFunctions.of(other)) == 0
    other = randomize(copy.deepcopy(model), 5)
    assert_same(written(other, ids, mask, compile_config=TRACED), written(other, ids, mask))


def test_the_number_of_graphs_is_bounded_and_the_oldest_goes():
    functions = CompiledFunctions(limit=2)
    for key in "abac":
        functions.get(key, lambda x: x + 1, {"backend": "eager"})(torch.zeros(1))
    assert len(functions) == 2
    assert list(functions._functions) == ["a", "c"]


def test_a_deleted_model_is_released():
    model = tiny_model()
    ids, mask = source_batch()
    model.generate(ids, mask, compile_config=TRACED)
    released = weakref.ref(model)
    del model
    gc.collect()
    assert released() is None


def test_threads_share_the_graphs():
    model = tiny_model()
    ids, mask = source_batch()
    plain = model.generate(ids, mask, generator=seeded(), target_lengths=6)
    answers, errors = [], []

    def work():
        try:
            answers.append(model.generate(ids, mask, generator=seeded(), target_lengths=6, compile_config=TRACED))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(answer, plain) for answer in answers)
    assert len(answers) == 4
    assert len(CompiledFunctions.of(model)) == 2


def test_disable_compile_wins(model):
    options, _ = model._prepare_generation_config(None, compile=True, disable_compile=True)
    assert options.compile is False


def test_sizes_are_rounded_up_within_limits():
    assert [round_up(n, 16, 40) for n in (1, 16, 17, 33, 40, 50)] == [16, 16, 32, 40, 40, 50]
    assert [next_power_of_two(n) for n in (1, 2, 3, 4, 5, 8)] == [1, 2, 4, 4, 8, 8]
