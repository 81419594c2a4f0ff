"""A linear probe: how much of a label can be read off a frozen encoder with a straight cut."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.layers_yan import masked_mean_pool


@torch.no_grad()
def mean_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int, batch_size: int = 64
) -> torch.Tensor:
    """Mean of the encoder's states over the tokens of each text (N, d), in float32 on the CPU."""
    encoder, found = model.get_encoder().eval(), []
    for start in range(0, len(texts), batch_size):
        rows = list(texts[start : start + batch_size])
        batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
        found.append(masked_mean_pool(encoder(ids, mask).last_hidden_state, mask).float().cpu())
    return torch.cat(found)


def linear_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    test: Dataset,
    *,
    longest: int,
    weight_decay: float = 1e-4,
) -> float:
    """
    Percent of test rows that multinomial logistic regression on the encoder's mean states labels right.

    Args:
        model: with `get_encoder()`.
        train, test: columns `source` and `target`; the different targets are the labels.
        longest: tokens of a source that are read.
        weight_decay: of the weights, by their squared norm.
    """
    names = sorted(set(train["target"]))
    numbers = {name: number for number, name in enumerate(names)}
    states = [mean_states(model, tokenizer, rows["source"][:], longest) for rows in (train, test)]
    mean, std = states[0].mean(0), states[0].std(0).clamp_min(1e-6)
    read, asked = ((s - mean) / std for s in states)
    labels = torch.tensor([numbers[target] for target in train["target"]])
    head = torch.nn.Linear(read.shape[1], len(names))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(read), labels) + weight_decay * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = head(asked).argmax(-1).tolist()
    return 100 * sum(names[n] == target for n, target in zip(found, test["target"], strict=True)) / len(test)
