"""Numbers for Prometheus: how many requests, how long they waited and took, how many tokens, how sure the model was."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from tinydispatch.server.holder import ModelHolder
from tinydispatch.server.job import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

_TOKENS = "Tokens: of the prompt in all, those of it that were cached, generated ones in all, those of them forced"


class ReplyKind(StrEnum):
    """What came of a request that the model answered."""

    CALLS = "calls"
    WORDS = "words"
    REFUSED = "refused"
    CUT = "cut"


class Metrics:
    """The server's counters, in a registry of their own, so that two servers in one process do not share them."""

    def __init__(self, holder: ModelHolder) -> None:
        self.registry = self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter("tinydispatch_requests", "Answered requests", ["path", "status"], registry=registry)
        self._request_seconds = _histogram("request_seconds", "From the request to the end of its answer", registry)
        self._queue_seconds = _histogram("queue_seconds", "Waited for the model", registry)
        self._model_seconds = _histogram("model_seconds", "Computed by the model", registry)
        self._tokens = Counter("tinydispatch_tokens", _TOKENS, ["kind"], registry=registry)
        self._replies = Counter("tinydispatch_replies", "Replies of the model", ["kind"], registry=registry)
        self._calls = Counter("tinydispatch_calls", "Calls in replies", registry=registry)
        self._unsure = Counter(
            "tinydispatch_unsure_replies",
            "Below the threshold, or without one",
            registry=registry,
        )
        self._gone = Counter("tinydispatch_clients_gone", "Left before their answer", registry=registry)
        self._gauge("waiting_requests", "Requests that wait for the model", lambda: holder.n_waiting)
        self._gauge("busy", "1 while the model computes", lambda: holder.is_busy)
        self._model = Gauge("tinydispatch_model_info", "1 for the model in service", ["id"], registry=registry)
        self._holder = holder

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(f"tinydispatch_{name}", text, registry=self._registry).set_function(read)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered; `path` is a route and never what a client made up."""
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.observe(seconds)

    def gone(self) -> None:
        """A client left before its answer."""
        self._gone.inc()

    def answer(self, answer: Answer) -> None:
        """The model finished a reply."""
        tokens = answer.dispatch.tokens
        for kind in ("prompt", "cached", "generated", "forced"):
            self._tokens.labels(kind).inc(getattr(tokens, kind))
        self._queue_seconds.observe(answer.queue_s)
        self._model_seconds.observe(answer.model_s)
        self._replies.labels(str(_kind(answer))).inc()
        self._calls.inc(len(answer.calls))
        self._unsure.inc(answer.dispatch.is_confident is not True)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        self._model.clear()
        self._model.labels(self._holder.serving.id).set(1)
        return generate_latest(self._registry)


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"tinydispatch_{name}", text, registry=registry, buckets=_SECONDS)


def _kind(answer: Answer) -> ReplyKind:
    if answer.refusal is not None:
        return ReplyKind.REFUSED
    if answer.finish_reason == "length":
        return ReplyKind.CUT
    return ReplyKind.CALLS if answer.calls else ReplyKind.WORDS
