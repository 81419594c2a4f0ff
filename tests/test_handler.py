"""The file that Inference Endpoints run: it travels with a saved model and works where the package is not installed."""

import json

import pytest

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.hub import read_tokenizer
from modeling_yan.handler import NOT_OF_A_REQUEST, EndpointHandler

from .helpers import YAN_E2E, seeded

PROMPTS = ["name[Aromi], eatType[coffee shop], area[city centre]", "name[The Vaults], eatType[pub]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("endpoint") / "repository"
    YanForConditionalGeneration.from_pretrained(YAN_E2E).save_pretrained(path)
    read_tokenizer(YAN_E2E).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def handler(folder) -> EndpointHandler:
    return EndpointHandler(str(folder))


def test_a_saved_folder_answers_without_the_package(folder, tmp_path, stranger):
    # As the endpoint's own code does it.
    code = f"""
        import importlib.util, json
        spec = importlib.util.spec_from_file_location("handler", {str(folder / "handler.py")!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        handler = module.EndpointHandler({str(folder)!r})
        options = dict(seed=0, num_inference_steps=2)
        print(json.dumps([handler(dict(inputs={PROMPTS!r}, parameters=options)), handler(dict(inputs={PROMPTS[0]!r}))]))
    """
    answers, one = json.loads(stranger.run(code, tmp_path).strip().splitlines()[-1])
    model, tokenizer = YanForConditionalGeneration.from_pretrained(folder), read_tokenizer(folder)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    ids = model.generate(**batch, num_inference_steps=2, generator=seeded())
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert [answer["generated_text"] for answer in answers] == texts
    assert len(one) == 1


def test_models_loaded_as_remote_code_keep_it(folder, tmp_path, stranger):
    code = f"""
        from transformers import AutoModelForSeq2SeqLM
        AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained("again")
    """
    stranger.run(code, tmp_path)
    assert (tmp_path / "again" / "handler.py").read_bytes() == (folder / "handler.py").read_bytes()


def test_several_answers_for_a_text_and_none_for_none(handler):
    data = {"inputs": PROMPTS, "parameters": {"num_return_sequences": 2, "num_candidates": 2}}
    assert len(handler(data)) == 4
    assert handler({"inputs": []}) == []
    assert data["parameters"] == {"num_return_sequences": 2, "num_candidates": 2}


def test_max_length_is_the_answers_alone(handler):
    def answer(**parameters):
        return handler({"inputs": PROMPTS[0], "parameters": {"seed": 0, "length_mode": "canvas", **parameters}})

    assert answer(max_length=8) == answer(max_new_tokens=8)
    assert answer(prefix="name") == handler(
        {"inputs": "name" + PROMPTS[0], "parameters": {"seed": 0, "length_mode": "canvas"}}
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "has the keys inputs and parameters, got"),
        ({"inputs": "a", "options": {}}, r"got \['inputs', 'options'\]"),
        ({"inputs": 3}, "inputs=3 must be a text or a list of texts"),
        ({"inputs": ["a", 3]}, "must be a text or a list"),
        ({"inputs": "a", "parameters": 3}, "parameters=3 must be keys and values"),
        ({"inputs": "a", "parameters": {"seed": -1}}, "seed=-1 must be a whole number"),
        ({"inputs": "a", "parameters": {"solver": "magic"}}, "solver='magic' must be one of"),
        ({"inputs": "a", "parameters": {"num_steps": 3}}, "unknown arguments"),
        *(
            ({"inputs": "a", "parameters": {name: {}}}, f"{name}={{}} is not for a request to set")
            for name in NOT_OF_A_REQUEST
        ),
    ],
    ids=str,
)
def test_bad_requests_are_told_why(handler, data, message):
    with pytest.raises(ValueError, match=message):
        handler(data)
