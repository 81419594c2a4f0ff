"""The card that the trainers write: what the model is, how it was trained, and what Trainer's arguments say."""

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.adapters import lora_config
from modeling_yan.training.card import MARK, may_write_card
from modeling_yan.training.runs import finish_run
from modeling_yan.training.trainer import YanSeq2SeqTrainer

from ..helpers import TEXTS, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 32)


def trained(tokenizer, folder, model=None, **options) -> YanSeq2SeqTrainer:
    torch.manual_seed(0)
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in tokenizer(TEXTS)["input_ids"]
    ]
    fixed = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    trainer = YanSeq2SeqTrainer(
        model=model or tiny_model(vocab_size=300),
        args=Seq2SeqTrainingArguments(
            str(folder), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=3, **fixed, **options
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def test_it_says_what_the_model_is_and_how_it_was_trained(tokenizer, tmp_path):
    trainer = trained(tokenizer, tmp_path / "yan", learning_rate=3e-4, eval_strategy="steps", eval_steps=2)
    trainer.data_names, trainer.scores = ["my.csv"], {"test": {"rows": 5, "bleu": 12.25, "bleu_interval": [1, 2]}}
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "yan" / "README.md")
    assert "# yan\n\nA YAN ([mixture-of-experts flow matching" in card.text
    assert "flow layers with 3 experts" in card.text
    assert 'pipeline("text2text-generation", model="yan", trust_remote_code=True)' in card.text
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    for line in (
        f"| data | my.csv ({len(TEXTS)} rows) |",
        "| updates | 2 (",
        "| batch size | 6 |",
        "| learning rate | 0.0003, schedule linear |",
        f"| last loss | {last['loss']:.4g} (nll_loss {last['nll_loss']:.4g}",
    ):
        assert line in card.text, line
    evaluated = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert "| scored on | loss | rows | bleu |" in card.text
    assert f"| evaluation | {evaluated:.4g} |  |  |" in card.text
    assert "| test |  | 5 | 12.25 |" in card.text
    # Nothing of the library's template.
    assert "More information needed" not in card.text
    # What was measured stands in the metadata, too, as the Hub reads it; what was not does not.
    stated = [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert stated == [("my.csv", "test", "bleu", 12.25)]
    assert card.data.pipeline_tag == card.data.eval_results[0].task_type == "text-generation"
    trainer.scores = {}
    trainer.create_model_card()
    assert "model-index" not in ModelCard.load(tmp_path / "yan" / "README.md").data.to_dict()
    assert card.data.tags == ["yan", "flow-matching", "custom_code", "generated_from_trainer"]
    assert card.data.library_name == "transformers"


def test_it_takes_what_trainers_own_takes(tokenizer, tmp_path):
    trainer = trained(tokenizer, tmp_path)
    trainer.create_model_card(
        "de", "apache-2.0", ["poems"], model_name="dichter", finetuned_from="org/base", tasks="text-generation",
        dataset_tags="org/poems", dataset="Poems", dataset_args="all",
    )  # fmt: skip
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.language, card.data.license) == (["de"], "apache-2.0")
    assert {"poems", "yan", "generated_from_trainer"} <= set(card.data.tags)
    assert (card.data.base_model, card.data.pipeline_tag) == ("org/base", "text-generation")
    assert card.data.datasets == ["org/poems"]
    assert "# dichter\n" in card.text
    assert f"| data | Poems ({len(TEXTS)} rows) |" in card.text
    with pytest.raises(TypeError, match="licence"):
        trainer.create_model_card(licence="mit")


def test_an_adapters_card_names_peft_and_its_base(tokenizer, tmp_path):
    tiny_model(vocab_size=300).save_pretrained(tmp_path / "base")
    base = type(tiny_model()).from_pretrained(tmp_path / "base")
    trainer = trained(tokenizer, tmp_path / "lora", get_peft_model(base, lora_config(base, 2)))
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "lora" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", str(tmp_path / "base"))
    assert {"yan", "lora"} <= set(card.data.tags)
    assert f"# lora\n\nAn adapter (PEFT) of {tmp_path / 'base'}, a YAN (" in card.text
    assert 'from peft import AutoPeftModelForSeq2SeqLM\n\nAutoPeftModelForSeq2SeqLM.from_pretrained("lora"' in card.text
    assert "| batch size | 6 |" in card.text


@pytest.mark.parametrize("own", [None, MARK, "# Mine"], ids=["absent", "of a trainer", "by hand"])
def test_a_run_ends_with_a_card_unless_somebody_wrote_one(tokenizer, tmp_path, own, capsys):
    if own is not None:
        (tmp_path / "README.md").write_text(own)
    trainer = trained(tokenizer, tmp_path)
    trainer.save_model()
    finish_run(trainer, {})
    text = (tmp_path / "README.md").read_text()
    assert ("| updates | 2" in text) == (own != "# Mine")
    assert may_write_card(tmp_path) == (own != "# Mine")
