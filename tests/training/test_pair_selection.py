"""Which prior and which answer are learned together: the easiest of several, and only that one."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments

from modeling_yan.flow_matching_yan import ngram_distance
from modeling_yan.training.pair_selection import DataCollatorForSeveralTargets, YanPairSelectionTrainer, select_pairs
from modeling_yan.training.tokenization import group_labels, tokenize_pairs, train_tokenizer

from ..conftest import VOCAB_SIZE, source_batch, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a cheap pub by the river", "the vaults"], 280, 32)


def several_answers(num_targets: int = 3, length: int = 6, seed: int = 1) -> torch.Tensor:
    """(3, num_targets, length), of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, VOCAB_SIZE, (3, num_targets, length), generator=generator)
    labels[0, 1, 3:] = labels[2, 0, 5:] = -100
    return labels


def cost(model, ids, mask, labels, noise) -> torch.Tensor:
    """The weighted terms of each row, spelled out with one row at a time."""
    rows = []
    for row, answer in enumerate(labels):
        answer = answer[answer != -100]
        source = mask[row].bool()
        outputs = model(ids[row : row + 1, source], prior_noise=noise[row : row + 1, : len(answer)])
        tokens = F.cross_entropy(outputs.logits[0], answer)
        length = F.cross_entropy(outputs.length_logits[0], torch.tensor(len(answer) - 1))
        ngrams = ngram_distance(outputs.logits, answer[None])[0]
        rows.append(tokens + 3 * ngrams + 0.5 * length)
    return torch.stack(rows)


def test_the_easiest_answer_is_chosen_with_its_own_prior():
    model = tiny_model(ngram_loss_weight=3.0, length_loss_weight=0.5).train()
    (ids, mask), labels = source_batch(), several_answers()
    chosen, noise = select_pairs(model, ids, mask, labels, num_priors=2, generator=torch.Generator().manual_seed(4))
    assert model.training
    model.eval()
    # The same draws, every pair by itself.
    every = torch.randn(18, 6, 16, generator=torch.Generator().manual_seed(4)).view(3, 3, 2, 6, 16)
    costs = torch.stack(
        [cost(model, ids, mask, labels[:, r], every[:, r, m]) for r in range(3) for m in range(2)], dim=1
    )
    best = costs.argmin(1)
    for row in range(3):
        answer, prior = labels[row, best[row] // 2], every[row, best[row] // 2, best[row] % 2]
        kept = (chosen[row] != -100).sum()
        assert torch.equal(chosen[row, :kept], answer[answer != -100])
        assert torch.equal(noise[row, :kept], prior[:kept])
    assert torch.allclose(cost(model, ids, mask, chosen, noise), costs.min(1).values, atol=1e-5)
    assert len(set(best.tolist())) > 1


def test_batches_hold_several_answers_of_each_row(tokenizer):
    pairs = Dataset.from_dict(
        {
            "source": ["a pub", "the vaults", "a pub", "a pub"],
            "target": ["by the river", "cheap", "cheap pub", "river"],
        }
    )
    rows = group_labels(tokenize_pairs(pairs, tokenizer, 16, 16))
    assert [len(labels) for labels in rows["labels"]] == [3, 1]
    collator = DataCollatorForSeveralTargets(tokenizer, num_targets=2, generator=random.Random(0))
    batch = collator(list(rows))
    assert batch["labels"].shape[:2] == (2, 2)
    texts = [[tokenizer.decode(ids[ids >= 0], skip_special_tokens=True) for ids in row] for row in batch["labels"]]
    assert len(set(texts[0])) == 2
    assert set(texts[0]) < {"by the river", "cheap pub", "river"}
    assert texts[1] == ["cheap", "cheap"]
    # One answer a row, as in evaluation, is collated as everywhere else.
    assert collator([{"input_ids": [5, 2], "labels": [7, 2]}])["labels"].tolist() == [[7, 2]]


def test_training_settles_on_one_of_two_answers(tmp_path):
    """
    Each source has two right answers without a token in common: the easiest makes a choice and is learned, while nothing can
    say which of both a draw will ask for: ln 2 nats at each of three words, none at EOS.
    """

    def train(targets: int) -> tuple[list[float], float]:
        ids = source_batch((6,) * 4)[0].tolist()
        answers = [[[10 + row, 20 + row, 30 + row, 2], [40 + row, 15 + row, 25 + row, 2]] for row in range(4)]
        rows = [{"input_ids": i, "attention_mask": [1] * 6, "labels": a} for i, a in zip(ids, answers)]
        arguments = Seq2SeqTrainingArguments(
            tmp_path / str(targets), max_steps=150, learning_rate=1e-2, per_device_train_batch_size=4, logging_steps=150,
            report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
        )  # fmt: skip
        tokenizer = train_tokenizer(["a b c"], 270, 16)
        trainer = YanPairSelectionTrainer(
            model=tiny_model(prediction_type="data", nll_loss_weight=0.01),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForSeveralTargets(tokenizer, num_targets=targets, generator=random.Random(0)),
            generator=torch.Generator().manual_seed(0),
        )
        trainer.train()
        model = trainer.model.eval()
        batch = torch.tensor(ids)
        written = model.generate(batch, target_lengths=4, generator=torch.Generator().manual_seed(0)).tolist()
        hits = [
            max(sum(a == b for a, b in zip(row[:3], right)) for right in answers[i]) for i, row in enumerate(written)
        ]
        return hits, trainer.last_terms()["ce_loss"]

    chosen, drawn = train(2), train(1)
    assert chosen[0] == [3, 3, 3, 3]
    assert chosen[1] < 0.5 * drawn[1]
    assert drawn[1] > 0.75 * math.log(2)


def test_there_must_be_something_to_choose_from(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="num_targets=0"):
        DataCollatorForSeveralTargets(tokenizer, num_targets=0)
    arguments = Seq2SeqTrainingArguments(tmp_path, report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="num_priors=0"):
        YanPairSelectionTrainer(tiny_model(), arguments, num_priors=0)
