"""What speaks HTTP, without a server."""

import asyncio
import json
import math
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from starlette.requests import Request

from modeling_yan.restoration_yan import Restoration
from modeling_yan.serving import deployments
from modeling_yan.serving.api import ApiError, Limits
from modeling_yan.serving.engine import Answer


def api_of(result: object, **limits: int):
    """An `Api` in front of an engine that answers everything with this."""

    async def remote(*arguments):
        return result

    handle = SimpleNamespace(answer=SimpleNamespace(remote=remote), restore=SimpleNamespace(remote=remote))
    of_api = next(c for c in deployments.Api.func_or_class.__mro__ if "_counted" in vars(c))
    api = object.__new__(of_api)
    of_api.__init__(api, handle, deployments.ServerSettings("folder", "yan", limits=Limits(**limits)))
    return api


def request_of(*messages: dict) -> Request:
    """A request whose body arrives in these messages."""
    waiting = iter(messages)

    async def receive() -> dict:
        return next(waiting)

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def body_of(**fields) -> dict:
    return {"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}


def counted(api, status: int) -> bool:
    """Whether one request is over, with this status and no other."""
    shown = api.metrics.text().decode().splitlines()
    totals = [line for line in shown if line.startswith("yan_requests_total{")]
    return "yan_requests_in_progress 0.0" in shown and totals == [f'yan_requests_total{{status="{status}"}} 1.0']


def test_a_request_that_is_given_up_is_over():
    of_api = deployments.Api.func_or_class
    api = SimpleNamespace(metrics=deployments.ServerMetrics())
    api._finish = partial(of_api._finish, api)

    async def request() -> None:
        with of_api._counted(api, 0.0):
            await asyncio.sleep(60)

    async def give_up() -> None:
        task = asyncio.ensure_future(request())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(give_up())
    assert counted(api, 499)


def test_an_upload_that_is_given_up_is_no_failure_of_the_server(caplog):
    api = api_of(None)
    with pytest.raises(ApiError) as caught:
        asyncio.run(api.completions(request_of({"type": "http.disconnect"})))
    assert caught.value.status == 499
    assert counted(api, 499)
    assert not caplog.records


def test_an_answer_that_is_no_json_is_counted_as_a_failure():
    api = api_of(Answer(["a"], ["stop"], [math.nan], prompt_tokens=1, completion_tokens=[1]))
    with pytest.raises(ApiError, match="the server failed"):
        asyncio.run(api.completions(request_of(body_of(prompt="a"))))
    assert counted(api, 500)


def test_a_body_may_hold_as_long_a_document_as_is_restored():
    text = "\N{GRINNING FACE}" * 400_000
    response = asyncio.run(api_of(Restoration("a"), characters=400_000).restore(request_of(body_of(text=text))))
    assert json.loads(response.body)["text"] == "a"
    with pytest.raises(ApiError) as caught:
        asyncio.run(api_of(None, characters=10).restore(request_of(body_of(text=text))))
    assert caught.value.status == 413


def test_what_counts_both_routes_says_so():
    assert b"Completion requests" not in deployments.ServerMetrics().text()
