"""What stands on the canvas after every step is what `generate()` writes."""

import pytest
import torch

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.evaluation.drafts import (
    Position,
    check_seed,
    check_source,
    draft_text,
    kept_positions,
    step_endpoints,
    token_pieces,
    write_with_drafts,
)

from ..helpers import WITH_BLANKS, YAN_E2E, fingerprint, seeded, tiny_model, word_tokenizer

SOURCE = "name[The Vaults], eatType[pub], food[Japanese], area[riverside], near[Café Adriatic]"


class Drafts:
    """A streamer that keeps drafts as text."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, []

    def put_draft(self, value):
        self.texts.append(self.tokenizer.decode(value, skip_special_tokens=True).strip())

    def put(self, value):
        pass

    def end(self):
        pass


@pytest.fixture(scope="module")
def shipped():
    return read_model(YanForConditionalGeneration, YAN_E2E, dtype=torch.float32), read_tokenizer(YAN_E2E)


def check_against_generate(model, tokenizer, source: str, steps: int, seed: int) -> None:
    streamer = Drafts(tokenizer)
    writing = write_with_drafts(model, tokenizer, source, steps=steps, seed=seed)
    batch = tokenizer(source, return_tensors="pt")
    ids = model.generate(
        input_ids=batch["input_ids"], streamer=streamer, generator=seeded(seed), num_inference_steps=steps
    )
    assert writing.text == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert [draft_text(draft) for draft in writing.drafts[1:]] == streamer.texts
    assert len(writing.drafts) == steps + 1
    assert len({len(draft) for draft in writing.drafts}) == 1
    assert writing.answer_tokens == ids.shape[1]
    assert writing.milliseconds > 0


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("source", [SOURCE, "name[Aromi], eatType[coffee shop]"])
def test_the_shipped_model_shows_what_it_writes(shipped, source, steps):
    check_against_generate(*shipped, source, steps, seed=steps)


@pytest.mark.parametrize("repeats", [0, 2], ids=["as_written", "merged"])
@pytest.mark.parametrize(
    "changes",
    [{}, WITH_BLANKS, {**WITH_BLANKS, "length_head": "source"}, {"copy_mechanism": True}],
    ids=["a_place_per_token", "blanks", "blanks_beside_the_source", "copied"],
)
def test_random_models_show_what_they_write(changes, repeats):
    tokenizer = word_tokenizer()
    for seed in range(4):
        model = tiny_model(seed=seed, **changes)
        model.generation_config.merge_repeats = repeats
        check_against_generate(model, tokenizer, "w5 w6 w7 w9", 3, seed)


def test_no_text_is_longer_than_may_be():
    tokenizer, model = word_tokenizer(), tiny_model(seed=1, **WITH_BLANKS)
    model.generation_config.max_new_tokens = 4
    writing = write_with_drafts(model, tokenizer, "w8 w6", steps=2, seed=1)
    ids = model.generate(
        tokenizer("w8 w6", return_tensors="pt")["input_ids"], generator=seeded(1), num_inference_steps=2
    )
    assert writing.text == tokenizer.decode(ids[0], skip_special_tokens=True)
    assert all(len(draft_text(draft).split()) == 4 for draft in writing.drafts)


def test_experts_are_those_that_move_the_positions(shipped):
    model, tokenizer = shipped
    before = fingerprint(model)
    writing = write_with_drafts(model, tokenizer, SOURCE, steps=2)
    experts = [[position.expert for position in draft] for draft in writing.drafts]
    assert experts[0] == experts[1] == experts[2]
    assert set(experts[0]) == set(range(model.config.num_experts))
    assert all(0 < position.probability <= 1 for draft in writing.drafts for position in draft)
    assert fingerprint(model) == before
    assert not model.model.flow.experts._forward_pre_hooks
    model.generation_config.expert_selection = "argmax"
    try:
        chosen = write_with_drafts(model, tokenizer, SOURCE, steps=2)
    finally:
        model.generation_config.expert_selection = "sample"
    assert [position.expert for position in chosen.drafts[0]] != experts[0]


def test_a_position_is_as_sure_at_the_end_as_the_decoder(shipped):
    model, tokenizer = shipped
    writing = write_with_drafts(model, tokenizer, SOURCE, steps=1)
    batch = tokenizer(SOURCE, return_tensors="pt")
    output = model.generate(
        **batch, num_inference_steps=1, generator=seeded(), return_dict_in_generate=True, output_trajectory=True
    )
    with torch.no_grad():
        best = model.decoder(output.trajectory[-1, 0, None])[0].softmax(-1).max(-1)
    assert [position.token_id for position in writing.drafts[-1]] == best.indices.tolist()
    assert [position.probability for position in writing.drafts[-1]] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("ids", "options", "expected"),
    [
        ([5, 5, 6], {}, [0, 1, 2]),
        ([0, 5, 5, 0, 5, 6], {"blank_id": 0}, [1, 4, 5]),
        ([1, 5, 6, 2, 7], {"bos_token_id": 1, "eos_token_ids": (2,)}, [1, 2]),
        ([5, 6, 7], {"longest": 2}, [0, 1]),
        ([5, 6, 5, 6, 6, 7], {"merge_repeats": 2}, [0, 1, 5]),
        ([5, 6, 5, 6], {"merge_repeats": 1}, [0, 1, 2, 3]),
        ([2, 5], {"eos_token_ids": (2,)}, []),
    ],
    ids=["all", "blanks", "cut", "longest", "merged", "too_long_to_merge", "empty"],
)
def test_kept_positions(ids, options, expected):
    assert kept_positions(ids, **{"blank_id": None, **options}) == expected


def test_pieces_add_up_to_the_text_and_split_no_character(shipped):
    _, tokenizer = shipped
    ids = tokenizer("Café £5 ☃ a", add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert len(pieces) == len(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces
    assert token_pieces(tokenizer, [*ids[:-1], tokenizer.eos_token_id])[-1] == ""


def test_endpoints_of_eulers_steps():
    grid = torch.tensor([0.0, 0.25, 1.0])
    velocities = torch.tensor([[2.0, -1.0], [4.0, 0.5]])
    states = torch.stack([torch.zeros(2), 0.25 * velocities[0], 0.25 * velocities[0] + 0.75 * velocities[1]])
    endpoints = step_endpoints(states, grid)
    assert torch.allclose(endpoints[0], velocities[0])
    assert torch.equal(endpoints[1], states[2])


def test_draft_text_is_what_the_positions_add():
    assert draft_text([Position(" a", 5, 0, 1.0), Position("", 0, 1, 1.0), Position(" b", 6, 0, 1.0)]) == "a b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "source is empty"),
        (" \n", "source is empty"),
        ("w5 " * 40, "source has 41 tokens, this model reads at most"),
    ],
)
def test_bad_sources_are_refused(model, source, message):
    with pytest.raises(ValueError, match=message):
        check_source(model, word_tokenizer(), source)


@pytest.mark.parametrize("seed", [None, -1, 0.5, 2**63])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed="):
        check_seed(seed)


def test_bad_steps_are_refused(model):
    with pytest.raises(ValueError, match="num_inference_steps"):
        write_with_drafts(model, word_tokenizer(), "w5", steps=0)
