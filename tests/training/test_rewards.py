"""Learning from rewards: advantages, texts, the gradient and the divergence, each computed a second time by hand."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.rewards import YanRewardTrainer, group_advantages

from ..helpers import WITH_BLANKS, randomize, seeded, tiny_model, word_piece_tokenizer

PAIRS = [
    ("color of the sky?", "blue"),
    ("color of grass?", "green"),
    ("color of snow?", "white"),
    ("of coal?", "black"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for pair in PAIRS for text in pair] * 3, 290, 32)


def letters_of_the_answer(completions, wanted, **columns) -> list[float]:
    return [len(set(text) & set(answer)) / len(set(answer)) for text, answer in zip(completions, wanted)]


def make_trainer(path, tokenizer, steps: int = 1, seed: int = 0, **options) -> YanRewardTrainer:
    model = tiny_model(
        seed=seed,
        vocab_size=290,
        hidden_size=48,
        intermediate_size=96,
        gate_hidden_size=48,
        unroll_steps=2,
        latent_noise=0.0,
        prediction_type="data",
    )
    arguments = TrainingArguments(
        path,
        max_steps=steps,
        learning_rate=3e-3,
        per_device_train_batch_size=4,
        logging_steps=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=seed,
    )
    return YanRewardTrainer(
        model,
        letters_of_the_answer,
        arguments,
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"], "wanted": a} for p, a in PAIRS]),
        processing_class=tokenizer,
        **{"num_generations": 8, "generator": seeded(seed), **options},
    )


def test_advantages_are_relative_to_the_group():
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]]))
    assert advantages[0].tolist() == pytest.approx([-(2**0.5), 0.0, 2**0.5, 0.0], abs=1e-3)
    assert advantages[1].tolist() == [0.0] * 4


def test_rewards_read_the_text_that_a_canvas_with_blanks_holds(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    first, second = tokenizer(PAIRS[0][1], add_special_tokens=False)["input_ids"][0], tokenizer.vocab_size - 1
    path = torch.tensor([[first, first, pad, first, second, pad, eos, second]])
    canvas = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    trainer.model.config.canvas_ratio = 2.0
    assert trainer._texts(path, canvas) == [tokenizer.decode([first, first, second])]
    trainer.model.config.canvas_ratio = 1.0
    assert trainer._texts(path, canvas) == [tokenizer.decode([first, first, first, second])]


def test_what_ends_a_text_is_the_models_where_its_tokenizer_has_no_eos(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.processing_class = word_piece_tokenizer()
    trainer.model.config.eos_token_id = [3, 2]
    assert trainer._texts(torch.tensor([[5, 6, 3, 5], [6, 2, 5, 5]]), torch.ones(2, 4).long()) == ["river pub", "pub"]


def pin(trainer: YanRewardTrainer, rewards: list[float]) -> tuple[dict, dict]:
    """A batch of one source, and what is drawn for it, now and in every later call; so are the rewards."""
    batch = trainer.data_collator([trainer.train_dataset[0]])
    drawn = trainer._sample(trainer.model, batch["input_ids"], batch["attention_mask"])
    trainer._sample = lambda *_: dict(drawn)
    trainer.reward = lambda completions, **_: rewards
    return batch, drawn


def test_the_gradient_is_that_of_the_drawn_answers_log_probability(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    rewards, model = torch.arange(8.0), trainer.model
    batch, drawn = pin(trainer, rewards.tolist())
    trainer.compute_loss(model, batch).backward()
    ours = model.decoder.lm_head.bias.grad.clone()
    # By hand: every answer alone, its tokens and its length.
    model.zero_grad()
    given = {name: value for name, value in drawn.items() if name not in ("tokens", "lengths")}
    total = 0.0
    for row, advantage in enumerate(group_advantages(rewards[None])[0]):
        out = model(**{name: value[row : row + 1] for name, value in given.items()})
        length = int(drawn["lengths"][row])
        log_probs = out.logits[0, :length].log_softmax(-1)
        answer = sum(log_probs[i, drawn["tokens"][row, i]] for i in range(length))
        answer = answer + out.length_logits[0].log_softmax(-1)[length - 1]
        total = total - advantage * answer / length / 8
    total.backward()
    torch.testing.assert_close(ours, model.decoder.lm_head.bias.grad, atol=1e-5, rtol=1e-4)


def test_with_equal_rewards_the_loss_is_the_divergence_from_the_start(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, beta=100.0)
    batch, drawn = pin(trainer, [1.0] * 8)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(0.0, abs=1e-3)
    randomize(trainer.model, seed=1)
    given = {name: value for name, value in drawn.items() if name not in ("tokens", "lengths")}
    with torch.no_grad():
        now, before = (model(**given).logits.log_softmax(-1) for model in (trainer.model, trainer.reference))
    divergences = [
        (now[row, i].exp() * (now[row, i] - before[row, i])).sum().item()
        for row in range(8)
        for i in range(int(drawn["lengths"][row]))
    ]
    expected = 100.0 * sum(divergences) / len(divergences)
    assert expected > 1
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)


def test_a_run_logs_what_was_drawn_and_moves_the_weights(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, steps=5, beta=0.1)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert 0 <= entry["reward"] <= 1
    assert entry["kl"] >= 0
    assert 1 <= entry["target_length"] <= 32
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_generations": 1}, "num_generations=1"), ({"temperature": 0.0}, "temperature"), ({"beta": -1.0}, "beta")],
)
def test_bad_settings_are_refused(tmp_path, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **options)


@pytest.mark.parametrize("head", [False, "source"])
def test_a_model_that_predicts_no_length_is_refused(tmp_path, tokenizer, head):
    model = tiny_model(length_head=head, prediction_type="data", **WITH_BLANKS)
    with pytest.raises(ValueError, match=rf"length_head={head!r} must be True"):
        YanRewardTrainer(model, letters_of_the_answer, TrainingArguments(tmp_path), processing_class=tokenizer)
