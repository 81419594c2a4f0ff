import math

import pytest

from modeling_yan.evaluation.metrics import diversity, normalize_answer, score_texts, token_f1


def test_perfect_text_scores_a_hundred_against_any_of_its_references():
    text = "The Vaults is a cheap pub near Café Adriatic."
    scores = score_texts([text, text], [["something else entirely", text], [text]])
    for name in ("bleu", "rouge1", "rouge2", "rougeL", "exact_match", "f1", "distinct_2"):
        assert scores[name] == pytest.approx(100), name


def test_answers_are_normalised_as_squad_does():
    assert normalize_answer("The  Cat, a dog!") == "cat dog"
    assert score_texts(["the Cat."], [["cat"]])["exact_match"] == 100
    assert token_f1("red cat", "a cat") == pytest.approx(2 / 3)
    assert token_f1("", "cat") == 0
    assert token_f1("the", "a") == 1


def test_repetition_lowers_distinct_bigrams():
    assert score_texts(["a b a b a b"], [["a b"]])["distinct_2"] == pytest.approx(100 * 2 / 5)


def test_bleu_uses_all_references_of_uneven_number():
    few, many = [["x y z w v"]], [["x y z w v", "the cat sat on the mat"]]
    text = ["the cat sat on the mat"]
    assert score_texts(text, few)["bleu"] < 1 < score_texts(text, many)["bleu"]
    assert score_texts(text * 2, few + many)["bleu"] > 10


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="0 predictions"):
        score_texts([], [])
    with pytest.raises(ValueError, match="1 predictions and 2"):
        score_texts(["a"], [["a"], ["b"]])


@pytest.mark.parametrize("wrong", ["the cat sat", []])
def test_a_row_without_a_list_of_references_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"references\[1\]=.* must be a list of at least one text"):
        score_texts(["the cat sat"] * 2, [["the cat sat"], wrong])


def test_intervals_hold_the_score_and_shrink_with_rows():
    predictions = ["a small pub near the river", "the eagle is cheap", "no"] * 4
    references = [["a small pub by the river"], ["the eagle is cheap", "the eagle is not dear"], ["yes"]] * 4
    few = score_texts(predictions, references, num_bootstrap=200)
    many = score_texts(predictions * 16, references * 16, num_bootstrap=200)
    plain = score_texts(predictions, references)
    for name, value in plain.items():
        assert few[name] == pytest.approx(value)
        low, high = few[f"{name}_interval"]
        assert low <= value <= high
    for name in ("bleu", "rougeL", "exact_match"):
        width = [high - low for low, high in (few[f"{name}_interval"], many[f"{name}_interval"])]
        assert 0 < width[1] < 0.5 * width[0]
    assert few == score_texts(predictions, references, num_bootstrap=200)


def test_diversity_tells_one_safe_text_from_many():
    same, different = diversity(["a b c d"] * 3), diversity(["a b c d", "e f g h", "i j k l"])
    assert same == pytest.approx(
        {"distinct_1_corpus": 100 / 3, "distinct_2_corpus": 100 / 3, "self_bleu": 100, "word_entropy": 2}
    )
    assert different["distinct_1_corpus"] == different["distinct_2_corpus"] == 100
    assert different["self_bleu"] < 1
    assert different["word_entropy"] == pytest.approx(math.log2(12))
    assert diversity([""])["word_entropy"] == 0
    # Not -0.0, which a table would show.
    assert math.copysign(1, diversity(["a a", "a"])["word_entropy"]) == 1
