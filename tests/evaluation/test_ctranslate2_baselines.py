"""The baselines in CTranslate2: the tokens of their plain computation, as many as were asked for, and no others."""

import pytest
import torch

from modeling_yan.evaluation.baselines import are_best, bart_baseline, check, gpt2_baseline, shallow_decoder_baseline

from ..helpers import fingerprint, tiny_model

pytest.importorskip("ctranslate2")

from modeling_yan.evaluation.ctranslate2_baselines import ctranslate2_baselines


@pytest.mark.parametrize("make", [gpt2_baseline, bart_baseline, shallow_decoder_baseline])
def test_they_write_what_their_plain_computation_does(make):
    eager = make(tiny_model(hidden_size=64, intermediate_size=256, vocab_size=500))
    before = fingerprint(eager.model)
    systems = ctranslate2_baselines(eager)
    assert fingerprint(eager.model) == before
    assert [system.name.split(", ")[-1] for system in systems] == ["CTranslate2 float32", "CTranslate2 int8"]
    source = torch.randint(4, 500, (3, 7))
    for system in systems:
        assert (system.beams, system.threads) == (eager.beams, eager.threads)
        answers = system.write(source, 20)
        assert answers.shape == (3, 20)
        assert check(system, source, 20) == "passed"
        wrong = answers.clone()
        wrong[1, 13] = (wrong[1, 13] + 1) % 500
        assert not system.is_right(source, wrong)
    assert torch.equal(systems[0].write(source, 20), eager.write(source, 20))


def test_slack_is_a_share_of_the_largest_logit():
    logits = torch.tensor([[[1.0, 0.97, -2.0]]])
    second = torch.tensor([[1]])
    assert not are_best(logits, second)
    assert are_best(logits, second, slack=0.02)
    assert not are_best(logits, second, slack=0.01)
