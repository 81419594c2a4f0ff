"""
Which prior and which right answer go together.

The endpoint terms of the loss tie every target to an unrelated prior. Where several answers to a source are right they draw all priors
to the mean of the answers, and the text repeats words. Here R of a source's answers and M priors for each of them compete, and only the
pair that the model finds easiest is learned: the one whose endpoint and length cost least, by the loss terms and weights of the config,

    w_ce CE(D(z(x_0)), y) / L + w_ngram ngram_distance(D(z(x_0)), y) + w_length CE(length)

R > 1 is hard expectation-maximisation over references: the flow settles on one manner of answering. M > 1 is best-of-M, the implicit
maximum likelihood of arXiv 1809.09087: each answer keeps the priors that already lead to it. Experts are the gate's argmax.
"""

import random
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq
from transformers.modeling_outputs import BaseModelOutput

from modeling_yan import YanForConditionalGeneration
from modeling_yan.flow_matching_yan import ngram_distance, token_cross_entropy
from modeling_yan.training.trainer import YanSeq2SeqTrainer


class DataCollatorForSeveralTargets(DataCollatorForSeq2Seq):
    """
    `labels` that are lists of answers -> (B, R, Ly), R of each row's answers drawn anew at every call; rows with fewer repeat theirs.
    Rows with one answer each, a flat list of ids, are collated as usual, (B, Ly).

    Args:
        num_targets: R.
        generator: of the draws; a new unseeded one if absent.
    """

    def __init__(self, *args, num_targets: int = 4, generator: random.Random | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if num_targets < 1:
            raise ValueError(f"num_targets={num_targets} must be at least 1")
        self.num_targets, self.generator = num_targets, generator or random.Random()

    def _draw(self, answers: Sequence[list[int]]) -> list[list[int]]:
        if len(answers) >= self.num_targets:
            return self.generator.sample(answers, self.num_targets)
        return [answers[index % len(answers)] for index in range(self.num_targets)]

    def __call__(self, features: list[dict], return_tensors: str | None = None) -> dict:
        if not isinstance(features[0]["labels"][0], list):
            return super().__call__(features, return_tensors)
        drawn = [torch.tensor(ids) for f in features for ids in self._draw(f["labels"])]
        labels = pad_sequence(drawn, batch_first=True, padding_value=self.label_pad_token_id)
        sources = [{k: v for k, v in f.items() if k != "labels"} for f in features]
        batch = super().__call__(sources, return_tensors)
        return {**batch, "labels": labels.view(len(features), self.num_targets, -1)}


@torch.no_grad()
def select_pairs(
    model: YanForConditionalGeneration,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_priors: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The easiest of R answers and M priors for each source, in evaluation mode.

    Args:
        input_ids, attention_mask: sources (B, Lx).
        labels: R answers to each (B, R, Ly), -100 is padding.
        num_priors: M, priors drawn for each answer.
        generator: for the priors; torch's global one if absent.

    Returns:
        The chosen answers (B, L), L being the longest of them, and their priors (B, L, d).
    """
    if model.config.canvas_ratio != 1:
        raise ValueError(
            f"answers and priors are compared place by place, which canvas_ratio={model.config.canvas_ratio} does not allow; choose an answer "
            "before training (targets=consensus) or set canvas_ratio=1"
        )
    was_training = model.training
    model.eval()
    flat = labels.flatten(0, 1).repeat_interleave(num_priors, 0)
    canvas = flat != -100
    repeats = len(flat) // len(labels)
    source = model.get_encoder()(input_ids, attention_mask).last_hidden_state
    noise = model.config.prior_std * torch.randn(
        *flat.shape, model.config.hidden_size, generator=generator, device=flat.device
    )
    outputs = model(
        encoder_outputs=BaseModelOutput(source.repeat_interleave(repeats, 0)),
        attention_mask=attention_mask.repeat_interleave(repeats, 0),
        decoder_attention_mask=canvas.long(),
        prior_noise=noise,
    )
    model.train(was_training)
    lengths, config = canvas.sum(-1), model.config
    cost = config.ce_loss_weight * token_cross_entropy(outputs.logits, flat).sum(-1) / lengths
    if config.ngram_loss_weight:
        cost = cost + config.ngram_loss_weight * ngram_distance(outputs.logits, flat, config.ngram_size)
    if outputs.length_logits is not None:
        cost = cost + config.length_loss_weight * token_cross_entropy(outputs.length_logits, lengths - 1)
    best = cost.view(len(labels), repeats).argmin(-1)
    chosen = best + repeats * torch.arange(len(labels), device=best.device)
    longest = int(lengths[chosen].max())
    return flat[chosen, :longest], noise[chosen, :longest]


class YanPairSelectionTrainer(YanSeq2SeqTrainer):
    """
    `YanSeq2SeqTrainer` on the easiest of several answers and priors. Training rows hold one answer (`labels` a list of ids) or
    several (a list of such lists, with `DataCollatorForSeveralTargets`).

    Args:
        num_priors: M.
        generator: for the priors; torch's global one if absent.
    """

    def __init__(self, *args, num_priors: int = 1, generator: torch.Generator | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if num_priors < 1:
            raise ValueError(f"num_priors={num_priors} must be at least 1")
        # Trainer would count the tokens of all answers, of which one is learned.
        self.model_accepts_loss_kwargs = False
        self.num_priors, self.generator = num_priors, generator

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            labels = inputs["labels"]
            labels, noise = select_pairs(
                self.accelerator.unwrap_model(model),
                inputs["input_ids"],
                inputs["attention_mask"],
                labels if labels.dim() == 3 else labels.unsqueeze(1),
                num_priors=self.num_priors,
                generator=self.generator,
            )
            inputs = {**inputs, "labels": labels, "prior_noise": noise}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
