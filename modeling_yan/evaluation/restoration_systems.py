"""What restores texts, besides the writers of `text_writers.py`: texts in, texts out."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.evaluation.baselines import shallow_decoder_baseline
from modeling_yan.evaluation.ctranslate2_baselines import ctranslate2_baselines
from modeling_yan.evaluation.tagger import tag_texts
from modeling_yan.evaluation.text_writers import Writer
from modeling_yan.lexicon_yan import Lexicon
from modeling_yan.restoration_yan import restore


def checked_restorer(model, tokenizer: PreTrainedTokenizerBase, **options) -> Writer:
    """What `restore` keeps of a YAN's answers, by its defaults; `options` are of `generate()`."""
    return lambda texts: [restore(model, tokenizer, text, **options).text for text in texts]


def lexicon_restorer(lexicon: Lexicon, writer: Writer | None = None) -> Writer:
    """Texts whose misspelled words a lexicon mends, or what a writer makes of these."""

    def write(texts: Sequence[str]) -> list[str]:
        mended = [lexicon.mended(text) for text in texts]
        return mended if writer is None else writer(mended)

    return write


def tagger_restorer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> Writer:
    """A tagger of `tagger.py`."""
    return lambda texts: tag_texts(model, tokenizer, texts, longest)


def untrained_restorers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> dict[str, Writer]:
    """
    For speed alone: a deep encoder with one decoder layer, with random weights and as many parameters as the model, in
    CTranslate2. It writes as many tokens as the longest source of its batch has.
    """

    def restorer(system) -> Writer:
        def write(texts: Sequence[str]) -> list[str]:
            batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest)
            ids = system.write(batch["input_ids"], batch["input_ids"].shape[1])
            return tokenizer.batch_decode(ids, skip_special_tokens=True)

        return write

    systems = ctranslate2_baselines(shallow_decoder_baseline(model))
    return {f"{system.name}, random weights": restorer(system) for system in systems}
