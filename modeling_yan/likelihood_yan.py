"""How probable given answers are."""

import math

import torch

from .canvas_yan import canvas_lengths, length_mask, source_lengths, target_canvas
from .copying_yan import CopySource
from .ctc_yan import ctc_nll, ctc_prefix_log_prob, texts_first
from .generation_options_yan import GenerationOptions
from .input_checks_yan import check_finite, check_generator, check_labels, check_number, check_source, check_tensor
from .sampling_yan import cut_lengths, draw_noise, given_noise, row_seeds


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
        *,
        prior_noise: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        r"""
        Log-probability of an answer to each source, in nats, with the number of steps that `generate` takes and on the
        canvas that it would write the answer on. Use it to choose among given answers.

            log p(y | source) = log p(canvas | source) + log 1/M sum_m p(y | source, canvas, noise_m)

        Given the noise (a prior and a choice of experts), positions are independent, and the second term is exact: a
        product over positions, or with blanks the sum over all placements of the tokens (CTC, Graves et al. 2006). With
        `copy_mechanism` they are independent given the passage that is quoted, and the product is summed over passages.

        The canvas is that of `generation_config.length_mode`:

        - "predicted": the answer's own length, and p(canvas) is what the length head gives to it, so that answers of
          different length can be compared. The answer's probability on other canvases (longer ones cut at EOS; with
          blanks those of neighbouring lengths) is left out: what is returned is a lower bound in this respect.
        - "canvas": as many positions as `generate` fills, all sources alike, and p(canvas) is 1. The answer ends at its
          first EOS, and whatever stands behind it on the canvas counts. An answer without EOS counts with all of its
          continuations.
        - "source": the same on a canvas as long as the source says, or as the answer needs.

        It is the probability of what stands on the canvas, under the model's own distribution: `merge_repeats`,
        `blank_penalty`, `prior_temperature` and the filters of drawn tokens are left out.

        The mean over M priors is an unbiased estimate of the probability, so that its logarithm is too low on average
        (Jensen's inequality); the bias shrinks with 1 / M.

        Args:
            input_ids: sources (B, Lx), padded on either side.
            attention_mask: (B, Lx), 1 at tokens.
            labels: answers (B, Ly), EOS included; -100 is padding.
            num_priors: M.
            generator: decides the noise, which otherwise depends on a row's source and the length of its canvas only,
                neither on other rows nor on padding: answers of one length to one source are compared under the same
                noise.
            prior_noise: the priors instead of a draw, (B, M, L, d), which then says what M is, or (B, L, d) for one. No
                canvas is longer than it; a shorter one uses its beginning. Experts are still drawn by `generator`.

        Returns:
            (B,) in float32.

        Raises:
            ValueError: for labels that are none or do not fit the sources or the canvas, for answers without any token,
                and for noise of another shape.
        """
        options = self.generation_options()
        check_number("num_priors", num_priors, allowed=lambda x: x >= 1, expected="a whole number above 0", whole=True)
        check_generator(generator)
        check_source(self.config, input_ids, attention_mask)
        if prior_noise is not None:
            check_finite("prior_noise", prior_noise)
            num_priors = prior_noise.shape[1] if prior_noise.dim() == 4 else 1
        labels, canvas = self._answers_on_canvas(labels, source_lengths(input_ids, attention_mask), options)
        source, length_logits = self.encode_source(input_ids, attention_mask)
        condition = self.model.condition(canvas.shape[1], canvas, source, attention_mask)
        seeds = row_seeds(input_ids, attention_mask, len(input_ids), generator, distinct=False)
        lengths = canvas.sum(-1).tolist()
        x_0, uniform = draw_noise(
            seeds, lengths, num_priors, self.config.hidden_size, std=self.config.prior_std, device=source.device
        )
        if prior_noise is not None:
            x_0 = given_noise(prior_noise, x_0, lengths)
        copied_ids = self.copied_ids(canvas.shape[1], input_ids, attention_mask)
        copied = self.copy_source(copied_ids, source, attention_mask)
        log_probs = []
        for prior in range(num_priors):
            states = self.solve(x_0[:, prior], condition, uniform[0, :, prior], options.sampling)
            log_probs.append(self._log_prob_of_texts(self.decoder.states(states), copied, labels, canvas, options))
        total = torch.stack(log_probs, -1).logsumexp(-1) - math.log(num_priors)
        if options.length_mode != "predicted":
            return total
        tokens = (labels != -100).sum(-1, keepdim=True)
        return total + length_logits.float().log_softmax(-1).gather(1, tokens - 1).squeeze(1)

    def _answers_on_canvas(
        self, labels: object, read: torch.LongTensor, options: GenerationOptions
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Labels (B, L), checked and with all padding at the end, and the canvas (B, C) that each stands on.

        Args:
            read: tokens of the sources (B,).
        """
        config, table, rows = self.config, self.config.max_position_embeddings, len(read)
        check_tensor("labels", labels, "pass token ids of the answers, EOS included, -100 being padding")
        if labels.dim() != 2 or len(labels) != rows:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, must be a tensor of {rows} rows of token ids, one answer to "
                "each source"
            )
        check_labels(labels, config.vocab_size, None if config.canvas_ratio == 1 else config.pad_token_id)
        labels = texts_first(labels)
        fixed = options.length_mode != "predicted"
        if fixed:
            ends = cut_lengths(labels, None, options.sampling.eos_token_ids)
            labels = labels.masked_fill(~length_mask(ends, labels.shape[1]), -100)
        lengths = (labels != -100).sum(-1)
        if not bool(lengths.all()):
            raise ValueError("labels have a row without any token; an answer holds at least its EOS")
        longest = int(lengths.max())
        if longest > table:
            raise ValueError(
                f"labels have {longest} tokens, more than max_position_embeddings={table}; tokenize answers with "
                "truncation=True"
            )
        labels = labels[:, :longest]
        if not fixed:
            return labels, target_canvas(labels, config.canvas_ratio, table)
        if longest > options.longest:
            raise ValueError(
                f"labels have {longest} tokens, more than the {options.longest} that the model writes; raise "
                "generation_config.max_new_tokens, or tokenize answers with truncation=True"
            )
        if options.length_mode == "source":
            return labels, target_canvas(labels, config.canvas_ratio, table, read=read)
        positions = canvas_lengths(torch.full_like(lengths, options.longest), config.canvas_ratio, table)
        return labels, length_mask(positions)

    def _log_prob_of_texts(
        self,
        states: torch.Tensor,
        copied: CopySource | None,
        labels: torch.LongTensor,
        canvas: torch.Tensor,
        options: GenerationOptions,
    ) -> torch.Tensor:
        """Log-probability (B,) of labels (B, L), given decoder states (B, C, d) of independent positions."""
        eos, blank = options.sampling.eos_token_ids, self.config.pad_token_id
        if self.config.copy_mechanism:
            states = states[:, : labels.shape[1]]
            vocabulary = self.writable_logits(self.decoder.lm_head(states).float(), eos)
            return self.decoder.copy_head.log_probs(states, vocabulary, copied, labels).sum(-1)
        logits = self.decoder.logits(states, self.decoder.copies(states, copied)).float()
        logits = self.writable_logits(logits, eos)
        if self.config.canvas_ratio > 1:
            if options.length_mode != "predicted":
                return ctc_prefix_log_prob(logits, labels, canvas, blank)
            return -ctc_nll(logits, labels, canvas, blank)
        valid = labels != -100
        at = logits[:, : labels.shape[1]].log_softmax(-1)
        return at.gather(-1, labels.masked_fill(~valid, 0).unsqueeze(-1)).squeeze(-1).masked_fill(~valid, 0).sum(-1)
