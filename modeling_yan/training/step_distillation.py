"""
Fewer steps: a model learns to reach in S steps what it reached in more.

Flow and prior make the endpoint a function of the noise, z_T(x_0) with the teacher's steps. The student's S-step solution from the same
x_0 and with the same experts is drawn to it, in what the decoder reads out of it and in the latents themselves:

    loss = KL(p_T || p_S), the mean over positions, + w |z_S - z_T|^2 / d + KL of the lengths

This is distillation of the flow map along the teacher's own trajectories (progressive distillation, arXiv 2202.00512, in one stride; several
strides are several runs). It needs sources alone: no references, no other teacher.
"""

import copy

import torch
from transformers import Trainer

from modeling_yan import YanForConditionalGeneration
from modeling_yan.flow_matching_yan import masked_mean
from modeling_yan.training.canvases import draw_canvases
from modeling_yan.training.data_collator import DataCollatorForSources
from modeling_yan.training.trainer import YanTrainerMixin


def divergence(teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:
    """`KL(p || q)` of two softmax distributions in float32, (..., V) -> (...)."""
    p, q = teacher_logits.float().log_softmax(-1), student_logits.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


class YanStepDistillationTrainer(YanTrainerMixin, Trainer):
    """
    Trains a YAN to need fewer steps. A frozen copy of the model as it comes is the teacher, with as many steps as its
    `generation_config.num_inference_steps`; the model's own settings (`config.unroll_steps`, `generation_config.num_inference_steps`) become the
    student's.

    Args:
        model: with a length head.
        num_inference_steps: S, fewer than the teacher's.
        mse_weight: w.
        train_dataset: column `input_ids` (tokenised sources).
        generator: for what is drawn; torch's global one if absent.

    Raises:
        ValueError: if there is nothing to shorten, or no length head.
    """

    def __init__(
        self,
        model: YanForConditionalGeneration,
        *args,
        num_inference_steps: int = 1,
        mse_weight: float = 1.0,
        generator: torch.Generator | None = None,
        **kwargs,
    ):
        steps = model.generation_config.num_inference_steps
        if not 1 <= num_inference_steps < steps:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} must be at least 1 and less than the model's {steps}"
            )
        if not model.config.length_head:
            raise ValueError("step distillation needs a model with a length head (config.length_head=True)")
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.teacher.config.unroll_steps = steps
        model.config.unroll_steps = model.generation_config.num_inference_steps = num_inference_steps
        kwargs.setdefault("data_collator", DataCollatorForSources(kwargs.get("processing_class")))
        super().__init__(model, *args, **kwargs)
        self.teacher.to(self.args.device)
        self.args.remove_unused_columns = False
        self.model_accepts_loss_kwargs = False
        self.mse_weight, self.generator = mse_weight, generator

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        drawn, _ = draw_canvases(self.teacher, inputs["input_ids"], inputs["attention_mask"], generator=self.generator)
        canvas = drawn["decoder_attention_mask"].bool()
        with torch.no_grad():
            taught = self.teacher(**drawn)
        outputs = model(**drawn)
        terms = {
            "token_kl": masked_mean(divergence(taught.logits, outputs.logits), canvas),
            "mse_loss": masked_mean((outputs.latents - taught.latents).float().square().mean(-1), canvas),
            "length_kl": divergence(taught.length_logits, outputs.length_logits).mean(),
        }
        loss = terms["token_kl"] + self.mse_weight * terms["mse_loss"] + terms["length_kl"]
        if model.training:
            self._refuse_nan(loss, terms)
            self._record(terms)
            self._count_tokens(inputs)
        return (loss, outputs) if return_outputs else loss
