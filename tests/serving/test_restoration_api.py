"""Documents that are restored over HTTP, without a server: what a body may hold, and what the engine makes of it."""

import json
import threading

import pytest

pytest.importorskip("pydantic")

from modeling_yan import restore
from modeling_yan.serving import engine as engine_module
from modeling_yan.serving.api import ApiError, Limits
from modeling_yan.serving.engine import Engine, Refusal, Row
from modeling_yan.serving.restoration_api import RestorationRequest, restoration_body

from ..helpers import YAN_RESTORE

TEXT = "where is the station\n\n  - i dont know, see https://example.org"


def read(**fields) -> RestorationRequest:
    return RestorationRequest.read(json.dumps(fields).encode(), Limits(characters=100))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(str(YAN_RESTORE))


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "text", "text is missing"),
        ({"text": ["a"]}, "text", "valid string"),
        ({"text": "a" * 101}, "text", "text has 101 characters, at most 100"),
        ({"text": "a", "lexicon": ["b"]}, "lexicon", "should be 'model'"),
        ({"text": "a", "keep": ".*"}, "keep", "no field of this request"),
        ({"text": "a", "max_edit": "0.4"}, "max_edit", "valid number"),
        ({"text": "a", "num_inference_steps": 33}, "num_inference_steps", "must be 1 to 32"),
        ({"text": "a", "seed": -1}, "seed", "greater than or equal to 0"),
    ],
    ids=str,
)
def test_refusals_name_the_field(fields, param, message):
    with pytest.raises(ApiError, match=message) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_only_what_a_request_names_reaches_restore():
    assert read(text="a").options == {}
    options = {"max_edit": None, "lexicon": None, "seed": 3}
    assert read(text="a", model="m", **options).options == options


def test_the_engine_restores_as_the_function_does(engine):
    wanted = restore(engine.model, engine.tokenizer, TEXT, min_spelling_confidence=None)
    restored = engine.restore(TEXT, read(text=TEXT, min_spelling_confidence=None).options)
    assert restored == wanted
    body = restoration_body(restored, "yan-restore")
    assert (body["text"], body["model"]) == (wanted.text, "yan-restore")
    edited, moved = TEXT, 0
    for edit in body["edits"]:
        edited = edited[: edit["start"] + moved] + edit["replacement"] + edited[edit["end"] + moved :]
        moved += len(edit["replacement"]) - (edit["end"] - edit["start"])
    assert edited == wanted.text != TEXT


def test_others_write_between_the_windows_of_a_document(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "WINDOWS", 1)
    begun, written, generate = threading.Event(), [], engine.model.generate

    def noted(**inputs):
        begun.set()
        written.append("completion" if "streamer" in inputs else "restoration")
        return generate(**inputs)

    monkeypatch.setattr(engine.model, "generate", noted)
    text = "\n\n".join(f"where is the {word} station" for word in ("old", "new", "next", "last", "first", "big"))
    document = threading.Thread(target=engine.restore, args=(text, {}))
    document.start()
    assert begun.wait(60)
    engine.answer([Row("where is the station", 0)])
    document.join()
    assert written.count("restoration") == 6
    assert written[-1] == "restoration"


def test_what_restore_refuses_is_a_refusal_that_names_the_argument(engine):
    refusal = engine.restore(TEXT, {"min_confidence": 2.0})
    assert isinstance(refusal, Refusal)
    assert refusal.field == "min_confidence"
