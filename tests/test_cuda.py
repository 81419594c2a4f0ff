"""
On a GPU: what the CPU computes, fast paths as plain paths, captured graphs that are never stale, half precision,
training.

    pytest tests/test_cuda.py
"""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainingArguments, pipeline

from modeling_yan import YanForConditionalGeneration
from modeling_yan.compilation_yan import CompiledFunctions
from modeling_yan.ctc_yan import ctc_viterbi
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.evaluation.baselines import check, diffusion_baselines, gpt2_baseline, yan_system
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM
from modeling_yan.evaluation.quality import length_errors, reconstruct
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.selective_scan_yan import chunked_scan, doubling_scan, sequential_scan
from modeling_yan.training.trainer import YanSeq2SeqTrainer
from modeling_yan.velocity_field_yan import YanExperts, route_tokens

from .helpers import VOCAB_SIZE, seeded, source_batch, tiny_config, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MIXERS = ("attention", "conv_attention", "mamba")


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Convolutions round to tf32 by default, which is not what is compared here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(*tensors):
    return tuple(x.cuda() for x in tensors)


def training_inputs(rows: int = 3) -> dict[str, torch.Tensor]:
    ids, mask = source_batch((7, 4, 5))
    labels = torch.randint(4, VOCAB_SIZE, (rows, 9), generator=seeded(1))
    labels[1, 6:] = -100
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "prior_noise": torch.randn(rows, 9, 16, generator=seeded(2)),
        "timesteps": torch.rand(rows, generator=seeded(3)),
        "expert_indices": torch.randint(3, (rows, 9), generator=seeded(4)),
    }


def compare_with_the_cpu(inputs: dict[str, torch.Tensor], **options) -> None:
    def gradients(device: str):
        model = tiny_model(**options).train().to(device)
        outputs = model(**{name: x.to(device) for name, x in inputs.items()})
        outputs.loss.backward()
        return outputs.loss.detach().cpu(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}

    (loss, expected), (own_loss, found) = gradients("cpu"), gradients("cuda")
    torch.testing.assert_close(own_loss, loss, rtol=1e-4, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mixer", MIXERS)
def test_losses_and_gradients_are_those_of_the_cpu(mixer):
    options = {"latent_noise": 0.0, "unroll_steps": 3, "mmd_loss_weight": 0.0}
    compare_with_the_cpu(training_inputs(), encoder_mixer=mixer, flow_mixer=mixer, **options)


@pytest.mark.parametrize("bigram_loss_weight", [0.0, 5.0])
def test_losses_over_all_placements_are_those_of_the_cpu(bigram_loss_weight):
    inputs = training_inputs()
    inputs["prior_noise"] = torch.randn(3, 18, 16, generator=seeded(2))
    inputs["expert_indices"] = torch.randint(3, (3, 18), generator=seeded(4))
    blanks = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
    compare_with_the_cpu(inputs, bigram_loss_weight=bigram_loss_weight, **blanks)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("canvas", [{}, {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}])
def test_the_same_noise_gives_the_tokens_of_the_cpu(mixer, canvas):
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer, **canvas)
    ids, mask = source_batch((7, 4, 5))
    noise = torch.randn(3, 11, 16, generator=seeded())
    options = {"target_lengths": [11, 5, 8], "expert_selection": "argmax"}
    expected = model.generate(ids, mask, prior_noise=noise, **options)
    assert torch.equal(model.cuda().generate(*on_gpu(ids, mask), prior_noise=noise.cuda(), **options).cpu(), expected)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_depend_on_themselves_only_and_the_generator_decides(mixer, side):
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer).cuda()
    ids, mask = on_gpu(*source_batch((9, 4, 5), side=side))
    options = {"target_lengths": [11, 5, 8], "do_sample": True}
    together = model.generate(ids, mask, generator=seeded(), **options)
    assert torch.equal(together, model.generate(ids, mask, generator=seeded(), **options))
    assert not torch.equal(together, model.generate(ids, mask, generator=seeded(1), **options))
    for row, length in enumerate(options["target_lengths"]):
        own = ids[row][mask[row].bool()].unsqueeze(0)
        alone = model.generate(own, generator=seeded(), target_lengths=length, do_sample=True)
        assert torch.equal(alone[0], together[row, : alone.shape[1]])
    generator = torch.Generator("cuda").manual_seed(5)
    first = model.generate(ids, mask, generator=generator, **options)
    assert torch.equal(first, model.generate(ids, mask, generator=generator.manual_seed(5), **options))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_fast_path_equals_plain_path(mixer, solver):
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer, hidden_size=32, intermediate_size=64).cuda()
    (source,) = on_gpu(torch.randint(4, VOCAB_SIZE, (3, 7), generator=seeded()))
    written = model.generate(
        source,
        target_lengths=13,
        solver=solver,
        generator=seeded(),
        return_dict_in_generate=True,
        output_trajectory=True,
    )
    assert written.trajectory.device.type == "cuda"
    peer = yan_system(model, 3)
    assert peer.is_right(source, peer.write(source, 13))


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("grouped_mm", torch.bfloat16), ("dense", torch.float32), ("dense", torch.bfloat16), ("auto", torch.float32)],
)
@pytest.mark.parametrize("tokens", [1, 13, 200])
def test_experts_equal_the_loop_in_outputs_and_gradients(implementation, dtype, tokens):
    config = tiny_config(hidden_size=64, intermediate_size=128, num_experts=4)
    experts = YanExperts(config)
    for index, parameter in enumerate(experts.parameters()):
        parameter.data.normal_(0, 0.2, generator=seeded(index))
    experts = experts.cuda().to(dtype)
    states = torch.randn(2, tokens, 64, generator=seeded()).cuda().to(dtype)
    # Expert 2 gets nothing.
    routing = route_tokens(torch.tensor([0, 1, 3])[torch.randint(3, (2, tokens), generator=seeded())].cuda(), 4)

    def run(name: str):
        experts.zero_grad()
        experts.implementation = name
        own = states.clone().requires_grad_()
        out = experts(own, routing)
        out.float().square().sum().backward()
        return [out, own.grad, *(p.grad for p in experts.parameters())]

    near = {"rtol": 3e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for plain, fast in zip(run("loop"), run(implementation), strict=True):
        scale = plain.float().abs().max().clamp_min(1)
        torch.testing.assert_close(fast.float() / scale, plain.float() / scale, **near)


@pytest.mark.parametrize("scan", [chunked_scan, doubling_scan])
@pytest.mark.parametrize("length", [2, 13, 65])
def test_scans_equal_the_sequential_one_in_outputs_and_gradients(scan, length):
    # u, delta, A, B, C: two groups of three channels, four states.
    shapes = ((2, length, 2, 3), (2, length, 2, 3), (2, 3, 4), (2, length, 2, 4), (2, length, 2, 4))
    tensors = [torch.randn(shape, generator=seeded(i)).cuda() for i, shape in enumerate(shapes)]
    tensors[1], tensors[2] = tensors[1].abs(), -tensors[2].abs()

    def run(function):
        own = [x.clone().requires_grad_() for x in tensors]
        out = function(*own)
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in own)]

    for plain, fast in zip(run(sequential_scan), run(scan), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mixer", ["attention", "conv_attention"])
def test_captured_graphs_give_the_plain_tokens_and_are_never_stale(mixer):
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer, hidden_size=32, intermediate_size=64).cuda()

    def both(seed: int, **options):
        ids, mask = on_gpu(*source_batch((7, 4, 5), seed=seed))
        common = {"target_lengths": [6, 13, 9], "return_dict_in_generate": True, **options}
        plain = model.generate(ids, mask, generator=seeded(seed), **common)
        captured = model.generate(ids, mask, generator=seeded(seed), compile=True, **common)
        return plain, captured

    pairs = [both(seed) for seed in range(4)]
    # What an earlier replay returned is still what it was after later ones.
    for plain, captured in pairs:
        assert torch.equal(captured.sequences, plain.sequences)
        torch.testing.assert_close(captured.sequences_scores, plain.sequences_scores, rtol=1e-3, atol=1e-4)
    kept = len(CompiledFunctions.of(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    plain, captured = both(0)
    assert torch.equal(captured.sequences, plain.sequences)
    assert len(CompiledFunctions.of(model)) == kept


def test_half_precision_writes_nearly_the_same_and_keeps_the_state_in_float32():
    model = tiny_model(hidden_size=32, intermediate_size=64).cuda()
    ids, mask = on_gpu(*source_batch((7, 4, 5)))
    noise = torch.randn(3, 9, 32, generator=seeded()).cuda()
    options = {"target_lengths": 9, "expert_selection": "argmax", "return_dict_in_generate": True}
    full = model.generate(ids, mask, prior_noise=noise, output_trajectory=True, **options).trajectory
    half = model.bfloat16().generate(ids, mask, prior_noise=noise, output_trajectory=True, **options).trajectory
    assert half.dtype == torch.float32
    assert float((half - full).norm() / full.norm()) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_benchmarks_checks_pass_and_notice_a_wrong_token(dtype):
    model = tiny_model(hidden_size=64, intermediate_size=256, vocab_size=500).cuda().to(dtype)
    source = torch.randint(4, 500, (2, 7), generator=seeded()).cuda()
    for peer in (yan_system(model, 3), gpt2_baseline(model), *diffusion_baselines(model)):
        assert check(peer, source, 16), peer.name
        write = peer.write
        peer.write = lambda source, length, write=write: (write(source, length) + 1) % 500
        assert check(peer, source, 16) is None, peer.name


def test_save_and_load_are_bit_equal_and_the_pipeline_writes_on_the_gpu(tmp_path):
    tokenizer = train_tokenizer(["a cat sat", "a dog ran"] * 3, 300, 32)
    model = tiny_model(vocab_size=len(tokenizer)).cuda()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).cuda().eval()
    (ids,) = on_gpu(source_batch((7,))[0])
    assert torch.equal(model(ids, labels=ids).loss, again(ids, labels=ids).loss)
    texts = generate_texts(again, tokenizer, ["a cat", "a dog sat"], generator=seeded())
    assert len(texts) == 2
    assert len(reconstruct(again, tokenizer, ["a cat"], max_length=8)) == 1
    assert length_errors(again, tokenizer, ["a cat"], [3], max_source_length=8)["mean_absolute_error"] >= 0
    pipe = pipeline("text2text-generation", model=again, tokenizer=tokenizer, device=0)
    assert isinstance(pipe("a cat", max_new_tokens=5)[0]["generated_text"], str)


@pytest.mark.parametrize("mixer", MIXERS)
def test_training_in_bfloat16_learns_and_evaluates_by_generation(tmp_path, mixer):
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer, prediction_type="data")
    rows = [{"input_ids": [5 + i, 9, 2], "attention_mask": [1, 1, 1], "labels": [5 + i, 7, 2]} for i in range(8)]
    tokenizer = train_tokenizer(["a cat sat"] * 3, 300, 32)
    arguments = Seq2SeqTrainingArguments(
        tmp_path,
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        bf16=True,
        gradient_checkpointing=True,
        predict_with_generate=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = YanSeq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.model.device.type == "cuda"
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trainer.predict(rows).predictions.shape[0] == 8


def test_masked_diffusion_trains_and_writes_on_the_gpu():
    model = diffusion_baselines(tiny_model(vocab_size=500))[0].model.cuda().train()
    ids = torch.randint(4, 500, (2, 9), generator=seeded()).cuda()
    labels = ids.clone()
    labels[:, :4] = -100
    model(ids, labels=labels).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert isinstance(model, MaskedDiffusionLM)
    assert model.eval().generate(ids, max_new_tokens=6, num_inference_steps=3).shape == (2, 15)


def test_loading_in_the_dtype_of_the_folder(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path)
    model = YanForConditionalGeneration.from_pretrained(tmp_path, device_map="cuda")
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)


def test_the_ctc_viterbi_is_that_of_the_cpu():
    labels, canvas = torch.randint(3, 9, (5, 7), generator=seeded()), torch.ones(5, 20, dtype=torch.bool)
    logits = torch.randn(5, 20, 9, generator=seeded(1))
    placed = ctc_viterbi(*on_gpu(logits, labels, canvas), blank_id=0)
    assert torch.equal(placed.cpu(), ctc_viterbi(logits, labels, canvas, blank_id=0))
