"""
Quality of generated text in the eyes of a pretrained encoder: BERTScore (the package bert-score) and MAUVE (the package
mauve-text). Encoders are Hub names or local folders; nothing is chosen for the caller.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from modeling_yan.common.hub import readable
from modeling_yan.evaluation.speed import default_device
from modeling_yan.evaluation.text_generation import able_to_pad

# MAUVE counts a tenth of the texts as clusters, and compares nothing with fewer than two.
FEWEST_MAUVE_TEXTS = 20


def bert_f1(
    predictions: Sequence[str], references: Sequence[Sequence[str]], model: str, layer: int | None = None
) -> float:
    """
    BERTScore F1 in percent (arXiv 1904.09675, the bert-score package, not rescaled), the best reference of each
    prediction.

    Args:
        model: encoder, a Hub name or a local folder.
        layer: whose hidden states are compared; needed for a model that bert-score has no recommendation for.

    Raises:
        ValueError: if the package or the layer is missing, and for texts that are longer than the encoder reads where
            its tokenizer would not cut them.
        OSError: if there is no such encoder.
    """
    try:
        import bert_score
    except ImportError as error:
        raise ValueError("BERTScore needs the package bert-score: pip install bert-score") from error
    if layer is None and model not in bert_score.utils.model2layers:
        raise ValueError(f"bert-score recommends no layer for {model!r}; name one (--bertscore_layer)")
    with readable(model):
        layers = AutoConfig.from_pretrained(model).num_hidden_layers
        tokenizer, room = AutoTokenizer.from_pretrained(model), encoder_room(model)
    if layer is not None and not 0 <= layer <= layers:
        raise ValueError(f"bertscore_layer={layer} must be 0 to {layers}, the layers of {model}")
    if tokenizer.model_max_length > room:
        texts = [*predictions, *(text for texts in references for text in texts)]
        longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
        if longest > room:
            raise ValueError(
                f"{model} reads {room} tokens, a text has {longest}, and its tokenizer cuts none; set "
                f"tokenizer.model_max_length = {room} and save it"
            )
    _, _, f1 = bert_score.score(list(predictions), [list(r) for r in references], model_type=model, num_layers=layer)
    return 100 * float(f1.mean())


def encoder_room(model: str) -> int:
    """Tokens that an encoder reads, by its config; RoBERTa and its like leave out as many positions as padding's id."""
    config = AutoConfig.from_pretrained(model)
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    shifted = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return positions - (config.pad_token_id + 1 if shifted else 0)


@torch.no_grad()
def text_features(texts: Sequence[str], model: str, *, batch_size: int = 32) -> np.ndarray:
    """
    Texts as points, in the way of the mauve-text package: the last layer's hidden state of a text's last token.

    Args:
        texts: those without any token are left out.
        model: encoder or causal model, a Hub name or a local folder. Longer texts are cut.
        batch_size: texts that are read at once.

    Returns:
        (texts, hidden size) in float32.

    Raises:
        ValueError: if the model cannot be read, or no text has a token.
        OSError: if there is no such model.
    """
    with readable(model):
        tokenizer = able_to_pad(AutoTokenizer.from_pretrained(model))
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32).to(default_device()).eval()
        longest = min(tokenizer.model_max_length, encoder_room(model))
    options = {"truncation": True, "max_length": longest}
    counts = [len(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]
    read = [text for text, count in zip(texts, counts, strict=True) if count]
    if not read:
        raise ValueError("no text holds a token; there is nothing to compare")
    features = []
    for start in range(0, len(read), batch_size):
        batch = tokenizer(
            read[start : start + batch_size], padding=True, padding_side="right", return_tensors="pt", **options
        ).to(encoder.device)
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        last = batch["attention_mask"].sum(-1) - 1
        features.append(states[torch.arange(len(last), device=last.device), last].cpu().numpy())
    return np.concatenate(features)


def mauve_score(
    predictions: Sequence[str],
    references: Sequence[str] | np.ndarray,
    model: str,
    *,
    batch_size: int = 32,
    seed: int = 25,
) -> float:
    """
    MAUVE in percent (arXiv 2102.01454, the mauve-text package with its defaults): how close the distribution of the
    written texts is to that of the references, 100 for the same. The number depends on the encoder and on how many
    texts there are: compare only what has both in common, over a thousand texts or more.

    Args:
        predictions: what was written.
        references: what people wrote, as many as there are predictions or another number; or their `text_features`,
            where many systems are compared with them.
        model: as in `text_features`; the package's own default is gpt2-large.
        batch_size: texts that are read at once.
        seed: of the clustering.

    Raises:
        ValueError: if the package is missing, for fewer than 20 texts on a side, and as in `text_features`.
        OSError: if there is no such model.
    """
    try:
        import mauve
    except ImportError as error:
        raise ValueError("MAUVE needs the package mauve-text: pip install mauve-text") from error
    for name, texts in (("predictions", predictions), ("references", references)):
        if len(texts) < FEWEST_MAUVE_TEXTS:
            raise ValueError(
                f"MAUVE compares clusters of texts and needs at least {FEWEST_MAUVE_TEXTS} {name}, got {len(texts)}; "
                "score more rows"
            )
    if not isinstance(references, np.ndarray):
        references = text_features(references, model, batch_size=batch_size)
    written, wanted = text_features(predictions, model, batch_size=batch_size), references
    return 100 * float(mauve.compute_mauve(p_features=written, q_features=wanted, seed=seed).mauve)
