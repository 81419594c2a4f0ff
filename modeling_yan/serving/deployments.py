"""
The server on Ray Serve: replicas of an engine, each of which answers what arrives together in one batch, and in front
of them one process that speaks HTTP. Needs the extra `serving`.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from modeling_yan.restoration_yan import Restoration
from modeling_yan.serving.api import ApiError, CompletionBody, CompletionRequest, Limits, refused_field
from modeling_yan.serving.engine import Answer, Draft, Engine, Refusal, Row
from modeling_yan.serving.metrics import ServerMetrics
from modeling_yan.serving.restoration_api import RestorationRequest, restoration_body

logger = logging.getLogger("ray.serve")

APPLICATION = "yan"
ENGINE = "Engine"
# A body that is longer has no prompt, in bytes; beside a document it is what else may stand there.
LARGEST_BODY = 2**22
# Bytes that JSON writes a character of a document in at most: two escapes.
LONGEST_CHARACTER = 12
# Between two attempts at a replica, in seconds.
PAUSE = 0.2
# Connections that wait in the HTTP process; the queue of the engine is what is full before.
MOST_CONNECTIONS = 10_000


@dataclass(frozen=True)
class ServerSettings:
    """
    Args:
        model: folder or Hub name.
        name: what requests call it.
        runtime: "torch" or "onnx".
        dtype: of the weights in torch; see `Engine.load`.
        trust_remote_code: whether code that comes with the tokenizer may run.
        replicas, threads, gpus: copies of the model, and what each computes on.
        max_batch_size, batch_wait_ms: prompts of a batch at most, and how long the first of them waits for others.
        max_ongoing_requests: prompts that a replica holds, those of the running batch included.
        max_queued_requests: prompts that wait for a replica to have room; more are refused with status 429.
        request_timeout_s: after which a request ends with status 503.
        limits: of one request.
    """

    model: str
    name: str
    runtime: str = "torch"
    dtype: str = "float32"
    trust_remote_code: bool = False
    replicas: int = 1
    threads: int = 1
    gpus: float = 0
    max_batch_size: int = 32
    batch_wait_ms: float = 5.0
    max_ongoing_requests: int = 64
    max_queued_requests: int = 256
    request_timeout_s: float = 60.0
    limits: Limits = field(default_factory=Limits)


@serve.deployment(name=ENGINE)
class EngineReplica:
    """One copy of the model."""

    def __init__(self, settings: ServerSettings):
        torch.set_num_threads(settings.threads)
        self.engine = Engine.load(
            settings.model,
            settings.runtime,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            max_candidates=settings.limits.candidates,
        )
        # Documents take long; each of them that is begun has a thread, of which there are few.
        self.one_document = asyncio.Lock()
        self.idle = asyncio.Event()
        self.idle.set()
        self.answer_batch.set_max_batch_size(settings.max_batch_size)
        self.answer_batch.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    @serve.batch
    async def answer_batch(self, rows: list[Row]) -> list[Answer | Refusal]:
        self.idle.clear()
        try:
            results = await asyncio.to_thread(self.engine.answer, rows)
        finally:
            self.idle.set()
        first = next((index for index, result in enumerate(results) if isinstance(result, Answer)), None)
        if first is not None:
            results[first] = replace(results[first], batch_size=len(rows))
        return results

    async def answer(self, row: Row) -> Answer | Refusal:
        # Ray Serve closes a batch when its wait is over, whether or not it can begin. What arrives while one is written
        # would be many small batches; kept back, it is one.
        await self.idle.wait()
        return await self.answer_batch(row)

    async def restore(self, text: str, options: dict[str, object]) -> Restoration | Refusal:
        async with self.one_document:
            return await asyncio.to_thread(self.engine.restore, text, options)

    async def stream(self, row: Row) -> AsyncIterator[Draft | Answer | Refusal]:
        events = self.engine.stream(row)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield replace(event, batch_size=1) if isinstance(event, Answer) else event


app = FastAPI(title="YAN", docs_url=None, redoc_url=None, openapi_url=None)


@app.exception_handler(ApiError)
async def answer_error(request: Request, error: ApiError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body, error.status, headers)


@app.exception_handler(HTTPException)
async def answer_unknown_route(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).body, error.status_code, error.headers)


async def read_body(request: Request, most: int = LARGEST_BODY) -> bytes:
    """
    Raises:
        ApiError: with status 413, for a body that is too long, before all of it is held.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise ApiError(413, f"the body is longer than {most} bytes; send several requests")
    return bytes(body)


def event_line(content: dict | str) -> str:
    """A server-sent event."""
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"


# Ray Serve takes a copy of what the class below uses where it is defined: all of it stands above.


def accept(result: Answer | Draft | Restoration | Refusal) -> Answer | Draft | Restoration:
    """
    Raises:
        ApiError: with status 400, for a refusal.
    """
    if isinstance(result, Refusal):
        param = refused_field(result.field)
        message = result.message if param in (None, result.field) else f"{param}: {result.message}"
        raise ApiError(400, message, param)
    return result


def as_api_error(error: Exception) -> ApiError:
    """
    Itself; one with status 499 for a client that is gone; for what nobody expected one with 500, and the log has the
    rest.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientDisconnect):
        return ApiError(499, "the client gave the request up; send it again")
    logger.exception("a request failed")
    return ApiError(500, f"the server failed: {type(error).__name__}; its log says more")


@serve.deployment(name="Api", num_replicas=1, max_ongoing_requests=MOST_CONNECTIONS)
@serve.ingress(app)
class Api:
    """What speaks HTTP. It holds no model, and an accepted prompt until some replica has answered it."""

    def __init__(self, engine: DeploymentHandle, settings: ServerSettings):
        self.engine, self.settings = engine, settings
        self.created = int(time.time())
        self.metrics = ServerMetrics()

    @app.get("/health")
    async def health(self) -> JSONResponse:
        """Status 200 where a replica can answer, otherwise 503."""
        status = await asyncio.to_thread(serve.status)
        deployments = status.applications[APPLICATION].deployments if APPLICATION in status.applications else {}
        running = deployments[ENGINE].replica_states.get("RUNNING", 0) if ENGINE in deployments else 0
        content = {"status": "ok" if running else "starting", "replicas": running, "wanted": self.settings.replicas}
        return JSONResponse(content, 200 if running else 503)

    @app.get("/metrics")
    async def prometheus(self) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    @app.get("/v1/models")
    async def models(self) -> dict:
        return {"object": "list", "data": [self._model_record()]}

    @app.get("/v1/models/{name:path}")
    async def model(self, name: str) -> dict:
        self._check_name(name)
        return self._model_record()

    @app.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        start = time.perf_counter()
        with self._counted(start):
            wanted = CompletionRequest.read(await read_body(request), self.settings.limits)
            self._check_name(wanted.model)
            body = CompletionBody(wanted, self.settings.name)
            if wanted.stream:
                return await self._begin_stream(wanted.rows()[0], body, start)
            answers = await self._answer_all(wanted.rows())
            response = JSONResponse(body.whole(answers))
        self.metrics.count_answers(answers)
        self._finish(200, start)
        return response

    @app.post("/v1/restore")
    async def restore(self, request: Request) -> Response:
        start = time.perf_counter()
        with self._counted(start):
            limits = self.settings.limits
            content = await read_body(request, LARGEST_BODY + LONGEST_CHARACTER * limits.characters)
            wanted = RestorationRequest.read(content, limits)
            self._check_name(wanted.model)
            restored = await self._insist(lambda: self._restore(wanted))
            response = JSONResponse(restoration_body(restored, self.settings.name))
        self._finish(200, start)
        return response

    @contextlib.contextmanager
    def _counted(self, start: float) -> Iterator[None]:
        """Counts a request that begins, and ends one that fails or is given up; an error it raises is an `ApiError`."""
        self.metrics.in_progress.inc()
        try:
            yield
        except asyncio.CancelledError:
            # Nobody waits for the answer any more.
            self._finish(499, start)
            raise
        except Exception as error:
            error = as_api_error(error)
            self._finish(error.status, start)
            raise error from None

    def _finish(self, status: int, start: float) -> None:
        self.metrics.in_progress.dec()
        self.metrics.count_request(status, time.perf_counter() - start)

    def _model_record(self) -> dict:
        return {"id": self.settings.name, "object": "model", "created": self.created, "owned_by": "modeling-yan"}

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.settings.name):
            message = f"model={name!r} is not served here; {self.settings.name!r} is"
            raise ApiError(404, message, "model", "model_not_found")

    async def _answer_all(self, rows: list[Row]) -> list[Answer]:
        """
        Raises:
            ApiError: as `_insist`, for the first row that cannot be answered; the others are given up.
        """
        tasks = [asyncio.ensure_future(self._insist(lambda row=row: self._ask(row))) for row in rows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, row: Row) -> Answer:
        return accept(await self.engine.answer.remote(row))

    async def _restore(self, wanted: RestorationRequest) -> Restoration:
        return accept(await self.engine.restore.remote(wanted.text, wanted.options))

    async def _insist(self, attempt: Callable[[], Awaitable]):
        """
        What an attempt returns. A replica that dies takes no prompt along: the next one gets it, with the same seed
        and so the same text.

        Raises:
            ApiError: with status 429 where the queue is full at the first attempt, and 503 where no replica answered
                in time.
        """
        accepted = False
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                while True:
                    try:
                        return await attempt()
                    except BackPressureError:
                        if not accepted:
                            raise ApiError(
                                429,
                                f"{self.settings.max_queued_requests} prompts are waiting already; try again later",
                                code="rate_limit_exceeded",
                            ) from None
                    except (RayActorError, DeploymentUnavailableError) as error:
                        logger.warning(f"a replica is gone, its prompt goes to another: {type(error).__name__}")
                        self.metrics.retries.inc()
                        accepted = True
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise ApiError(
                503, f"no answer after {self.settings.request_timeout_s:g} seconds; try again later"
            ) from None

    async def _begin_stream(self, row: Row, body: CompletionBody, start: float) -> StreamingResponse:
        """The response once its first event is there: what is refused has a status of its own."""
        events = self._events(row)
        first = await anext(events)
        return StreamingResponse(self._lines(first, events, body, start), media_type="text/event-stream")

    async def _events(self, row: Row) -> AsyncIterator[Draft | Answer]:
        """Drafts and the answer. After a replica died another begins anew, with drafts that were sent already."""
        sent, events = 0, None

        async def following() -> Draft | Answer:
            nonlocal events
            events = events or aiter(self.engine.options(stream=True).stream.remote(row))
            try:
                return accept(await anext(events))
            except BaseException:
                events = None
                raise

        while True:
            event = await self._insist(following)
            if isinstance(event, Answer):
                yield event
                return
            if event.step > sent:
                sent = event.step
                yield event

    async def _lines(
        self, first: Draft | Answer, events: AsyncIterator, body: CompletionBody, start: float
    ) -> AsyncIterator[str]:
        status = 499
        try:
            event = first
            while isinstance(event, Draft):
                yield event_line(body.draft(event))
                event = await anext(events)
            for content in body.last(event):
                yield event_line(content)
            yield event_line("[DONE]")
            self.metrics.count_answers([event])
            status = 200
        except Exception as error:
            # The status is sent; an event says what happened.
            error = as_api_error(error)
            status = error.status
            yield event_line(error.body)
        finally:
            with contextlib.suppress(RuntimeError):
                await events.aclose()
            self._finish(status, start)


def application(settings: ServerSettings) -> serve.Application:
    """The deployments of a server, bound to each other."""
    engine = EngineReplica.options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": settings.gpus},
        health_check_period_s=2,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
    ).bind(settings)
    shutdown = {"graceful_shutdown_timeout_s": settings.request_timeout_s, "graceful_shutdown_wait_loop_s": 0.1}
    return Api.options(ray_actor_options={"num_cpus": 0}, **shutdown).bind(engine, settings)
