"""Adapters: what they change, what they leave, and that they come back from disk."""

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, IA3Config, LoraConfig, PeftModel, get_peft_model

from modeling_yan import YanForConditionalGeneration

from .helpers import WITH_BLANKS, seeded, source_batch, target_labels, tiny_model

LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj"]


def lora(**options) -> LoraConfig:
    return LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8, target_modules=LINEAR, **options)


def train_a_little(model, updates: int = 3) -> None:
    ids, mask = source_batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(updates):
        model(input_ids=ids, attention_mask=mask, labels=target_labels(), generator=seeded()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model) -> torch.Tensor:
    ids, mask = source_batch()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def text(model) -> torch.Tensor:
    ids, mask = source_batch()
    return model.generate(input_ids=ids, attention_mask=mask, generator=seeded())


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        lora(use_dora=True),
        lora(target_parameters=["model.flow.experts.up_proj", "model.flow.experts.down_proj"]),
        IA3Config(
            task_type="SEQ_2_SEQ_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
    ],
    ids=["lora", "dora", "lora-on-experts", "ia3"],
)
def test_adapter_learns_saves_loads_and_merges(config, tmp_path):
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    base = YanForConditionalGeneration.from_pretrained(tmp_path / "base")
    before = logits(base)
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    model = get_peft_model(base, config)
    torch.testing.assert_close(logits(model), before)
    train_a_little(model)
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-4)
    state = dict(model.named_parameters())
    for name, value in frozen.items():
        kept = [p for n, p in state.items() if n.replace(".base_layer", "").removeprefix("base_model.model.") == name]
        assert all(torch.equal(p, value) for p in kept), name
    model.save_pretrained(tmp_path / "adapter")

    fresh = YanForConditionalGeneration.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), after)
    assert torch.equal(text(loaded), text(model))
    auto = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(auto), after)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), after, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = YanForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {**WITH_BLANKS, "length_head": "source"},
        {"copy_mechanism": True, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0},
    ],
    ids=["own token", "quotations"],
)
def test_an_adapter_on_all_linear_layers_leaves_copying_in_place(options):
    """Among them is the layer that decides what is copied, which is then of PEFT's class."""
    base = tiny_model(**options)
    before, written = logits(base), text(base)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules="all-linear"))
    assert any("copy_head" in name and "lora_A" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(logits(model), before)
    assert torch.equal(text(model), written)
    train_a_little(model)
    assert not torch.allclose(logits(model), before, atol=1e-4)


def test_expert_adapter_changes_the_computed_expert():
    model = tiny_model()
    before = logits(model)
    adapted = get_peft_model(
        model,
        LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=[], target_parameters=["model.flow.experts.up_proj"]),
    )
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("experts" in name for name in trained)
    train_a_little(adapted)
    assert not torch.allclose(logits(adapted), before, atol=1e-5)


def test_two_adapters_share_one_base():
    model = get_peft_model(tiny_model(), lora(), adapter_name="first")
    model.add_adapter("second", lora())
    before = logits(model)
    train_a_little(model)
    first = logits(model)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), before)
    model.set_adapter("first")
    torch.testing.assert_close(logits(model), first)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), before)
