"""Token counting, the timing protocol and the equal-size peer. No test depends on how long anything takes."""

import pytest
import torch

from modeling_yan.evaluation.speed import System, measure_side_by_side
from modeling_yan.evaluation.text_generation import count_tokens


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


def test_a_system_that_used_its_time_sits_out():
    calls = []
    systems = [System(name, lambda item, name=name: calls.append(name) or 1, [1]) for name in "ab"]
    results = measure_side_by_side(systems, repeats=5, warmup=0, seconds=1e-9)
    assert calls == ["a", "b"]
    assert results["a"]["calls"] == 1
    assert results["a"]["latency_ms"]["quartiles"] == [results["a"]["latency_ms"]["median"]] * 2


def test_after_a_pause_a_call_is_not_timed():
    calls = []
    systems = [System(name, lambda item, name=name: calls.append(name) or 1, [1]) for name in "ab"]
    results = measure_side_by_side(systems, repeats=2, warmup=0, pause=1e-6)
    assert calls == ["a", "a", "b", "b", "b", "b", "a", "a"]
    assert results["a"]["calls"] == 2
    assert results["a"]["latency_ms"]["fastest"] <= results["a"]["latency_ms"]["median"]
