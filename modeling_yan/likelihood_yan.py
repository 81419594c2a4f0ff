"""How probable given answers are."""

import math

import torch

from .canvas_yan import source_lengths, target_canvas
from .ctc_yan import ctc_nll, texts_first
from .input_checks_yan import check_generator, check_labels, check_number
from .sampling_yan import draw_noise, row_seeds


class YanLikelihoodMixin:
    """Uses of the model: `encode_source`, `solve`, `decoder`, `generation_options`."""

    @torch.no_grad()
    def log_likelihood(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_priors: int = 8,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        r"""
        Log-probability of an answer to each source, in nats, with the number of steps that `generate` takes:

            log p(y | source) = log p(length | source) + log 1/M sum_m p(y | source, noise_m)

        Given the noise (a prior and a choice of experts), tokens are independent, and the second factor is exact: a
        product over positions, or with blanks the sum over all placements of the tokens on a canvas of the answer's own
        length. The mean over M priors is an unbiased estimate of the probability, so that its logarithm is too low on
        average; the bias shrinks with 1 / M. Without a length head the first term is 0.

        Args:
            input_ids: sources (B, Lx), padded on either side.
            attention_mask: (B, Lx), 1 at tokens.
            labels: answers (B, Ly), EOS included; -100 is padding.
            num_priors: M.
            generator: decides the noise, which otherwise depends on a row's source and the length of its answer only:
                answers of one length to one source are compared under the same noise.

        Returns:
            (B,) in float32.

        Raises:
            ValueError: for labels that are none or do not fit the sources, and for answers without any token.
        """
        config, options = self.config, self.generation_options()
        check_number("num_priors", num_priors, allowed=lambda x: x >= 1, expected="a whole number above 0", whole=True)
        check_generator(generator)
        self._check_inputs(input_ids, attention_mask, None, None)
        if not torch.is_tensor(labels) or labels.dim() != 2 or len(labels) != len(input_ids):
            raise ValueError(
                f"labels must be a tensor of {len(input_ids)} rows of token ids, one answer to each source"
            )
        placed = config.canvas_ratio == 1
        check_labels(labels, config.vocab_size, None if placed else config.pad_token_id)
        labels = texts_first(labels)
        valid = labels != -100
        if not bool(valid.any(-1).all()):
            raise ValueError("labels have a row without any token; an answer holds at least its EOS")
        source, length_logits = self.encode_source(input_ids, attention_mask)
        longest = int(valid.sum(-1).max())
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"labels have {longest} tokens, more than max_position_embeddings={config.max_position_embeddings}"
            )
        labels, valid = labels[:, :longest], valid[:, :longest]
        read = source_lengths(source, attention_mask) if config.canvas_from_source else None
        canvas = target_canvas(labels, config.canvas_ratio, config.max_position_embeddings, read=read)
        condition = self.model.condition(canvas.shape[1], canvas, source, attention_mask)
        seeds = row_seeds(input_ids, attention_mask, len(input_ids), generator, distinct=False)
        lengths = canvas.sum(-1).tolist()
        x_0, uniform = draw_noise(
            seeds, lengths, num_priors, config.hidden_size, std=config.prior_std, device=source.device
        )
        log_probs = []
        for prior in range(num_priors):
            states = self.solve(x_0[:, prior], condition, uniform[0, :, prior], options.sampling)
            logits = self.writable_logits(self.decoder(states).float(), options.sampling.eos_token_ids)
            if placed:
                chosen = logits.log_softmax(-1).gather(-1, labels.masked_fill(~valid, 0).unsqueeze(-1)).squeeze(-1)
                log_probs.append((chosen.masked_fill(~valid, 0)).sum(-1))
            else:
                log_probs.append(-ctc_nll(logits, labels, canvas, config.pad_token_id))
        total = torch.stack(log_probs, -1).logsumexp(-1) - math.log(num_priors)
        if length_logits is None:
            return total
        tokens = valid.sum(-1, keepdim=True)
        return total + length_logits.float().log_softmax(-1).gather(1, tokens - 1).squeeze(1)
