"""TRL's formats and trainer, and learning from rewards: what was learned, not that nothing raised."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TrainingArguments
from trl import SFTConfig

from modeling_yan.training.reward import YanRewardTrainer, group_advantages
from modeling_yan.training.sft import YanSFTTrainer, split_example
from modeling_yan.training.tokenization import train_tokenizer

from ..conftest import tiny_model

PAIRS = [
    ("color of the sky?", "blue"),
    ("color of grass?", "green"),
    ("color of snow?", "white"),
    ("of coal?", "black"),
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
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


def small_model(**overrides):
    sizes = {"vocab_size": 290, "hidden_size": 48, "intermediate_size": 96, "gate_hidden_size": 48, "unroll_steps": 2}
    return tiny_model(**{**sizes, "latent_noise": 0.0, "prediction_type": "data", **overrides})


def config(path, **options) -> SFTConfig:
    settings = {
        "max_steps": 120,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "logging_steps": 20,
        **options,
    }
    return SFTConfig(
        str(path), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", max_length=24,
        gradient_checkpointing=False, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_sft_learns_to_answer(tmp_path, tokenizer, form):
    trainer = YanSFTTrainer(
        small_model(), config(tmp_path), train_dataset=Dataset.from_list(FORMATS[form]), processing_class=tokenizer
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "nll_loss" in entry]
    assert logs[-1]["ce_loss"] < 0.3 * logs[0]["ce_loss"]
    trainer.save_model()
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    saved = AutoTokenizer.from_pretrained(tmp_path)
    prompts = [split_example(row, saved)[0] for row in FORMATS[form]]
    ids = model.generate(
        **saved(prompts, return_tensors="pt", padding=True), generator=torch.Generator().manual_seed(0)
    )
    assert saved.batch_decode(ids, skip_special_tokens=True) == [answer for _, answer in PAIRS]


def test_sft_with_an_adapter_trains_the_adapter_alone(tmp_path, tokenizer):
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="SEQ_2_SEQ_LM")
    trainer = YanSFTTrainer(
        small_model(),
        config(tmp_path, max_steps=30),
        train_dataset=Dataset.from_list(FORMATS["prompt_completion"]),
        eval_dataset=Dataset.from_list(FORMATS["prompt_completion"]),
        processing_class=tokenizer,
        peft_config=lora,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert all("lora_" in name for name, p in trainer.model.named_parameters() if p.requires_grad)
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a text"}, "prompt"),
        ({"prompt": "a", "completion": " "}, "empty"),
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
        YanSFTTrainer(
            small_model(),
            config(tmp_path, packing=True),
            train_dataset=Dataset.from_list(FORMATS["prompt_completion"]),
            processing_class=tokenizer,
        )


def test_advantages_are_relative_to_the_group():
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]]))
    assert advantages[0].tolist() == pytest.approx([-(2**0.5), 0.0, 2**0.5, 0.0], abs=1e-3)
    assert advantages[1].tolist() == [0.0] * 4


def reward_trainer(path, tokenizer, steps: int, **options) -> YanRewardTrainer:
    sources = [{"input_ids": tokenizer(p)["input_ids"], "wanted": a} for p, a in PAIRS]

    def letters_of_the_answer(completions, wanted, **columns):
        return [len(set(text) & set(answer)) / len(set(answer)) for text, answer in zip(completions, wanted)]

    arguments = TrainingArguments(
        path, max_steps=steps, learning_rate=3e-3, per_device_train_batch_size=4, logging_steps=5, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return YanRewardTrainer(
        small_model(max_position_embeddings=32),
        letters_of_the_answer,
        arguments,
        train_dataset=Dataset.from_list(sources),
        processing_class=tokenizer,
        num_generations=8,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def test_the_reward_rises_and_the_divergence_term_holds_it_back(tmp_path, tokenizer):
    free = reward_trainer(tmp_path, tokenizer, 60)
    free.train()
    rewards = [entry["reward"] for entry in free.state.log_history if "reward" in entry]
    assert rewards[-1] > rewards[0] + 0.2
    held = reward_trainer(tmp_path, tokenizer, 30, beta=100.0)
    held.train()
    logs = [entry for entry in held.state.log_history if "reward" in entry]
    assert logs[0]["kl"] >= 0
    assert logs[-1]["reward"] < rewards[5]


def test_rewards_read_the_text_that_a_canvas_with_room_for_blanks_holds(tmp_path, tokenizer):
    trainer = reward_trainer(tmp_path, tokenizer, 1)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    first, second = tokenizer(PAIRS[0][1], add_special_tokens=False)["input_ids"][0], tokenizer.vocab_size - 1
    path = torch.tensor([[first, first, pad, first, second, pad, eos, second]])
    canvas = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    trainer.model.config.canvas_ratio = 2.0
    assert trainer._texts(path, canvas) == [tokenizer.decode([first, first, second])]
    trainer.model.config.canvas_ratio = 1.0
    assert trainer._texts(path, canvas) == [tokenizer.decode([first, first, first, second])]


def test_the_gradient_is_that_of_the_drawn_answers_log_probability(tmp_path, tokenizer):
    trainer = reward_trainer(tmp_path, tokenizer, 1)
    model = trainer.model
    batch = trainer.data_collator([trainer.train_dataset[0]])
    drawn = trainer._sample(model, batch["input_ids"], batch["attention_mask"])
    trainer._sample = lambda *_: dict(drawn)
    rewards = torch.arange(8.0)
    trainer.reward = lambda completions, **_: rewards.tolist()
    trainer.compute_loss(model, batch).backward()
    ours = model.decoder.lm_head.bias.grad.clone()
    # By hand: every answer alone, its tokens and its length.
    model.zero_grad()
    tokens, lengths = drawn.pop("tokens"), drawn.pop("lengths")
    total = 0.0
    for row, advantage in enumerate(group_advantages(rewards[None])[0]):
        out = model(**{name: value[row : row + 1] for name, value in drawn.items()})
        length = int(lengths[row])
        log_probs = out.logits[0, :length].log_softmax(-1)
        answer = sum(log_probs[i, tokens[row, i]] for i in range(length))
        answer = answer + out.length_logits[0].log_softmax(-1)[length - 1]
        total = total - advantage * answer / length / 8
    total.backward()
    torch.testing.assert_close(ours, model.decoder.lm_head.bias.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_generations": 1}, "num_generations=1"), ({"temperature": 0.0}, "temperature"), ({"beta": -1.0}, "beta")],
)
def test_bad_reward_settings_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        YanRewardTrainer(small_model(), lambda **_: [], processing_class=tokenizer, **options)
