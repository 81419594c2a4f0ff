"""The completions API without a server: what a body may hold, and how answers read."""

import json

import pytest

pytest.importorskip("pydantic")

from modeling_yan.serving.api import ApiError, CompletionBody, CompletionRequest, Limits, cut_at, refused_field
from modeling_yan.serving.engine import Answer, Draft


def read(**fields) -> CompletionRequest:
    return CompletionRequest.read(json.dumps(fields).encode(), Limits())


def refusal(body: dict | bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        CompletionRequest.read(body if isinstance(body, bytes) else json.dumps(body).encode(), Limits())
    assert caught.value.status == 400
    return caught.value


def answer(*texts: str) -> Answer:
    count = len(texts)
    return Answer(list(texts), ["stop"] * count, [-0.5] * count, prompt_tokens=4, completion_tokens=[3] * count)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"prompt": 3}, "prompt", "prompt=3"),
        ({"prompt": []}, "prompt", "must have 1 to 64"),
        ({"prompt": ["a"] * 65}, "prompt", "prompt has 65 texts"),
        ({"prompt": ["a", 3]}, "prompt", "valid string"),
        ({"prompt": "a", "num_step": 3}, "num_step", "no field of this request"),
        ({"prompt": "a", "max_tokens": "3"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"prompt": "a", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "a", "seed": 2**63}, "seed", "less than"),
        ({"prompt": "a", "temperature": -1}, "temperature", "must be 0 to 100"),
        ({"prompt": "a", "top_p": 1.5}, "top_p", "must be 0 to 1"),
        ({"prompt": "a", "n": 0}, "n", "n=0 must be 1 to 16"),
        ({"prompt": "a", "n": 4, "num_length_candidates": 5}, "num_length_candidates", "is 20 texts for a prompt"),
        ({"prompt": "a", "num_inference_steps": 33}, "num_inference_steps", "must be 1 to 32"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of", "must be at least n=3"),
        ({"prompt": "a", "best_of": 2, "num_candidates": 2}, "best_of", "another name of num_candidates"),
        ({"prompt": "a", "logprobs": 0}, "logprobs", "YAN scores whole texts"),
        ({"prompt": "a", "echo": True}, "echo", "cannot be honoured"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "cannot be honoured"),
        ({"prompt": "a", "presence_penalty": 0.1}, "presence_penalty", "cannot be honoured"),
        ({"prompt": "a", "logit_bias": {"1": 2}}, "logit_bias", "cannot be honoured"),
        ({"prompt": "a", "stream": True, "n": 2}, "stream", "one prompt and n=1"),
        ({"prompt": ["a", "b"], "stream": True}, "stream", "got 2 prompts"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "is for stream=true"),
    ],
    ids=str,
)
def test_refusals_name_the_field(fields, param, message):
    error = refusal(fields)
    assert message in error.message
    assert error.param == param
    assert error.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff", b'{"prompt": "\xff"}', b'{"temperature": NaN}'])
def test_what_is_no_object_of_json_is_refused(body):
    assert "body" in refusal(body).message or refusal(body).param


def test_what_asks_for_nothing_is_taken():
    neutral = {
        "logprobs": False,
        "echo": False,
        "suffix": "",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
    }
    (row,) = read(prompt="a", user="x", stream=False, n=1, seed=3, **neutral).rows()
    assert (row.prompt, row.seed, dict(row.options)) == ("a", 3, {"num_return_sequences": 1})


def test_options_are_those_of_generate_under_openais_names():
    request = read(prompt=["a", "b"], max_tokens=9, n=2, best_of=4, num_inference_steps=1, temperature=0.5, top_p=0.9)
    expected = {"max_new_tokens": 9, "num_return_sequences": 2, "num_candidates": 4, "num_inference_steps": 1}
    expected |= {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}
    assert [dict(row.options) for row in request.rows()] == [expected] * 2
    assert dict(read(prompt="a", temperature=0).rows()[0].options) == {"do_sample": False}
    assert dict(read(prompt="a", top_k=5).rows()[0].options) == {"do_sample": True, "top_k": 5}
    assert dict(read(prompt="a", top_p=1).rows()[0].options) == {}
    assert [refused_field(name) for name in ("max_new_tokens", "solver", None)] == ["max_tokens", "solver", None]


def test_rows_without_a_seed_get_seeds_of_their_own():
    first, second = read(prompt=["a", "a"]).rows()
    assert first.seed != second.seed


def test_bodies():
    body = CompletionBody(read(prompt=["a", "b"], n=2, stop=["!"], seed=0), "yan").whole(
        [answer("x! y", "z"), answer("u", "v")]
    )
    assert body["object"] == "text_completion"
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "x"), (1, "z"), (2, "u"), (3, "v")]
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20}
    stream = CompletionBody(read(prompt="a", stream=True, stream_options={"include_usage": True}), "yan")
    (choice,) = stream.draft(Draft(2, "so far"))["choices"]
    assert (choice["text"], choice["draft"], choice["step"], choice["finish_reason"]) == ("", "so far", 2, None)
    last, usage = stream.last(answer("done"))
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("done", "stop")
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 7)


def test_texts_are_cut_before_the_first_stop():
    assert cut_at("a b c", ["c", "b"]) == "a "
    assert cut_at("a b c", ["d"]) == "a b c"
    assert cut_at("a b c", []) == "a b c"
