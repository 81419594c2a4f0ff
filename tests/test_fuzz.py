"""
Thousands of random calls, seeded: each ends in a right answer, or in an error that names the argument.

    make test-slow      # all of it; about ten minutes on two cores
    FUZZ_SHARE=0.1 .venv/bin/python -m pytest -m slow tests/test_fuzz.py      # a tenth
"""

import math
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_yan import YanConfig, YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.training_config_yan import TRAINING_FIELDS

from .helpers import VOCAB_SIZE, run_script_main, tiny_config, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
SHARE = float(os.environ.get("FUZZ_SHARE", 1))
# Values that arguments are not meant to have.
ODD_VALUES = [None, -1, 0, 1.5, math.nan, math.inf, True, "x", [], [1], {}, 2**40, torch.tensor(2)]
MODELS = [
    {},
    {"prediction_type": "data", "num_experts": 1},
    {"encoder_mixer": "conv_attention", "flow_mixer": "conv_attention", "reverse_positions": True},
    {"encoder_mixer": "mamba", "flow_mixer": "mamba"},
    {"canvas_ratio": 1.5, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0},
    {"length_head": False},
]


def times(number: int) -> int:
    return max(1, round(SHARE * number))


def names_one_of(error: Exception, arguments: dict) -> bool:
    """Whether the message names something that was passed."""
    message = str(error)
    return any(re.search(rf"\b{re.escape(name)}\b", message) for name in arguments)


def random_source(draw: random.Random) -> dict:
    rows, length = draw.randint(1, 5), draw.randint(1, 9)
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    ids = torch.randint(4, VOCAB_SIZE, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        padding = draw.randint(0, length - 1)
        place = slice(length - padding, None) if draw.random() < 0.5 else slice(0, padding)
        mask[row, place] = 0
    return {"input_ids": ids, "attention_mask": mask}


def random_options(draw: random.Random) -> dict:
    choices = {
        "num_inference_steps": lambda: draw.randint(1, 4),
        "solver": lambda: draw.choice(["euler", "midpoint", "heun"]),
        "time_shift": lambda: draw.choice([0.5, 1, 2.0]),
        "expert_selection": lambda: draw.choice(["sample", "argmax"]),
        "prior_temperature": lambda: draw.choice([0, 0.5, 1.0, 3]),
        "max_new_tokens": lambda: draw.randint(1, 20),
        "min_new_tokens": lambda: draw.randint(0, 5),
        "length_mode": lambda: draw.choice(["predicted", "canvas"]),
        "num_length_candidates": lambda: draw.randint(1, 4),
        "num_candidates": lambda: draw.randint(1, 3),
        "num_return_sequences": lambda: draw.randint(1, 3),
        "do_sample": lambda: draw.random() < 0.5,
        "temperature": lambda: draw.choice([0.5, 1.0, 2.0]),
        "top_k": lambda: draw.choice([0, 1, 7]),
        "top_p": lambda: draw.choice([0.3, 1.0]),
        "target_lengths": lambda: draw.randint(1, 20),
        "eos_token_id": lambda: draw.choice([None, 2, [2, 7]]),
        "num_beams": lambda: draw.choice([1, 4]),
        "use_cache": lambda: False,
    }
    chosen = draw.sample(sorted(choices), draw.randint(0, 7))
    options = {name: choices[name]() for name in chosen}
    if chosen and draw.random() < 0.3:
        options[draw.choice(chosen)] = draw.choice(ODD_VALUES)
    return options


def test_random_calls_of_generate():
    draw = random.Random(0)
    models = [tiny_model(**{"encoder_layers": 1, "flow_layers": 1, "cross_attention_layers": [0], **o}) for o in MODELS]
    answered = 0
    for _ in range(times(10_000)):
        model, source, options = draw.choice(models), random_source(draw), random_options(draw)
        seed = draw.randrange(2**31)

        def write(source=source, options=options, model=model, seed=seed):
            return model.generate(
                **source, generator=torch.Generator().manual_seed(seed), return_dict_in_generate=True, **options
            )

        try:
            out = write()
        except ValueError as error:
            if not names_one_of(error, options):
                pytest.fail(f"{options}: {error}")
            continue
        answered += 1
        rows = len(source["input_ids"]) * (options.get("num_return_sequences") or 1)
        ids, longest = out.sequences, options.get("max_new_tokens") or model.config.max_position_embeddings
        assert len(ids) == rows
        assert ((ids >= 0) & (ids < VOCAB_SIZE)).all()
        assert not (ids == model.config.mask_token_id).any()
        assert out.sequences_scores.isfinite().all()
        if "target_lengths" not in options:
            assert ids.shape[1] <= longest
        if options.get("eos_token_id", 2) == 2:
            for row in ids.tolist():
                assert 2 not in row or set(row[row.index(2) + 1 :]) <= {0}
        if answered % 20 == 0:
            assert torch.equal(write().sequences, ids)
    assert answered > times(10_000) / 2


def test_random_configs():
    draw = random.Random(1)
    names = [name for name in YanConfig.__annotations__ if name not in ("encoder_config", "training_config")]
    values = [*ODD_VALUES, 2, 3, 8, 16, 0.1, 1.0, "attention", "mamba", "gelu", "data", [0], [0, 2]]
    plain, built = tiny_config().to_dict(), 0
    plain |= plain["training_config"]
    for _ in range(times(5_000)):
        changed = draw.sample(names, draw.randint(1, 3)) + draw.sample(TRAINING_FIELDS, draw.randint(0, 2))
        # Half of them keep the value that fits, so that many configs are built.
        changes = {name: draw.choice([plain[name], draw.choice(values)]) for name in changed}
        try:
            config = tiny_config(**changes)
        except (ValueError, StrictDataclassError) as error:
            # What does not fit may be named by the other half of a pair.
            if not re.search(r"\b[a-z]+_[a-z0-9_]+\b", str(error)):
                pytest.fail(f"{changes}: {error}")
            continue
        built += 1
        if built % 5 == 0:
            with torch.device("meta"):
                YanForConditionalGeneration(config)
        assert YanConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert built > times(5_000) / 50


def test_random_training_steps():
    draw = random.Random(2)
    weights = {"ce_loss_weight": 1.0, "length_loss_weight": 0.5}
    placed = {"nll_loss_weight": 0.3, "denoising_ce_loss_weight": 0.5, "mmd_loss_weight": 0.1, "latent_l2_weight": 0.1}
    blanks = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0, "bigram_loss_weight": 1.0}
    sizes = {"encoder_layers": 1, "flow_layers": 1, "cross_attention_layers": [0]}
    models = [tiny_model(**{**sizes, **weights, **more}).train() for more in (placed, blanks, {"glancing_ratio": 0.5})]
    models.append(tiny_model(YanForMaskedLM, **sizes, mmd_loss_weight=0.1).train())
    for number in range(times(2_000)):
        model, source = draw.choice(models), random_source(draw)
        generator = torch.Generator().manual_seed(number)
        rows, length = len(source["input_ids"]), draw.randint(1, 12)
        labels = torch.randint(4, VOCAB_SIZE, (rows, length), generator=generator)
        if isinstance(model, YanForMaskedLM):
            labels = source["input_ids"].clone()
        for row in range(rows):
            padding = draw.randint(0, labels.shape[1])
            labels[row, labels.shape[1] - padding :] = -100
        if draw.random() < 0.1:
            labels[0, 0] = draw.choice([-1, VOCAB_SIZE, 10**6])
            with pytest.raises(ValueError, match="labels hold ids"):
                model(**source, labels=labels, generator=generator)
            continue
        count = int((labels != -100).sum()) + draw.randint(0, 5) or 1
        outputs = model(**source, labels=labels, generator=generator, num_items_in_batch=count)
        outputs.loss.backward()
        assert outputs.loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        model.zero_grad(set_to_none=True)


def damage(source: Path, target: Path, draw: random.Random) -> None:
    """Copies a checkpoint with bytes zeroed, cut off, changed or exchanged."""
    content = bytearray(source.read_bytes())
    kind = draw.choice(["zeros", "cut", "flip", "shuffle", "empty"])
    at = draw.randrange(len(content))
    if kind == "zeros":
        content[at : at + 64] = bytes(min(64, len(content) - at))
    elif kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "shuffle":
        other = draw.randrange(len(content))
        content[at : at + 16], content[other : other + 16] = content[other : other + 16], content[at : at + 16]
    else:
        content = bytearray()
    target.write_bytes(content)


def same_tensors(one: Path, other: Path) -> bool:
    """Whether damage changed nothing that is read: bytes between the archive's members may be anything."""
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
        return all(a.read(name) == b.read(name) for name in a.namelist())


def test_broken_checkpoints(tmp_path):
    draw = random.Random(3)
    whole = ROOT / "tests" / "fixtures" / "yan_transformer.pt"
    script = ROOT / "conversion" / "convert_published_checkpoint.py"
    refusals = 0
    for number in range(times(200)):
        bad, out = tmp_path / f"bad{number}.pt", tmp_path / f"out{number}"
        damage(whole, bad, draw)
        done = run_script_main(script, "--checkpoint", bad.name, "--output_dir", out.name, cwd=tmp_path)
        if done.returncode == 0:
            assert same_tensors(whole, bad)
            continue
        refusals += 1
        assert done.returncode == 2, done.stderr[-2000:]
        assert bad.name in done.stderr
        assert not out.exists()
    assert refusals > times(200) / 2
