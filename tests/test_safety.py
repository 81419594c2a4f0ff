"""
No script runs code that a folder brings along unless it is told to; folders that lack weights or are damaged are
refused in one line; what is written appears whole or not at all, also when the writer is killed.
"""

import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from modeling_yan import YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.common.arguments import ModelArguments, run_script
from modeling_yan.common.building import build_model
from modeling_yan.common.files import locked, whole_folder
from modeling_yan.common.hub import read_config, read_model, read_tokenizer
from modeling_yan.evaluation.text_generation import load_text_model

from .helpers import (
    HUB_FILES,
    ON_CPU,
    ROOT,
    YAN_E2E,
    copies,
    parse_command,
    process_environment,
    ran,
    refused,
    run_process,
    run_script_main,
    succeeded,
    the_error,
)

# What such a file does when it runs.
INTRUDER = """
    import os
    from pathlib import Path
    from transformers import PreTrainedTokenizerFast

    Path(os.environ["INTRUDED"]).touch()

    class OwnTokenizer(PreTrainedTokenizerFast):
        pass
"""


def add_own_tokenizer(folder: Path, local_class: bool) -> Path:
    """Gives a folder a tokenizer with code of its own; the named class may also be one of the library."""
    (folder / "own.py").write_text(textwrap.dedent(INTRUDER))
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    config["tokenizer_class"] = "PreTrainedTokenizerFast" if local_class else "OwnTokenizer"
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, autoencoder, small_data) -> Path:
    """
    A folder with `data`; a whole `yan`, a `bert` and the `autoencoder`, with one tokenizer; and `own`, `own_bert`, with
    a tokenizer that brings its code.
    """
    folder = copies(tmp_path_factory.mktemp("safety"), data=small_data, autoencoder=autoencoder, yan=autoencoder)
    YanForConditionalGeneration.from_pretrained(autoencoder).save_pretrained(folder / "yan")
    shutil.copytree(folder / "yan", folder / "own")
    shutil.copytree(autoencoder, folder / "bert", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=24, max_position_embeddings=32)).save_pretrained(folder / "bert")
    shutil.copytree(folder / "bert", folder / "own_bert")
    for name in ("own", "own_bert"):
        add_own_tokenizer(folder / name, local_class=False)
    return folder


E2E = {"task": "e2e_nlg", "dataset_name": "data"}
TRAINING = {**E2E, "output_dir": "…", "max_steps": 1, **ON_CPU}
REWARD = YAN_E2E.parents[1] / "rewards.py"
# Every script that takes a tokenizer by name, with the folder whose tokenizer has code of its own.
READS_TOKENIZERS = {
    "examples/run_autoencoder.py": {"model_name_or_path": "own", **TRAINING},
    "examples/run_flow.py": {"model_name_or_path": "own", **TRAINING},
    "examples/run_sft.py": {"model_name_or_path": "own", **TRAINING, "task": None},
    "examples/run_reward.py": {"model_name_or_path": "own", "reward": f"{REWARD}:sentence_bleu", **TRAINING},
    "examples/run_distillation.py": {"teacher": "own", "distilled_dir": "answers", "tokenizer_name": "yan", **TRAINING},
    "examples/run_evaluation.py": {"model": "own", "output": "x.json", **E2E},
    "examples/run_batch_inference.py": {"model": "own", "split": "train", **E2E, "output_dir": "…"},
    "examples/serve.py": {"model": "own"},
    "benchmarks/run_baseline.py": {"tokenizer_name": "own", "architecture": "gpt2", **TRAINING},
    "benchmarks/run_mixture_report.py": {"models": "own", "output": "x.json", **E2E},
    "conversion/convert_encoder_to_yan.py": {"encoder": "own_bert", "output_dir": "…"},
    "conversion/convert_published_checkpoint.py": {
        "checkpoint": Path(__file__).parent / "fixtures" / "yan_transformer.pt",
        "tokenizer": "own",
        "output_dir": "…",
    },
    "conversion/export_yan.py": {"model": "own", "output_dir": "…"},
}


@pytest.mark.parametrize("script", READS_TOKENIZERS)
def test_no_script_runs_a_tokenizers_code_without_being_told(folders, tmp_path, monkeypatch, script):
    monkeypatch.setenv("INTRUDED", str(tmp_path / "intruded"))
    options = {name: value for name, value in READS_TOKENIZERS[script].items() if value is not None}
    options |= {name: tmp_path / "out" for name, value in options.items() if value == "…"}
    done = run_script_main(script, cwd=folders, **options)
    assert not (tmp_path / "intruded").exists()
    # For an encoder of the library, its own tokenizer is taken.
    if options.get("encoder") != "own_bert":
        line = the_error(done)
        assert "own brings code of its own" in line
        assert "--trust_remote_code" in line
    parse_command(script, "--trust_remote_code", only_flags=True)


def test_a_librarys_class_is_taken_in_place_of_the_folders_code(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("INTRUDED", str(tmp_path / "intruded"))
    own = add_own_tokenizer(copies(tmp_path, own=folders / "yan") / "own", local_class=True)
    assert len(read_tokenizer(own)) == 400
    assert not (tmp_path / "intruded").exists()


def test_code_runs_where_it_is_trusted(folders, tmp_path):
    code = "from modeling_yan.common.hub import read_tokenizer; print(read_tokenizer('own', trust_remote_code=True))"
    environment = process_environment(INTRUDED=str(tmp_path / "intruded"), HF_MODULES_CACHE=str(tmp_path / "modules"))
    done = succeeded(run_process("-c", code, cwd=folders, environment=environment))
    assert "OwnTokenizer" in done.stdout
    assert (tmp_path / "intruded").exists()


def test_models_with_code_of_their_own_are_refused(folders, tmp_path):
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(foreign))
    for read in (read_config, load_text_model):
        with pytest.raises(ValueError, match="brings code of its own, which runs only with --trust_remote_code"):
            read(tmp_path / "foreign")
    options = {"model": folders / "yan", "output": "x.json", "task": "e2e_nlg", "dataset_name": folders / "data"}
    line = refused("examples/run_evaluation.py", cwd=tmp_path, baselines="foreign", **options)
    assert "foreign brings code of its own" in line


def test_no_script_and_nothing_in_the_package_trusts_by_itself():
    files = [file for folder in ("modeling_yan", "examples", "benchmarks") for file in (ROOT / folder).glob("**/*.py")]
    files = [file for file in files if file.name not in {own.name for own in HUB_FILES}]
    assert len(files) > 40
    assert [file.name for file in files if "trust_remote_code=True" in file.read_text()] == []


# Weights that are not there


def without(source: Path, target: Path, part: str) -> str:
    """Copies a model without the weights of a part; the name of one of them."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    lost = sorted(name for name in weights if name.startswith(part))
    save_file({n: w for n, w in weights.items() if n not in lost}, target / "model.safetensors", {"format": "pt"})
    return lost[0]


USES_MODELS = {
    "conversion/export_yan.py": {"model": "bad", "output_dir": "out"},
    "examples/run_evaluation.py": {"model": "bad", "output": "x.json", "split": "train", **E2E},
    "examples/run_batch_inference.py": {"model": "bad", "split": "train", **E2E, "output_dir": "out"},
    "examples/run_reward.py": {"model_name_or_path": "bad", "reward": f"{REWARD}:sentence_bleu", **TRAINING},
    "benchmarks/run_mixture_report.py": {"models": "bad", "output": "x.json", **E2E},
    "benchmarks/run_speed.py": {"model": "bad", "output": "x.json"},
}


@pytest.mark.parametrize("script", USES_MODELS)
def test_scripts_that_use_a_model_refuse_one_that_lacks_weights(folders, tmp_path, script):
    copies(tmp_path, data=folders / "data")
    lost = without(folders / "yan", tmp_path / "bad", "model.flow.gate.")
    options = {name: tmp_path / "out" if value == "…" else value for name, value in USES_MODELS[script].items()}
    line = refused(script, cwd=tmp_path, **options)
    assert line.startswith("error: bad lacks 4 weights of YanForConditionalGeneration, which would be random")
    assert lost in line


def test_an_encoder_that_lacks_weights_is_refused_and_a_pooler_is_not_missed(folders, tmp_path):
    options = {"output_dir": "out", "preset": "yan-tiny"}
    lost = without(folders / "bert", tmp_path / "bad", "encoder.layer.0.output.")
    line = refused("conversion/convert_encoder_to_yan.py", cwd=tmp_path, encoder="bad", **options)
    assert "bad lacks" in line
    assert lost in line
    assert not (tmp_path / "out").exists()
    without(folders / "bert", tmp_path / "unpooled", "pooler.")
    ran("conversion/convert_encoder_to_yan.py", cwd=tmp_path, encoder="unpooled", **options)


def test_training_says_which_parts_start_fresh(folders, capsys):
    arguments = ModelArguments(model_name_or_path=str(folders / "autoencoder"))
    build_model(YanForConditionalGeneration, arguments, None)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"not in {folders / 'autoencoder'}, so starting fresh: length_head (")
    assert "model.flow (" in line
    build_model(YanForConditionalGeneration, ModelArguments(model_name_or_path=str(folders / "yan")), None)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="lacks"):
        build_model(YanForConditionalGeneration, arguments, None, whole=True)


def test_weights_of_another_config_are_named(folders, tmp_path):
    copies(tmp_path, bad=folders / "yan")
    config = json.loads((tmp_path / "bad" / "config.json").read_text())
    (tmp_path / "bad" / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    line = refused("conversion/export_yan.py", cwd=tmp_path, model="bad", output_dir="out")
    assert "has shape (32, 64), the config asks for (32, 48)" in line


# Files that cannot be read or written


@pytest.mark.parametrize("kept", [0.0, 0.5], ids=["empty", "cut_off"])
def test_damaged_weights_end_in_one_line(folders, tmp_path, kept):
    copies(tmp_path, bad=folders / "yan", data=folders / "data")
    file = tmp_path / "bad" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    for script in ("conversion/export_yan.py", "examples/run_batch_inference.py", "examples/run_reward.py"):
        options = {name: tmp_path / "out" if value == "…" else value for name, value in USES_MODELS[script].items()}
        assert refused(script, cwd=tmp_path, **options).startswith("error: bad cannot be read: SafetensorError")
    assert "bad cannot be read" in refused(
        "examples/run_flow.py", cwd=tmp_path, **{**TRAINING, "model_name_or_path": "bad", "output_dir": "flow"}
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": "yan", "hidden_size": "wide"}'])
def test_damaged_configs_end_in_one_line(folders, tmp_path, content):
    copies(tmp_path, bad=folders / "yan")
    (tmp_path / "bad" / "config.json").write_text(content)
    assert "bad" in refused("conversion/export_yan.py", cwd=tmp_path, model="bad", output_dir="out")


def test_damaged_tokenizers_and_empty_folders_end_in_one_line(folders, tmp_path):
    copies(tmp_path, bad=folders / "yan")
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    assert "bad cannot be read" in refused("conversion/export_yan.py", cwd=tmp_path, model="bad", output_dir="out")
    (tmp_path / "empty").mkdir()
    message = r"is a folder without (config|tokenizer)\.json: .* whether the run before"
    for read in (read_config, read_tokenizer, load_text_model, lambda name: read_model(YanForMaskedLM, name)):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "empty")


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path):
    checkpoint = Path(__file__).parent / "fixtures" / "yan_transformer.pt"
    ran("conversion/convert_published_checkpoint.py", cwd=tmp_path, checkpoint=checkpoint, output_dir="yan")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
        options = {"checkpoint": checkpoint, "output_dir": "out"}
        line = refused("conversion/convert_published_checkpoint.py", cwd=tmp_path, **options)
        options["checkpoint"] = "yan"
        again = refused("conversion/convert_published_checkpoint.py", cwd=tmp_path, reverse=True, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in line
    assert "out/checkpoint.pt cannot be written" in again
    assert [path.name for path in tmp_path.iterdir()] == ["yan"]


# Whole folders and locks

WRITER = """
    import runpy, signal, sys, time
    from pathlib import Path

    # What is started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    with runpy.run_path(sys.argv[1])["whole_folder"](Path("out")) as folder:
        (folder / "half.txt").write_text("half")
        print("begun", flush=True)
        time.sleep(60)
"""


def interrupted_writer(folder: Path, number: signal.Signals) -> int:
    """Status of a process that a signal ended while it wrote the folder `out`."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(ROOT / "modeling_yan" / "common" / "files.py")]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        return process.wait(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_writer_that_is_stopped_leaves_nothing(tmp_path, number):
    assert interrupted_writer(tmp_path, number) != 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_leaves_is_hidden_and_goes_with_the_next(tmp_path):
    interrupted_writer(tmp_path, signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    # Of a run that is still at it, and of another folder.
    (tmp_path / ".out.partial-alive").mkdir()
    (tmp_path / ".outer.partial-1").mkdir()
    with locked(tmp_path / ".out.partial-alive" / "lock"), whole_folder(tmp_path / "out") as folder:
        (folder / "whole.txt").touch()
        assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.partial-alive", ".outer.partial-1", "out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["whole.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "out").mkdir()
    before = signal.getsignal(signal.SIGTERM)

    def write_half() -> None:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "half.txt").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert list((tmp_path / "out").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert signal.getsignal(signal.SIGTERM) is before
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not an empty folder"), whole_folder(tmp_path / "out"):
        pass


def test_an_export_that_fails_leaves_nothing(folders, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fails)
    options = {"model": folders / "yan", "output_dir": "out", "format": "pt2"}
    assert "No space left" in refused("conversion/export_yan.py", cwd=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_errors_end_a_script_and_mistakes_of_the_program_do_not(capsys):
    def damaged():
        raise SafetensorError("a thing of\ntwo lines")

    with pytest.raises(SystemExit) as end:
        run_script(damaged)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a thing of two lines\n"
    for mistake in (RuntimeError, KeyError, TypeError):

        def fails(mistake=mistake):
            raise mistake

        with pytest.raises(mistake):
            run_script(fails)
