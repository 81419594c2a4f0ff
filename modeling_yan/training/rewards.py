"""
Learning from rewards, for a model that writes all positions at once.

Given the prior noise x_0 and the experts, YAN's endpoint z = z_theta(x_0, source) is a deterministic, differentiable
function, and tokens are independent given it. The policy is therefore explicit, which it is not for most diffusion
models:

    p_theta(L, y | source, x_0) = p_theta(L | source) prod_i softmax(D_theta(z)_i / T)[y_i]

x_0 does not depend on theta, so the score-function identity holds inside the expectation over it:

    grad E[R(y)] = E_x0 E_(L, y) [ (R(y) - b) grad log p_theta(L, y | source, x_0) ]

for any baseline b that does not depend on (L, y). As in GRPO (arXiv 2402.03300) b is the mean reward of a group of G
answers to the same source, here of G different priors, and the advantage is divided by the group's standard deviation.
An answer's log-probability is divided by its length, so that long answers do not count for more; that weighs the
gradient above. Each answer is used for one update, so there is no importance ratio to clip.

With `beta` the exact divergence KL(p_theta || p_reference) of every position's tokens, at the same noise, is added to
the loss: no sampling estimate is needed. Experts are the gate's argmax; their choice gets no gradient.
"""

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from modeling_yan import YanForConditionalGeneration
from modeling_yan.canvas_yan import canvas_lengths, length_mask
from modeling_yan.ctc_yan import ctc_collapse
from modeling_yan.data.collators import DataCollatorForSources
from modeling_yan.flow_matching_yan import masked_mean
from modeling_yan.sampling_yan import cut_lengths
from modeling_yan.training.trainer import YanTrainerMixin

Reward = Callable[..., list[float]]


def group_advantages(rewards: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """Rewards (B, G) less their group's mean, over its standard deviation; 0 where all are equal."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, unbiased=False) + eps)


@torch.no_grad()
def draw_canvases(
    model: YanForConditionalGeneration,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    repeats: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Canvases of the model's own choosing: a length from the length head, a prior from N(0, prior_std^2 I), and the
    experts that are the gate's argmax at t = 0.

    Args:
        model: with a length head.
        input_ids, attention_mask: sources (B, Lx).
        repeats: canvases of a source, each with a length and a prior of its own.
        temperature: of the lengths.
        generator: for both; torch's global one if absent.

    Returns:
        Arguments of `model.forward`, rows repeated (B * repeats, ...): `input_ids, attention_mask,
        decoder_attention_mask, prior_noise, expert_indices`. And the lengths (B * repeats,), in tokens.
    """
    config = model.config
    source = model.get_encoder()(input_ids, attention_mask).last_hidden_state
    length_logits = model.length_head(source, attention_mask).float() / temperature
    lengths = length_logits.softmax(-1).multinomial(repeats, replacement=True, generator=generator).flatten() + 1
    canvas_mask = length_mask(canvas_lengths(lengths, config.canvas_ratio, config.max_position_embeddings))
    noise = torch.randn(*canvas_mask.shape, config.hidden_size, generator=generator, device=input_ids.device)
    drawn = {
        "input_ids": input_ids.repeat_interleave(repeats, 0),
        "attention_mask": attention_mask.repeat_interleave(repeats, 0),
        "decoder_attention_mask": canvas_mask.long(),
        "prior_noise": config.prior_std * noise,
    }
    gate = model.model(
        attention_mask=drawn["attention_mask"],
        encoder_outputs=(source.repeat_interleave(repeats, 0),),
        x_t=drawn["prior_noise"],
        timesteps=torch.zeros(len(noise), device=noise.device),
        decoder_attention_mask=canvas_mask,
    ).gate_probs
    return {**drawn, "expert_indices": gate.argmax(-1)}, lengths


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

    Raises:
        ValueError: for settings out of their range, and for a model that does not predict lengths.
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
        if not model.config.predicts_length:
            raise ValueError(
                f"length_head={model.config.length_head!r} must be True: rewards need a model that predicts the length "
                "of its answers"
            )
        kwargs.setdefault("data_collator", DataCollatorForSources(processing_class))
        super().__init__(model, *args, processing_class=processing_class, **kwargs)
        self.args.remove_unused_columns = False
        self.model_accepts_loss_kwargs = False
        self.reward, self.num_generations, self.temperature = reward, num_generations, temperature
        self.beta, self.generator = beta, generator
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if beta else None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # 1. Answers, and what they are worth beside the others to the same source.
        drawn = self._sample(model, inputs["input_ids"], inputs["attention_mask"])
        tokens, lengths = drawn.pop("tokens"), drawn.pop("lengths")
        canvas_mask = drawn["decoder_attention_mask"].bool()
        rewards = self._rewards(self._texts(tokens, canvas_mask), inputs["columns"]).to(canvas_mask.device)

        # 2. Their log-probability, each an average over its tokens, so that long ones do not count for more.
        outputs = model(**drawn)
        log_probs = self._log_probs(outputs.logits)
        chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        chosen_length = self._log_probs(outputs.length_logits).gather(-1, lengths.unsqueeze(-1) - 1).squeeze(-1)
        answer = (chosen * canvas_mask).sum(-1) + chosen_length
        loss = -(group_advantages(rewards).flatten() * answer / lengths).mean()
        terms = {"reward": rewards.mean(), "reward_std": rewards.std(1).mean(), "target_length": lengths.float().mean()}

        # 3. How far the model has gone from where it started.
        if self.reference is not None:
            with torch.no_grad():
                reference = self._log_probs(self.reference(**drawn).logits)
            divergence = (log_probs.exp() * (log_probs - reference)).sum(-1)
            terms["kl"] = masked_mean(divergence, canvas_mask)
            loss = loss + self.beta * terms["kl"]
        if model.training:
            self._refuse_nan(loss, terms)
            self._record(terms, inputs)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _sample(self, model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        G answers a row, written in evaluation mode: what the policy drew, and what it was given, all (B * G, ...).
        """
        was_training = model.training
        model.eval()
        plain = self.accelerator.unwrap_model(model)
        given, lengths = draw_canvases(
            plain,
            input_ids,
            attention_mask,
            repeats=self.num_generations,
            temperature=self.temperature,
            generator=self.generator,
        )
        probs = self._log_probs(plain(**given).logits).exp()
        tokens = probs.flatten(0, 1).multinomial(1, generator=self.generator).view(probs.shape[:2])
        model.train(was_training)
        return {**given, "tokens": tokens, "lengths": lengths}

    def _log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities at the temperature, in float32, over the last dimension."""
        return (logits.float() / self.temperature).log_softmax(-1)

    def _texts(self, tokens: torch.Tensor, canvas_mask: torch.Tensor) -> list[str]:
        """Texts of drawn tokens (B * G, L), cut at EOS."""
        config = self.accelerator.unwrap_model(self.model).config
        ends = config.end_token_ids
        if config.canvas_ratio > 1:
            tokens = ctc_collapse(tokens, canvas_mask, config.pad_token_id, ends[0])
        lengths = cut_lengths(tokens, canvas_mask, ends)
        ids = [
            [i for i in row[:length].tolist() if i not in ends]
            for row, length in zip(tokens, lengths.tolist(), strict=True)
        ]
        return self.processing_class.batch_decode(ids, skip_special_tokens=True)

    def _rewards(self, texts: list[str], columns: dict[str, list]) -> torch.Tensor:
        """
        Rewards (B, G) of the texts, G for each row of the columns.

        Raises:
            ValueError: if the reward gives another number of values than there are texts.
        """
        repeated = {name: [v for v in values for _ in range(self.num_generations)] for name, values in columns.items()}
        values = self.reward(completions=texts, **repeated)
        if len(values) != len(texts):
            raise ValueError(f"the reward gave {len(values)} numbers for {len(texts)} completions")
        return torch.tensor(values, dtype=torch.float32).view(-1, self.num_generations)
