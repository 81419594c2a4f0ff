"""
Learning from rewards, for a model that writes all positions at once.

Given the prior noise x_0 and the experts, YAN's endpoint z = z_theta(x_0, source) is a deterministic, differentiable function,
and tokens are independent given it. The policy is therefore explicit, which it is not for most diffusion models:

    p_theta(L, y | source, x_0) = p_theta(L | source) prod_i softmax(D_theta(z)_i / T)[y_i]

x_0 does not depend on theta, so the score-function identity holds inside the expectation over it:

    grad E[R(y)] = E_x0 E_(L, y) [ (R(y) - b) grad log p_theta(L, y | source, x_0) ]

for any baseline b that does not depend on (L, y). As in GRPO (arXiv 2402.03300) b is the mean reward of a group of G answers to the
same source, here of G different priors, and the advantage is divided by the group's standard deviation. An answer's log-probability
is divided by its length, so that long answers do not count for more; that weighs the gradient above. Each answer is used for
one update, so there is no importance ratio to clip. With `beta` the exact divergence KL(p_theta || p_reference) of every
position's tokens, at the same noise, is added to the loss: no sampling estimate is needed. Experts are the gate's argmax; their
choice gets no gradient.
"""

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from modeling_yan import YanForConditionalGeneration
from modeling_yan.alignment_yan import collapse_alignment
from modeling_yan.flow_matching_yan import masked_mean
from modeling_yan.training.canvases import draw_canvases
from modeling_yan.training.data_collator import DataCollatorForSources
from modeling_yan.training.trainer import YanTrainerMixin

Reward = Callable[..., list[float]]


def group_advantages(rewards: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """Rewards (B, G) less their group's mean, over its standard deviation; 0 where all are equal."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, unbiased=False) + eps)


class YanRewardTrainer(YanTrainerMixin, Trainer):
    """
    Trains a YAN on rewards of its own answers.

    Args:
        model: with a length head.
        reward: called as `reward(completions=[str], **columns)`, every column of the data repeated for its completions;
            returns a number for each.
        train_dataset: column `input_ids` (tokenised sources) and whatever the reward needs.
        num_generations: answers (priors) per source, at least 2.
        temperature: of tokens and lengths.
        beta: weight of the divergence from the model as it was at the start; a frozen copy is held if it is not 0.
        generator: for everything drawn; torch's global one if absent.
    """

    def __init__(
        self,
        model: YanForConditionalGeneration,
        reward: Reward,
        *args,
        processing_class: PreTrainedTokenizerBase,
        num_generations: int = 8,
        temperature: float = 1.0,
        beta: float = 0.0,
        generator: torch.Generator | None = None,
        **kwargs,
    ):
        if num_generations < 2:
            raise ValueError(f"num_generations={num_generations} must be at least 2: a reward is judged by its group")
        if temperature <= 0 or beta < 0:
            raise ValueError(f"temperature={temperature} must be positive, beta={beta} not negative")
        if not model.config.length_head:
            raise ValueError("rewards need a model with a length head (config.length_head=True)")
        kwargs.setdefault("data_collator", DataCollatorForSources(processing_class))
        super().__init__(model, *args, processing_class=processing_class, **kwargs)
        self.args.remove_unused_columns = False
        self.model_accepts_loss_kwargs = False
        self.reward, self.num_generations, self.temperature = reward, num_generations, temperature
        self.beta, self.generator = beta, generator
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if beta else None

    @torch.no_grad()
    def _sample(self, model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """G answers a row: what the policy drew, and what it was given, all (B * G, ...)."""
        plain = self.accelerator.unwrap_model(model)
        given, lengths = draw_canvases(
            plain,
            input_ids,
            attention_mask,
            repeats=self.num_generations,
            temperature=self.temperature,
            generator=self.generator,
        )
        logits = plain(**given).logits.float() / self.temperature
        tokens = logits.flatten(0, 1).softmax(-1).multinomial(1, generator=self.generator).view(logits.shape[:2])
        return {**given, "tokens": tokens, "lengths": lengths}

    def _texts(self, tokens: torch.Tensor, canvas: torch.Tensor) -> list[str]:
        texts, eos = [], self.processing_class.eos_token_id
        config = self.accelerator.unwrap_model(self.model).config
        if config.canvas_ratio > 1:
            tokens = collapse_alignment(tokens, canvas, config.pad_token_id, eos)
        for row, mask in zip(tokens, canvas.bool()):
            ids = row[mask].tolist()
            texts.append(
                self.processing_class.decode(ids[: ids.index(eos)] if eos in ids else ids, skip_special_tokens=True)
            )
        return texts

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        was_training = model.training
        model.eval()
        drawn = self._sample(model, inputs["input_ids"], inputs["attention_mask"])
        model.train(was_training)
        tokens, lengths = drawn.pop("tokens"), drawn.pop("lengths")
        canvas, groups = drawn["decoder_attention_mask"], self.num_generations
        repeated = {name: [v for v in values for _ in range(groups)] for name, values in inputs["columns"].items()}
        texts = self._texts(tokens, canvas)
        values = self.reward(completions=texts, **repeated)
        if len(values) != len(texts):
            raise ValueError(f"the reward gave {len(values)} numbers for {len(texts)} completions")
        rewards = torch.tensor(values, dtype=torch.float32, device=canvas.device).view(-1, groups)
        advantages = group_advantages(rewards).flatten()

        outputs = model(**drawn)
        log_probs = (outputs.logits.float() / self.temperature).log_softmax(-1)
        chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        length_log_probs = (outputs.length_logits.float() / self.temperature).log_softmax(-1)
        answer = (chosen * canvas).sum(-1) + length_log_probs.gather(-1, lengths.unsqueeze(-1) - 1).squeeze(-1)
        # Every answer is an average over its tokens, so that long ones do not count for more.
        loss = -(advantages * answer / lengths).mean()
        terms = {"reward": rewards.mean(), "reward_std": rewards.std(1).mean(), "target_length": lengths.float().mean()}
        if self.reference is not None:
            with torch.no_grad():
                reference = (self.reference(**drawn).logits.float() / self.temperature).log_softmax(-1)
            divergence = (log_probs.exp() * (log_probs - reference)).sum(-1)
            terms["kl"] = masked_mean(divergence, canvas.bool())
            loss = loss + self.beta * terms["kl"]
        if model.training:
            self._refuse_nan(loss, terms)
            self._record(terms)
            self._count_tokens(inputs)
        return (loss, outputs) if return_outputs else loss
