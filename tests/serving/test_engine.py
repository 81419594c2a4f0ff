"""The engine behind the server, without one: rows of several callers in one batch, drafts, refusals."""

import pytest
import torch
from transformers import AutoTokenizer

from modeling_yan import YanForConditionalGeneration
from modeling_yan.serving.engine import Answer, Draft, Engine, Refusal, Row

from ..helpers import YAN_E2E, seeded, source_batch, tiny_model, word_tokenizer

PROMPTS = [
    "name[Aromi], eatType[coffee shop], area[city centre]",
    "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5]",
    "name[Aromi]",
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(str(YAN_E2E))


def expected(engine: Engine, prompt: str, seed: int, **options) -> list[str]:
    """What the model writes by itself."""
    batch = engine.tokenizer([prompt], return_tensors="pt")
    ids = engine.model.generate(**batch, generator=seeded(seed), **options)
    return [text.strip() for text in engine.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def test_a_generator_for_each_row_gives_what_calls_of_their_own_give(model):
    ids, mask = source_batch()
    together = model.generate(ids, mask, generator=[seeded(3), seeded(4), seeded(3)])
    for row, seed in enumerate((3, 4, 3)):
        alone = model.generate(ids[row : row + 1], mask[row : row + 1], generator=seeded(seed))[0]
        assert torch.equal(together[row, : len(alone)], alone)
    # Equal rows of equal seeds are calls of their own, too.
    twice = model.generate(ids[:1].repeat(2, 1), generator=[seeded(3), seeded(3)])
    assert torch.equal(twice[0], twice[1])
    with pytest.raises(ValueError, match="generator holds 2 generators for 3 rows"):
        model.generate(ids, mask, generator=[seeded(), seeded()])
    with pytest.raises(ValueError, match="generator is of type int"):
        model.generate(ids, mask, generator=[seeded(), seeded(), 3])


def test_rows_of_a_batch_get_what_the_model_writes_for_each_alone(engine):
    rows = [Row(prompt, seed) for seed in (0, 1) for prompt in PROMPTS]
    rows += [Row(PROMPTS[1], 0, (("num_inference_steps", 1),)), Row(PROMPTS[1], 0)]
    answers = engine.answer(rows)
    assert [a.texts for a in answers] == [expected(engine, r.prompt, r.seed, **dict(r.options)) for r in rows]
    assert answers[1] == answers[-1]
    assert engine.answer([]) == []


def test_tokens_are_counted_and_ends_named(engine):
    (answer,) = engine.answer([Row(PROMPTS[0], 0)])
    ids = engine.model.generate(**engine.tokenizer([PROMPTS[0]], return_tensors="pt"), generator=seeded())
    assert answer.prompt_tokens == len(engine.tokenizer(PROMPTS[0])["input_ids"])
    assert answer.completion_tokens == [ids.shape[1]]
    assert answer.finish_reasons == ["stop"]
    # A canvas of two positions has no room for an end.
    short = (("length_mode", "canvas"), ("max_new_tokens", 2))
    (answer,) = engine.answer([Row(PROMPTS[1], 0, short)])
    assert answer.finish_reasons == ["length" if answer.completion_tokens == [2] else "stop"]


def test_several_texts_for_a_prompt(engine):
    options = {"num_return_sequences": 2, "num_candidates": 4}
    both = engine.answer([Row(PROMPTS[1], 5, tuple(options.items())), Row(PROMPTS[0], 6, tuple(options.items()))])
    assert [len(answer.scores) for answer in both] == [2, 2]
    assert [a.texts for a in both] == [expected(engine, p, s, **options) for p, s in ((PROMPTS[1], 5), (PROMPTS[0], 6))]
    assert all(answer.scores == sorted(answer.scores, reverse=True) for answer in both)


def test_what_cannot_be_answered_says_why_and_leaves_the_others_alone(engine):
    rows = [
        Row(PROMPTS[0], 0),
        Row("river " * 500, 0),
        Row(PROMPTS[0], 0, (("solver", "magic"),)),
        Row(PROMPTS[0], 0, (("max_new_tokens", 10_000),)),
        Row(PROMPTS[0], 0, (("num_inference_steps", True),)),
    ]
    first, long, solver, room, steps = engine.answer(rows)
    assert first.texts == expected(engine, PROMPTS[0], 0)
    assert long.field == "prompt"
    assert "this model reads at most 192" in long.message
    assert (solver.field, room.field, steps.field) == ("solver", "max_new_tokens", "num_inference_steps")
    assert "must be one of" in solver.message


def test_numbers_that_are_not_finite_are_a_refusal_that_names_the_options(engine):
    rows = [Row(PROMPTS[0], 0, (("num_inference_steps", 1), ("prior_temperature", 1e30))), Row(PROMPTS[0], 0)]
    refusal, answer = engine.answer(rows)
    assert isinstance(answer, Answer)
    assert refusal.field == "prior_temperature"
    assert "prior_temperature=1e+30: these options led to numbers that are not finite" in refusal.message
    (refusal,) = engine.answer([Row(PROMPTS[0], 0, (("blank_penalty", 0.5), ("time_shift", 1e300)))])
    assert refusal.field is None
    assert "blank_penalty=0.5, time_shift=1e+300: these" in refusal.message


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_a_prompt_without_words_is_refused(engine, prompt):
    (refusal,) = engine.answer([Row(prompt, 0)])
    assert refusal == Refusal("prompt is empty; write at least one word", "prompt")
    assert list(engine.stream(Row(prompt, 0))) == [refusal]


def test_what_the_model_itself_asks_for_counts_among_the_candidates():
    model = tiny_model()
    model.generation_config.num_length_candidates = 5
    limited = Engine(model, word_tokenizer(), max_candidates=16)
    few, many, one_length = limited.answer(
        [
            Row("w5", 0, (("num_candidates", 3),)),
            Row("w5", 0, (("num_candidates", 16),)),
            Row("w5", 0, (("length_mode", "canvas"), ("num_candidates", 16))),
        ]
    )
    assert isinstance(few, Answer)
    assert isinstance(one_length, Answer)
    assert many.field == "num_candidates"
    assert "num_candidates=16 times num_length_candidates=5" in many.message
    assert "is 80 texts for a prompt, at most 16 are written" in many.message


def test_streams_hold_a_draft_for_each_step_and_end_with_the_answer(engine):
    *drafts, answer = engine.stream(Row(PROMPTS[1], 0, (("num_inference_steps", 4),)))
    assert [draft.step for draft in drafts] == [1, 2, 3, 4]
    assert all(isinstance(draft, Draft) for draft in drafts)
    assert isinstance(answer, Answer)
    assert drafts[-1].text == answer.texts[0] == expected(engine, PROMPTS[1], 0, num_inference_steps=4)[0]
    (refusal,) = engine.stream(Row(PROMPTS[1], 0, (("solver", "magic"),)))
    assert isinstance(refusal, Refusal)


def test_other_runtimes_are_refused():
    with pytest.raises(ValueError, match="runtime='tpu' must be one of"):
        Engine.load(str(YAN_E2E), "tpu")


@pytest.mark.slow
def test_graphs_stand_where_the_model_stands(engine, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from ..helpers import ran

    ran("conversion/export_yan.py", cwd=tmp_path, model=YAN_E2E, output_dir="onnx", steps=[3])
    graphs = Engine.load(str(tmp_path / "onnx"), "onnx")
    rows = [Row(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    assert [a.texts for a in graphs.answer(rows)] == [a.texts for a in engine.answer(rows)]
    # Graphs have no drafts: a stream is its answer.
    (answer,) = graphs.stream(rows[0])
    assert answer.texts == expected(engine, PROMPTS[0], 0)
    (refusal,) = graphs.answer([Row(PROMPTS[0], 0, (("do_sample", True),))])
    assert "cannot be honoured" in refusal.message
    assert AutoTokenizer.from_pretrained(tmp_path / "onnx").get_vocab() == engine.tokenizer.get_vocab()
    assert isinstance(engine.model, YanForConditionalGeneration)
