"""
Masked diffusion in LLaDA's way (arXiv 2502.09992): a bidirectional transformer that fills masked positions, most
confident first. The baseline of the same kind as YAN: no order from left to right, but many evaluations.
"""

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput


class MaskedDiffusionLM(GPT2LMHeadModel):
    """
    GPT-2's layers with attention in both directions. `config.masked_diffusion` marks a saved one,
    `config.mask_token_id` is the noise. With `config.block_length` attention sees whole blocks of the answer from left
    to right, so that the keys and values of what is finished can be kept.
    """

    def __init__(self, config):
        super().__init__(config)
        config.masked_diffusion = True

    def _attention(self, valid: torch.Tensor, answer_start: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (B, 1, L, L) from valid positions (B, L): both directions, or blocks of the answer."""
        rows, length = valid.shape
        allowed = valid.bool()[:, None, None, :].expand(rows, 1, length, length)
        block = getattr(self.config, "block_length", None)
        if block is not None:
            # The source is block 0, the answer's blocks count from 1.
            place = torch.arange(length, device=valid.device) - answer_start
            number = torch.where(place < 0, 0, place // block + 1)
            allowed = allowed & (number[None, :] <= number[:, None])
        return torch.zeros(allowed.shape, dtype=dtype, device=valid.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    def predict(self, ids: torch.LongTensor, valid: torch.Tensor, answer_start: int) -> torch.Tensor:
        """Logits (B, L, V) of every position, none of them shifted."""
        positions = (valid.long().cumsum(-1) - 1).clamp_min(0)
        mask = self._attention(valid, answer_start, self.dtype)
        states = self.transformer(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
        return self.lm_head(states)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        timesteps: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        """
        Equation 3 of LLaDA for pairs: answers (labels other than -100) are masked with probability t ~ U(0, 1), one t a
        row, and the cross-entropy at masked positions is weighted by 1 / t.

        Args:
            timesteps: t of each row (B,), instead of a draw.
        """
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if labels is None:
            return CausalLMOutput(logits=self.predict(input_ids, valid, input_ids.shape[1]))
        if generator is None and not self.training:
            generator = torch.Generator(input_ids.device).manual_seed(0)
        answer = labels != -100
        options = {"generator": generator, "device": input_ids.device}
        t = torch.rand(len(input_ids), **options) if timesteps is None else timesteps
        t = t.clamp_min(1e-3).unsqueeze(1)
        masked = answer & (torch.rand(input_ids.shape, **options) < t)
        logits = self.predict(
            input_ids.masked_fill(masked, self.config.mask_token_id), valid, int(answer.long().argmax(1).min())
        )
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.masked_fill(~masked, -100).flatten(), reduction="none"
        )
        count = answer.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=(loss.view_as(masked) / t).sum() / count, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int = 32,
        num_inference_steps: int | None = None,
        block_length: int | None = None,
        use_cache: bool = False,
        eos_token_id: int | None = None,
        **unused,
    ) -> torch.LongTensor:
        """
        Low-confidence remasking: each step keeps the most confident of its greedy guesses, as many as the schedule
        says.

        Args:
            input_ids: sources (B, Lx), padded on the left.
            num_inference_steps: evaluations over the whole answer; as many as tokens by default.
            block_length: positions that are filled before the next are begun; the whole answer by default, and
                `config.block_length` in a model of blocks.
            use_cache: keep the keys and values of finished blocks (models of blocks only), which is exact.

        Returns:
            Sources with their answers (B, Lx + max_new_tokens); what follows the first EOS is padding.
        """
        trained = getattr(self.config, "block_length", None)
        block_length = block_length or trained or max_new_tokens
        if use_cache and trained != block_length:
            raise ValueError(f"use_cache needs a model of blocks of {block_length}, config.block_length={trained}")
        rows, start = input_ids.shape
        mask_id, valid = (
            self.config.mask_token_id,
            torch.ones_like(input_ids) if attention_mask is None else attention_mask,
        )
        ids = F.pad(input_ids, (0, max_new_tokens), value=mask_id)
        valid = F.pad(valid, (0, max_new_tokens), value=1)
        positions = (valid.long().cumsum(-1) - 1).clamp_min(0)
        steps_left, cache = num_inference_steps or max_new_tokens, None
        if use_cache:
            cache = DynamicCache(config=self.config)
            source_mask = self._attention(valid[:, :start], start, self.dtype)
            self.transformer(
                input_ids=input_ids,
                attention_mask=source_mask,
                position_ids=positions[:, :start],
                past_key_values=cache,
                use_cache=True,
            )
        for begin in range(start, start + max_new_tokens, block_length):
            end = min(begin + block_length, start + max_new_tokens)
            blocks_left = -(-(start + max_new_tokens - begin) // block_length)
            steps = max(1, round(steps_left / blocks_left))
            steps_left -= steps
            for step in range(steps):
                masked = ids[:, begin:end] == mask_id
                if cache is None:
                    # A block of a model of blocks does not see those after it.
                    until = end if trained is not None else ids.shape[1]
                    logits = self.predict(ids[:, :until], valid[:, :until], start)[:, begin:end]
                else:
                    logits = self.lm_head(
                        self._block(ids[:, begin:end], valid[:, :end], positions[:, begin:end], cache)
                    )
                    cache.crop(begin - end)
                logits[..., mask_id] = -torch.inf
                confidence, guess = logits.float().softmax(-1).max(-1)
                left = masked.sum(1)
                keep = torch.div(left + steps - step - 1, steps - step, rounding_mode="floor")
                order = confidence.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
                rank = torch.empty_like(order).scatter_(
                    1, order, torch.arange(end - begin, device=ids.device).expand(rows, -1)
                )
                ids[:, begin:end] = torch.where(masked & (rank < keep.unsqueeze(1)), guess, ids[:, begin:end])
            if cache is not None and end < ids.shape[1]:
                self._block(ids[:, begin:end], valid[:, :end], positions[:, begin:end], cache)
        if eos_token_id is not None:
            ended = (ids[:, start:] == eos_token_id).long().cumsum(1) - (ids[:, start:] == eos_token_id).long() > 0
            ids[:, start:] = ids[:, start:].masked_fill(ended, self.config.pad_token_id)
        return ids

    def _block(
        self, ids: torch.Tensor, valid: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """States of a block over the keys and values of everything before it, which the cache then also holds."""
        mask = torch.zeros(len(ids), 1, ids.shape[1], valid.shape[1], dtype=self.dtype, device=ids.device)
        mask = mask.masked_fill(~valid.bool()[:, None, None, :], torch.finfo(self.dtype).min)
        return self.transformer(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )[0]
