"""Pictures of a training run: its curves, the use of its experts, and the latents it ended with."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def plot_training(log_history: list[dict], path: Path) -> None:
    """
    Loss terms, gate entropy and gradient norm against updates, and the share of every expert stacked over them.

    Args:
        log_history: `trainer.state.log_history`.
    """
    logs = [entry for entry in log_history if "loss" in entry]
    if not logs:
        raise ValueError("log_history holds no losses; log at least once (logging_steps)")
    steps = [entry["step"] for entry in logs]

    def series(name: str) -> list[float]:
        return [float(entry.get(name, "nan")) for entry in logs]

    names = sorted({name for entry in logs for name in entry})
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    for name in [n for n in names if n == "loss" or n.endswith("_loss")]:
        axes[0].plot(steps, series(name), label=name)
    axes[0].set(yscale="symlog", title="loss terms", xlabel="update")
    for name in [n for n in names if n in ("gate_entropy", "grad_norm")]:
        axes[1].plot(steps, series(name), label=name)
    axes[1].set(title="gate entropy (nats) and gradient norm", xlabel="update")
    experts = [n for n in names if n.startswith("expert_usage_")]
    if experts:
        axes[2].stackplot(
            steps, *(series(name) for name in experts), labels=[n.removeprefix("expert_usage_") for n in experts]
        )
        axes[2].set(title="share of each expert", xlabel="update", ylim=(0, 1))
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def plot_latents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], path: Path
) -> dict[str, float]:
    """
    Latents of texts: mean and standard deviation of every dimension beside the prior's, and all values as a histogram.

    Returns:
        `mean`, `std`, and `smallest_std` and `largest_std` over dimensions.
    """
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(model.device)
    states = model.get_encoder()(batch["input_ids"], batch["attention_mask"]).last_hidden_state.float()
    latents = states[batch["attention_mask"].bool()].cpu()
    means, stds = latents.mean(0), latents.std(0)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    axes[0].plot(stds.sort().values, label="standard deviation, sorted")
    axes[0].plot(means.sort().values, label="mean, sorted")
    axes[0].axhline(model.config.prior_std, color="black", linestyle=":", label="standard deviation of the prior")
    axes[0].set(title=f"latents by dimension ({len(latents):,} tokens)", xlabel="dimension")
    axes[0].legend(fontsize=8)
    axes[1].hist(latents.flatten().numpy(), bins=100, density=True)
    axes[1].set(title="all values")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return {
        "mean": latents.mean().item(),
        "std": latents.std().item(),
        "smallest_std": stds.min().item(),
        "largest_std": stds.max().item(),
    }


def plot_speed(cells: list[dict], path: Path) -> None:
    """
    Latency against answer length at the smallest batch, and tokens per second against batch at the longest length that
    was measured at every batch.

    Args:
        cells: of `run_speed.py`: `system`, `batch_size`, `length`, `median_ms`, `tokens_per_second`.
    """
    cells = [cell for cell in cells if "median_ms" in cell]
    batches = sorted({cell["batch_size"] for cell in cells})
    shared = set.intersection(*({c["length"] for c in cells if c["batch_size"] == batch} for batch in batches))
    length = max(shared)
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    for index, system in enumerate(dict.fromkeys(cell["system"] for cell in cells)):
        style = {
            "marker": "o",
            "label": system,
            "color": f"C{index % 10}",
            "linestyle": "-" if system.startswith("YAN") else "--",
        }
        own = [c for c in cells if c["system"] == system and c["batch_size"] == batches[0]]
        axes[0].plot([c["length"] for c in own], [c["median_ms"] for c in own], **style)
        own = [c for c in cells if c["system"] == system and c["length"] == length]
        axes[1].plot([c["batch_size"] for c in own], [c["tokens_per_second"] for c in own], **style)
    axes[0].set(xlabel="tokens written", ylabel="milliseconds", title=f"latency, batch {batches[0]}")
    axes[1].set(xlabel="batch", ylabel="tokens per second", title=f"throughput, {length} tokens")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def plot_trajectories(trajectory: torch.Tensor, experts: torch.Tensor, labels: list[str], path: Path) -> None:
    """
    A text's way from noise to latents in the plane of the two largest principal components of where it ends.

    Args:
        trajectory: states (steps + 1, L, d), prior first.
        experts: of each position (L,), its colour.
        labels: the token at each position.
    """
    flat = trajectory.float()
    ends = flat[-1]
    center = ends.mean(0)
    _, _, directions = torch.linalg.svd(ends - center, full_matrices=False)
    points = ((flat - center) @ directions[:2].T).numpy()
    figure, axis = plt.subplots(figsize=(9, 7))
    for position, label in enumerate(labels):
        color = f"C{int(experts[position]) % 10}"
        axis.plot(points[:, position, 0], points[:, position, 1], color=color, alpha=0.4, marker=".", markersize=3)
        axis.annotate(label, points[-1, position], color=color, fontsize=8)
    axis.set_title("from noise to latents; colours are experts")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def plot_tradeoff(points: list[tuple[float, float, str, str, str]], quality: str, path: Path) -> None:
    """
    Quality against the time of a call; a line joins the runtimes of a model.

    Args:
        points: milliseconds, score, model, runtime and kind; kinds have a marker each.
        quality: name of the score.
    """
    figure, axis = plt.subplots(figsize=(9, 6))
    kinds = list(dict.fromkeys(kind for *_, kind in points))
    for model in dict.fromkeys(model for _, _, model, *_ in points):
        own = [point for point in points if point[2] == model]
        marker = "os"[kinds.index(own[0][-1]) % 2]
        axis.plot([x for x, *_ in own], [y for _, y, *_ in own], marker=marker, label=f"{model} ({own[0][-1]})")
        for milliseconds, score, _, runtime, _ in own:
            place = {"xytext": (4, 5), "textcoords": "offset points", "fontsize": 7}
            axis.annotate(runtime.split()[-1], (milliseconds, score), **place)
    axis.set(xlabel="milliseconds a call, batch size 1", ylabel=quality)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
