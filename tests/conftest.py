"""Fixtures of all tests. Weights are random and asymmetric, fresh memory holds NaN, nothing is downloaded."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# Before torch is imported, here and in the processes that tests start: tiny models gain nothing from more threads, and
# `make test` has as many workers as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor would start a process for each core, which imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
if "ATEN_CPU_CAPABILITY" in os.environ:
    # The cache of compiled graphs does not know for which instructions they were made.
    cache = Path(tempfile.gettempdir(), f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
# Data sets of tests are read into a folder that goes when the tests end.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="yan-tests-")

import functools
import gc
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import set_seed

from modeling_yan import YanForConditionalGeneration

from .helpers import (
    E2E_DATA,
    ON_CPU,
    VOCAB_SIZE,
    WITH_BLANKS,
    Stranger,
    copies,
    fingerprint,
    no_traces,
    ran,
    randomize,
    source_batch,
    tiny_config,
    tiny_model,
)

__all__ = ["VOCAB_SIZE", "randomize", "source_batch", "tiny_config", "tiny_model"]


def pytest_collection_finish():
    """Imported libraries are never garbage; looking through them takes a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


# Session models, each with the fingerprint that it must keep.
_shared: list[tuple[torch.nn.Module, str]] = []


def _share(model: YanForConditionalGeneration) -> YanForConditionalGeneration:
    _shared.append((model, fingerprint(model)))
    return model


@pytest.fixture(scope="session")
def model() -> YanForConditionalGeneration:
    return _share(tiny_model())


@pytest.fixture(
    scope="session",
    params=[{}, {"reverse_positions": True}, {"reverse_positions": True, **WITH_BLANKS}],
    ids=["from_the_beginning", "from_both_ends", "room_for_blanks"],
)
def model_of_positions(request) -> YanForConditionalGeneration:
    return _share(tiny_model(**request.param))


@pytest.fixture(scope="module", autouse=True)
def session_models_are_left_alone():
    yield
    for model, before in _shared:
        assert fingerprint(model) == before, "a test of this file changed a model that all files share"


@pytest.fixture(scope="session", autouse=True)
def memory_holds_nan():
    """What `torch.empty` and its like return is NaN, where it would often be the zeros of fresh pages."""
    # torch.device("meta") as a context knows the constructors by identity, from its first use on.
    with torch.device("meta"):
        torch.empty(1)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [(torch, f"empty{kind}") for kind in ("", "_like", "_strided")] + [
            (torch.Tensor, f"new_empty{kind}") for kind in ("", "_strided")
        ]:
            patch.setattr(owner, name, _poisoned(getattr(owner, name)))
        yield


def _poisoned(allocate):
    @functools.wraps(allocate)
    def allocate_nan(*args, **kwargs):
        memory = allocate(*args, **kwargs)
        if memory.is_floating_point() and kwargs.get("out") is None:
            memory.detach().fill_(torch.nan)
        return memory

    return allocate_nan


@pytest.fixture(autouse=True)
def every_test_begins_alike():
    """The same seeds whatever ran before, and nothing left for what runs after."""
    with no_traces():
        set_seed(0)
        yield


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """A process that cannot import modeling_yan; see `Stranger`."""
    process = Stranger(tmp_path_factory.mktemp("stranger"))
    yield process
    process.close()


# Small folders that tests of scripts start from. Each is made once by a worker that needs it; tests get copies.

THREE_UPDATES = {"max_steps": 3, "per_device_train_batch_size": 8, "save_strategy": "no", **ON_CPU}


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def small_data(shared_folder) -> Path:
    """150 real rows of E2E, split in two."""
    from datasets import load_dataset

    folder = shared_folder / "data"
    folder.mkdir()
    rows = load_dataset(str(E2E_DATA))["test"]
    rows.select(range(120)).to_parquet(folder / "train.parquet")
    rows.select(range(300, 330)).to_parquet(folder / "validation.parquet")
    return folder


@pytest.fixture(scope="session")
def autoencoder(shared_folder, small_data) -> Path:
    """A tokenizer of 400 tokens and an autoencoder, trained for three updates."""
    ran(
        "examples/run_autoencoder.py",
        cwd=shared_folder,
        train_tokenizer=400,
        dataset_name="data",
        text_columns=["meaning_representation", "human_reference"],
        config_overrides="{hidden_size: 32, intermediate_size: 64}",
        output_dir="autoencoder",
        ema_decay=0.9,
        **THREE_UPDATES,
    )
    return shared_folder / "autoencoder"


@pytest.fixture(scope="session")
def teacher(shared_folder, autoencoder) -> Path:
    """A GPT-2 with the autoencoder's tokenizer, trained for three updates."""
    ran(
        "benchmarks/run_baseline.py",
        cwd=shared_folder,
        architecture="gpt2",
        task="e2e_nlg",
        dataset_name="data",
        tokenizer_name="autoencoder",
        hidden_size=32,
        layers=1,
        output_dir="teacher",
        **THREE_UPDATES,
    )
    # Three updates teach it no more than to stop at once.
    options = shared_folder / "teacher" / "generation_config.json"
    options.write_text(json.dumps({**json.loads(options.read_text()), "min_new_tokens": 4}))
    return shared_folder / "teacher"


@pytest.fixture
def workspace(tmp_path, small_data, autoencoder) -> Path:
    """A folder with `data` and `autoencoder` to run a script in."""
    return copies(tmp_path, data=small_data, autoencoder=autoencoder)


@pytest.fixture
def mauve_stand_in(monkeypatch):
    """In the place of mauve-text, whose GPL nobody has to take on to run the tests: how near the means are."""

    def compute_mauve(p_features, q_features, seed):
        distance = np.linalg.norm(p_features.mean(0) - q_features.mean(0))
        return SimpleNamespace(mauve=np.exp(-distance))

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
