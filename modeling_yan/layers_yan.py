"""
The parts that encoder, autoencoder and flow share: embeddings, feed-forward, encoder block, decoder, length head. No
losses, no sampling.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_yan import YanConfig
from .copying_yan import (
    CopySource,
    add_copies,
    best_passage,
    diagonals,
    from_first,
    lowest,
    quotation_log_probs,
    total_by_token,
)
from .flow_matching_yan import chunked_token_cross_entropy, token_cross_entropy
from .mixers_yan import MIXERS

# Added to the logit of the token that a position can copy, before anything is learned.
COPY_START = 6.0
# A source of so many tokens has as much weight as the vocabulary, before anything is learned.
POINTED_TOKENS = 64
# So many nats less for places that are found by what they hold, so that an answer begins as a quotation.
CONTENT_HANDICAP = 4.0


def position_ids_from_mask(mask: torch.Tensor) -> torch.Tensor:
    """Positions counted over valid tokens only, so that padding on either side shifts nothing: (B, L) -> (B, L)."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def masked_mean_pool(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over valid positions: (B, L, d), (B, L) -> (B, d)."""
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


class YanPositionTable(nn.Embedding):
    """A row for each position. Offloaded weights are there during `forward` only, which therefore reads them all."""

    def forward(self, positions: torch.Tensor | int) -> torch.Tensor:
        """Rows (B, L, d) of positions (B, L), or the first so many (L, d)."""
        return super().forward(positions) if torch.is_tensor(positions) else self.weight[:positions]


class YanPositionEmbeddings(nn.Module):
    """
    Learned positions, counted over valid tokens from the beginning and, with `config.reverse_positions`, from the end,
    too.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        sizes = (config.max_position_embeddings, config.hidden_size)
        self.position_embeddings = YanPositionTable(*sizes)
        self.end_position_embeddings = YanPositionTable(*sizes) if config.reverse_positions else None

    def positions(self, length: int, mask: torch.Tensor | None) -> torch.Tensor:
        """
        Position embeddings (B or 1, L, d) of a sequence with this mask (B, L); both kinds together on the scale of one.
        """
        if mask is None:
            begin = self.position_embeddings(length).unsqueeze(0)
        else:
            begin = self.position_embeddings(position_ids_from_mask(mask))
        if self.end_position_embeddings is None:
            return begin
        if mask is None:
            end = self.end_position_embeddings(length).flip(0).unsqueeze(0)
        else:
            end = self.end_position_embeddings(position_ids_from_mask(mask.flip(-1)).flip(-1))
        return (begin + end) * 2**-0.5


class YanEmbeddings(YanPositionEmbeddings):
    """Token and position embeddings; the position table also serves the flow."""

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.dropout(inputs_embeds + self.positions(inputs_embeds.shape[1], mask))


class YanFeedForward(nn.Module):
    def __init__(self, config: YanConfig, intermediate_size: int, hidden_act: str | None = None):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size)
        self.act_fn = ACT2FN[hidden_act or config.hidden_act]
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


def feed_forward_size(config: YanConfig, mixer: str) -> int:
    return config.mamba_intermediate_size if mixer == "mamba" else config.intermediate_size


class YanEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: token mixer, feed-forward."""

    def __init__(self, config: YanConfig):
        super().__init__()
        self.mixer = MIXERS[config.encoder_mixer](config)
        self.feed_forward = YanFeedForward(config, feed_forward_size(config, config.encoder_mixer))
        self.mixer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mixed, _ = self.mixer(self.mixer_norm(hidden_states), attention_mask)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))


class YanDecoderLayer(GradientCheckpointingLayer):
    """Residual feed-forward block, one position at a time."""

    def __init__(self, config: YanConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = YanFeedForward(config, config.intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.dropout(self.feed_forward(self.norm(hidden_states)))


class YanCopyBias(nn.Linear):
    """
    How much each way of copying is worth at a position. A class of its own because it begins at `starts`, a number for
    each way, whatever it reads.
    """

    def __init__(self, config: YanConfig, *starts: float):
        super().__init__(config.hidden_size, len(starts))
        self.starts = starts


class YanPointer(nn.Module):
    """
    Scores of the places of a source, from the states of canvas positions. There are two ways to a place. A position
    finds it by what it holds; or the answer quotes a passage, and the place stands as far behind the passage's first
    as the position behind the answer's. The passage is one for all positions, which so agree on it: the likelihood is
    that of a mixture over passages, and what is written quotes the most probable one. Behind its end stands EOS.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        self.scaling = config.hidden_size**-0.5
        self.eos_token_id = config.end_token_ids[0]
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        # Of a place: whether a passage begins there, and whether it is the last of one.
        self.quotation_proj = nn.Linear(config.hidden_size, 2)
        # Of a position: what each of the two ways is worth. A quotation begins as likely as all of the vocabulary.
        by_content = math.log(config.vocab_size / POINTED_TOKENS) - CONTENT_HANDICAP
        self.bias_proj = YanCopyBias(config, by_content, math.log(config.vocab_size))

    def forward(self, states: torch.Tensor, source: CopySource) -> tuple[torch.Tensor, torch.Tensor]:
        """
        States (B, L, d) -> ids (B, S) that can be copied and their scores (B, L, S) in float32, EOS the last, where the
        answer quotes the most probable passage.
        """
        own, worth, begins, ends = self._scores(states, source)
        begin, end = best_passage(begins, ends)
        places = begin.unsqueeze(1) + torch.arange(own.shape[1], device=own.device)
        within = from_first(places <= end.unsqueeze(1), source.first, back=True)
        places = from_first(places, source.first, back=True)
        quoted = worth.masked_fill(~within, lowest(worth.dtype)).unsqueeze(-1)
        at = places.clamp_max(own.shape[2] - 1).unsqueeze(-1)
        scores = torch.logaddexp(own, torch.full_like(own, lowest(own.dtype)).scatter(-1, at, quoted))
        over = worth.masked_fill(within, lowest(worth.dtype)).unsqueeze(-1)
        eos = torch.full_like(source.ids[:, :1], self.eos_token_id)
        return torch.cat([source.ids, eos], 1), torch.cat([scores, over], -1)

    def log_probs(
        self, states: torch.Tensor, logits: torch.Tensor, source: CopySource, labels: torch.LongTensor
    ) -> torch.Tensor:
        """
        Log-probability (B, L) of each label given those before it, as `quotation_log_probs` has it.

        Args:
            logits: of the vocabulary alone (B, L, V).
            labels: (B, L), -100 where there is no token, whose log-probability is 0.
        """
        own, worth, begins, ends = self._scores(states, source)
        valid, tokens = labels != -100, labels.clamp_min(0)
        # 1. What needs no passage: the vocabulary, and places found by what they hold.
        held = source.ids.unsqueeze(1) == tokens.unsqueeze(-1)
        found = own.masked_fill(~held, lowest(own.dtype)).logsumexp(-1)
        logits = logits.float()
        found = torch.logaddexp(found, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
        total = torch.logaddexp(torch.logaddexp(logits.logsumexp(-1), own.logsumexp(-1)), worth)
        # 2. Within a passage from each beginning (B, L, S), and behind its end (B, L).
        holds = from_first(held, source.first)
        holds = from_first(diagonals(F.pad(holds, (0, holds.shape[1]))), source.first, back=True)
        quoted = worth.unsqueeze(-1).masked_fill(~holds, lowest(worth.dtype))
        quoted = torch.logaddexp(found.unsqueeze(-1), quoted) - total.unsqueeze(-1)
        over = worth.masked_fill(tokens != self.eos_token_id, lowest(worth.dtype))
        over = torch.logaddexp(found, over) - total
        # 3. Over all passages.
        quoted = from_first(quoted.masked_fill(~valid.unsqueeze(-1), 0.0), source.first)
        over = from_first(over.masked_fill(~valid, 0.0), source.first)
        log_probs = quotation_log_probs(begins, ends, quoted, over)
        return from_first(log_probs, source.first, back=True).masked_fill(~valid, 0.0)

    def _scores(self, states: torch.Tensor, source: CopySource) -> tuple[torch.Tensor, ...]:
        """
        In float32: scores of places found by what they hold (B, L, S), what a quotation is worth (B, L), the
        log-probability that it begins at each place (B, S), and the score that the place is its last (B, S).
        """
        places = source.states.to(states.dtype)
        by_content, worth = self.bias_proj(states).float().unbind(-1)
        own = (self.q_proj(states) @ self.k_proj(places).transpose(1, 2)).float() * self.scaling
        own = own + by_content.unsqueeze(-1)
        begins, ends = self.quotation_proj(places).float().unbind(-1)
        if source.mask is not None:
            absent = ~source.mask.bool()
            own = own.masked_fill(absent.unsqueeze(1), lowest(own.dtype))
            begins, ends = (scores.masked_fill(absent, lowest(scores.dtype)) for scores in (begins, ends))
        return own, worth, begins.log_softmax(-1), ends


class YanDecoder(nn.Module):
    """
    Latents (B, L, d) -> logits (B, L, V), position by position.

    Args:
        copies: whether positions copy from the source, if the config says so. On a canvas of the source's tokens
            `copy_head` says from a position's state how much is added to the logit of its own token; elsewhere it
            points at tokens of the source.
    """

    def __init__(self, config: YanConfig, copies: bool = False):
        super().__init__()
        self.loss_chunk_size = config.training_config.loss_chunk_size
        self.layers = nn.ModuleList([YanDecoderLayer(config) for _ in range(config.decoder_layers)])
        # A table that is not this decoder's own has a scale of its own, which the norm's weight answers to.
        tied = config.tie_word_embeddings
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if tied else None
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.copy_head = None
        # Not read off the head's class: adapters and quantization put modules of their own in its place.
        self.points = copies and config.copy_mechanism
        if self.points:
            self.copy_head = YanPointer(config)
        elif copies and config.canvas_from_source:
            self.copy_head = YanCopyBias(config, COPY_START)

    def states(self, latents: torch.Tensor) -> torch.Tensor:
        """What the output projection reads (B, L, d)."""
        # The weight of a quantized projection is of integers, its bias is not.
        hidden_states = latents.to(self.lm_head.bias.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states if self.final_norm is None else self.final_norm(hidden_states)

    def copies(self, states: torch.Tensor, copied: CopySource | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """
        Ids (B, L, S) that the positions of `states` (B, L, d) can copy, and their scores (B, L, S); None where there is
        no source, as where a text's own latents are read back.
        """
        if self.copy_head is None or copied is None:
            return None
        if not self.points:
            return copied.ids.unsqueeze(-1), self.copy_head(states)
        ids, scores = self.copy_head(states, copied)
        scores = total_by_token(scores, ids)
        return ids.unsqueeze(1).expand_as(scores), scores

    def logits(self, states: torch.Tensor, copies: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits (..., V) from `states` (..., d), and ids and scores of what is copied (..., S)."""
        logits = self.lm_head(states)
        if copies is None:
            return logits
        if self.points:
            return add_copies(logits, *copies)
        return logits.scatter_add(-1, copies[0], copies[1].to(logits.dtype))

    def forward(self, latents: torch.Tensor, copied: CopySource | None = None) -> torch.Tensor:
        states = self.states(latents)
        return self.logits(states, self.copies(states, copied))

    def cross_entropy(
        self,
        states: torch.Tensor,
        labels: torch.Tensor,
        label_smoothing: float = 0.0,
        logits: torch.Tensor | None = None,
        copied: CopySource | None = None,
    ) -> torch.Tensor:
        """
        Cross-entropy of every position (B, L) from `states`, or from their `logits` where they are there already;
        `config.loss_chunk_size` positions at a time if it is set. Where answers quote their source, that of each token
        given those before it.
        """
        if self.points and copied is not None:
            return -self.copy_head.log_probs(states, self.lm_head(states), copied, labels)
        if logits is None and self.loss_chunk_size is None:
            logits = self.logits(states, self.copies(states, copied))
        if logits is not None:
            return token_cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return chunked_token_cross_entropy(
            states, self.lm_head, labels, self.loss_chunk_size, label_smoothing=label_smoothing
        )


class YanLengthHead(nn.Module):
    """
    Logits over the answer's length (B, max_position_embeddings); index i is length i + 1. Features of the source tokens
    are summed, not averaged: what a token adds to an answer's length does not shrink with the number of tokens.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        self.token_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.max_position_embeddings)
        self.act_fn = ACT2FN[config.hidden_act]
        self.scale = config.max_position_embeddings**-0.5

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Source states (B, Lx, d) and their mask (B, Lx)."""
        features = self.act_fn(self.token_proj(hidden_states))
        if mask is not None:
            features = features * mask.to(features.dtype).unsqueeze(-1)
        return self.out_proj(self.act_fn(self.dense(features.sum(1) * self.scale)))
