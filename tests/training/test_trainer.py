"""Trainer integration: gradient accumulation, logged terms, averaged weights, freezing."""

import itertools
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainingArguments,
)

from modeling_yan import YanForConditionalGeneration
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.freezing import freeze
from modeling_yan.training.samples import SamplesCallback
from modeling_yan.training.trainer import EMACallback, EpochLengthSampler, YanSeq2SeqTrainer, YanTrainer

from ..helpers import TEXTS, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 32)


def rows(tokenizer) -> Dataset:
    pairs = [(tokenizer(s)["input_ids"], tokenizer(t)["input_ids"]) for s in TEXTS for t in TEXTS]
    return Dataset.from_list([{"input_ids": s, "attention_mask": [1] * len(s), "labels": t} for s, t in pairs])


class FixedDraws(YanForConditionalGeneration):
    """Draws that depend on the row's content only, so that batches can be split without changing them."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        noise = torch.stack([torch.full((labels.shape[1], 16), float(row.sum() % 7) / 7 - 0.5) for row in input_ids])
        times = (input_ids.sum(-1) % 5) / 5.0
        experts = torch.zeros(labels.shape, dtype=torch.long)
        return super().forward(
            input_ids, attention_mask, labels, prior_noise=noise, timesteps=times, expert_indices=experts, **kwargs
        )


def train(tokenizer, folder, model=None, callbacks=None, embedding_learning_rate=None, resume=None, **options):
    torch.manual_seed(0)
    model = model or tiny_model(FixedDraws, vocab_size=300, latent_noise=0.0)
    arguments = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
    }
    trainer = YanSeq2SeqTrainer(
        model=model.train(),
        args=Seq2SeqTrainingArguments(**{**arguments, **options}),
        train_dataset=rows(tokenizer),
        eval_dataset=rows(tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=callbacks,
        embedding_learning_rate=embedding_learning_rate,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_gradient_accumulation_gives_the_weights_of_the_whole_batch(tokenizer, tmp_path):
    whole = train(tokenizer, tmp_path)
    split = train(tokenizer, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for (name, a), b in zip(whole.model.named_parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4, msg=name)
    for name in ("loss", "nll_loss", "ce_loss", "mse_loss", "length_loss"):
        a, b = ([entry[name] for entry in t.state.log_history if "loss" in entry] for t in (whole, split))
        assert len(a) == 3
        assert b == pytest.approx(a, rel=1e-3, abs=2e-3), name


def test_logged_terms_add_up_to_the_logged_loss(tokenizer, tmp_path):
    trainer = train(tokenizer, tmp_path, logging_steps=3)
    entry = next(e for e in trainer.state.log_history if "nll_loss" in e)
    config = trainer.model.config.training_config
    terms = ("nll_loss", "mse_loss", "ce_loss", "length_loss")
    assert entry["loss"] == pytest.approx(sum(config.weights[t] * entry[t] for t in terms), rel=1e-3)


def test_training_lowers_the_loss(tokenizer, tmp_path):
    """Over the seeds 0 to 9 of model and trainer the last five losses were 0.46 to 0.52 of the first five."""
    model = tiny_model(vocab_size=300, nll_loss_weight=0.05)
    trainer = train(
        tokenizer,
        tmp_path,
        model=model,
        max_steps=60,
        optim="adamw_torch",
        per_device_train_batch_size=16,
        max_grad_norm=1.0,
    )
    losses = [entry["ce_loss"] for entry in trainer.state.log_history if "ce_loss" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_averaged_weights_are_the_recursion_and_serve_evaluation(tokenizer, tmp_path):
    seen = []

    class Spy(EMACallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            super().on_step_end(args, state, control, model=model, **kwargs)
            seen.append(model.decoder.lm_head.bias.detach().clone())

    start = tiny_model(FixedDraws, vocab_size=300, latent_noise=0.0)
    average = start.decoder.lm_head.bias.detach().clone()
    trainer = train(tokenizer, tmp_path, model=start, callbacks=[Spy(0.5)])
    for update, weights in enumerate(seen, 1):
        decay = min(0.5, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(trainer.model.decoder.lm_head.bias.detach(), average)
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Spy))
    callback.average = {name: torch.zeros_like(p) for name, p in callback.average.items()}
    before = trainer.model.decoder.lm_head.bias.detach().clone()
    with callback.applied(trainer.model):
        assert (trainer.model.decoder.lm_head.bias == 0).all()
    assert torch.equal(trainer.model.decoder.lm_head.bias.detach(), before)


def test_the_best_models_average_is_what_is_left(tokenizer, tmp_path):
    class Worsening(EMACallback):
        """The first checkpoint is the best, whatever the losses are."""

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            metrics["eval_step"] = state.global_step

    every_update = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "step", "greater_is_better": False}
    trainer = train(tokenizer, tmp_path, callbacks=[Worsening(0.5)], **every_update, **best)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    first, last = (load_file(tmp_path / f"checkpoint-{step}" / "ema.safetensors") for step in (1, 3))
    bias = "decoder.lm_head.bias"
    assert not torch.equal(first[bias], last[bias])
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, first[name]), name


def test_the_average_goes_on_in_another_folder(tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = train(tokenizer, tmp_path / "whole", callbacks=[EMACallback(0.5)], **options)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed = train(tokenizer, tmp_path / "again", callbacks=[EMACallback(0.5)], resume=checkpoint, **options)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_grouped_by_length_come_in_an_order_of_seed_and_epoch_alone():
    lengths, epoch = [n % 7 + 1 for n in range(50)], 0

    def order(seed: int, drawn_before: int) -> list[int]:
        torch.manual_seed(drawn_before)
        return list(EpochLengthSampler(3, lengths, seed=seed, epoch=lambda: epoch))

    first = order(5, drawn_before=0)
    assert sorted(first) == list(range(50))
    assert order(5, drawn_before=1) == first
    assert order(6, drawn_before=0) != first
    epoch = 1
    assert order(5, drawn_before=0) != first


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("count", [200, 203])
def test_batches_of_similar_lengths_are_shuffled(count, together):
    lengths = [1 + row * 7 % 100 for row in range(count)]
    order = list(EpochLengthSampler(4, lengths, together=together, seed=0, epoch=lambda: 0))
    assert sorted(order) == list(range(count))
    size = 4 * together
    batches = [[lengths[row] for row in order[start : start + size]] for start in range(0, count, size)]
    # The longest row shows at once what memory is needed; the batch that lacks some is the last.
    assert max(batches[0]) == 100
    assert len(batches[-1]) == (count % size or size)
    # By hand: a fourth of the rows is sorted at a time, so that neighbours are a few apart, but for the longest row,
    # which changed places with another.
    assert sorted(max(batch) - min(batch) for batch in batches[1:])[len(batches) // 2] < 20
    # Sorted batches would fall from each to the next, but where one of four parts begins.
    rises = sum(after[0] > before[0] for before, after in itertools.pairwise(batches))
    assert rises > len(batches) / 4


@pytest.mark.parametrize("step", [4, 6], ids=["between_epochs", "within_an_epoch"])
def test_a_resumed_run_reads_the_batches_that_it_would_have_read(tokenizer, tmp_path, step):
    class Reader(FixedDraws):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            read.append((input_ids.tolist(), labels.tolist()))
            return super().forward(input_ids, attention_mask, labels, **kwargs)

    options = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 4, "max_steps": 10}
    saving = {"save_strategy": "steps", "save_steps": step}
    batches = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / f"checkpoint-{step}"))):
        read: list = []
        model = tiny_model(Reader, vocab_size=300, latent_noise=0.0)
        train(tokenizer, tmp_path / folder, model=model, resume=resume, **options, **saving)
        batches.append(read)
    whole, again = batches
    # An epoch is four updates.
    assert whole[:4] != whole[4:8]
    assert again == whole[step:]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_rows_that_are_evaluated_keep_their_order(tokenizer, tmp_path, strategy):
    trainer = train(tokenizer, tmp_path, max_steps=1, train_sampling_strategy=strategy, per_device_eval_batch_size=4)
    seen = [ids for batch in trainer.get_eval_dataloader() for ids in batch["labels"].tolist()]
    assert [[i for i in ids if i >= 0] for ids in seen] == rows(tokenizer)["labels"][:]


def test_embeddings_can_have_a_learning_rate_of_their_own(tokenizer, tmp_path):
    def state(**options) -> dict[str, torch.Tensor]:
        model = train(tokenizer, tmp_path, max_steps=1, lr_scheduler_type="constant", **options).model
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    table = "model.encoder.embeddings.word_embeddings.weight"
    start, plain, faster = state(learning_rate=0.0), state(), state(embedding_learning_rate=0.1)
    torch.testing.assert_close(faster[table] - start[table], 10 * (plain[table] - start[table]), atol=1e-5, rtol=1e-4)
    assert not torch.equal(plain[table], start[table])
    for name in start.keys() - {table}:
        assert torch.equal(faster[name], plain[name]), name


def test_the_rate_of_embeddings_follows_the_schedule_and_survives_a_checkpoint(tokenizer, tmp_path):
    options = {
        "optim": "adamw_torch",
        "embedding_learning_rate": 0.02,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
    }
    whole = train(tokenizer, tmp_path / "whole", **options)
    assert [group["lr"] for group in whole.optimizer.param_groups if group["params"]][-1] == 0.0
    resumed = train(tokenizer, tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-2"), **options)
    for trainer in (whole, resumed):
        assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.02, 0.01}
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_rate_for_frozen_embeddings_is_refused(tokenizer, tmp_path):
    model = tiny_model(FixedDraws, vocab_size=300)
    freeze(model, ["embeddings"])
    with pytest.raises(ValueError, match=r"embedding_learning_rate=0\.1.*not trained"):
        train(tokenizer, tmp_path, model=model, embedding_learning_rate=0.1)


def test_predict_with_generate_leaves_yans_options_in_the_checkpoint(tokenizer, tmp_path):
    trainer = train(tokenizer, tmp_path, model=tiny_model(vocab_size=300), predict_with_generate=True)
    ids = trainer.predict(rows(tokenizer)).predictions
    assert len(ids) == 16
    trainer.save_model(tmp_path / "saved")
    loaded = YanForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert loaded.generation_config.max_length == 32
    assert loaded.generation_config.num_inference_steps == 3


@pytest.mark.parametrize("parts", [[], ["encoder"], ["embeddings", "decoder"], ["flow", "length_head"]])
def test_freeze_freezes_what_it_names_and_nothing_else(parts):
    model = tiny_model()
    left = freeze(model, parts)
    for name, parameter in model.named_parameters():
        part = name.removeprefix("model.")
        expected = not any(part.startswith({"embeddings": "encoder.embeddings."}.get(p, p + ".")) for p in parts)
        assert parameter.requires_grad == expected, name
    assert left == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_freezing_everything_or_nonsense_is_refused():
    with pytest.raises(ValueError, match="brain"):
        freeze(tiny_model(), ["brain"])
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(tiny_model(), ["encoder", "flow", "decoder", "length_head"])


class Writer(TrainerCallback):
    """Where TensorBoard's callback keeps its writer."""

    def __init__(self):
        self.tb_writer, self.written = self, []

    def add_text(self, tag: str, text: str, step: int):
        self.written.append((tag, text, step))


def test_samples_are_written_with_the_weights_of_evaluation_and_reported(tmp_path, tokenizer):
    writer, average = Writer(), EMACallback(0.5)
    arguments = Seq2SeqTrainingArguments(
        tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, report_to="none", use_cpu=True, save_strategy="no"
    )
    trainer = YanSeq2SeqTrainer(
        tiny_model(vocab_size=300),
        arguments,
        train_dataset=rows(tokenizer),
        eval_dataset=rows(tokenizer).select(range(2)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[writer, average],
    )
    seen = []
    generate = trainer.model.generate
    trainer.model.generate = lambda **k: seen.append(trainer.model.decoder.lm_head.bias.clone()) or generate(**k)
    trainer.add_callback(SamplesCallback(trainer, TEXTS[:2], TEXTS[2:]))
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["source"]) for line in lines] == [(s, t) for s in (1, 2) for t in TEXTS[:2]]
    assert [(tag, step) for tag, _, step in writer.written] == [("samples", 1), ("samples", 2)]
    assert writer.written[0][1].count("|") == 4 * 4
    torch.testing.assert_close(seen[-1], average.average["decoder.lm_head.bias"])


def test_mambas_rates_and_skips_are_not_decayed(tmp_path):
    model = tiny_model(encoder_mixer="mamba", flow_mixer="mamba")
    names = YanTrainer(model, TrainingArguments(tmp_path, report_to="none")).get_decay_parameter_names(model)
    assert any(name.endswith("in_proj.weight") for name in names)
    assert not [name for name in names if name.endswith(("A_log", ".D", "bias"))]


def test_freezing_embeddings_reaches_those_of_a_hosted_encoder():
    bert = BertConfig(vocab_size=53, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    model = tiny_model(encoder_config=bert)
    freeze(model, ["embeddings"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "model.encoder.backbone.embeddings.word_embeddings.weight" in frozen
    assert "model.encoder.backbone.encoder.layer.0.output.dense.weight" not in frozen
