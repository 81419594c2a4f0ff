"""The HTTP server, in processes of its own and on loopback: answers, batches, streams, overload, deaths, shutdown."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from modeling_yan.serving.engine import Engine

from ..helpers import YAN_E2E, flags, free_port, process_environment, refused, seeded

pytest.importorskip("ray")
pytest.importorskip("aiohttp")
prometheus = pytest.importorskip("prometheus_client.parser")
# A server takes half a minute to start.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROMPT = "name[Aromi], eatType[coffee shop], area[city centre]"
# Takes a replica some tenths of a second.
LONG = {"num_inference_steps": 32, "num_candidates": 4, "length_mode": "canvas", "max_tokens": 40}


@dataclass
class Reply:
    status: int
    body: dict | str
    headers: dict


@dataclass
class Server:
    """`yan serve` in a process of its own."""

    process: subprocess.Popen
    port: int
    log: Path

    def call(self, path: str, body: dict | bytes | None = None, method: str | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method or ("GET" if body is None else "POST"), path, data)
            response = connection.getresponse()
            text = response.read().decode()
        is_json = (response.getheader("content-type") or "").startswith("application/json")
        return Reply(response.status, json.loads(text) if is_json else text, dict(response.getheaders()))

    def complete(self, **body) -> Reply:
        return self.call("/v1/completions", body)

    def together(self, bodies: list[dict]) -> list[Reply]:
        """Replies to requests that are sent at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.complete(**body), bodies))

    def metric(self, name: str, **labels: str) -> float:
        families = prometheus.text_string_to_metric_families(self.call("/metrics").body)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def replicas(self) -> list[psutil.Process]:
        """Processes that hold a copy of the model."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [child] if "ServeReplica:yan:Engine" in " ".join(child.cmdline()) else []
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


@contextlib.contextmanager
def served(folder: Path, **options) -> Iterator[Server]:
    port, log = free_port(), folder / "server.log"
    command = [
        sys.executable,
        "-m",
        "modeling_yan.cli",
        "serve",
        *flags(model=YAN_E2E, port=port, threads=1, **options),
    ]
    with log.open("w") as file:
        environment = process_environment(OMP_NUM_THREADS="1")
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    server = Server(process, port, log)
    try:
        while "answers at" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    options = {"replicas": 2, "max_batch_size": 8, "max_ongoing_requests": 8}
    with served(folder, **options, max_queued_requests=16, max_prompts=16, batch_wait_ms=50) as server:
        yield server


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(str(YAN_E2E))


def written(engine: Engine, prompt: str, seed: int, **options) -> str:
    """What the model itself writes for this seed."""
    ids = engine.model.generate(**engine.tokenizer([prompt], return_tensors="pt"), generator=seeded(seed), **options)
    return engine.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def text_of(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return reply.body["choices"][0]["text"]


def test_answers_are_those_of_the_model(server, engine):
    reply = server.complete(model="yan-e2e", prompt=PROMPT, seed=7)
    assert text_of(reply) == written(engine, PROMPT, 7)
    read, wrote = (reply.body["usage"][f"{part}_tokens"] for part in ("prompt", "completion"))
    assert read == len(engine.tokenizer(PROMPT)["input_ids"])
    assert wrote > 3
    assert reply.body["choices"][0]["finish_reason"] == "stop"
    options = {"num_inference_steps": 1, "num_length_candidates": 2}
    assert text_of(server.complete(prompt=PROMPT, seed=7, **options)) == written(engine, PROMPT, 7, **options)
    two = server.complete(prompt=[PROMPT, "name[The Vaults]"], seed=7).body["choices"]
    assert [choice["text"] for choice in two] == [written(engine, p, 7) for p in (PROMPT, "name[The Vaults]")]


def test_requests_that_come_together_share_batches_and_change_no_text(server, engine):
    prompts = [f"name[The {place}], eatType[pub], area[riverside]" for place in ("Vaults", "Mill", "Eagle", "Punter")]
    bodies = [{"prompt": prompt, "seed": seed} for seed in range(5) for prompt in prompts]
    batches, rows = (server.metric(f"yan_batch_size_{part}") for part in ("count", "sum"))
    texts = [text_of(reply) for reply in server.together(bodies)]
    assert texts == [written(engine, body["prompt"], body["seed"]) for body in bodies]
    rows, batches = server.metric("yan_batch_size_sum") - rows, server.metric("yan_batch_size_count") - batches
    assert rows == len(bodies)
    assert batches < len(bodies)


def test_streams_send_drafts_then_the_text_then_done(server, engine):
    body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4, "stream": True}
    reply = server.complete(**body, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.body.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    *drafts, last, usage = map(json.loads, lines[:-1])
    assert [event["choices"][0]["step"] for event in drafts] == [1, 2, 3, 4]
    text = written(engine, PROMPT, 3, num_inference_steps=4)
    assert drafts[-1]["choices"][0]["draft"] == last["choices"][0]["text"] == text
    # What a client gets that adds up texts.
    assert "".join(event["choices"][0]["text"] for event in [*drafts, last]) == text
    assert len({event["id"] for event in [*drafts, last, usage]}) == 1
    assert usage["usage"]["completion_tokens"] > 3
    assert server.complete(**{**body, "solver": "magic"}).status == 400


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{", None, "the body is no JSON"),
        ({"prompt": "a", "steps": 3}, "steps", "no field"),
        ({"prompt": "river " * 400}, "prompt", "this model reads at most 192"),
        ({"prompt": "a", "max_tokens": 1000}, "max_tokens", "max_position_embeddings=192"),
        ({"prompt": "a", "min_tokens": 3}, "min_tokens", "cannot be promised"),
        ({"prompt": "a", "prior_temperature": -1}, "prior_temperature", "not negative"),
        ({"prompt": "a", "logprobs": 3}, "logprobs", "cannot be honoured"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests_are_told_why(server, body, param, message):
    reply = server.call("/v1/completions", body)
    assert reply.status == 400
    assert message in reply.body["error"]["message"]
    assert reply.body["error"]["param"] == param


def test_other_routes(server):
    assert server.call("/v1/models").body["data"][0]["id"] == "yan-e2e"
    assert server.call("/v1/models/yan-e2e").body["object"] == "model"
    assert server.call("/v1/models/gpt").body["error"]["code"] == "model_not_found"
    assert server.complete(model="gpt", prompt="a").status == 404
    assert server.call("/v2").body["error"]["type"] == "invalid_request_error"
    assert server.call("/v1/completions").status == 405
    assert server.call("/v1/completions", b" " * (2**22 + 1)).status == 413
    assert server.call("/health").body == {"status": "ok", "replicas": 2, "wanted": 2}


def test_a_document_comes_back_restored(server, engine):
    # The model of this server mends nothing well; the route gives what the function gives.
    text = "name[Aromi], eatType[pub]\n\nthe vaults is a pub"
    wanted = engine.restore(text, {"max_edit": None, "max_word_edit": None})
    reply = server.call("/v1/restore", {"text": text, "max_edit": None, "max_word_edit": None})
    assert (reply.status, reply.body["text"]) == (200, wanted.text)
    assert [edit["start"] for edit in reply.body["edits"]] == [edit.start for edit in wanted.edits]
    refusal = server.call("/v1/restore", {"text": text, "min_confidence": 2.0})
    assert (refusal.status, refusal.body["error"]["param"]) == (400, "min_confidence")
    assert server.metric("yan_requests_in_progress") == 0


def test_metrics_count_what_happened(server):
    names = (
        "yan_requests_total",
        "yan_request_seconds_count",
        "yan_prompt_tokens_total",
        "yan_completion_tokens_total",
    )
    before = {name: server.metric(name) for name in names}
    usage = server.complete(prompt=PROMPT, seed=0).body["usage"]
    counted = {name: server.metric(name) - before[name] for name in names}
    assert list(counted.values()) == [1, 1, usage["prompt_tokens"], usage["completion_tokens"]]
    refusals = server.metric("yan_request_errors_total", status="400")
    server.complete(prompt="a", steps=3)
    assert server.metric("yan_request_errors_total", status="400") == refusals + 1
    assert server.metric("yan_requests_in_progress") == 0
    assert server.call("/metrics").headers["content-type"].startswith("text/plain")


def test_overload_is_answered_with_429_and_what_was_accepted_with_texts(server, engine):
    bodies = [{"prompt": PROMPT, "seed": seed, **LONG} for seed in range(64)]
    replies = server.together(bodies)
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 429}
    # Two replicas hold eight prompts each, and sixteen wait.
    assert statuses.count(200) >= 32
    refusal = replies[statuses.index(429)]
    assert refusal.body["error"]["type"] == "rate_limit_error"
    assert "16 prompts are waiting" in refusal.body["error"]["message"]
    assert int(refusal.headers["retry-after"]) >= 1
    assert text_of(server.complete(prompt=PROMPT, seed=7)) == written(engine, PROMPT, 7)


def test_a_killed_replica_takes_no_accepted_request_along(server, engine):
    bodies = [{"prompt": PROMPT, "seed": seed, **LONG} for seed in range(20)]
    options = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in LONG.items()}
    before = server.metric("yan_retries_total")
    with ThreadPoolExecutor(21) as pool:
        replies = [pool.submit(server.complete, **body) for body in bodies]
        stream = pool.submit(server.complete, prompt=PROMPT, seed=0, stream=True, num_inference_steps=32)
        time.sleep(0.5)
        killed = server.replicas()
        assert len(killed) == 2
        for process in killed:
            process.kill()
        replies = [reply.result() for reply in replies]
    assert [text_of(reply) for reply in replies] == [written(engine, PROMPT, b["seed"], **options) for b in bodies]
    assert stream.result().body.endswith("data: [DONE]\n\n")
    assert server.metric("yan_retries_total") > before
    for _ in range(300):
        if server.call("/health").body["replicas"] == 2:
            break
        time.sleep(0.2)
    assert server.call("/health").body["replicas"] == 2
    assert not {p.pid for p in killed} & {p.pid for p in server.replicas()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_let_requests_in_progress_end_and_leave_nothing_behind(tmp_path, number):
    with served(tmp_path) as server, ThreadPoolExecutor(8) as pool:
        children = psutil.Process(server.process.pid).children(recursive=True)
        replies = [pool.submit(server.complete, prompt=PROMPT, seed=seed, **LONG) for seed in range(8)]
        time.sleep(0.5)
        assert server.stop(number) == 0, server.log.read_text()[-3000:]
        assert all(text_of(reply.result()) for reply in replies)
        assert not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "absent"}, "absent"),
        ({"model": YAN_E2E, "runtime": "onnx"}, "write them with `yan export`"),
        ({"model": YAN_E2E, "replicas": 0}, "--replicas 0 must be greater than 0"),
        ({"model": YAN_E2E, "batch_wait_ms": -1}, "--batch_wait_ms -1.0 must be 0 or more"),
        ({"model": YAN_E2E, "max_prompts": 100, "max_queued_requests": 3}, "--max_prompts 100 are more than"),
    ],
    ids=str,
)
def test_bad_arguments_end_before_anything_starts(tmp_path, options, message):
    assert message in refused("examples/serve.py", cwd=tmp_path, **options)
