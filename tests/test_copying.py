"""Answers that take tokens of their source as they are (`copy_mechanism`)."""

import math

import pytest
import torch

from modeling_yan import YanConfig, YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.copying_yan import CopySource, add_copies, best_passage, lowest, quotation_log_probs, total_by_token

from .helpers import (
    VOCAB_SIZE,
    WITH_BLANKS,
    pinned_draws,
    randomize,
    seeded,
    source_batch,
    target_labels,
    tiny_bert,
    tiny_config,
    tiny_model,
)


@pytest.fixture(scope="module", params=["own", "hosted"])
def model(request) -> YanForConditionalGeneration:
    if request.param == "own":
        return tiny_model(copy_mechanism=True)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    encoder = tiny_bert(vocab_size=VOCAB_SIZE, max_position_embeddings=32)
    model = YanForConditionalGeneration.from_encoder(encoder, copy_mechanism=True, flow_layers=1, **ids)
    return randomize(model).eval()


def plain_probability(logits: list[float], scores: list[float], ids: list[int], token: int) -> float:
    """By the formula, one term after the other."""
    vocabulary = [math.exp(value) for value in logits]
    places = [math.exp(value) for value in scores]
    copied = sum(value for place, value in enumerate(places) if ids[place] == token)
    return (vocabulary[token] + copied) / (sum(vocabulary) + sum(places))


@pytest.mark.parametrize(("rows", "length", "size"), [(1, 1, 1), (2, 3, 7), (3, 5, 4)])
def test_probabilities_are_those_of_the_formula(rows, length, size):
    generator = seeded(size)
    logits = torch.randn(rows, length, 9, generator=generator, dtype=torch.float64)
    scores = 3 * torch.randn(rows, length, size, generator=generator)
    ids = torch.randint(0, 4, (rows, size), generator=generator)
    totals = total_by_token(scores, ids)
    found = add_copies(logits, ids.unsqueeze(1).expand_as(totals), totals).softmax(-1)
    for row in range(rows):
        for position in range(length):
            facts = logits[row, position].tolist(), scores[row, position].tolist(), ids[row].tolist()
            expected = [plain_probability(*facts, token) for token in range(9)]
            torch.testing.assert_close(found[row, position], torch.tensor(expected).double(), atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_one_softmax_over_vocabulary_and_places():
    logits = torch.randn(2, 3, 9, generator=seeded(1), requires_grad=True)
    scores = torch.randn(2, 3, 7, generator=seeded(2), requires_grad=True)
    ids, labels = torch.randint(0, 4, (2, 7), generator=seeded(3)), torch.randint(0, 6, (2, 3), generator=seeded(4))
    totals = total_by_token(scores, ids)
    found = add_copies(logits, ids.unsqueeze(1).expand_as(totals), totals).log_softmax(-1)
    ours = torch.autograd.grad(found.gather(-1, labels.unsqueeze(-1)).sum(), (logits, scores))
    joint = torch.cat([logits, scores], -1).log_softmax(-1)
    held = torch.cat([torch.arange(9).expand(2, 9), ids], 1)
    is_label = held.unsqueeze(1) == labels.unsqueeze(-1)
    plain = joint.masked_fill(~is_label, -torch.inf).logsumexp(-1).sum()
    for one, other in zip(ours, torch.autograd.grad(plain, (logits, scores)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def passage_probability(begins: list[float], ends: list[float], begin: int, end: int) -> float:
    """p(b) p(e | b) by the formula; absent places have scores of minus infinity."""
    beginning = math.exp(begins[begin]) / sum(math.exp(score) for score in begins)
    return beginning * math.exp(ends[end]) / sum(math.exp(score) for score in ends[begin:])


@pytest.mark.parametrize(("length", "size"), [(1, 1), (3, 1), (2, 5), (5, 4), (4, 9)])
def test_an_answer_is_a_mixture_over_passages(length, size):
    """By loops over first and last places; passages longer than the answer count as far as it goes."""
    begins, ends = (torch.randn(2, size, generator=seeded(seed)) for seed in (0, 1))
    quoted = torch.randn(2, length, size, generator=seeded(2)) - 3
    over = 40 * torch.randn(2, length, generator=seeded(3)) - 50
    found = quotation_log_probs(begins.log_softmax(-1), ends, quoted, over)
    for row in range(2):
        for tokens in range(1, length + 1):
            answers = 0.0
            for begin in range(size):
                for end in range(begin, size):
                    inside = min(end - begin + 1, tokens)
                    parts = quoted[row, :inside, begin].sum() + over[row, inside:tokens].sum()
                    passage = passage_probability(begins[row].tolist(), ends[row].tolist(), begin, end)
                    answers += passage * parts.double().exp().item()
            assert found[row, :tokens].sum().item() == pytest.approx(math.log(answers), abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_best_passage_is_that_of_all_pairs(size):
    begins, ends = (2 * torch.randn(20, size, generator=seeded(seed)) for seed in (0, 1))
    first, last = best_passage(begins.log_softmax(-1), ends)
    for row in range(20):
        facts = begins[row].tolist(), ends[row].tolist()
        pairs = [(begin, end) for begin in range(size) for end in range(begin, size)]
        best = max(pairs, key=lambda pair: passage_probability(*facts, *pair))
        assert (first[row].item(), last[row].item()) == best


def test_one_passage_serves_a_whole_answer():
    """From its first place to its last, and behind it EOS, whatever the positions hold."""
    model = tiny_model(copy_mechanism=True)
    pointer, width = model.decoder.copy_head, model.config.hidden_size
    for parameter in pointer.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(pointer.bias_proj.bias[1:], 5.0)
    # The first channel of a place's state says that a passage begins there, the second that it is the last of one.
    pointer.quotation_proj.weight.data[:, :2] = 20 * torch.eye(2)
    ids = torch.tensor([[9, 8, 7, 6, 5, 4, 3]])
    states = torch.zeros(1, 7, width)
    states[0, 2, 0] = 1.0
    states[0, [1, 4], 1] = 1.0
    decoded = torch.randn(1, 5, width, generator=seeded())
    logits = model.decoder.logits(decoded, model.decoder.copies(decoded, CopySource(ids, states)))
    assert logits.argmax(-1)[0].tolist() == [7, 6, 5, 2, 2]


@pytest.fixture(scope="module", params=["right", "left"])
def pointed(request) -> tuple:
    """A pointer, its source with padding on a side, states of three positions, and logits of the vocabulary."""
    pointer = tiny_model(copy_mechanism=True).decoder.copy_head
    ids, mask = source_batch((7, 4, 5), side=request.param)
    source, states = (torch.randn(3, length, 16, generator=seeded(length)) for length in (7, 3))
    return pointer, CopySource(ids, source, mask), states, torch.randn(3, 3, VOCAB_SIZE, generator=seeded(5))


def plain_scores(pointed: tuple, row: int, position: int, begin: int, end: int) -> tuple[list[float], float]:
    """By the formula: what each place, and EOS, is worth to a position of an answer that quotes `begin` to `end`."""
    pointer, source, states, _ = pointed
    worth = pointer.bias_proj(states).detach()[row, position]
    scores = []
    for place in range(source.ids.shape[1]):
        product = pointer.q_proj(states[row, position]) @ pointer.k_proj(source.states[row, place])
        own = math.exp(product.item() / 4 + worth[0]) if source.mask[row, place] else 0.0
        scores.append(own + (math.exp(worth[1]) if place == begin + position <= end else 0.0))
    return scores, math.exp(worth[1]) if begin + position > end else 0.0


def passages(pointed: tuple, row: int) -> dict[tuple[int, int], float]:
    """Probability of each first and last place that is a token."""
    pointer, source, *_ = pointed
    scores = (
        pointer.quotation_proj(source.states[row]).detach().masked_fill(~source.mask[row].bool()[:, None], -math.inf)
    )
    begins, ends = scores.unbind(-1)
    tokens = source.mask[row].nonzero().flatten().tolist()
    pairs = [(begin, end) for begin in tokens for end in tokens if end >= begin]
    return {pair: passage_probability(begins.tolist(), ends.tolist(), *pair) for pair in pairs}


def test_what_is_written_quotes_the_most_probable_passage(pointed):
    pointer, source, states, _ = pointed
    ids, found = pointer(states, source)
    assert ids.tolist() == [[*row, 2] for row in source.ids.tolist()]
    for row in range(3):
        probabilities = passages(pointed, row)
        best = max(probabilities, key=probabilities.get)
        for position in range(3):
            scores, over = plain_scores(pointed, row, position, *best)
            for score, expected in zip(found[row, position].tolist(), [*scores, over], strict=True):
                if expected:
                    assert score == pytest.approx(math.log(expected), abs=1e-4)
                else:
                    assert score < lowest(torch.float32) / 2


def test_the_likelihood_is_that_of_a_mixture_over_passages(pointed):
    """By loops over passages, positions and places, with EOS, a token of the source twice, and padding."""
    pointer, source, states, logits = pointed
    labels = source.ids[:, 2:5].clone()
    labels[0, 2], labels[1, 1:], labels[2] = 2, torch.tensor([2, -100]), torch.tensor([20, 2, 2])
    found = pointer.log_probs(states, logits, source, labels).detach()
    for row in range(3):
        total = 0.0
        for passage, answer in passages(pointed, row).items():
            for position, label in enumerate(labels[row].tolist()):
                if label == -100:
                    continue
                scores, over = plain_scores(pointed, row, position, *passage)
                own = sum(score for place, score in enumerate(scores) if source.ids[row, place] == label)
                vocabulary = logits[row, position].exp()
                whole = vocabulary.sum().item() + sum(scores) + over
                answer *= (vocabulary[label].item() + own + (over if label == 2 else 0.0)) / whole
            total += answer
        assert found[row].sum().item() == pytest.approx(math.log(total), abs=1e-4)
    assert found[1, 2] == 0


def test_a_certain_passage_makes_likelihood_and_writing_one(pointed):
    pointer, source, states, logits = pointed
    head = tiny_model(copy_mechanism=True).decoder
    head.copy_head = pointer
    certain = pointer.quotation_proj.weight.data.clone()
    pointer.quotation_proj.weight.data *= 1e4
    labels = torch.randint(4, VOCAB_SIZE, (3, 3), generator=seeded(6))
    ids, scores = pointer(states, source)
    totals = total_by_token(scores, ids)
    written = add_copies(logits.clone(), ids.unsqueeze(1).expand_as(totals), totals).log_softmax(-1)
    found = pointer.log_probs(states, logits, source, labels)
    pointer.quotation_proj.weight.data = certain
    torch.testing.assert_close(found, written.gather(-1, labels.unsqueeze(-1)).squeeze(-1), atol=1e-4, rtol=1e-4)


def test_padding_leaves_gradients_finite(pointed):
    pointer, source, states, logits = pointed
    pointer.zero_grad()
    pointer.log_probs(states, logits, source, source.ids[:, 2:5]).sum().backward()
    for name, parameter in pointer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name


def test_neither_padding_nor_batch_changes_a_row(model):
    ids, mask = source_batch((7, 4, 5))
    left, left_mask = source_batch((7, 4, 5), side="left")
    options = {"expert_selection": "argmax", "target_lengths": torch.tensor([5, 3, 4])}
    noise = torch.randn(3, 10, 16, generator=seeded())
    together = model.generate(ids, mask, prior_noise=noise, **options)
    assert together.tolist() == model.generate(left, left_mask, prior_noise=noise, **options).tolist()
    for row, length in enumerate((7, 4, 5)):
        given = {**options, "target_lengths": options["target_lengths"][row : row + 1]}
        alone = model.generate(ids[row : row + 1, :length], prior_noise=noise[row : row + 1], **given)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()


def test_labels_padded_on_the_left_give_the_same_losses_and_gradients():
    model, lengths, (ids, mask) = tiny_model(copy_mechanism=True), (6, 3, 5), source_batch((7, 4, 5))
    drawn = pinned_draws(3, 6)
    moved = {name: values.clone() for name, values in drawn.items()}
    for row, length in enumerate(lengths):
        for name in ("prior_noise", "expert_indices"):
            moved[name][row] = drawn[name][row].roll(6 - length, 0)
    losses, gradients = [], []
    for side, pinned in (("right", drawn), ("left", moved)):
        outputs = model(ids, mask, target_labels(lengths, side=side), **pinned)
        logits = outputs.logits.log_softmax(-1)
        losses.append(
            [logits[row, :length] if side == "right" else logits[row, -length:] for row, length in enumerate(lengths)]
        )
        losses[-1].append(outputs.loss)
        gradients.append(torch.autograd.grad(outputs.loss, model.decoder.copy_head.parameters()))
    for right, left in zip(losses[0] + list(gradients[0]), losses[1] + list(gradients[1]), strict=True):
        torch.testing.assert_close(right, left, atol=1e-5, rtol=1e-4)


def test_candidates_and_lengths_copy_from_their_own_source(model):
    ids, mask = source_batch((7, 4, 5))
    options = {"num_candidates": 3, "num_length_candidates": 2, "num_return_sequences": 2}
    together = model.generate(ids, mask, generator=seeded(), return_dict_in_generate=True, **options)
    written = model.log_likelihood(ids, mask, target_labels(), generator=seeded())
    assert together.sequences.shape[0] == 6
    assert written.isfinite().all()


@pytest.mark.parametrize("changes", [{}, {"denoising_ce_loss_weight": 1.0}])
def test_training_reaches_the_pointer_and_the_encoder(changes):
    model = tiny_model(copy_mechanism=True, cross_attention_layers=[], **changes).train()
    ids, mask = source_batch((7, 4, 5))
    model(ids, mask, target_labels(), generator=seeded()).loss.backward()
    for name, parameter in model.decoder.copy_head.named_parameters():
        assert parameter.grad.norm() > 0, name
    assert model.model.encoder.layers[0].feed_forward.up_proj.weight.grad.norm() > 0


def test_a_model_learns_to_quote_words_it_has_never_written():
    """Texts of the second half of the vocabulary, which no answer in training holds, are quoted all the same."""
    torch.manual_seed(0)
    config = tiny_config(
        copy_mechanism=True, hidden_size=32, intermediate_size=64, prediction_type="data", hidden_dropout_prob=0.0
    )
    model = YanForConditionalGeneration(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    middle = VOCAB_SIZE // 2

    def batch(low: int, high: int, seed: int) -> torch.Tensor:
        return torch.randint(low, high, (16, 8), generator=seeded(seed))

    for update in range(60):
        ids = batch(4, middle, update)
        loss = model(ids, labels=ids[:, 2:6], generator=seeded(update)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    ids = batch(middle, VOCAB_SIZE, 1000)
    logits = model(ids, decoder_attention_mask=torch.ones(16, 4)).logits
    assert (logits.argmax(-1) == ids[:, 2:6]).float().mean() > 0.5


def test_without_ids_there_is_nothing_to_copy(model):
    ids, mask = source_batch((7, 4, 5))
    encoded = model.get_encoder()(ids, mask)
    for given in ({"inputs_embeds": model.get_input_embeddings()(ids)}, {"encoder_outputs": encoded}):
        with pytest.raises(ValueError, match="input_ids are missing: with copy_mechanism=True"):
            model.generate(attention_mask=mask, **given)
        with pytest.raises(ValueError, match="input_ids are missing: with copy_mechanism=True"):
            model(attention_mask=mask, **given)
    written = model.generate(ids, mask, encoder_outputs=encoded, generator=seeded())
    assert torch.equal(written, model.generate(ids, mask, generator=seeded()))


def test_what_is_saved_loads(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = YanForConditionalGeneration.from_pretrained(tmp_path)
    ids, mask = source_batch((7, 4, 5))
    assert torch.equal(loaded.generate(ids, mask, generator=seeded()), model.generate(ids, mask, generator=seeded()))
    _, report = YanForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]


def test_a_new_model_gives_copies_and_vocabulary_about_the_same_weight():
    torch.manual_seed(0)
    model = YanForConditionalGeneration(tiny_config(copy_mechanism=True, vocab_size=1000, prediction_type="data"))
    ids = torch.randint(4, 1000, (2, 30), generator=seeded())
    outputs = model(ids, decoder_attention_mask=torch.ones(2, 10))
    states = model.decoder.states(outputs.latents)
    copied = CopySource(ids, outputs.encoder_last_hidden_state)
    # As much as the vocabulary at 64 tokens.
    share = model.decoder.copies(states, copied)[1].logsumexp(-1) - outputs.logits.logsumexp(-1)
    assert 0.1 < share.exp().mean() < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**WITH_BLANKS, "length_head": "source"}, "each position copies its own token already; leave copy_mechanism"),
        (WITH_BLANKS, "copy_mechanism=True with canvas_ratio=2.0: a quotation needs a position for every token"),
        ({"eos_token_id": None}, "copy_mechanism=True needs eos_token_id"),
        ({"training_config": {"loss_chunk_size": 4}}, "loss_chunk_size=4: the likelihood is that of whole quotations"),
        ({"training_config": {"label_smoothing": 0.1}}, "copy_mechanism=True with label_smoothing=0.1"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        YanConfig(copy_mechanism=True, **options)
