"""The peers of the benchmark: equal size, exactly as many tokens, and a check that notices a wrong one; counted work."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from modeling_yan.evaluation.peers import (
    bart_peer,
    check,
    compiled_gpt2_peer,
    diffusion_peers,
    gpt2_peer,
    release,
    shallow_decoder_peer,
    yan_peer,
)
from modeling_yan.evaluation.roofline import count_work, measure_device, roofline_seconds

from ..conftest import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(hidden_size=64, intermediate_size=256, vocab_size=500)


def test_peers_are_of_equal_size_and_their_checks_notice_a_wrong_token(model):
    state = torch.get_rng_state()
    peers = [
        yan_peer(model, 3),
        gpt2_peer(model),
        bart_peer(model),
        shallow_decoder_peer(model),
        *diffusion_peers(model),
    ]
    assert torch.equal(state, torch.get_rng_state())
    source = torch.randint(4, 500, (2, 7))
    for peer in peers:
        assert abs(peer.model.num_parameters() / model.num_parameters() - 1) < 0.05, peer.name
        answers = peer.write(source, 20)
        assert answers.shape == (2, 20), peer.name
        assert peer.is_right(source, answers), peer.name
        wrong = answers.clone()
        wrong[1, 13] = (wrong[1, 13] + 1) % 500
        assert not peer.is_right(source, wrong), peer.name
    assert [peer.evaluations(20) for peer in peers] == [3, 20, 20, 20, 20, 10, 5, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checks_pass_in_any_dtype_and_notice_a_wrong_token(model, dtype):
    model = copy.deepcopy(model).to(dtype)
    source = torch.randint(4, 500, (2, 7))
    for peer in (yan_peer(model, 3), gpt2_peer(model), bart_peer(model), *diffusion_peers(model)):
        assert check(peer, source, 20), peer.name
        assert peer.model.dtype == dtype
        write = peer.write
        peer.write = lambda source, length, write=write: (write(source, length) + 1) % 500
        assert check(peer, source, 20) is None, peer.name


def test_a_compiled_peer_in_half_precision_must_agree_with_the_plain_call(model):
    peer = yan_peer(copy.deepcopy(model).bfloat16(), 3, compiled=True)
    source = torch.randint(4, 500, (2, 7))
    plain = peer.plain(source, 20)
    peer.write = lambda source, length: torch.where(torch.arange(40).view(2, 20) < 3, (plain + 1) % 500, plain)
    assert check(peer, source, 20) == "92.5% of the plain call's tokens"
    peer.write = lambda source, length: torch.where(torch.arange(40).view(2, 20) < 5, (plain + 1) % 500, plain)
    assert check(peer, source, 20) is None


@pytest.mark.slow
def test_compiled_gpt2_writes_what_the_eager_one_writes(model):
    eager = gpt2_peer(model)
    compiled = compiled_gpt2_peer(eager)
    source = torch.randint(4, 500, (1, 7))
    for _ in range(2):
        assert torch.equal(compiled.write(source, 9), eager.write(source, 9))
    release()


def test_work_is_counted():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_work(lambda: a @ b) == {"flops": 2 * 3 * 5 * 7, "bytes": 4 * (15 + 35 + 21)}
    layer = torch.nn.Linear(5, 7)
    with torch.no_grad():
        assert count_work(lambda: layer(a)) == {"flops": 2 * 3 * 5 * 7, "bytes": 4 * (7 + 15 + 35 + 21)}


def test_attention_and_its_gradient_are_counted():
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    work = count_work(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert work["flops"] == 2 * 2 * 3 * 5 * 7 * (8 + 8)
    assert count_work(lambda: out.sum().backward())["flops"] == 2.5 * work["flops"]


def test_the_roofline_is_the_longer_of_arithmetic_and_traffic():
    rates = {"flops_per_second": 10.0, "bytes_per_second": 100.0}
    assert roofline_seconds({"flops": 20, "bytes": 100}, rates) == 2.0
    assert roofline_seconds({"flops": 20, "bytes": 500}, rates) == 5.0
    measured = measure_device(torch.device("cpu"), torch.float32, seconds=0.01)
    assert all(rate > 1e8 for rate in measured.values())


def test_systems_of_a_benchmark_are_chosen_by_how_their_names_begin(model):
    build_peers = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "run_benchmark.py"))["build_peers"]
    assert [peer.name for peer in build_peers(model, [1, 3], False, ["YAN", "GPT-2"])] == [
        "YAN, 1 step",
        "YAN, 3 steps",
        "GPT-2, KV cache",
    ]
    with pytest.raises(ValueError, match=r"--systems \['GTP'\].*'BART, KV cache'"):
        build_peers(model, [3], False, ["YAN", "GTP"])


def test_a_model_with_room_for_blanks_is_checked_against_its_plain_call():
    model = tiny_model(canvas_ratio=1.5, nll_loss_weight=0.0, mse_loss_weight=0.0, max_position_embeddings=64)
    source = torch.randint(4, 50, (2, 7))
    peer = yan_peer(model, 3)
    answers = peer.write(source, 20)
    assert answers.shape == (2, 20)
    assert peer.is_right(source, answers)
    assert not peer.is_right(source, (answers + 1) % 50)
