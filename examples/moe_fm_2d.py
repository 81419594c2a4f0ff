"""
Mixture flow matching against plain flow matching (K = 1) on 2-D densities, at equal parameter count.

    python examples/moe_fm_2d.py --output_dir benchmarks/results/moe_fm_2d

Trains a small MLP per density, K and seed, samples with few Euler steps (each point's expert drawn once, from the gate
at t = 0), and measures sliced Wasserstein distance and MMD to held-out samples. Writes scores.json and three PNGs.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.reports import machine, write_report
from modeling_yan.flow_matching_yan import (
    linear_path,
    mixture_nll,
    sample_categorical,
    sample_timesteps,
    solve_ode,
    target_velocity,
)

STEPS = (1, 2, 3, 5, 10, 50)
EXPERTS = (1, 2, 4, 8)
COLORS = plt.get_cmap("tab10").colors


def two_moons(n: int, generator: torch.Generator) -> Tensor:
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return 1.5 * torch.stack([x - 0.5, y - 0.25], 1) + 0.08 * torch.randn(n, 2, generator=generator)


def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    angle = math.pi / 4 * torch.randint(8, (n,), generator=generator)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    x = 4 * torch.rand(n, generator=generator) - 2
    y = torch.rand(n, generator=generator) + 2 * torch.randint(2, (n,), generator=generator) - 2 + x.floor() % 2
    return torch.stack([x, y], 1)


def curved_ridge(n: int, generator: torch.Generator) -> Tensor:
    x = 4 * torch.rand(n, generator=generator) - 2
    return torch.stack([x, 1.2 * torch.sin(2 * x)], 1) + 0.03 * torch.randn(n, 2, generator=generator)


DENSITIES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "two moons": two_moons,
    "eight Gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "curved ridge": curved_ridge,
}


class MixtureField(nn.Module):
    """K velocity heads and a gate over a shared MLP on (x, t)."""

    def __init__(self, num_experts: int, width: int):
        super().__init__()
        self.num_experts = num_experts
        self.trunk = nn.Sequential(
            nn.Linear(2 + 4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.velocity = nn.Linear(width, 2 * num_experts)
        self.gate = nn.Linear(width, num_experts)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Points (n, 2) and times (n,) -> velocities (n, K, 2), gate log-probabilities (n, K)."""
        angles = math.pi * t[:, None] * torch.tensor([1.0, 2.0])
        hidden = self.trunk(torch.cat([x, angles.sin(), angles.cos()], 1))
        return self.velocity(hidden).view(-1, self.num_experts, 2), self.gate(hidden).log_softmax(-1)


def width_for(parameters: int, num_experts: int) -> int:
    """The trunk width at which K experts have as close as possible to this many parameters."""
    count = lambda width: sum(p.numel() for p in MixtureField(num_experts, width).parameters())  # noqa: E731
    return min(range(8, 256), key=lambda width: abs(count(width) - parameters))


def train(
    density: Callable[[int, torch.Generator], Tensor], num_experts: int, seed: int, arguments: argparse.Namespace
) -> MixtureField:
    """A field of K experts, trained on samples of the density."""
    torch.manual_seed(seed)
    generator, size = torch.Generator().manual_seed(seed), arguments.batch_size
    field = MixtureField(num_experts, width_for(arguments.parameters, num_experts))
    optimizer = torch.optim.Adam(field.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.updates)
    for _ in range(arguments.updates):
        x_1 = density(size, generator)
        x_0 = torch.randn(size, 2, generator=generator)
        t = sample_timesteps(size, generator=generator)
        velocities, gate = field(linear_path(x_0, x_1, t), t)
        loss = mixture_nll(target_velocity(x_0, x_1), velocities, gate, arguments.velocity_std).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return field


@torch.no_grad()
def sample(field: MixtureField, x_0: Tensor, num_steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Trajectories (steps + 1, n, 2) and the expert of each point (n,)."""
    zeros = torch.zeros(len(x_0))
    experts = sample_categorical(field(x_0, zeros)[1].exp(), generator=generator)
    rows = torch.arange(len(x_0))

    def velocity(x: Tensor, t: Tensor, index: int) -> Tensor:
        return field(x, t.expand(len(x)))[0][rows, experts]

    return solve_ode(velocity, x_0, num_steps, return_trajectory=True), experts


def sliced_wasserstein(a: Tensor, b: Tensor, generator: torch.Generator, projections: int = 200) -> float:
    """Mean over random directions of the 1-D Wasserstein-2 distance; a, b (n, 2)."""
    angle = math.pi * torch.rand(projections, generator=generator)
    directions = torch.stack([angle.cos(), angle.sin()])
    return ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean(0).sqrt().mean().item()


def mmd(a: Tensor, b: Tensor, widths: tuple[float, ...] = (0.1, 0.3, 1.0)) -> float:
    """Squared MMD with a mean of RBF kernels (V-statistic); a, b (n, 2)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.cdist(x, y).square()
        return torch.stack([torch.exp(-squared / (2 * w**2)).mean() for w in widths]).mean()

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).item()


def plot_densities(path: Path, panels: dict, held_out: dict[str, Tensor]) -> None:
    columns = ["data", *[f"K = {k}, 3 steps" for k in EXPERTS]]
    figure, axes = plt.subplots(len(held_out), len(columns), figsize=(2.4 * len(columns), 2.4 * len(held_out)))
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
    for row, (name, data) in zip(axes, held_out.items(), strict=True):
        for axis, points in zip(row, [data, *[panels[name, k][0][-1] for k in EXPERTS]], strict=True):
            axis.hist2d(*points.T.numpy(), bins=80, range=[[-2.8, 2.8]] * 2, cmap="magma")
            axis.set(xticks=[], yticks=[], aspect="equal")
        row[0].set_ylabel(name)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def plot_trajectories(path: Path, panels: dict) -> None:
    figure, axes = plt.subplots(len(DENSITIES), len(EXPERTS), figsize=(2.6 * len(EXPERTS), 2.6 * len(DENSITIES)))
    for axis, k in zip(axes[0], EXPERTS, strict=True):
        axis.set_title(f"K = {k}")
    for row, name in zip(axes, DENSITIES, strict=True):
        for axis, k in zip(row, EXPERTS, strict=True):
            states, experts = panels[name, k]
            for point in range(150):
                axis.plot(*states[:, point].T, color=COLORS[experts[point] % 10], linewidth=0.5, alpha=0.7)
            axis.scatter(*states[-1, :1500].T, s=1, c=[COLORS[e % 10] for e in experts[:1500]])
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
        row[0].set_ylabel(name)
    figure.suptitle("3-step trajectories, coloured by expert")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def plot_errors(path: Path, scores: list[dict]) -> None:
    figure, axes = plt.subplots(1, len(DENSITIES), figsize=(3.4 * len(DENSITIES), 3.2), sharey=True)
    for axis, name in zip(axes, DENSITIES, strict=True):
        for k in EXPERTS:
            rows = [s for s in scores if s["density"] == name and s["num_experts"] == k]
            by_step = [torch.tensor([s["sliced_wasserstein"] for s in rows if s["steps"] == n]) for n in STEPS]
            spread = [b.std() if len(b) > 1 else 0 for b in by_step]
            axis.errorbar(STEPS, [b.mean() for b in by_step], spread, label=f"K = {k}", capsize=2)
        axis.set(xscale="log", yscale="log", title=name, xlabel="Euler steps", xticks=STEPS, xticklabels=STEPS)
    axes[0].set_ylabel("sliced Wasserstein distance")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def score_seed(name: str, num_experts: int, seed: int, arguments: argparse.Namespace) -> tuple[list[dict], tuple]:
    """
    Trains a field of K experts and samples from it.

    Returns:
        A score for each number of steps; and held-out samples, and the trajectories and experts in three steps.
    """
    density, n = DENSITIES[name], arguments.samples
    field = train(density, num_experts, seed, arguments)
    generator = torch.Generator().manual_seed(1000 + seed)
    data, x_0 = density(n, generator), torch.randn(n, 2, generator=generator)
    scores, shown = [], ()
    for steps in STEPS:
        states, experts = sample(field, x_0, steps, generator)
        shown = (states, experts) if steps == 3 else shown
        scores.append(
            {
                "density": name,
                "num_experts": num_experts,
                "seed": seed,
                "steps": steps,
                "parameters": sum(p.numel() for p in field.parameters()),
                "sliced_wasserstein": sliced_wasserstein(states[-1], data, generator),
                "mmd": mmd(states[-1], data),
                "expert_usage": (torch.bincount(experts, minlength=num_experts) / n).tolist(),
            }
        )
    return scores, (data, shown)


def noise_floor(samples: int) -> dict[str, dict[str, float]]:
    """The errors of a perfect model: between two sets of samples of each density."""
    floor = {}
    for name, density in DENSITIES.items():
        generator = torch.Generator().manual_seed(77)
        a, b = density(samples, generator), density(samples, generator)
        floor[name] = {"sliced_wasserstein": sliced_wasserstein(a, b, generator), "mmd": mmd(a, b)}
    return floor


def print_scores(scores: list[dict]) -> None:
    """A line for each density and K: the mean error at each number of steps."""
    for name in DENSITIES:
        print(f"\n{name}: sliced Wasserstein distance, mean over seeds")
        for k in EXPERTS:
            rows = [s for s in scores if (s["density"], s["num_experts"]) == (name, k)]
            by_step = {n: [s["sliced_wasserstein"] for s in rows if s["steps"] == n] for n in STEPS}
            cells = (f"{n:>2} steps {sum(values) / len(values):.3f}" for n, values in by_step.items())
            print(f"  K = {k}  {'  '.join(cells)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/moe_fm_2d"), help="for scores and pictures")
    parser.add_argument("--updates", type=int, default=2000, help="of each model")
    parser.add_argument("--batch_size", type=int, default=512, help="points of an update")
    parser.add_argument("--parameters", type=int, default=10_000, help="of each model, about")
    parser.add_argument("--velocity_std", type=float, default=0.5, help="of an expert's velocities, in the likelihood")
    parser.add_argument("--seeds", type=int, default=3, help="models of each density and K")
    parser.add_argument("--samples", type=int, default=4000, help="points that are drawn and compared")
    arguments = parser.parse_args()
    check_positive(arguments, "updates", "batch_size", "parameters", "velocity_std", "seeds", "samples")
    return arguments


def main() -> None:
    arguments = parse()
    start, scores, panels, held_out = time.perf_counter(), [], {}, {}
    cells = [(name, k, seed) for name in DENSITIES for k in EXPERTS for seed in range(arguments.seeds)]
    for name, k, seed in tqdm(cells):
        found, (data, shown) = score_seed(name, k, seed, arguments)
        scores += found
        if seed == 0:
            held_out[name], panels[name, k] = data, shown
    report = {
        "options": {name: value for name, value in vars(arguments).items() if name != "output_dir"},
        **machine(torch.device("cpu")),
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "two_sets_of_held_out_samples": noise_floor(arguments.samples),
        "scores": scores,
    }
    folder = arguments.output_dir
    write_report(report, folder / "scores.json")
    plot_densities(folder / "densities.png", panels, held_out)
    plot_trajectories(folder / "trajectories.png", panels)
    plot_errors(folder / "errors.png", scores)
    print_scores(scores)


if __name__ == "__main__":
    run_script(main)
