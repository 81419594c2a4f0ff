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
