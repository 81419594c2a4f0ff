"""Closed-form checks of every function in flow_matching_yan.py."""

import itertools
import math

import pytest
import torch

from modeling_yan import flow_matching_yan as fm

SOLVERS = ("euler", "midpoint", "heun")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_path_starts_at_prior_ends_at_data_and_moves_at_the_target_velocity():
    x_0, x_1 = random(2, 3, 4), random(2, 3, 4, seed=1)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x_t = fm.linear_path(x_0, x_1, t)
    torch.testing.assert_close(x_t[0], x_0[0])
    torch.testing.assert_close(x_t[1], x_1[1])
    h = 1e-6
    derivative = (fm.linear_path(x_0, x_1, t * 0 + 0.3 + h) - fm.linear_path(x_0, x_1, t * 0 + 0.3)) / h
    torch.testing.assert_close(derivative, fm.target_velocity(x_0, x_1), atol=1e-6, rtol=0)


def test_velocity_from_data_arrives_at_the_data():
    x_t, x_1 = random(2, 3, 4), random(2, 3, 4, seed=1)
    t = torch.tensor([0.0, 0.75], dtype=torch.float64)
    velocity = fm.velocity_from_data(x_1, x_t, t)
    torch.testing.assert_close(x_t + (1 - t)[:, None, None] * velocity, x_1)
    end = fm.velocity_from_data(x_1, x_t, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(end, (x_1 - x_t) / 0.05)


def test_data_prediction_is_solved_exactly_by_euler_whatever_the_steps():
    x_0, x_1 = random(3, 4), random(3, 4, seed=1)
    for steps in (1, 3, 7):
        out = fm.solve_ode(lambda x, t, i: fm.velocity_from_data(x_1, x, t), x_0, steps)
        torch.testing.assert_close(out, x_1)


def test_latent_noise_has_one_uniform_scale_per_row():
    latents = torch.zeros(2000, 50, 4)
    noisy = fm.add_latent_noise(latents, 0.3, torch.Generator().manual_seed(0))
    scales = noisy.flatten(1).std(1)
    assert 0 <= scales.min() < 0.01
    assert 0.28 < scales.max() < 0.35
    assert scales.mean() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(noisy, fm.add_latent_noise(latents, 0.3, torch.Generator().manual_seed(0)))
    assert fm.add_latent_noise(latents, 0.0) is latents


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.0, 5.0), (0.5, 0.5)])
def test_timesteps_have_the_moments_of_their_beta_distribution(alpha, beta):
    t = fm.sample_timesteps(200_000, alpha, beta, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Beta(alpha, beta)
    assert t.shape == (200_000,)
    assert 0 <= t.min() <= t.max() <= 1
    assert t.mean() == pytest.approx(expected.mean.item(), abs=4e-3)
    assert t.var() == pytest.approx(expected.variance.item(), abs=4e-3)
    again = fm.sample_timesteps(200_000, alpha, beta, generator=torch.Generator().manual_seed(0))
    assert torch.equal(t, again)


def test_timesteps_reject_impossible_parameters():
    with pytest.raises(ValueError, match=r"alpha=0\.0"):
        fm.sample_timesteps(2, 0.0, 1.0)


def mixture(std=0.7, experts=3, seed=0):
    u, v = random(2, 5, 4, seed=seed), random(2, 5, experts, 4, seed=seed + 1)
    log_pi = random(2, 5, experts, seed=seed + 2).log_softmax(-1)
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_pi),
        torch.distributions.Independent(torch.distributions.Normal(v, std), 1),
    )
    return u, v, log_pi, reference


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_mixture_nll_is_that_of_torch_distributions(std):
    u, v, log_pi, reference = mixture(std)
    torch.testing.assert_close(fm.mixture_nll(u, v, log_pi, std), -reference.log_prob(u))


def test_one_expert_is_plain_regression_up_to_the_constant():
    u, v = random(2, 5, 4), random(2, 5, 1, 4, seed=1)
    std = 0.8
    constant = 4 / 2 * math.log(2 * math.pi * std**2)
    expected = (u - v[..., 0, :]).square().sum(-1) / (2 * std**2) + constant
    torch.testing.assert_close(fm.mixture_nll(u, v, torch.zeros(2, 5, 1), std), expected)


def test_mixture_nll_is_finite_where_densities_underflow_and_in_half_precision():
    u, v = torch.full((1, 1, 64), 100.0), torch.zeros(1, 1, 2, 64)
    log_pi = torch.tensor([[[0.0, -torch.inf]]])
    for dtype in (torch.float32, torch.bfloat16):
        nll = fm.mixture_nll(u.to(dtype), v.to(dtype), log_pi, 0.1)
        assert nll.dtype == torch.float32
        assert nll.isfinite().all()


def test_gradients_against_finite_differences():
    u, v, log_pi, _ = mixture()
    leaves = (u.requires_grad_(), v.requires_grad_(), log_pi.requires_grad_())
    assert torch.autograd.gradcheck(lambda u, v, g: fm.mixture_nll(u, v, g, 0.7), leaves)
    assert torch.autograd.gradcheck(lambda u, v, g: fm.responsibilities(u, v, g, 0.7), leaves)
    logits = random(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fm.gate_entropy(x.log_softmax(-1)), logits)
    assert torch.autograd.gradcheck(lambda x: fm.load_balance(x.softmax(-1)), logits)
    reference = random(6, 3, seed=4)
    assert torch.autograd.gradcheck(lambda x: fm.mmd_to_standard_normal(x, reference=reference), logits)


def test_responsibilities_are_bayes_rule():
    u, v, log_pi, reference = mixture()
    joint = reference.component_distribution.log_prob(u.unsqueeze(-2)) + log_pi
    torch.testing.assert_close(fm.responsibilities(u, v, log_pi, 0.7), joint.softmax(-1))


def test_gate_entropy_between_zero_and_log_k():
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    uniform = torch.zeros(1, 3).log_softmax(-1)
    assert fm.gate_entropy(sure).item() == 0
    assert fm.gate_entropy(uniform).item() == pytest.approx(math.log(3))
    other = random(5, 4).log_softmax(-1)
    torch.testing.assert_close(fm.gate_entropy(other), torch.distributions.Categorical(logits=other).entropy())


def test_load_balance_is_zero_when_balanced_and_log_k_when_collapsed():
    # Each token is certain, the batch is balanced.
    assert fm.load_balance(torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.eye(4)[[1, 1, 1]]
    assert fm.load_balance(collapsed).item() == pytest.approx(math.log(4))
    mask = torch.tensor([True, True, True, False])
    assert fm.load_balance(torch.cat([collapsed, torch.eye(4)[:1]]), mask).item() == pytest.approx(math.log(4))


def test_mmd_is_zero_on_the_same_points_small_on_normal_ones_and_large_on_shifted_ones():
    x = random(500, 6, dtype=torch.float32)
    assert fm.mmd_to_standard_normal(x, reference=x).item() == pytest.approx(0, abs=1e-6)
    generator = torch.Generator().manual_seed(1)
    near = fm.mmd_to_standard_normal(x, generator=generator)
    far = fm.mmd_to_standard_normal(x + 3, generator=generator)
    assert 0 <= near < 0.02 < 0.4 < far


def test_mmd_by_hand_for_two_points():
    x, y = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    expected = sum(2 - 2 * math.exp(-1 / (2 * w**2)) for w in fm.MMD_WIDTHS) / len(fm.MMD_WIDTHS)
    assert fm.mmd_to_standard_normal(x, reference=y).item() == pytest.approx(expected, rel=1e-6)


def test_mmd_uses_at_most_max_tokens():
    x = random(50, 3, dtype=torch.float32)
    few = fm.mmd_to_standard_normal(x, max_tokens=10, generator=torch.Generator().manual_seed(0))
    assert few.isfinite()
    assert few != fm.mmd_to_standard_normal(x, generator=torch.Generator().manual_seed(0))


def test_masked_mean_of_micro_batches_adds_up():
    values, mask = random(4, 5), random(4, 5, seed=1) > 0
    whole = fm.masked_mean(values, mask)
    torch.testing.assert_close(whole, values[mask].mean())
    parts = sum(fm.masked_mean(values[i : i + 2], mask[i : i + 2], mask.sum()) for i in (0, 2))
    torch.testing.assert_close(parts, whole)
    assert fm.masked_mean(values, mask & False).item() == 0


def test_experts_are_drawn_with_the_gates_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2]).expand(100_000, 4)
    drawn = fm.sample_categorical(probs, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, probs[0], atol=6e-3, rtol=0)
    uniform = torch.tensor([0.0, 0.499, 0.5, 0.79, 0.81, 0.999999])
    assert fm.sample_categorical(probs[:6], uniform=uniform).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_time_grid_runs_from_zero_to_one_and_shifts(steps):
    plain = fm.time_grid(steps)
    torch.testing.assert_close(plain, torch.linspace(0, 1, steps + 1))
    for shift in (0.5, 3.0):
        grid = fm.time_grid(steps, shift=shift)
        assert grid[0] == 0
        assert grid[-1] == 1
        assert (grid.diff() > 0).all()
        if steps > 1:
            assert (grid[1:-1] > plain[1:-1]).all() == (shift > 1)


def test_time_grid_rejects_bad_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        fm.time_grid(0)
    with pytest.raises(ValueError, match="shift"):
        fm.time_grid(3, shift=0.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_constant_velocity_is_exact_in_one_step(solver):
    x_0, v = random(2, 3), random(2, 3, seed=1)
    torch.testing.assert_close(fm.solve_ode(lambda x, t, i: v, x_0, 1, solver=solver), x_0 + v)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_order_of_convergence(solver, order):
    # dx/dt = x cos t has the solution x_0 exp(sin t).
    x_0 = torch.ones(1, dtype=torch.float64)
    exact = math.exp(math.sin(1.0))
    errors = [
        abs(fm.solve_ode(lambda x, t, i: x * torch.cos(t), x_0, n, solver=solver).item() - exact) for n in (20, 40, 80)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_calls_the_velocity_at_the_announced_times(solver):
    grid = fm.time_grid(3, shift=2.0)
    called = []
    fm.solve_ode(lambda x, t, i: called.append(t.item()) or x * 0, torch.zeros(1), solver=solver, time_grid=grid)
    torch.testing.assert_close(torch.tensor(called), fm.evaluation_times(grid, solver))
    assert len(called) == 3 * fm.SOLVER_EVALUATIONS[solver]


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_flow_through_the_solver(solver):
    a, x_0 = random(1, seed=1).requires_grad_(), random(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: fm.solve_ode(lambda x, t, i: a * x + t, x, 3, solver=solver), (x_0, a))


def test_backward_in_time_returns_to_the_start():
    x_0 = random(3)
    forward = fm.solve_ode(lambda x, t, i: torch.sin(x) + t, x_0, 200, solver="heun")
    back = fm.solve_ode(
        lambda x, t, i: torch.sin(x) + t,
        forward,
        solver="heun",
        time_grid=torch.linspace(1, 0, 201, dtype=torch.float64),
    )
    torch.testing.assert_close(back, x_0, atol=1e-4, rtol=0)


def test_trajectory_and_callback_see_every_state():
    seen = []
    states = fm.solve_ode(
        lambda x, t, i: x,
        torch.ones(2),
        4,
        callback=lambda step, x, end: seen.append((step, x)),
        return_trajectory=True,
    )
    assert states.shape == (5, 2)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert all(torch.equal(state, states[step + 1]) for step, state in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk45", "num_steps": 2}, "rk45"),
        ({"num_steps": 0}, "num_steps=0"),
        ({}, "num_steps=None"),
        ({"num_steps": 2, "time_grid": torch.linspace(0, 1, 5)}, "needs 3"),
        ({"time_grid": torch.tensor(0.5)}, "vector"),
    ],
)
def test_solver_rejects_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        fm.solve_ode(lambda x, t, i: x, torch.ones(1), **options)


def test_cross_entropy_ignores_padding_and_smooths():
    logits, labels = random(2, 3, 5, dtype=torch.float32), torch.tensor([[0, 4, -100], [2, -100, 1]])
    losses = fm.token_cross_entropy(logits, labels)
    assert (losses[labels == -100] == 0).all()
    torch.testing.assert_close(losses[0, 1], -logits[0, 1].log_softmax(-1)[4])
    smooth = fm.token_cross_entropy(logits, labels, label_smoothing=0.2)
    log_probs = logits[0, 1].log_softmax(-1)
    torch.testing.assert_close(smooth[0, 1], -0.8 * log_probs[4] - 0.2 * log_probs.mean())
