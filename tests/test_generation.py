"""generate(): the fast path against the plain one, invariances, options, and every input it must refuse."""

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from modeling_yan import generation_yan, sampling_yan
from modeling_yan.canvas_yan import length_mask
from modeling_yan.compilation_yan import group_by_bucket
from modeling_yan.generation_yan import YanGenerateOutput, merge_repeats, take_positions, text_positions
from modeling_yan.sampling_yan import draw_noise, row_seeds

from .helpers import VOCAB_SIZE, WITH_BLANKS, seeded, source_batch, target_labels, tiny_model


def details(model, *args, **kwargs) -> YanGenerateOutput:
    return model.generate(*args, return_dict_in_generate=True, output_trajectory=True, **kwargs)


def rows_without_padding(ids: torch.Tensor) -> list[list[int]]:
    return [[t for t in row if t != 0] for row in ids.tolist()]


@pytest.mark.parametrize("options", [{}, {"num_candidates": 2, "num_return_sequences": 2, "do_sample": True}])
def test_rows_of_different_length_are_written_in_groups_with_the_same_tokens(model, options, monkeypatch):
    ids, mask = source_batch((7, 4, 5, 6))
    lengths = [3, 30, 4, 3]
    groups = []

    def recorded(lengths):
        groups.extend(group_by_bucket(lengths))
        return groups

    monkeypatch.setattr(generation_yan, "group_by_bucket", recorded)
    options = {"target_lengths": lengths, "return_dict_in_generate": True, **options}
    grouped = model.generate(ids, mask, generator=seeded(), **options)
    assert [group.tolist() for group in groups] == [[0, 2, 3], [1]]
    monkeypatch.setattr(generation_yan, "group_by_bucket", lambda lengths: [torch.arange(len(lengths))])
    together = model.generate(ids, mask, generator=seeded(), **options)
    assert torch.equal(grouped.sequences, together.sequences)
    assert torch.equal(grouped.target_lengths, together.target_lengths)
    torch.testing.assert_close(grouped.sequences_scores, together.sequences_scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grouped.token_scores, together.token_scores, atol=1e-5, rtol=1e-5)


def test_grouping_happens_only_where_it_saves():
    for lengths, groups in (([3, 3, 4], 1), ([15, 17, 18, 20], 1), ([3, 17, 30], 1), ([3, 3, 30], 2), ([30], 1)):
        assert len(group_by_bucket(torch.tensor(lengths))) == groups


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 7, "temperature": 1.5}, {"min_new_tokens": 5}])
def test_logits_a_few_positions_at_a_time_give_the_same_tokens_and_scores(model, options, monkeypatch):
    ids, mask = source_batch()
    options = {"target_lengths": 7, "return_dict_in_generate": True, **options}
    whole = model.generate(ids, mask, generator=seeded(), **options)
    widths, head = [], model.decoder.lm_head.forward
    monkeypatch.setattr(model.decoder.lm_head, "forward", lambda x: widths.append(len(x)) or head(x))
    monkeypatch.setattr(sampling_yan, "DECODE_LOGITS", 4 * VOCAB_SIZE + 1)
    chunked = model.generate(ids, mask, generator=seeded(), **options)
    assert widths == [4] * 5 + [1]
    assert torch.equal(chunked.sequences, whole.sequences)
    torch.testing.assert_close(chunked.sequences_scores, whole.sequences_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("selection", ["sample", "argmax"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("prediction_type", ["velocity", "data"])
def test_fast_path_equals_plain_path(solver, selection, steps, prediction_type):
    model = tiny_model(prediction_type=prediction_type)
    ids, mask = source_batch()
    options = {"solver": solver, "expert_selection": selection, "num_inference_steps": steps, "time_shift": 1.5}
    fast = details(model, ids, mask, generator=seeded(), target_lengths=[6, 4, 5], **options)
    lengths = [6, 4, 5]
    x_0, uniform = draw_noise(row_seeds(ids, mask, 3, seeded()), lengths, 1, 16)
    canvas = length_mask(torch.tensor(lengths))
    condition = model.model.condition(6, canvas, model.model.encoder(ids, mask)[0], mask)
    plain = model.solve_plain(x_0[:, 0], condition, uniform[0][:, 0], model.generation_options(**options).sampling)
    torch.testing.assert_close(fast.trajectory[-1][canvas], plain[canvas], atol=1e-5, rtol=1e-5)
    assert fast.num_evaluations == steps * (1 if solver == "euler" else 2)


def test_three_steps_cost_three_trunk_passes_and_one_projection_of_the_source(model):
    calls = {"trunk": 0, "key_value": 0}
    flow = model.model.flow
    layer = flow.layers[0]

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    handles = [
        layer.register_forward_hook(count("trunk")),
        layer.cross_attention.k_proj.register_forward_hook(count("key_value")),
    ]
    ids, mask = source_batch()
    model.generate(ids, mask, num_candidates=4)
    for handle in handles:
        handle.remove()
    assert calls == {"trunk": 3, "key_value": 1}


@pytest.mark.parametrize("mode", ["predicted", "canvas", "oracle"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_rows_do_not_depend_on_batch_mates_or_padding(model_of_positions, mode, do_sample):
    model = model_of_positions
    lengths = (7, 4, 5)
    options = {"do_sample": do_sample, "max_new_tokens": 9, "num_candidates": 2, "num_length_candidates": 2}
    per_row = [6, 3, 8]
    if mode == "canvas":
        options["length_mode"] = "canvas"
    together = {}
    for side in ("right", "left"):
        ids, mask = source_batch(lengths, side=side)
        targets = {"target_lengths": per_row} if mode == "oracle" else {}
        together[side] = details(model, ids, mask, generator=seeded(), **options, **targets)
    assert torch.equal(together["right"].sequences, together["left"].sequences)
    ids, _ = source_batch(lengths)
    for row, length in enumerate(lengths):
        targets = {"target_lengths": per_row[row]} if mode == "oracle" else {}
        alone = details(model, ids[row : row + 1, :length], generator=seeded(), **options, **targets)
        assert rows_without_padding(alone.sequences) == rows_without_padding(together["right"].sequences[row : row + 1])
        torch.testing.assert_close(
            alone.sequences_scores[0], together["right"].sequences_scores[row], atol=1e-5, rtol=1e-4
        )
        size = int(alone.target_lengths)
        torch.testing.assert_close(
            alone.trajectory[:, 0, :size], together["right"].trajectory[:, row, :size], atol=1e-5, rtol=1e-4
        )


def test_repeated_rows_get_different_noise(model):
    ids, _ = source_batch((5,))
    trajectory = details(model, ids.repeat(3, 1), generator=seeded(), target_lengths=6).trajectory
    assert (trajectory[0, 0] != trajectory[0, 1]).all()
    assert (trajectory[0, 1] != trajectory[0, 2]).all()


def test_same_generator_same_tokens_and_global_seed_otherwise(model):
    ids, mask = source_batch()
    first = details(model, ids, mask, generator=seeded(3), do_sample=True)
    again = details(model, ids, mask, generator=seeded(3), do_sample=True)
    other = details(model, ids, mask, generator=seeded(4), do_sample=True)
    assert torch.equal(first.sequences, again.sequences)
    assert torch.equal(first.trajectory, again.trajectory)
    assert not torch.equal(first.trajectory[0], other.trajectory[0])
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(model.generate(ids, mask))
    assert torch.equal(*results)


def test_prior_noise_is_where_the_trajectory_starts(model):
    ids, mask = source_batch()
    noise = torch.randn(3, 8, 16, generator=seeded())
    out = details(model, ids, mask, prior_noise=noise, target_lengths=8, expert_selection="argmax")
    assert torch.equal(out.trajectory[0], noise)
    assert out.trajectory.shape == (4, 3, 8, 16)
    logits = model(ids, mask, prior_noise=noise).logits
    assert torch.equal(model.decoder(out.trajectory[-1]).argmax(-1)[:, 0], logits.argmax(-1)[:, 0])
    candidates = torch.randn(3, 2, 8, 16, generator=seeded())
    both = details(model, ids, mask, prior_noise=candidates, target_lengths=8, num_candidates=2, num_return_sequences=2)
    assert both.trajectory.shape == (4, 6, 8, 16)


def test_prior_noise_bounds_the_canvas(model):
    ids, mask = source_batch()
    noise = torch.randn(3, 5, 16, generator=seeded())
    assert details(model, ids, mask, prior_noise=noise, length_mode="canvas").target_lengths.tolist() == [5, 5, 5]
    assert details(model, ids, mask, prior_noise=noise).target_lengths.max() <= 5


def test_no_eos_before_min_new_tokens(model):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.lm_head.bias[2] = 100.0
    ids, mask = source_batch()
    assert model.generate(ids, mask, target_lengths=8).tolist() == [[2]] * 3
    out = model.generate(ids, mask, target_lengths=8, min_new_tokens=4)
    assert out.shape == (3, 5)
    assert (out[:, :4] != 2).all()
    assert (out[:, 4] == 2).all()


def test_prior_temperature_zero_starts_at_the_mean(model):
    ids, mask = source_batch()
    assert (details(model, ids, mask, prior_temperature=0.0).trajectory[0] == 0).all()


def test_oracle_lengths_fix_the_canvas(model):
    ids, mask = source_batch()
    out = details(model, ids, mask, target_lengths=torch.tensor([3, 9, 1]), eos_token_id=None)
    assert out.target_lengths.tolist() == [3, 9, 1]
    assert [len(row) for row in rows_without_padding(out.sequences + 1)] == [9, 9, 9]
    assert (out.sequences[0, 3:] == 0).all()
    assert details(model, ids, mask, target_lengths=5).target_lengths.tolist() == [5, 5, 5]


def test_predicted_lengths_are_the_heads_most_probable_ones_within_bounds(model):
    ids, mask = source_batch()
    logits = model(ids, mask).length_logits
    out = details(model, ids, mask)
    assert out.target_lengths.tolist() == (logits.argmax(-1) + 1).tolist()
    bounded = details(model, ids, mask, min_new_tokens=4, max_new_tokens=6)
    assert bounded.target_lengths.tolist() == (logits[:, 3:6].argmax(-1) + 4).tolist()
    assert all(len(row) >= 4 for row in bounded.sequences.tolist())


def test_the_best_scored_length_and_prior_are_kept(model):
    ids, mask = source_batch()
    options = {"num_length_candidates": 3, "generator": None}
    longest = model.generation_options().longest
    lengths = model.encode_source(ids, mask)[1][:, :longest].topk(3).indices + 1
    noise = torch.randn(3, 32, 16, generator=seeded())
    best = details(model, ids, mask, prior_noise=noise, expert_selection="argmax", **options)
    each = torch.stack(
        [
            details(
                model, ids, mask, prior_noise=noise, expert_selection="argmax", target_lengths=lengths[:, i]
            ).sequences_scores
            for i in range(3)
        ]
    )
    torch.testing.assert_close(best.sequences_scores, each.max(0).values, atol=1e-5, rtol=1e-4)
    assert best.target_lengths.tolist() == lengths.gather(1, each.argmax(0).unsqueeze(1)).squeeze(1).tolist()


def test_return_sequences_are_sorted_by_score(model):
    ids, mask = source_batch()
    out = details(model, ids, mask, generator=seeded(), num_candidates=6, num_return_sequences=3, do_sample=True)
    assert len(out.sequences) == 9
    scores = out.sequences_scores.view(3, 3)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    one = details(model, ids, mask, generator=seeded(), num_candidates=6, do_sample=True)
    torch.testing.assert_close(one.sequences_scores, scores[:, 0])


def test_score_is_the_mean_log_probability_up_to_eos(model):
    ids, mask = source_batch()
    out = details(model, ids, mask, target_lengths=7, expert_selection="argmax")
    logits = model.decoder(out.trajectory[-1])
    log_probs, writable = logits.log_softmax(-1), model.writable_logits(logits)
    for row in range(3):
        tokens = writable[row].argmax(-1).tolist()
        end = tokens.index(2) + 1 if 2 in tokens else 7
        expected = log_probs[row, range(end), tokens[:end]].mean()
        torch.testing.assert_close(out.sequences_scores[row], expected)


@pytest.mark.parametrize(
    "options", [{}, {"num_candidates": 3, "num_return_sequences": 2}, {"merge_repeats": 2}], ids=str
)
def test_every_token_has_the_log_probability_of_the_position_that_wrote_it(model_of_positions, options):
    model, (ids, mask) = model_of_positions, source_batch((7, 4, 19))
    out = details(model, ids, mask, target_lengths=[7, 3, 28], expert_selection="argmax", generator=seeded(), **options)
    assert out.token_scores.shape == out.sequences.shape
    log_probs = model.decoder(out.trajectory[-1]).log_softmax(-1)
    padding = out.sequences == model.config.pad_token_id
    assert bool((out.token_scores[padding] == 0).all())
    for row, (tokens, scores) in enumerate(zip(out.sequences, out.token_scores, strict=True)):
        position = 0
        for token, score in zip(tokens.tolist(), scores.tolist(), strict=True):
            if token == model.config.pad_token_id:
                break
            # Positions that wrote it are found in their order; those between were blanks, repeats, or cut off.
            near = (log_probs[row, position:, token] - score).abs() < 1e-5
            if token == model.config.eos_token_id and score == 0:
                break
            assert bool(near.any()), (row, token, score)
            position += int(near.nonzero()[0]) + 1
    if not options and model.config.canvas_ratio == 1:
        torch.testing.assert_close(out.token_scores.sum(-1) / (~padding).sum(-1), out.sequences_scores)


def test_text_is_cut_after_eos_padded_and_free_of_bos(model):
    ids = torch.tensor([[1, 5, 2, 6], [7, 8, 9, 10], [2, 5, 5, 5]])
    positions = text_positions(ids, torch.tensor([4, 3, 4]), model.generation_options())
    assert positions.tolist() == [[1, 2, -1], [0, 1, 2], [0, -1, -1]]
    assert take_positions(ids, positions, 0).tolist() == [[5, 2, 0], [7, 8, 9], [2, 0, 0]]


def test_sampling_follows_the_filters(model):
    ids, mask = source_batch()
    greedy = model.generate(ids, mask, generator=seeded())
    top_one = model.generate(ids, mask, generator=seeded(), do_sample=True, top_k=1)
    assert torch.equal(greedy, top_one)
    tiny_nucleus = model.generate(ids, mask, generator=seeded(), do_sample=True, top_p=1e-6)
    assert torch.equal(greedy, tiny_nucleus)
    options = {"do_sample": True, "temperature": 5.0, "top_k": 0, "target_lengths": 20, "eos_token_id": None}
    hot = model.generate(ids, mask, generator=seeded(), **options)
    assert not torch.equal(hot, model.generate(ids, mask, generator=seeded(), **{**options, "do_sample": False}))


def test_half_precision_keeps_the_state_in_float32(model):
    half = tiny_model().to(torch.bfloat16)
    ids, mask = source_batch()
    out = details(half, ids, mask, generator=seeded())
    assert out.trajectory.dtype == torch.float32
    assert out.sequences.dtype == torch.long


def test_options_come_from_call_then_config_then_model(model):
    ids, mask = source_batch()
    model = tiny_model()
    assert details(model, ids, mask).num_evaluations == 3
    model.generation_config.num_inference_steps = 2
    assert details(model, ids, mask).num_evaluations == 2
    given = GenerationConfig(num_inference_steps=5, return_dict_in_generate=True)
    assert model.generate(ids, mask, given).num_evaluations == 5
    assert details(model, ids, mask, num_inference_steps=4).num_evaluations == 4
    assert model.generation_config.num_inference_steps == 2


class Recorder:
    def __init__(self):
        self.drafts, self.texts, self.ended = [], [], False

    def put_draft(self, value, **kwargs):
        self.drafts.append(value)

    def put(self, value):
        self.texts.append(value)

    def end(self):
        self.ended = True


def test_streamer_gets_a_draft_per_step_and_the_text(model):
    ids, _ = source_batch((6,))
    streamer = Recorder()
    out = model.generate(ids, streamer=streamer, generator=seeded(), num_inference_steps=4)
    assert len(streamer.drafts) == 4
    assert torch.equal(streamer.drafts[-1], out[0])
    assert [t.tolist() for t in streamer.texts] == [out[0].tolist()]
    assert streamer.ended


@pytest.mark.parametrize(
    ("model_options", "options"),
    [
        ({}, {"max_new_tokens": 3}),
        ({}, {"min_new_tokens": 9, "target_lengths": 10}),
        ({}, {"merge_repeats": 3, "target_lengths": 20}),
        ({}, {"solver": "heun", "length_mode": "canvas", "max_new_tokens": 5}),
        (WITH_BLANKS, {"max_new_tokens": 3}),
        (WITH_BLANKS, {"max_new_tokens": 3, "target_lengths": 12}),
        (WITH_BLANKS, {"blank_penalty": 4.0}),
        (WITH_BLANKS, {"merge_repeats": 2, "target_lengths": 12, "max_new_tokens": 7}),
    ],
    ids=lambda options: "-".join(options) or "no_blanks",
)
def test_the_last_draft_is_the_text(model_options, options):
    model = tiny_model(**model_options)
    # Three words, EOS and the blank alone, so that texts repeat themselves and are of many lengths.
    with torch.no_grad():
        model.decoder.lm_head.bias[[0, 10, 11, 12]] += 20.0
        model.decoder.lm_head.bias[2] += 19.5
    for seed in range(4):
        ids, streamer = source_batch((6,), seed)[0], Recorder()
        text = model.generate(ids, streamer=streamer, generator=seeded(seed), **options)
        assert torch.equal(streamer.drafts[-1], text[0])


def test_trainer_and_peft_arguments_are_accepted(model):
    ids, mask = source_batch()
    extra = {"labels": ids, "synced_gpus": False, "decoder_input_ids": None, "token_type_ids": None, "num_beams": 1}
    a = model.generate(input_ids=ids, attention_mask=mask, generator=seeded(), max_length=9, **extra)
    assert torch.equal(a, model.generate(inputs=ids, attention_mask=mask, generator=seeded(), max_new_tokens=9))


def test_inputs_embeds_and_encoder_outputs(model):
    ids, mask = source_batch()
    noise = torch.randn(3, 8, 16, generator=seeded())
    options = {"attention_mask": mask, "prior_noise": noise, "target_lengths": 8, "expert_selection": "argmax"}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options), expected)
    assert torch.equal(model.generate(encoder_outputs=model.get_encoder()(ids, mask), **options), expected)


def test_states_may_be_wrapped_in_any_way_and_must_fit_the_ids(model):
    ids, mask = source_batch()
    options = {"attention_mask": mask, "generator": seeded(), "input_ids": ids}
    states = model.get_encoder()(ids, mask).last_hidden_state
    expected = model.generate(encoder_outputs=(states,), **options)
    for wrapped in (states, {"last_hidden_state": states}):
        assert torch.equal(model.generate(encoder_outputs=wrapped, **{**options, "generator": seeded()}), expected)
    with pytest.raises(ValueError, match="batch and length must agree"):
        model.generate(encoder_outputs=states[:2], **options)
    with pytest.raises(ValueError, match="not finite"):
        model.generate(encoder_outputs=states / 0, **options)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_without_a_mask_is_seen_as_in_transformers(model, side):
    ids, mask = source_batch(side=side)
    assert torch.equal(model.generate(ids, generator=seeded()), model.generate(ids, mask, generator=seeded()))


def test_texts_that_are_equal_once_cut_are_no_different_ones():
    model = tiny_model(**WITH_BLANKS)
    ids, mask = source_batch((7,))
    options = {"max_new_tokens": 1, "num_candidates": 6, "prior_temperature": 0.1, "target_lengths": 1}
    written = [
        model.generate(ids, mask, generator=seeded(), num_return_sequences=count, **options)[:, 0].tolist()
        for count in (2, 6)
    ]
    assert len(set(written[1])) > 1
    assert len(set(written[0])) == 2


def test_a_config_that_asks_for_tuples_changes_nothing_of_what_is_written():
    model = tiny_model()
    ids, mask = source_batch()
    expected = model.generate(ids, mask, generator=seeded())
    model.config.return_dict = False
    assert torch.equal(model.generate(ids, mask, generator=seeded()), expected)
    assert isinstance(model(ids, mask, target_labels()), tuple)


def test_an_argument_wins_over_what_stands_for_it_elsewhere():
    model = tiny_model()
    model.generation_config.min_length = 9
    assert model.generation_options(min_new_tokens=3).sampling.min_new_tokens == 3
    assert model.generation_options().sampling.min_new_tokens == 9
    asked = GenerationConfig(compile_config=CompileConfig())
    assert model.generation_options(asked).compile_options is not None
    assert model.generation_options(asked, compile=False).compile_options is None


def test_model_without_length_head_uses_the_canvas():
    model = tiny_model(length_head=False)
    ids, mask = source_batch()
    assert model.generation_config.length_mode == "canvas"
    assert details(model, ids, mask, max_new_tokens=5).target_lengths.tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match="length head"):
        model.generate(ids, mask, length_mode="predicted")


IDS = torch.full((2, 4), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass input_ids"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 4, 16)}, "one of"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "empty"),
        ({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, "empty"),
        ({"input_ids": IDS[0]}, "shape"),
        ({"input_ids": IDS.float()}, "dtype"),
        ({"input_ids": IDS + VOCAB_SIZE}, "vocabulary"),
        ({"input_ids": IDS - 6}, "vocabulary"),
        ({"input_ids": torch.full((1, 33), 5)}, "max_position_embeddings=32"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 5)}, "attention_mask has shape"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "without any token"),
        ({"input_ids": IDS, "max_new_tokens": 33}, "max_position_embeddings=32"),
        ({"input_ids": IDS, "max_new_tokens": 0}, "max_new_tokens"),
        ({"input_ids": IDS, "min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9"),
        ({"input_ids": IDS, "target_lengths": 33}, "target_lengths"),
        (
            {"input_ids": IDS, "target_lengths": 10, "max_new_tokens": 3},
            "target_lengths holds 10 to 10, must be between",
        ),
        (
            {"input_ids": IDS, "target_lengths": 4, "min_new_tokens": 9},
            "target_lengths holds 4 to 4, must be between 9",
        ),
        ({"input_ids": IDS, "target_lengths": [3, 0]}, "target_lengths"),
        ({"input_ids": IDS, "target_lengths": [3, 4, 5]}, "target_lengths"),
        ({"input_ids": IDS, "target_lengths": 2.5}, "target_lengths"),
        ({"input_ids": IDS, "num_inference_stepz": 3}, "num_inference_stepz"),
        ({"input_ids": IDS, "num_inference_steps": 0}, "num_inference_steps=0"),
        ({"input_ids": IDS, "num_inference_steps": 1.5}, "num_inference_steps=1.5"),
        ({"input_ids": IDS, "solver": "rk4"}, "rk4"),
        ({"input_ids": IDS, "expert_selection": "best"}, "best"),
        ({"input_ids": IDS, "length_mode": "auto"}, "auto"),
        ({"input_ids": IDS, "time_shift": 0.0}, "time_shift"),
        ({"input_ids": IDS, "prior_temperature": -1.0}, "prior_temperature"),
        ({"input_ids": IDS, "num_candidates": 0}, "num_candidates=0"),
        ({"input_ids": IDS, "num_beams": 4}, "num_beams=4"),
        ({"input_ids": IDS, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"input_ids": IDS, "prior_noise": torch.zeros(2, 3, 16), "target_lengths": 4}, "prior_noise"),
        ({"input_ids": IDS, "prior_noise": torch.zeros(2, 4, 15), "target_lengths": 4}, "prior_noise"),
        ({"input_ids": IDS, "streamer": Recorder()}, "streamer"),
        ({"input_ids": IDS, "logits_processor": [lambda i, s: s]}, "logits_processor"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_refused_with_a_clear_error(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


def test_options_that_were_resolved_before_follow_changes_of_model_and_arguments():
    model = tiny_model()
    first = model.generation_options(num_inference_steps=2)
    assert model.generation_options(num_inference_steps=2) is first
    assert model.generation_options(num_inference_steps=4).sampling.num_inference_steps == 4
    model.generation_config.solver = "heun"
    assert model.generation_options(num_inference_steps=2).sampling.solver == "heun"
    given = GenerationConfig(max_new_tokens=5)
    assert model.generation_options(given).longest == 5
    given.max_new_tokens = 6
    assert model.generation_options(given).longest == 6
    with pytest.raises(ValueError, match="num_inference_steps"):
        model.generation_options(num_inference_steps=True)
    assert model.generation_options(eos_token_id=[2, 3]).sampling.eos_token_ids == (2, 3)


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ([5, 6, 6, 7], 1, [5, 6, 7]),
        ([5, 5, 5, 5], 1, [5]),
        ([5, 6, 5, 6, 7], 1, [5, 6, 5, 6, 7]),
        ([5, 6, 5, 6, 7], 2, [5, 6, 7]),
        ([5, 6, 5, 6, 5, 7], 2, [5, 6, 5, 7]),
        ([5, 6, 7, 5, 6, 7, 2], 3, [5, 6, 7, 2]),
        ([5, 6, 6, 7, 5, 6, 7], 3, [5, 6, 7]),
        ([5], 4, [5]),
    ],
)
def test_repeated_runs_are_merged_from_left_to_right(text, longest, expected):
    ids = torch.tensor([[*text, 0, 0], [0] * (len(text) + 2)])
    positions = torch.tensor([[*range(len(text)), -1, -1], [-1] * (len(text) + 2)])
    merged = merge_repeats(ids, positions, longest)
    assert take_positions(ids, merged, 0)[0].tolist() == expected + [0] * (len(text) + 2 - len(expected))
    assert (merged >= 0).sum(-1).tolist() == [len(expected), 0]


def test_merging_repeats_changes_only_texts_that_have_them(model):
    ids, mask = source_batch()
    plain = model.generate(ids, mask, target_lengths=9, generator=seeded())
    merged = model.generate(ids, mask, target_lengths=9, merge_repeats=3, generator=seeded())
    for before, after in zip(rows_without_padding(plain), rows_without_padding(merged), strict=True):
        kept = merge_repeats(torch.tensor([before]), torch.arange(len(before)).unsqueeze(0), 3)
        assert after == [before[position] for position in kept[0].tolist() if position >= 0]
    for value in (-1, 1.5, "two"):
        with pytest.raises(ValueError, match="merge_repeats"):
            model.generate(ids, mask, merge_repeats=value)
