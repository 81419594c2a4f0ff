"""A linear probe on an encoder that does or does not tell the labels apart."""

from datasets import Dataset

from modeling_yan.evaluation.probe import linear_probe

from ..helpers import tiny_model, word_tokenizer


def rows(*pairs):
    return Dataset.from_list([{"source": source, "target": target} for source, target in pairs])


def test_it_reads_off_what_single_words_say():
    tokenizer = word_tokenizer()
    train = rows(*[(" ".join([word] * n), label) for word, label in (("w9", "0"), ("w38", "1")) for n in (1, 2, 3)])
    model = tiny_model()
    assert linear_probe(model, tokenizer, train, train, longest=8) == 100.0
    swapped = train.map(lambda row: {"target": "1" if row["target"] == "0" else "0"})
    assert linear_probe(model, tokenizer, train, swapped, longest=8) == 0.0
