"""The baselines of the benchmark: equal size, exactly as many tokens, and a check that notices a wrong one."""

import copy

import pytest
import torch

from modeling_yan.evaluation.baselines import (
    agreement,
    bart_baseline,
    check,
    compiled_gpt2_baseline,
    diffusion_baselines,
    gpt2_baseline,
    release,
    shallow_decoder_baseline,
    yan_system,
)

from ..helpers import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(hidden_size=64, intermediate_size=256, vocab_size=500)


def test_baselines_are_of_equal_size_and_their_checks_notice_a_wrong_token(model):
    state = torch.get_rng_state()
    systems = [
        yan_system(model, 3),
        gpt2_baseline(model),
        bart_baseline(model),
        shallow_decoder_baseline(model),
        *diffusion_baselines(model),
    ]
    assert torch.equal(state, torch.get_rng_state())
    source = torch.randint(4, 500, (2, 7))
    for system in systems:
        assert abs(system.model.num_parameters() / model.num_parameters() - 1) < 0.05, system.name
        answers = system.write(source, 20)
        assert answers.shape == (2, 20), system.name
        assert system.is_right(source, answers), system.name
        wrong = answers.clone()
        wrong[1, 13] = (wrong[1, 13] + 1) % 500
        assert not system.is_right(source, wrong), system.name
    assert [system.evaluations(20) for system in systems] == [3, 20, 20, 20, 20, 10, 5, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checks_pass_in_any_dtype_and_notice_a_wrong_token(model, dtype):
    model = copy.deepcopy(model).to(dtype)
    source = torch.randint(4, 500, (2, 7))
    for system in (yan_system(model, 3), gpt2_baseline(model), bart_baseline(model), *diffusion_baselines(model)):
        assert check(system, source, 20), system.name
        assert system.model.dtype == dtype
        write = system.write
        system.write = lambda source, length, write=write: (write(source, length) + 1) % 500
        assert check(system, source, 20) is None, system.name


def test_a_compiled_system_in_half_precision_must_agree_with_the_plain_call(model):
    system = yan_system(copy.deepcopy(model).bfloat16(), 3, compiled=True)
    source = torch.randint(4, 500, (2, 7))
    plain = system.plain(source, 20)
    system.write = lambda source, length: torch.where(torch.arange(40).view(2, 20) < 3, (plain + 1) % 500, plain)
    assert check(system, source, 20) == "92.5% of the plain call's tokens"
    system.write = lambda source, length: torch.where(torch.arange(40).view(2, 20) < 5, (plain + 1) % 500, plain)
    assert check(system, source, 20) is None


@pytest.mark.slow
def test_compiled_gpt2_writes_what_the_eager_one_writes(model):
    eager = gpt2_baseline(model)
    compiled = compiled_gpt2_baseline(eager)
    source = torch.randint(4, 500, (1, 7))
    for _ in range(2):
        assert torch.equal(compiled.write(source, 9), eager.write(source, 9))
    release()


def test_a_model_with_room_for_blanks_is_checked_against_its_plain_call():
    model = tiny_model(canvas_ratio=1.5, nll_loss_weight=0.0, mse_loss_weight=0.0, max_position_embeddings=64)
    source = torch.randint(4, 50, (2, 7))
    system = yan_system(model, 3)
    answers = system.write(source, 20)
    assert answers.shape == (2, 20)
    assert system.is_right(source, answers)
    assert not system.is_right(source, (answers + 1) % 50)


def test_agreement_counts_a_token_more_once():
    expected = torch.tensor([[5, 6, 7, 8, 9], [4, 4, 4, 4, 4]])
    assert agreement(expected, expected) == 1
    assert agreement(expected, torch.tensor([[3, 5, 6, 7, 8], [4, 4, 4, 4, 4]])) == pytest.approx(0.9)
    assert agreement(expected, expected + 10) == 0


def test_a_runtime_writes_in_the_place_of_the_model_that_checks_it(model):
    other = copy.deepcopy(model)
    system = yan_system(model, 1, runtime=other, runtime_name="other")
    source = torch.randint(4, 500, (2, 7))
    assert system.name == "YAN, 1 step, other"
    assert check(system, source, 20) == "passed"
    with torch.no_grad():
        other.decoder.lm_head.weight.neg_()
    assert check(system, source, 20) is None
