"""Supervised fine-tuning on TRL's formats with TRL's trainer."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from trl import SFTConfig

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.sft import YanSFTTrainer, split_example

from ..helpers import seeded, tiny_model, word_piece_tokenizer, word_tokenizer

PAIRS = [
    ("color of the sky?", "blue"),
    ("color of grass?", "green"),
    ("color of snow?", "white"),
    ("of coal?", "black"),
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FORMATS = {
    "prompt_completion": [{"prompt": p, "completion": c} for p, c in PAIRS],
    "conversational": [
        {"prompt": [{"role": "user", "content": p}], "completion": [{"role": "assistant", "content": c}]}
        for p, c in PAIRS
    ],
    "messages": [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]} for p, c in PAIRS],
}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair] * 3, 290, 32)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_trainer(
    path, tokenizer, form: str = "prompt_completion", seed: int = 0, peft_config=None, end_id: int = 2, **options
):
    model = tiny_model(
        seed=seed,
        vocab_size=290,
        eos_token_id=end_id,
        hidden_size=48,
        intermediate_size=96,
        gate_hidden_size=48,
        unroll_steps=2,
        latent_noise=0.0,
        prediction_type="data",
    )
    settings = {"max_steps": 3, "learning_rate": 5e-3, "per_device_train_batch_size": 4, "logging_steps": 20}
    fixed = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    arguments = SFTConfig(
        str(path), max_length=24, gradient_checkpointing=False, seed=seed, **{**fixed, **settings, **options}
    )
    rows = Dataset.from_list(FORMATS[form])
    return YanSFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)


@pytest.mark.parametrize("form", FORMATS)
def test_sources_and_targets_are_tokenised_apart(tmp_path, tokenizer, form):
    rows = make_trainer(tmp_path, tokenizer, form).train_dataset
    for row, (prompt, completion) in zip(rows, PAIRS, strict=True):
        source = prompt if form == "prompt_completion" else f"user: {prompt}\nassistant:"
        assert row["input_ids"] == tokenizer(source, truncation=True, max_length=24)["input_ids"]
        assert row["labels"] == tokenizer(completion)["input_ids"]


@pytest.mark.parametrize("kind", ["cls_and_sep", "no_eos"])
def test_targets_end_once_with_the_models_end_and_begin_with_a_word(tmp_path, kind):
    tokenizer = word_piece_tokenizer() if kind == "cls_and_sep" else word_tokenizer()
    if kind == "no_eos":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    end_id = tokenizer.sep_token_id if kind == "cls_and_sep" else tokenizer.eos_token_id
    rows = make_trainer(tmp_path, tokenizer, end_id=end_id).train_dataset
    for row, (_, completion) in zip(rows, PAIRS, strict=True):
        assert row["labels"] == [*tokenizer(completion, add_special_tokens=False)["input_ids"], end_id]


def test_rows_are_cut_where_the_models_positions_end(tmp_path):
    tokenizer = word_tokenizer()
    rows = Dataset.from_list([{"prompt": "w5 " * 60, "completion": "w6 " * 60}])
    arguments = SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False)
    model = tiny_model(canvas_ratio=2.0, nll_loss_weight=0.0, mse_loss_weight=0.0)
    row = YanSFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train_dataset[0]
    assert (len(row["input_ids"]), len(row["labels"])) == (32, 16)
    assert row["labels"][-1] == model.config.eos_token_id


def test_the_loss_is_the_models_own(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    draws = {"timesteps": torch.rand(4), "prior_noise": torch.randn(*batch["labels"].shape, 48)}
    expected = trainer.model(**batch, **draws).loss
    assert torch.equal(trainer.compute_loss(trainer.model, {**batch, **draws}), expected)


def test_it_learns_to_answer(tmp_path, tokenizer):
    """
    120 updates for four answers. Over the seeds 0 to 9 of model and trainer every answer was right, and the
    cross-entropy at the end was 0.003 to 0.024 of that at the beginning.
    """
    trainer = make_trainer(tmp_path, tokenizer, max_steps=120)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "ce_loss" in entry]
    assert logs[-1]["ce_loss"] < 0.3 * logs[0]["ce_loss"]
    trainer.save_model()
    model, saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    prompts = saved([prompt for prompt, _ in PAIRS], return_tensors="pt", padding=True)
    ids = model.generate(**prompts, generator=seeded())
    assert saved.batch_decode(ids, skip_special_tokens=True) == [answer for _, answer in PAIRS]


def test_with_an_adapter_the_adapter_alone_is_trained(tmp_path, tokenizer):
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="SEQ_2_SEQ_LM")
    trainer = make_trainer(tmp_path, tokenizer, peft_config=lora)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a text"}, "prompt"),
        ({"prompt": "a", "completion": " "}, "empty"),
        ({"prompt": "a", "completion": None}, "empty or no text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "assistant"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}] * 2}, "2 messages"),
    ],
)
def test_rows_that_are_no_source_and_target_are_refused(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        split_example(row, tokenizer)


def test_conversations_need_a_template_and_packing_is_refused(tmp_path, tokenizer):
    bare = train_tokenizer(["a text"], 270, 16)
    with pytest.raises(ValueError, match="chat_template"):
        split_example(FORMATS["messages"][0], bare)
    with pytest.raises(ValueError, match="packing"):
        make_trainer(tmp_path, tokenizer, packing=True)
