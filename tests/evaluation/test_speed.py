"""Token counting, the timing protocol and the equal-size peer. No test depends on how long anything takes."""

import pytest
import torch

from modeling_yan.evaluation.speed import System, count_tokens, gpt2_of_equal_size, measure_side_by_side

from ..conftest import tiny_model


def test_tokens_are_counted_up_to_eos_without_padding():
    ids = torch.tensor([[5, 6, 2, 0, 0], [5, 6, 7, 8, 9], [2, 0, 0, 0, 0], [5, 0, 0, 0, 0]])
    assert count_tokens(ids, pad_token_id=0, eos_token_id=2) == 3 + 5 + 1 + 1
    assert count_tokens(torch.tensor([[5, 2, 2]]), pad_token_id=2, eos_token_id=2) == 2


def test_systems_alternate_and_every_call_is_recorded():
    calls = []

    def system(name, tokens):
        return System(name, lambda item: calls.append((name, item)) or tokens, inputs=[1, 2, 3])

    results = measure_side_by_side([system("a", 4), system("b", 7)], repeats=2, warmup=1)
    assert calls[:2] == [("a", 1), ("b", 1)]
    assert [name for name, _ in calls[2:]] == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert results["a"]["calls"] == results["b"]["calls"] == 6
    assert results["b"]["tokens"] == 42
    low, high = results["a"]["latency_ms"]["quartiles"]
    assert low <= results["a"]["latency_ms"]["median"] <= high


def test_uneven_inputs_are_refused():
    with pytest.raises(ValueError, match="as many inputs"):
        measure_side_by_side([System("a", lambda item: 1, [1]), System("b", lambda item: 1, [1, 2])])


def test_peer_is_of_equal_size_and_leaves_the_global_seed_alone():
    model = tiny_model(hidden_size=64, intermediate_size=256, vocab_size=500)
    state = torch.get_rng_state()
    peer = gpt2_of_equal_size(model, layers=4, heads=4)
    assert torch.equal(state, torch.get_rng_state())
    assert abs(peer.num_parameters() / model.num_parameters() - 1) < 0.05
    assert peer.config.vocab_size == 500
