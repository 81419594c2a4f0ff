"""
Mixture-of-experts flow matching, as pure functions on tensors. No model is known here.

Convention: prior `x_0` at t = 0, data `x_1` at t = 1, straight path between them. Sources are given as sections of
`MoE-FM` = A. Li, "Towards Faster Language Model Inference Using Mixture-of-Experts Flow Matching", arXiv 2604.15009.

Shapes: `...` any leading dimensions (batch, tokens), `K` experts, `d` channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MMD_WIDTHS = (0.2, 0.5, 1.0, 2.0, 5.0)
# Network evaluations per integration step.
SOLVER_EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2}


def _expand_time(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(t.shape + (1,) * (like.dim() - t.dim()))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_path(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """
    `x_t = (1 - t) x_0 + t x_1` (MoE-FM, flow matching preliminaries); `t` is a scalar or has leading dimensions of
    `x_0`.
    """
    t = _expand_time(t, x_0)
    return (1 - t) * x_0 + t * x_1


def target_velocity(x_0: Tensor, x_1: Tensor) -> Tensor:
    """`u = x_1 - x_0`, the velocity of the straight path, the same at every time."""
    return x_1 - x_0


def add_latent_noise(latents: Tensor, largest_scale: float, generator: torch.Generator | None = None) -> Tensor:
    """Adds `a N(0, I)` with one `a ~ U(0, largest_scale)` per row: (B, L, d)."""
    if largest_scale == 0:
        return latents
    options = {"generator": generator, "device": latents.device}
    scale = largest_scale * torch.rand(len(latents), 1, 1, **options)
    return latents + (scale * torch.randn(latents.shape, **options)).to(latents.dtype)


def velocity_from_data(x_1_hat: Tensor, x_t: Tensor, t: Tensor, min_remaining: float = 0.05) -> Tensor:
    """
    Velocity that carries `x_t` straight to a predicted endpoint, `(x_1_hat - x_t) / (1 - t)`.

    Args:
        x_1_hat, x_t: (..., d).
        t: scalar, or leading dimensions of `x_t`.
        min_remaining: smallest `1 - t` divided by, since the quotient has no limit at t = 1.
    """
    return (x_1_hat - x_t) / (1 - _expand_time(t, x_t)).clamp_min(min_remaining)


def sample_timesteps(
    batch_size: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """
    Draws training times `t ~ Beta(alpha, beta)`, float32, shape (batch_size,).

    Raises:
        ValueError: if a parameter is not positive.
    """
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"time sampling needs alpha > 0 and beta > 0, got alpha={alpha}, beta={beta}")
    if alpha == 1 and beta == 1:
        return torch.rand(batch_size, generator=generator, device=device)
    # A Beta variate is the share of one of two Gamma variates; torch.distributions takes no generator.
    shape = torch.tensor([alpha, beta], dtype=torch.float32, device=device).expand(batch_size, 2).contiguous()
    gamma = torch._standard_gamma(shape, generator=generator)
    return gamma[:, 0] / gamma.sum(-1)


def mixture_log_likelihoods(u: Tensor, velocities: Tensor, gate_log_probs: Tensor, std: float) -> Tensor:
    """
    Joint log-density of velocity and expert, `log pi_k + log N(u; v_k, std^2 I)`, in float32 or wider.

    Args:
        u: velocities (..., d).
        velocities: expert means (..., K, d).
        gate_log_probs: log pi (..., K).
        std: sigma, the standard deviation shared by the experts.

    Returns:
        (..., K)
    """
    u, velocities, gate_log_probs = (_at_least_float32(x) for x in (u, velocities, gate_log_probs))
    squared = (u.unsqueeze(-2) - velocities).square().sum(-1)
    constant = 0.5 * u.shape[-1] * math.log(2 * math.pi * std**2)
    return gate_log_probs - squared / (2 * std**2) - constant


def mixture_nll(u: Tensor, velocities: Tensor, gate_log_probs: Tensor, std: float = 1.0) -> Tensor:
    """
    Negative log-likelihood of a velocity under the mixture of Gaussians, `-log sum_k pi_k N(u; v_k, std^2 I)` (MoE-FM,
    training objective), the normalising constant included. Arguments as `mixture_log_likelihoods`.

    Returns:
        (...) in nats, float32 or wider, not averaged. With K = 1 it is `|u - v|^2 / (2 std^2)` plus a constant.
    """
    return -mixture_log_likelihoods(u, velocities, gate_log_probs, std).logsumexp(-1)


def responsibilities(u: Tensor, velocities: Tensor, gate_log_probs: Tensor, std: float = 1.0) -> Tensor:
    """Posterior over experts `p(k | u)` (..., K), by Bayes' rule. Arguments as `mixture_log_likelihoods`."""
    return mixture_log_likelihoods(u, velocities, gate_log_probs, std).softmax(-1)


def gate_entropy(gate_log_probs: Tensor) -> Tensor:
    """Entropy of the gate per token in nats, (..., K) -> (...); between 0 and log K."""
    log_probs = _at_least_float32(gate_log_probs)
    # An expert with probability 0 adds 0, not 0 * -inf.
    return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)


def load_balance(gate_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """
    `sum_k p_k log(K p_k)` for the mean gate p over valid tokens: its divergence from uniform, 0 when balanced.

    Args:
        gate_probs: (..., K).
        mask: (...) true at tokens that count; all by default.
    """
    probs = _at_least_float32(gate_probs).flatten(0, -2)
    weights = torch.ones_like(probs[:, 0]) if mask is None else mask.flatten().to(probs.dtype)
    mean = (probs * weights[:, None]).sum(0) / weights.sum().clamp_min(1)
    return torch.xlogy(mean, mean * probs.shape[-1]).sum()


def mmd_to_standard_normal(
    latents: Tensor,
    *,
    widths: Sequence[float] = MMD_WIDTHS,
    max_tokens: int = 2000,
    generator: torch.Generator | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """
    Squared maximum mean discrepancy between latents and N(0, I), the mean over RBF kernels
    `exp(-|x - y|^2 / (2 width^2 d))`. Distances are taken per channel, so that one set of widths serves every d.
    This is the biased (V-statistic) estimate: never negative.

    Args:
        latents: (N, d); at most `max_tokens` rows, chosen at random, are used.
        generator: for the choice of rows and the reference.
        reference: samples (M, d) to compare with; drawn from N(0, I) when absent, as many as rows used.
    """
    if len(latents) > max_tokens:
        chosen = torch.randperm(len(latents), generator=generator, device=latents.device)[:max_tokens]
        latents = latents[chosen]
    x = _at_least_float32(latents)
    if reference is None:
        reference = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    y = reference.to(x)

    def kernel_mean(a: Tensor, b: Tensor) -> Tensor:
        squared = (a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.T).clamp_min(0) / a.shape[-1]
        return torch.stack([torch.exp(-squared / (2 * w**2)).mean() for w in widths]).mean()

    return kernel_mean(x, x) + kernel_mean(y, y) - 2 * kernel_mean(x, y)


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """
    Sum of `values` where `mask` is true over `count`, by default the number of true entries (at least 1).

    A larger `count` lets micro-batches of one batch add up to the batch's mean (gradient accumulation).
    """
    total = torch.where(mask, values, values.new_zeros(())).sum()
    return total / (mask.sum().clamp_min(1) if count is None else count)


def sample_categorical(
    probs: Tensor, *, uniform: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """
    Draws from categorical distributions by inverting their distribution functions: an expert for each token, or a token
    for each position.

    Args:
        probs: (..., K), not negative; need not add up to 1.
        uniform: (...) numbers in [0, 1) that decide the draw; drawn when absent.

    Returns:
        (...) int64
    """
    probs = probs.float()
    if uniform is None:
        uniform = torch.rand(probs.shape[:-1], generator=generator, device=probs.device)
    cumulative = probs.cumsum(-1)
    # Scaled by the total, so that rounding can never select an index past the last.
    index = (cumulative <= (uniform * cumulative[..., -1]).unsqueeze(-1)).sum(-1)
    return index.clamp_max(probs.shape[-1] - 1)


def select_shown(
    wrong: Tensor, canvas_mask: Tensor, ratio: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """
    Positions whose targets are shown in training (glancing, arXiv 2008.07905): of each row as many as `ratio` times
    those it writes wrong, rounded down and drawn evenly from all of its canvas.

    Args:
        wrong, canvas_mask: (B, L) bool.
        ratio: at least 0; 0.5 shows half as many as are wrong.

    Returns:
        (B, L) bool.
    """
    count = (ratio * (wrong & canvas_mask).sum(-1, keepdim=True)).long()
    order = torch.rand(wrong.shape, generator=generator, device=wrong.device).masked_fill(~canvas_mask, 2)
    return (order.argsort(-1).argsort(-1) < count) & canvas_mask


def time_grid(num_steps: int, *, shift: float = 1.0, device: torch.device | str | None = None) -> Tensor:
    """
    `num_steps + 1` times from 0 to 1: uniform, then bent by `t -> shift t / (1 + (shift - 1) t)`. A shift above 1
    spends the evaluations late (near the data), below 1 early (near the prior).

    Raises:
        ValueError: if `num_steps < 1` or `shift <= 0`.
    """
    if num_steps < 1:
        raise ValueError(f"the number of steps must be at least 1, got {num_steps}")
    if shift <= 0:
        raise ValueError(f"time shift must be greater than 0, got {shift}")
    t = torch.linspace(0, 1, num_steps + 1, device=device)
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


def evaluation_times(grid: Tensor, solver: str = "euler") -> Tensor:
    """The times at which `solve_ode` calls the velocity on a grid, in order: (steps * evaluations per step,)."""
    _check_solver(solver)
    starts, ends = grid[:-1], grid[1:]
    if solver == "euler":
        return starts
    return torch.stack([starts, (starts + ends) / 2 if solver == "midpoint" else ends], 1).flatten()


def _check_solver(solver: str) -> None:
    if solver not in SOLVER_EVALUATIONS:
        raise ValueError(f"solver={solver!r} is not one of {sorted(SOLVER_EVALUATIONS)}")


def solve_ode(
    velocity_fn: Callable[[Tensor, Tensor, int], Tensor],
    x_0: Tensor,
    num_steps: int | None = None,
    *,
    solver: str = "euler",
    time_grid: Tensor | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    return_trajectory: bool = False,
) -> Tensor:
    """
    Integrates `dx/dt = velocity_fn(x, t, i)` with a fixed-step explicit solver. Differentiable.

    Args:
        velocity_fn: takes the state, a scalar time tensor and the number of the evaluation (from 0, the index into
            `evaluation_times`); returns the velocity in the state's shape.
        x_0: state at the first time.
        num_steps: steps of a uniform grid on [0, 1]; not needed with `time_grid`.
        solver: "euler" (order 1), "midpoint" or "heun" (order 2; two evaluations a step).
        time_grid: strictly increasing times, one more than steps.
        callback: called after each step with its number (from 0), the state after it, and the state at the last time
            that the step's velocity leads to.
        return_trajectory: return all states (steps + 1, *x_0.shape), the first being `x_0`.

    Raises:
        ValueError: for an unknown solver, a bad grid, or a number of steps that contradicts the grid.
    """
    _check_solver(solver)
    if time_grid is None:
        if num_steps is None or num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: give at least 1 step, or a time_grid")
        time_grid = torch.linspace(
            0, 1, num_steps + 1, device=x_0.device, dtype=torch.promote_types(x_0.dtype, torch.float32)
        )
    elif time_grid.dim() != 1 or len(time_grid) < 2:
        raise ValueError(f"time_grid must be a vector of at least 2 times, got shape {tuple(time_grid.shape)}")
    elif num_steps is not None and len(time_grid) != num_steps + 1:
        raise ValueError(f"time_grid has {len(time_grid)} times, num_steps={num_steps} needs {num_steps + 1}")
    x, states = x_0, [x_0]
    for step in range(len(time_grid) - 1):
        t, dt = time_grid[step], (time_grid[step + 1] - time_grid[step]).to(x_0.dtype)
        index = step * SOLVER_EVALUATIONS[solver]
        v = velocity_fn(x, t, index)
        if solver == "midpoint":
            v = velocity_fn(x + dt / 2 * v, (t + time_grid[step + 1]) / 2, index + 1)
        elif solver == "heun":
            v = (v + velocity_fn(x + dt * v, time_grid[step + 1], index + 1)) / 2
        x = x + dt * v
        if callback is not None:
            callback(step, x, x + (time_grid[-1] - time_grid[step + 1]).to(x.dtype) * v)
        if return_trajectory:
            states.append(x)
    return torch.stack(states) if return_trajectory else x


def solve_mixture_ode(
    evaluate: Callable[[Tensor, Tensor, int], Any],
    choose_experts: Callable[[Any], Any],
    expert_velocity: Callable[[Any, Any, Tensor, Tensor], Tensor],
    x_0: Tensor,
    *,
    time_grid: Tensor,
    **options,
) -> tuple[Tensor, Any]:
    """
    Sampling of a mixture flow (MoE-FM, sampling): each token's expert is chosen once, from the first evaluation, and
    kept along the whole trajectory. The choice and the first step share that evaluation.

    Args:
        evaluate: state, time and number of the evaluation -> what the other two read, for example a trunk's hidden
            states.
        choose_experts: the first evaluation -> the experts.
        expert_velocity: an evaluation, the experts, the state and the time -> the experts' velocity in the state's
            shape.
        x_0: state at the first time.
        time_grid: as `solve_ode` takes it.
        **options: `solver`, `callback` and `return_trajectory` of `solve_ode`.

    Returns:
        As `solve_ode`; and the experts, as `choose_experts` gave them.
    """
    first = evaluate(x_0, time_grid[0], 0)
    experts = choose_experts(first)

    def velocity(x_t: Tensor, t: Tensor, index: int) -> Tensor:
        return expert_velocity(first if index == 0 else evaluate(x_t, t, index), experts, x_t, t)

    return solve_ode(velocity, x_0, time_grid=time_grid, **options), experts


def token_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy per position in float32: logits (..., V), labels (...) with -100 ignored (0 there) -> (...)."""
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        ignore_index=-100,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return flat.view(labels.shape)


def chunked_token_cross_entropy(
    states: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, chunk_size: int, *, label_smoothing: float = 0.0
) -> Tensor:
    """
    `token_cross_entropy(head(states), labels)` with the logits of `chunk_size` positions at a time, computed a second
    time in the backward pass: memory does not grow with positions x vocabulary.

    Args:
        states: (..., d).
        head: (n, d) -> logits (n, V).
        labels: (...), -100 ignored.
    """

    def loss(chunk: Tensor, targets: Tensor) -> Tensor:
        return token_cross_entropy(head(chunk), targets, label_smoothing=label_smoothing)

    pairs = zip(states.flatten(0, -2).split(chunk_size), labels.flatten().split(chunk_size))
    return torch.cat([checkpoint(loss, *pair, use_reentrant=False) for pair in pairs]).view(labels.shape)
