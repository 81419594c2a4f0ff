"""
Canvases with blanks (CTC): the likelihood over all placements against enumeration, and every class that reads them.
"""

import itertools
from collections import Counter

import pytest
import torch

from modeling_yan import YanConfig, YanForConditionalGeneration, ctc_yan
from modeling_yan.canvas_yan import canvas_lengths, length_mask, target_canvas, text_room
from modeling_yan.ctc_yan import (
    ctc_bigram_distance,
    ctc_collapse,
    ctc_nll,
    needed_positions,
    repeat_probs,
    token_log_probs,
)

from .helpers import seeded, source_batch, tiny_config, tiny_model

BLANKS = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
BLANK = 0


@pytest.fixture(scope="module")
def model() -> YanForConditionalGeneration:
    return tiny_model(**BLANKS)


def text_of(path) -> list[int]:
    """The definition, in other words: groups of equal neighbours, blanks left out."""
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


def labels_batch() -> torch.Tensor:
    labels = torch.tensor([[5, 9, 9, 4, 7, 2], [8, 6, 2, -100, -100, -100], [4, 4, 4, 2, -100, -100]])
    return labels


@pytest.mark.parametrize("text", [[1], [1, 1], [2, 1], [1, 2, 1], [2, 2, 1]])
@pytest.mark.parametrize("side", ["right", "left"])
def test_likelihood_sums_over_all_placements(text, side):
    logits = torch.randn(2, 5, 3, generator=seeded(), requires_grad=True)
    canvas = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    labels = torch.full((2, 4), -100)
    place = slice(0, len(text)) if side == "right" else slice(4 - len(text), None)
    labels[:, place] = torch.tensor(text)
    nll = ctc_nll(logits, labels, canvas, BLANK)

    def likelihood(row: int) -> torch.Tensor:
        log_probs = logits[row].log_softmax(-1)
        positions = int(canvas[row].sum())
        paths = [p for p in itertools.product(range(3), repeat=positions) if text_of(p) == text]
        return torch.stack([log_probs[range(positions), p].sum() for p in paths]).logsumexp(0)

    expected = -torch.stack([likelihood(0), likelihood(1)])
    torch.testing.assert_close(nll, expected, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, 0.3])
    got, wanted = (torch.autograd.grad((x * weights).sum(), logits, retain_graph=True)[0] for x in (nll, expected))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("computed", ["tokens", "repeats"])
def test_what_is_computed_in_chunks_equals_plain_torch(computed, dtype, monkeypatch):
    monkeypatch.setattr(ctc_yan, "CPU_CHUNK", 80)  # two rows of three
    logits = (3 * torch.randn(3, 5, 7, generator=seeded())).to(dtype)
    ids = torch.tensor([[0, 3, 3, 6], [0, 1, 2, 5], [4, 0, 0, 0]])

    def plain(scores: torch.Tensor) -> torch.Tensor:
        log_probs = scores.float().log_softmax(-1)
        if computed == "tokens":
            return log_probs.gather(-1, ids.unsqueeze(1).expand(-1, 5, -1))
        return (log_probs[:, 1:].exp() * log_probs[:, :-1].exp()).sum(-1)

    def fast(scores: torch.Tensor) -> torch.Tensor:
        return token_log_probs(scores, ids) if computed == "tokens" else repeat_probs(scores)

    results = []
    for function in (plain, fast):
        given = logits.clone().requires_grad_()
        values = function(given)
        weights = torch.randn(values.shape, generator=seeded(1))
        results.append((values, torch.autograd.grad((values * weights).sum(), given)[0]))
    (wanted, wanted_gradient), (got, gradient) = results
    assert gradient.dtype == dtype
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        gradient, wanted_gradient, **({} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2})
    )
    with torch.no_grad():
        torch.testing.assert_close(fast(logits), wanted)


def bigrams_of(text: list[int]) -> Counter:
    return Counter(itertools.pairwise(text))


@pytest.mark.parametrize("text", [[1, 2], [1, 1], [1, 2, 1, 2], [2, 2, 1], [1]])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_bigrams_are_expected_over_all_placements(text, side, scale):
    logits = (scale * torch.randn(2, 6, 3, generator=seeded())).requires_grad_()
    canvas = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    labels = torch.full((2, 5), -100)
    place = slice(0, len(text)) if side == "right" else slice(5 - len(text), None)
    labels[:, place] = torch.tensor(text)
    distance = ctc_bigram_distance(logits, labels, canvas, BLANK)

    def by_enumeration(row: int) -> torch.Tensor:
        log_probs, positions = logits[row].log_softmax(-1), int(canvas[row].sum())
        counts, number = dict.fromkeys(bigrams_of(text), 0.0), 0.0
        for path in itertools.product(range(3), repeat=positions):
            p, found = log_probs[range(positions), path].sum().exp(), bigrams_of(text_of(path))
            number = number + p * sum(found.values())
            counts = {pair: count + p * found[pair] for pair, count in counts.items()}
        matched = sum(
            torch.minimum(count, torch.tensor(float(bigrams_of(text)[pair]))) for pair, count in counts.items()
        )
        return 1 - 2 * matched / (number + len(text) - 1) if len(text) > 1 else logits.sum() * 0

    expected = torch.stack([by_enumeration(0), by_enumeration(1)])
    torch.testing.assert_close(distance, expected, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, 0.3])
    got, wanted = (torch.autograd.grad((x * weights).sum(), logits, retain_graph=True)[0] for x in (distance, expected))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_bigrams_that_are_surely_there_are_no_distance():
    path = torch.tensor([[5, 5, 0, 9, 0, 9, 4, 0, 7, 2]])
    labels = torch.tensor([[5, 9, 9, 4, 7, 2]])
    logits = 60.0 * torch.nn.functional.one_hot(path, 12)
    canvas = torch.ones(1, 10, dtype=torch.bool)
    assert ctc_bigram_distance(logits, labels, canvas, BLANK).item() == pytest.approx(0, abs=1e-5)
    longer = torch.nn.functional.pad(labels, (0, 1), value=6)
    assert ctc_bigram_distance(logits, longer, canvas, BLANK).item() == pytest.approx(1 - 10 / 11, abs=1e-5)


def test_a_canvas_that_is_too_short_has_no_likelihood():
    labels = labels_batch()
    needed = needed_positions(labels)
    assert needed.tolist() == [7, 3, 6]
    logits = torch.randn(3, 7, 10, generator=seeded())
    fits = torch.arange(7) < needed.unsqueeze(1)
    assert ctc_nll(logits, labels, fits, BLANK).isfinite().all()
    assert ctc_nll(logits, labels, torch.arange(7) < needed.unsqueeze(1) - 1, BLANK).isinf().all()


def test_collapsing_gives_the_text_and_fills_the_rest():
    generator = seeded(1)
    ids = torch.randint(0, 4, (40, 11), generator=generator)
    lengths = torch.randint(1, 12, (40,), generator=generator)
    mask = torch.arange(11) < lengths.unsqueeze(1)
    for row, length, got in zip(ids.tolist(), lengths.tolist(), ctc_collapse(ids, mask, BLANK, 9).tolist()):
        text = text_of(row[:length])
        assert got == text + [9] * (11 - len(text))
    assert torch.equal(ctc_collapse(ids, None, BLANK, 9), ctc_collapse(ids, torch.ones_like(ids), BLANK, 9))


def test_canvas_lengths_round_up_and_stay_on_the_table():
    assert canvas_lengths(torch.tensor([1, 3, 20]), 1.5, 25).tolist() == [2, 5, 25]


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_likelihood_per_token(model, training):
    ids, mask = source_batch()
    labels = labels_batch()
    noise = torch.randn(3, 12, 16, generator=seeded())
    canvas = (torch.arange(12) < torch.tensor([[12], [6], [9]])).long()
    options = {"decoder_attention_mask": canvas, "prior_noise": noise, "expert_indices": torch.ones_like(canvas)}
    model.train(training)
    outputs = model(ids, mask, labels=labels, **options)
    model.eval()
    tokens = (labels != -100).sum()
    nll = ctc_nll(outputs.logits, labels, canvas.bool(), BLANK)
    torch.testing.assert_close(outputs.ce_loss, nll.sum() / tokens)
    lengths = (labels != -100).sum(-1)
    length = -(outputs.length_logits.log_softmax(-1)[range(3), lengths - 1] * lengths).sum() / tokens
    torch.testing.assert_close(outputs.loss, outputs.ce_loss + 0.1 * length)
    assert outputs.nll_loss is None
    assert outputs.mse_loss is None


def test_bigram_loss_is_that_of_the_endpoint_and_counts_rows_by_their_tokens():
    model, (ids, mask), labels = tiny_model(bigram_loss_weight=1.0, **BLANKS), source_batch(), labels_batch()
    canvas = length_mask(torch.tensor([12, 6, 9]))
    outputs = model(ids, mask, labels=labels, decoder_attention_mask=canvas, generator=seeded())
    lengths = (labels != -100).sum(-1)
    distances = ctc_bigram_distance(outputs.logits, labels, canvas, BLANK)
    torch.testing.assert_close(outputs.bigram_loss, ((distances * lengths).sum() / lengths.sum()).detach())


def test_micro_batches_add_up(model):
    ids, mask = source_batch()
    labels, noise = labels_batch(), torch.randn(3, 12, 16, generator=seeded())
    canvas = (torch.arange(12) < torch.tensor([[12], [6], [9]])).long()
    experts = torch.arange(12).expand(3, -1) % 3

    def loss(rows, **options):
        given = {"decoder_attention_mask": canvas, "prior_noise": noise, "expert_indices": experts}
        return model(
            ids[rows], mask[rows], labels=labels[rows], **{k: v[rows] for k, v in given.items()}, **options
        ).loss

    whole, count = loss(slice(None)), int((labels != -100).sum())
    parts = loss(slice(0, 1), num_items_in_batch=count) + loss(slice(1, 3), num_items_in_batch=count)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_a_row_without_labels_is_not_learned(model):
    ids, mask = source_batch()
    labels, noise = labels_batch(), torch.randn(3, 12, 16, generator=seeded())
    labels[2] = -100
    canvas = (torch.arange(12) < torch.tensor([[12], [6], [1]])).long()
    given = {"decoder_attention_mask": canvas, "prior_noise": noise, "expert_indices": torch.zeros_like(canvas)}
    whole = model(ids, mask, labels=labels, **given).loss
    alone = model(ids[:2], mask[:2], labels=labels[:2], **{name: value[:2] for name, value in given.items()}).loss
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)


def test_gradients_reach_everything_but_the_gate(model):
    model.train()
    ids, mask = source_batch()
    model(ids, mask, labels=labels_batch(), generator=seeded()).loss.backward()
    model.eval()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad()
    assert missing
    assert all(".gate." in name for name in missing)


def test_canvases_are_jittered_in_training_only(model):
    ids, mask = source_batch()
    labels = torch.full((3, 10), 7)
    labels[:, 1::2] = 5
    lengths = set()
    for seed in range(20):
        model.train()
        lengths.add(model(ids, mask, labels=labels, generator=seeded(seed)).logits.shape[1])
        again = model(ids, mask, labels=labels, generator=seeded(seed)).logits.shape[1]
        assert again in lengths
        model.eval()
        assert model(ids, mask, labels=labels, generator=seeded(seed)).logits.shape[1] == 20
    assert len(lengths) > 2
    assert min(lengths) >= 20 * (1 - 0.15)
    assert max(lengths) <= 20 * (1 + 0.15)


def test_a_text_that_no_canvas_holds_is_refused(model):
    ids, mask = source_batch((4,))
    with pytest.raises(ValueError, match=r"needs 39 positions.*max_position_embeddings=32"):
        model(ids, mask, labels=torch.full((1, 20), 7))


def test_generate_writes_the_text_that_the_canvas_holds(model):
    ids, mask = source_batch()
    out = model.generate(
        ids, mask, target_lengths=[6, 3, 5], generator=seeded(), return_dict_in_generate=True, output_trajectory=True
    )
    assert out.trajectory.shape[2] == 12
    assert out.target_lengths.tolist() == [12, 6, 10]
    logits = model.decoder(out.trajectory[-1])
    log_probs, writable = logits.log_softmax(-1), model.writable_logits(logits)
    for row, positions in enumerate((12, 6, 10)):
        path = writable[row, :positions].argmax(-1).tolist()
        end = path.index(2) + 1 if 2 in path else positions
        text = text_of(path)
        text = text[: text.index(2) + 1] if 2 in text else [*text, 2]
        got = [t for t in out.sequences[row].tolist() if t != BLANK]
        assert got == text[: len(got)]
        assert len(got) >= len(text) - 1
        best = log_probs[row, range(end), path[:end]]
        torch.testing.assert_close(out.sequences_scores[row], best.mean(), atol=1e-5, rtol=1e-5)


def test_answers_are_no_longer_than_asked_for(model):
    ids, mask = source_batch()
    drawn = {"do_sample": True, "generator": seeded(), "length_mode": "canvas", "eos_token_id": None}
    assert model.generate(ids, mask, max_new_tokens=4, **drawn).shape[1] == 4


def test_a_penalty_on_blanks_makes_texts_longer(model):
    ids, mask = source_batch()
    options = {"generator": seeded(), "target_lengths": 8, "eos_token_id": None, "return_dict_in_generate": True}

    def written(**more):
        out = model.generate(ids, mask, **{**options, "generator": seeded(), **more})
        return (out.sequences != BLANK).sum(-1), out.sequences_scores

    _, scores = written()
    lengths, between = zip(*(written(blank_penalty=penalty) for penalty in (-100.0, -2.0, -1.0, 100.0)))
    assert lengths[0].tolist() == [0, 0, 0]
    totals = [int(row.sum()) for row in lengths]
    assert totals == sorted(set(totals))
    # Scores stay those of the model's own distribution, of which the most probable path is the best.
    assert all((others <= scores).all() for others in between)


def test_given_noise_bounds_the_canvas(model):
    ids, mask = source_batch()
    noise = torch.randn(3, 9, 16, generator=seeded())
    options = {"prior_noise": noise, "length_mode": "canvas", "expert_selection": "argmax"}
    out = model.generate(ids, mask, **options, return_dict_in_generate=True)
    assert out.target_lengths.tolist() == [8, 8, 8]
    assert torch.equal(out.sequences, model.generate(ids, mask, **options))


def test_promises_that_blanks_would_break_are_refused(model):
    ids, mask = source_batch()
    with pytest.raises(ValueError, match=r"min_new_tokens=3 cannot be promised.*canvas_ratio=2.0"):
        model.generate(ids, mask, min_new_tokens=3)
    with pytest.raises(ValueError, match=r"blank_penalty=1\.0 is for canvases with blanks"):
        tiny_model().generate(ids, mask, blank_penalty=1.0)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"canvas_ratio": 0.5}, "canvas_ratio=0.5 must be at least 1"),
        ({"canvas_ratio": 2}, "nll_loss_weight=1.0"),
        ({**BLANKS, "mse_loss_weight": 0.5}, "mse_loss_weight=0.5"),
        ({**BLANKS, "bigram_loss_weight": 1.0, "canvas_ratio": 1.0}, "canvas_ratio above 1"),
        ({**BLANKS, "load_balance_weight": 1.0}, "load_balance_weight=1.0"),
        ({**BLANKS, "label_smoothing": 0.1}, "label_smoothing=0.1"),
        ({**BLANKS, "loss_chunk_size": 8}, "loss_chunk_size"),
        ({**BLANKS, "pad_token_id": None}, "pad_token_id"),
        ({**BLANKS, "eos_token_id": None}, "eos_token_id"),
    ],
)
def test_options_that_do_not_fit_are_named(overrides, named):
    with pytest.raises(ValueError, match=named):
        tiny_config(**overrides)


def test_a_saved_model_writes_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "ctc_yan.py").exists()
    assert YanConfig.from_pretrained(tmp_path).canvas_ratio == 2.0
    again = YanForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids, mask = source_batch()
    assert torch.equal(again.generate(ids, mask, generator=seeded()), model.generate(ids, mask, generator=seeded()))


def test_a_canvas_is_drawn_for_the_text_it_holds():
    labels = labels_batch()
    assert torch.equal(target_canvas(labels, 1.0, 32), labels != -100)
    assert target_canvas(labels, 1.5, 32).sum(-1).tolist() == [9, 5, 6]
    # Jitter never takes the positions that equal neighbours need.
    for seed in range(10):
        canvas = target_canvas(labels, 1.2, 32, jitter=0.9, generator=seeded(seed))
        assert (canvas.sum(-1) >= needed_positions(labels)).all()
    assert length_mask(torch.tensor([2, 0, 3])).tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert [text_room(positions, 2.0) for positions in (1, 8, 9)] == [1, 4, 4]
