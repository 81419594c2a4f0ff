"""The Hub round trip: a saved folder works where the package is not installed, with the same numbers."""

import itertools
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from modeling_yan import (
    YanConfig,
    YanForConditionalGeneration,
    YanForMaskedLM,
    YanForSequenceClassification,
    YanForTokenClassification,
    YanModel,
    YanTextGenerationPipeline,
    pretrained_yan,
    restore,
)
from modeling_yan.data.tokenization import train_tokenizer

from .helpers import (
    HUB_FILES,
    ROOT,
    YAN_E2E,
    YAN_RESTORE,
    seeded,
    source_batch,
    tiny_config,
    tiny_model,
    word_tokenizer,
)
from .hub_server import hub_on_loopback, used_by_this_process

SHIPPED = [YAN_E2E, YAN_RESTORE]
TEXTS = [
    "name[The Vaults], eatType[pub], priceRange[more than £30]",
    "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.",
    "Close to Café Brazil, The Cambridge Blue pub serves delicious Tuscan Beef.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with a real tokenizer, saved as a Hub folder."""
    path = tmp_path_factory.mktemp("hub") / "yan-tiny-test"
    tokenizer = train_tokenizer(TEXTS, 300, 64)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64)
    model.generation_config.num_inference_steps = 2
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_folder_holds_everything_and_no_private_flags(folder):
    names = {p.name for p in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "configuration_yan.py",
        "flow_matching_yan.py",
        "generation_yan.py",
        "handler.py",
        "layers_yan.py",
        "mixers_yan.py",
        "modeling_yan.py",
        "pipeline_yan.py",
        "restoration_yan.py",
        "words_yan.py",
    } <= names
    assert "__init__.py" not in names
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["num_inference_steps"] == 2
    assert "_from_model_config" not in generation


def test_config_fields_given_at_loading_stay_out_of_the_generation_options(folder, tmp_path):
    # An Auto class makes the config first; the class itself hands everything on.
    changes = {"unroll_steps": 1, "ce_loss_weight": 0.5}
    model = YanForConditionalGeneration.from_pretrained(folder, hidden_dropout_prob=0.2, training_config=changes)
    training = model.config.training_config
    assert (training.unroll_steps, training.ce_loss_weight, training.latent_noise) == (1, 0.5, 0.1)
    assert model.config.hidden_dropout_prob == 0.2
    assert model.generation_config.num_inference_steps == 2
    model.save_pretrained(tmp_path)
    before, after = (json.loads((path / "generation_config.json").read_text()) for path in (folder, tmp_path))
    assert before == after


def test_every_auto_class_loads_without_the_package_with_equal_outputs(folder, tmp_path, stranger):
    ids, mask = source_batch()
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    noise = torch.randn(3, 6, 16, generator=seeded(0))
    torch.save({"ids": ids, "mask": mask, "noise": noise}, tmp_path / "inputs.pt")
    heads = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
    code = f"""
        import torch
        import transformers
        from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
        given = torch.load("inputs.pt")
        source = (given["ids"], given["mask"])
        load = dict(pretrained_model_name_or_path={str(folder)!r}, trust_remote_code=True)
        assert AutoConfig.from_pretrained(**load).model_type == "yan"
        out = {{}}
        with torch.no_grad():
            out["encoder"] = AutoModel.from_pretrained(**load)(*source)[0]
            out["masked"] = AutoModelForMaskedLM.from_pretrained(**load)(*source).logits
            model = AutoModelForSeq2SeqLM.from_pretrained(**load)
            out["logits"] = model(*source, prior_noise=given["noise"]).logits
            generator = torch.Generator().manual_seed(0)
            answer = model.generate(*source, generator=generator, return_dict_in_generate=True)
            out["tokens"], out["evaluations"] = answer.sequences, torch.tensor(answer.num_evaluations)
            for head in {heads}:
                model = getattr(transformers, f"AutoModelFor{{head}}").from_pretrained(**load)
                out[head] = model.model(*source)[0]
                model(*source)
        torch.save(out, "outputs.pt")
    """
    stranger.run(code, tmp_path)
    out = torch.load(tmp_path / "outputs.pt")
    with torch.no_grad():
        encoder = model.model(ids, mask)[0]
        assert torch.equal(out["encoder"], encoder)
        assert torch.equal(out["masked"], model.decoder(encoder))
        assert torch.equal(out["logits"], model(ids, mask, prior_noise=noise).logits)
    tokens = model.generate(ids, mask, generator=seeded(0))
    assert torch.equal(out["tokens"], tokens)
    assert out["evaluations"] == 2
    for head in heads:
        assert torch.equal(out[head], encoder)


def test_restoring_without_the_package(folder, tmp_path, stranger):
    text = "a cheap pub\n\nnear the  river"
    free = "max_edit=None, max_word_edit=None, keep=None"
    code = f"""
        import json
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        model = AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True)
        restore = get_class_from_dynamic_module("restoration_yan.restore", {str(folder)!r})
        found = restore(model, tokenizer, {text!r}, {free})
        # The folder is saved again with all that it came with, by code that knows only what it imported.
        model.save_pretrained("again")
        print(json.dumps([found.text, *(piece.confidence for piece in found.pieces)]))
    """
    restored, *confidences = json.loads(stranger.run(code, tmp_path))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = restore(model, tokenizer, text, max_edit=None, max_word_edit=None, keep=None)
    assert restored == found.text
    assert confidences == pytest.approx([piece.confidence for piece in found.pieces])
    assert len(confidences) == 2
    names = {"restoration_yan.py", "text_changes_yan.py", "text_windows_yan.py", "words_yan.py"}
    assert names <= {path.name for path in (tmp_path / "again").iterdir()}


def test_pipeline_without_the_package(folder, tmp_path, stranger):
    code = f"""
        import json, torch
        from datasets import Dataset
        from transformers import pipeline
        from transformers.pipelines.pt_utils import KeyDataset
        texts = {TEXTS!r}
        answers = {{}}
        for task in ("text2text-generation", "text-generation"):
            pipe = pipeline(task, model={str(folder)!r}, trust_remote_code=True)
            torch.manual_seed(0)
            answers[task] = pipe(texts[0])
        torch.manual_seed(0)
        answers["list"] = pipe(texts, batch_size=2, num_inference_steps=3)
        answers["column"] = [x for x in pipe(KeyDataset(Dataset.from_dict({{"text": texts}}), "text"), batch_size=2)]
        answers["three"] = pipe(texts[0], num_return_sequences=3)
        print(json.dumps(answers))
    """
    answers = json.loads(stranger.run(code, tmp_path).strip().splitlines()[-1])
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    ids = model.generate(**tokenizer(TEXTS[0], return_tensors="pt"))
    expected = [{"generated_text": tokenizer.decode(ids[0], skip_special_tokens=True).strip()}]
    assert answers["text2text-generation"] == answers["text-generation"] == expected
    assert [len(a) for a in answers["list"]] == [1, 1, 1]
    assert len(answers["column"]) == 3
    assert len(answers["three"]) == 3
    assert all(set(a) == {"generated_text"} for a in answers["three"])


def test_the_documented_pipeline_of_a_model_object_without_the_package(tmp_path, stranger):
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    code = re.search(r"## Pipelines.*?```python\n(.*?)```", page, re.DOTALL)[1]
    assert '"examples/models/yan-e2e"' in code
    code = code.replace("examples/models/yan-e2e", str(YAN_E2E))
    code += textwrap.dedent(
        """
        import torch
        from transformers import pipeline

        source = "name[Aromi], eatType[coffee shop]"
        named = pipeline("text2text-generation", model=folder, trust_remote_code=True)
        answers = [p(source, generator=torch.Generator().manual_seed(0)) for p in (pipe, named)]
        assert answers[0] == answers[1], answers
        assert "Aromi" in answers[0][0]["generated_text"]
        for task, kind in (("text2text-generation", KeyError), ("text-generation", ValueError)):
            try:
                pipeline(task, model=model, tokenizer=tokenizer)(source)
            except kind:
                continue
            raise AssertionError(task)
        """
    )
    stranger.run(code, tmp_path)


def test_pipelines_with_the_package(folder):
    pipe = pipeline("text2text-generation", model=str(folder), trust_remote_code=True)
    alone = pipe(TEXTS[0], generator=seeded(1))
    batch = pipe(TEXTS, batch_size=3, generator=seeded(1))
    assert batch[0] == alone
    assert next(iter(pipe(Dataset.from_dict({"text": TEXTS})["text"])))[0].keys() == {"generated_text"}
    with pytest.raises(ValueError, match=r"source 1 of 2 is of type NoneType"):
        pipe([TEXTS[0], None])
    with pytest.raises(ValueError, match="num_inference_stepz"):
        pipe(TEXTS[0], num_inference_stepz=2)


def test_lengths_in_a_pipeline_are_the_answers():
    model = tiny_model()
    pipe = YanTextGenerationPipeline(model=model, tokenizer=word_tokenizer())
    source = "w5 w6 w7 w8 w9 w10 w11 w12"

    def written(source, **options):
        return pipe(source, generator=seeded(), **options)

    assert written(source, max_length=4) == written(source, max_new_tokens=4)
    assert written(source, prefix="w4 ") == written(f"w4 {source}")
    cut = written(source, tokenizer_encode_kwargs={"truncation": True, "max_length": 4})
    assert cut == written("w5 w6 w7") != written(source)


@pytest.mark.parametrize(("rows", "steps"), [(1, 3), (2, 3), (4, 3)])
def test_a_pipeline_gives_each_answer_its_own_trajectory(rows, steps):
    model, tokenizer = tiny_model(), word_tokenizer()
    pipe = YanTextGenerationPipeline(model=model, tokenizer=tokenizer)
    sources = [f"w{5 + row} w6 w7" for row in range(rows)]
    options = {"return_dict_in_generate": True, "output_trajectory": True, "num_inference_steps": steps}
    answers = pipe(sources, batch_size=rows, generator=seeded(), **options)
    output = model.generate(**tokenizer(sources, return_tensors="pt"), generator=seeded(), **options)
    states = torch.tensor([answer["trajectory"] for (answer,) in answers])
    assert torch.equal(states, output.trajectory.transpose(0, 1))


@pytest.mark.parametrize(
    ("task", "model_class"),
    [
        ("fill-mask", YanForMaskedLM),
        ("text-classification", YanForSequenceClassification),
        ("token-classification", YanForTokenClassification),
        ("feature-extraction", YanModel),
    ],
)
def test_the_librarys_own_pipelines(folder, task, model_class):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipe = pipeline(task, model=model_class.from_pretrained(folder).eval(), tokenizer=tokenizer)
    answer = pipe("The Vaults <mask> near Café Adriatic")
    if task == "fill-mask":
        assert len(answer) == 5
        assert {"score", "token_str", "sequence"} <= set(answer[0])
    elif task == "feature-extraction":
        assert len(answer[0][0]) == 16
    else:
        assert 0 < answer[0]["score"] <= 1


def test_a_model_loaded_as_remote_code_saves_a_complete_folder_again(folder, tmp_path, stranger):
    code = f"""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
        model = AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
        model.save_pretrained("again")
        AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained("again")
        print(pipeline("text2text-generation", model="again", trust_remote_code=True)("The Vaults"))
    """
    assert "generated_text" in stranger.run(code, tmp_path)
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("way", ["save_pretrained", "push_to_hub"])
def test_an_upload_holds_code_and_card(way, tmp_path):
    model, folder = tiny_model(), tmp_path / "yan"
    folder.mkdir()
    (folder / "notes.txt").write_text("nobody's business")

    def push(**options):
        if way == "push_to_hub":
            model.push_to_hub("org/yan", **options)
        else:
            model.save_pretrained(folder, push_to_hub=True, repo_id="org/yan", **options)

    with hub_on_loopback(tmp_path / "cache") as (environment, repositories), used_by_this_process(environment):
        push(tags=["e2e"])
        pushed = repositories["org/yan"]
        assert {*pushed} == {
            *(path.name for path in HUB_FILES),
            *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        }
        card = pushed["README.md"].decode()
        assert 'pipeline("text2text-generation", model="org/yan", trust_remote_code=True)' in card
        assert {"yan", "custom_code", "e2e"} <= set(ModelCard(card).data.tags)
        # The card in the folder is the one to upload, and where there is none, the Hub's stays.
        pushed["README.md"] = b"what somebody wrote"
        push()
        expected = card if way == "save_pretrained" else "what somebody wrote"
        assert pushed["README.md"].decode() == expected
        with pytest.raises(TypeError, match="branch"):
            model.push_to_hub("org/yan", branch="main")


def test_code_is_taken_from_the_revision_that_the_model_was_loaded_at(tmp_path, monkeypatch):
    asked = []

    def cached_file(name_or_path, name, revision=None, **options):
        asked.append((name_or_path, revision))

    # As remote code: beside this file is only what it imports.
    monkeypatch.setattr(pretrained_yan, "__file__", str(tmp_path / "code" / "pretrained_yan.py"))
    monkeypatch.setattr(pretrained_yan, "cached_file", cached_file)
    model = tiny_model()
    model.config.name_or_path, model.config._commit_hash = "org/yan", "0123456789"
    monkeypatch.setattr(pretrained_yan, "copy_lexicon", lambda model, folder: None)
    model.save_pretrained(tmp_path / "again")
    assert set(asked) == {("org/yan", "0123456789")}


def test_save_and_load_are_bit_equal(tmp_path):
    ids, mask = source_batch()
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model().to(dtype)
        model.save_pretrained(tmp_path / str(dtype))
        loaded = YanForConditionalGeneration.from_pretrained(tmp_path / str(dtype))
        assert loaded.dtype == dtype
        state, again = model.state_dict(), loaded.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[name], again[name]) for name in state)
        assert torch.equal(loaded(ids, mask).logits, model(ids, mask).logits)


def test_autoencoder_weights_start_a_flow_and_the_rest_is_fresh(tmp_path):
    autoencoder = tiny_model(YanForMaskedLM)
    autoencoder.save_pretrained(tmp_path)
    flow, report = YanForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(flow.state_dict()[name], value)
    assert all(name.startswith(("model.flow.", "length_head.")) for name in report["missing_keys"])
    assert flow.generation_config.max_length == 32
    assert flow.generation_config.num_inference_steps == 3
    # Fresh parts are initialised, not left as memory was.
    bias = flow.model.flow.layers[0].modulation.bias.view(6, 16)
    assert (bias[0::2] == 1).all()
    assert flow.model.flow.experts.up_proj.std().item() == pytest.approx((3 * 16) ** -0.5, rel=0.2)


def test_old_config_with_fewer_fields_loads(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    for name in ("copy_mechanism", "classifier_dropout", "mamba_intermediate_size"):
        del config[name]
    del config["training_config"]["label_smoothing"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.copy_mechanism, loaded.training_config.label_smoothing) == (False, 0.0)


def test_config_round_trip_keeps_every_field():
    config = tiny_config(solver_note="kept", gate_temperature=0.7, eos_token_id=[2, 5])
    again = YanConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.eos_token_id == [2, 5]


@pytest.mark.parametrize("shipped_model", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_model_carries_this_packages_code(shipped_model):
    package = {file.name: file.read_bytes() for file in HUB_FILES}
    shipped = {file.name: file.read_bytes() for file in shipped_model.glob("*.py")}
    assert shipped.keys() == package.keys()
    assert [name for name, text in package.items() if shipped[name] != text] == []


@pytest.mark.parametrize("shipped_model", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_model_is_small_on_disk_and_computes_in_float32(shipped_model):
    with safe_open(shipped_model / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118
    model = AutoModelForSeq2SeqLM.from_pretrained(shipped_model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert AutoModelForSeq2SeqLM.from_pretrained(shipped_model, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_card_of_yan_e2e_holds_scores_that_were_measured():
    card = ModelCard.load(YAN_E2E / "README.md")
    measured = json.loads((ROOT / "benchmarks" / "results" / "quality_e2e.json").read_text())
    # Chosen by the names of the scores: one canvas of the predicted length, no variant.
    plain = {"system": "YAN", "length": "predicted", "num_candidates": 1, "num_length_candidates": 1, "variant": None}
    rows = [row for row in measured["quality"] if all(row.get(name) == value for name, value in plain.items())]
    by_steps = {row["num_inference_steps"]: row for row in rows}
    names = {
        f"{label}, {word}, merge_repeats=0": by_steps[steps][score]
        for label, score in (("BLEU-4", "bleu"), ("ROUGE-L", "rougeL"))
        for word, steps in (("one step", 1), ("three steps", 3))
    }
    stated = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert stated == {name: round(value, 2) for name, value in names.items()}
    assert {result.dataset_split for result in card.data.eval_results} == {measured["split"]}
    assert card.data.model_name == YAN_E2E.name
    answers = pipeline("text2text-generation", model=str(YAN_E2E), trust_remote_code=True)
    for example in card.data["widget"]:
        name = re.search(r"name\[(.*?)\]", example["text"])[1]
        assert name in answers(example["text"])[0]["generated_text"]


def test_the_card_of_yan_restore_holds_scores_that_were_measured():
    card = ModelCard.load(YAN_RESTORE / "README.md")
    measured = json.loads((ROOT / "benchmarks" / "results" / "restoration_shipped.json").read_text())
    names = {
        f"{label}, {system}": measured["scores"]["test"][system][score]
        for label, score in (("word error rate", "word_error_rate"), ("punctuation F1", "punctuation_f1"))
        for system in ("YAN", "YAN, restore()")
    }
    stated = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert stated == {name: round(value, 1) for name, value in names.items()}
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert card.data.model_name == YAN_RESTORE.name


COLUMNS = {
    "wrong words": "word_error_rate",
    "punctuation, F1": "punctuation_f1",
    "period, F1": "period_f1",
    "comma, F1": "comma_f1",
    "question mark, F1": "question_mark_f1",
    "capitals, F1": "capital_f1",
    "misspelled words mended": "spelling_recall",
    "right words harmed": "harmed",
    "numbers and links harmed": "protected_harmed",
    "texts all right": "exact_match",
}


# Beside other models and as it is shipped.
PEERS, SHIPPED = "restoration.json", "restoration_shipped.json"


@pytest.mark.parametrize(
    ("page", "tables"),
    [
        ("README.md", [("unseen", PEERS, SHIPPED)]),
        ("docs/restore.md", [("test", SHIPPED), ("unseen", SHIPPED), ("test", PEERS), ("unseen", PEERS)]),
        (YAN_RESTORE / "README.md", [("test", SHIPPED)]),
    ],
)
def test_tables_of_restored_texts_hold_what_was_measured(page, tables):
    results = {name: json.loads((ROOT / "benchmarks" / "results" / name).read_text()) for name in (PEERS, SHIPPED)}
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    heads = [n for n, line in enumerate(lines) if line.startswith("| | wrong words |")]
    for head, (split, *files) in zip(heads, tables, strict=True):
        names = [cell.strip() for cell in lines[head].split("|")[2:-1]]
        rows = itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :])
        stated = [[cell.split("[")[0].strip() for cell in row.split("|")[2:-1]] for row in rows]
        keys = [COLUMNS[name] for name in names if name in COLUMNS]
        known = [
            [f"{scores[key]:.1f}" for key in keys]
            for file in files
            for scores in results[file]["scores"][split].values()
        ]
        assert [row for row in stated if row[: len(keys)] not in known] == []
        if "milliseconds" in names:
            times = {f"{own['ms']:.1f}" for own in results[PEERS]["speed"].values()} | {"–"}
            assert {row[-1] for row in stated} <= times


def test_yan_restore_restores(stranger, tmp_path):
    """The card's own code, where the package is not installed."""
    code = re.search(r"```python\n(.*?)```", (YAN_RESTORE / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    printed = stranger.run(code.replace("examples/models/yan-restore", str(YAN_RESTORE)), tmp_path)
    assert "Where is the station?" in printed
