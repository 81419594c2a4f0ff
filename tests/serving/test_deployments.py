"""What speaks HTTP, without a server."""

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")


def test_a_request_that_is_given_up_is_over():
    from modeling_yan.serving import deployments

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
    shown = api.metrics.text().decode().splitlines()
    assert "yan_requests_in_progress 0.0" in shown
    assert 'yan_requests_total{status="499"} 1.0' in shown
