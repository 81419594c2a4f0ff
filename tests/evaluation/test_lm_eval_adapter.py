"""lm-eval on a YAN: a local task over real rows, both kinds of requests, no network."""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.lm_eval_adapter import YanLM

from ..helpers import E2E_DATA, YAN_E2E, ran, refused, tiny_model

CLI = "modeling_yan/cli.py"
DATA = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
TASKS = {
    "restaurants_written": {
        "output_type": "generate_until",
        "doc_to_text": "{{source}}",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 96},
        "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
    },
    "restaurants_chosen": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{source}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    },
}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Restaurants of E2E's test split: the first reference of each among those of two others."""
    sources = load_rows(str(E2E_DATA), Task.load("e2e_nlg"), "test").select(range(0, 60, 10))
    answers = list(sources["target"])
    return [
        {
            "source": source,
            "choices": [answers[(index + shift) % len(answers)] for shift in range(3)],
            "label": 0,
        }
        for index, source in enumerate(sources["source"])
    ]


@pytest.fixture(scope="module")
def tasks(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    for name, task in TASKS.items():
        files = {"dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **DATA, **files, **task}))
    return folder


@pytest.fixture(scope="module")
def lm() -> YanLM:
    return YanLM(str(YAN_E2E), batch_size=4)


def evaluate(tasks: Path, model="yan", model_args=f"pretrained={YAN_E2E}", **options) -> dict:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"tasks": list(TASKS), "batch_size": 3, "bootstrap_iters": 0, **options}
    return simple_evaluate(model, model_args, task_manager=manager, **options)


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def test_a_task_is_answered_and_scored_as_the_model_itself_does_it(tasks, rows, lm):
    found = evaluate(tasks)
    written = [sample["filtered_resps"][0] for sample in found["samples"]["restaurants_written"]]
    for row, text in zip(rows, written, strict=True):
        source = lm.tokenizer(row["source"], return_tensors="pt")
        ids = lm.model.generate(**source, generator=torch.Generator().manual_seed(0))
        assert text == lm.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        assert row["source"].split("[")[1].split("]")[0] in text
    chosen = [sample["filtered_resps"] for sample in found["samples"]["restaurants_chosen"]]
    right = 0
    for row, scored in zip(rows, chosen, strict=True):
        right += max(scored) == scored[0]
        for choice, (score, greedy) in zip(row["choices"], scored, strict=True):
            labels = lm.tokenizer(text_target=choice, return_tensors="pt")["input_ids"]
            source = lm.tokenizer(row["source"], return_tensors="pt")
            expected = lm.model.log_likelihood(
                **{name: source[name] for name in ("input_ids", "attention_mask")},
                labels=labels[:, labels[0] != lm.tokenizer.bos_token_id],
                generator=torch.Generator().manual_seed(0),
            )
            assert score == pytest.approx(expected.item(), rel=1e-4)
            assert not greedy
    assert found["results"]["restaurants_chosen"]["acc,none"] == right / len(rows)
    assert found["results"]["restaurants_written"]["bleu,none"] > 10


def test_neither_batch_size_nor_order_changes_what_a_row_gets(rows, lm):
    one = YanLM(str(YAN_E2E), batch_size=1)
    questions = [(row["source"], {"until": [], "do_sample": False}) for row in rows]
    answers = lm.generate_until(asked("generate_until", *questions), disable_tqdm=True)
    assert answers == one.generate_until(asked("generate_until", *questions), disable_tqdm=True)
    turned = lm.generate_until(asked("generate_until", *questions[::-1]), disable_tqdm=True)
    assert answers == turned[::-1]
    pairs = [(row["source"], f" {choice}") for row in rows for choice in row["choices"]]
    scores = lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    alone = one.loglikelihood(asked("loglikelihood", *pairs[::-1]), disable_tqdm=True)[::-1]
    assert [s for s, _ in scores] == pytest.approx([s for s, _ in alone], rel=1e-4)
    assert len({s for s, _ in scores}) == len(pairs)


def test_what_the_model_writes_is_the_greedy_answer_and_more_probable_than_what_it_writes_for_others(rows, lm):
    sources = [row["source"] for row in rows]
    texts = lm.generate_until(asked("generate_until", *((source, {}) for source in sources)), disable_tqdm=True)
    pairs = [(source, f" {text}") for source in sources for text in texts]
    scores = lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    for index in range(len(rows)):
        own = scores[index * len(rows) : (index + 1) * len(rows)]
        assert [greedy for _, greedy in own] == [other == index for other in range(len(rows))]
        assert max(own) == own[index]
    (without_space,) = lm.loglikelihood(asked("loglikelihood", (sources[0], texts[0])), disable_tqdm=True)
    assert without_space[0] == pytest.approx(scores[0][0], rel=1e-4)


def test_options_of_a_request_are_honoured_or_refused(rows, lm):
    context = rows[0]["source"]

    def write(*options: dict) -> list[str]:
        return lm.generate_until(asked("generate_until", *((context, each) for each in options)), disable_tqdm=True)

    plain, until, short, words = write({}, {"until": [" is", "never"]}, {"max_gen_toks": 3}, {"until": " pub"})
    assert until == plain.split(" is")[0]
    assert words == plain.split(" pub")[0]
    assert 1 <= len(lm.tokenizer(short, add_special_tokens=False)["input_ids"]) <= 3
    # Repeats of a request are equal, but for drawn tokens.
    assert len(set(write(*[{"do_sample": False, "temperature": 0.0}] * 3))) == 1
    drawn = write(*[{"do_sample": True, "temperature": 2.0}] * 4)
    assert len(set(drawn)) > 1
    assert drawn == write(*[{"do_sample": True, "temperature": 2.0}] * 4)
    assert write({"num_inference_steps": 3, "num_candidates": 2})[0]
    with pytest.raises(ValueError, match="num_beams=4 cannot be honoured"):
        write({"num_beams": 4})


def test_answers_that_were_kept_are_not_written_again(tasks, tmp_path, lm, monkeypatch):
    kept = {"model": lm, "model_args": None, "use_cache": str(tmp_path / "kept")}
    first = evaluate(tasks, **kept)

    def forbidden(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(lm.model, "generate", forbidden)
    monkeypatch.setattr(lm.model, "log_likelihood", forbidden)
    assert evaluate(tasks, **kept)["results"] == first["results"]


def test_a_model_of_fixed_canvases_fills_its_own_and_reads_what_fits(tmp_path, lm, caplog):
    model = tiny_model(vocab_size=len(lm.tokenizer), length_head=False)
    model.generation_config.max_new_tokens = 9
    model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    small = YanLM(str(tmp_path), max_source_length=5, num_priors=2)
    with caplog.at_level("WARNING"):
        whole, cut = small.generate_until(
            asked("generate_until", ("a long name[" * 9, {}), ("a long name[" * 9, {"max_gen_toks": 2})),
            disable_tqdm=True,
        )
    assert "2 of 2 contexts have more than 5 tokens and lose their end" in caplog.text
    assert whole.startswith(cut)
    assert len(cut) < len(whole)
    (scored,) = small.loglikelihood(asked("loglikelihood", ("", " cheap")), disable_tqdm=True)
    assert scored[0] < 0
    with pytest.raises(ValueError, match="more than the 9 that the model writes"):
        small.loglikelihood(asked("loglikelihood", ("a", "cheap " * 20)), disable_tqdm=True)


def test_texts_without_a_source_have_no_probability(lm):
    with pytest.raises(NotImplementedError, match="whole answers to a source"):
        lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("a text",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "batch_size='auto' must be a whole number above 0"),
        ({"num_priors": 0}, "num_priors=0 must be a whole number above 0"),
        ({"max_source_length": 2.5}, "max_source_length=2.5 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"pretrained": str(E2E_DATA)}, "is a folder without"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        YanLM(**{"pretrained": str(YAN_E2E), **options})


def test_the_command_knows_the_model_and_so_does_the_package(tasks, tmp_path, monkeypatch):
    folder = {"include_path": str(tasks), "tasks": "restaurants_chosen", "limit": 2, "batch_size": 4}
    table = ran(CLI, "lm-eval", cwd=tmp_path, model="yan", model_args=f"pretrained={YAN_E2E},num_priors=1", **folder)
    assert "|restaurants_chosen|" in table
    (point,) = importlib.metadata.entry_points(group="lm_eval.models", name="yan")
    assert point.load() is YanLM
    monkeypatch.delitem(sys.modules, "modeling_yan.evaluation.lm_eval_adapter")
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    assert "yan lm-eval needs lm_eval" in refused(CLI, "lm-eval", "--help", cwd=tmp_path)
