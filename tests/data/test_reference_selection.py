"""The reference that a source is trained on: probabilities of words by hand, and a choice that is plain to see."""

import math

import pytest
from datasets import Dataset

from modeling_yan.data.reference_selection import NgramModel, typical_targets


def test_word_probabilities_add_up_to_one_and_know_their_context():
    model = NgramModel([["a", "b", "a", "c"], ["a", "b"], ["b", "c", "c"]])
    for context in (("<s>", "<s>", "<s>"), ("<s>", "a", "b"), ("x", "y", "a"), ("x", "y", "z")):
        words = ("a", "b", "c", "</s>", "any other")
        assert sum(model.probability(word, context) for word in words) == pytest.approx(1.0)
    # "a" begins two of three texts; "b" is what mostly follows it.
    assert model.probability("a", ("<s>", "<s>", "<s>")) > model.probability("b", ("<s>", "<s>", "<s>"))
    assert model.probability("b", ("<s>", "<s>", "a")) > model.probability("c", ("<s>", "<s>", "a"))
    mean = model.log_probability(["a", "b"])
    steps = (("a", ("<s>",) * 3), ("b", ("<s>", "<s>", "a")), ("</s>", ("<s>", "a", "b")))
    assert mean == pytest.approx(sum(math.log(model.probability(*step)) for step in steps) / 3)


def test_typical_is_the_reference_worded_as_those_of_other_sources():
    # Two manners for each pub, equally like the third reference; one manner is the other sources', too.
    rows = []
    for name in ("Mill", "Eagle", "Vaults"):
        texts = [f"In the city {name} serves ale", f"{name} is a pub in the city", "pub city ale"]
        rows += [{"source": name, "target": t, "references": [t]} for t in texts]
    rows += [{"source": str(n), "target": f"Inn {n} is a pub in the city", "references": []} for n in range(6)]
    for row in rows:
        row["references"] = [row["target"]]
    chosen = typical_targets(Dataset.from_list(rows))
    assert chosen["source"][:3] == ["Mill", "Eagle", "Vaults"]
    assert chosen["target"][:3] == [f"{name} is a pub in the city" for name in ("Mill", "Eagle", "Vaults")]
    assert chosen["references"][0] == [row["target"] for row in rows[:3]]
