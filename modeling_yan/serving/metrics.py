"""What the server counts, in Prometheus' text format."""

from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from modeling_yan.serving.engine import Answer

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self._registry = CollectorRegistry()
        own = {"registry": self._registry}
        self.requests = Counter(
            "yan_requests", "Requests for completions and restorations, by HTTP status.", ["status"], **own
        )
        self.errors = Counter("yan_request_errors", "Those that ended with status 400 or above.", ["status"], **own)
        self.in_progress = Gauge("yan_requests_in_progress", "Requests that are being answered.", **own)
        self.seconds = Histogram(
            "yan_request_seconds", "From the body to the last byte of an answer.", buckets=SECONDS, **own
        )
        self.batch_size = Histogram("yan_batch_size", "Prompts that were answered together.", buckets=ROWS, **own)
        self.prompt_tokens = Counter("yan_prompt_tokens", "Tokens read.", **own)
        self.completion_tokens = Counter("yan_completion_tokens", "Tokens written.", **own)
        self.retries = Counter("yan_retries", "Prompts that were handed to another replica: theirs had died.", **own)

    def count_answers(self, answers: Sequence[Answer]) -> None:
        """Tokens, and the batches that began with one of these answers."""
        for answer in answers:
            self.prompt_tokens.inc(answer.prompt_tokens)
            self.completion_tokens.inc(sum(answer.completion_tokens))
            if answer.batch_size is not None:
                self.batch_size.observe(answer.batch_size)

    def count_request(self, status: int, seconds: float) -> None:
        self.requests.labels(status).inc()
        if status >= 400:
            self.errors.labels(status).inc()
        else:
            self.seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
