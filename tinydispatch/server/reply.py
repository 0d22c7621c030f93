"""A chat completion as the OpenAI API writes it: one `chat.completion`, or `chat.completion.chunk`s."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tinydispatch.confidence import CallConfidence
from tinydispatch.engine import TokenLogprob, WrittenToken
from tinydispatch.server.errors import ApiError
from tinydispatch.server.job import Answer, CallPart, ChatJob, Part, compact_json

DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Writes one reply as a route's clients read it; a stream is `first`, `part`s, and `last` or `error`."""

    id: str

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        ...

    def first(self) -> bytes:
        """What comes before everything else; the job knows its model by then."""
        ...

    def part(self, part: Part) -> bytes:
        """A piece of text as it is, or a whole call."""
        ...

    def last(self, answer: Answer) -> bytes:
        """The end of the reply and of the stream."""
        ...

    def error(self, error: ApiError) -> bytes:
        """The end of a stream that broke; the official client raises what it says."""
        ...


# A job and the model's name → what writes its reply.
MakeWriter = Callable[[ChatJob, str], Writer]


class ChatWriter:
    """`/v1/chat/completions`."""

    def __init__(self, job: ChatJob, model: str) -> None:
        self.id = f"chatcmpl-{job.id}"
        self._job, self._model = job, model

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
        if answer.calls:
            message["tool_calls"] = [_call(part) for part in answer.calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish_reason,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(answer),
            "system_fingerprint": fingerprint(answer.serving_id),
            "tinydispatch": extra(answer),
        }

    def first(self) -> bytes:
        """Who speaks."""
        return self._delta({"role": "assistant", "content": None, "refusal": None})

    def part(self, part: Part) -> bytes:
        """A piece of text as it is; a call as its name, then its arguments."""
        if isinstance(part, str):
            return self._delta({"content": part})
        call = _call(part)
        arguments = call["function"].pop("arguments")
        opening = {"index": part.index, **call, "function": {**call["function"], "arguments": ""}}
        rest = {"index": part.index, "function": {"arguments": arguments}}
        return self._delta({"tool_calls": [opening]}) + self._delta({"tool_calls": [rest]})

    def last(self, answer: Answer) -> bytes:
        """Why it ends, the usage where it was asked for, and `[DONE]`."""
        written = b"" if answer.refusal is None else self._delta({"refusal": answer.refusal})
        logprobs = self._logprobs(answer)
        written += self._delta({}, answer.finish_reason, {"tinydispatch": extra(answer)}, logprobs)
        if self._job.request.includes_usage:
            written += event({**self._chunk_head(), "choices": [], "usage": usage(answer)})
        return written + DONE

    def error(self, error: ApiError) -> bytes:
        """The error's body as the last event."""
        return event(error.body())

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if self._job.request.n_alternatives is None:
            return None
        return {"content": [logprob(token) for token in answer.dispatch.logprobs], "refusal": None}

    def _delta(
        self,
        delta: Mapping[str, Any],
        finish_reason: str | None = None,
        more: Mapping[str, Any] | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        no_usage = {"usage": None} if self._job.request.includes_usage else {}
        return event({**self._chunk_head(), "choices": [choice], **no_usage, **(more or {})})

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "system_fingerprint": fingerprint(self._job.serving_id)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._job.created, "model": self._model}


def json_bytes(value: Any) -> bytes:
    """Compact JSON."""
    return compact_json(value).encode("utf-8")


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json_bytes(value) + b"\n\n"


def usage(answer: Answer) -> dict[str, Any]:
    """Token counts; `cached_tokens` are those of the prompt that came from a kept state."""
    tokens = answer.dispatch.tokens
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.generated,
        "total_tokens": tokens.prompt + tokens.generated,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def fingerprint(serving_id: str) -> str:
    """`system_fingerprint`: changes when another model comes into service."""
    return f"fp_{serving_id}"


def logprob(token: TokenLogprob) -> dict[str, Any]:
    """A token and its alternatives."""
    return {
        **_spelled(token.data, token.logprob),
        "top_logprobs": [_spelled(data, value) for data, value in token.alternatives],
    }


def _spelled(data: bytes, value: float) -> dict[str, Any]:
    return {"token": data.decode("utf-8", "replace"), "logprob": round(value, 6), "bytes": list(data)}


def arguments_text(part: CallPart) -> str:
    """A call's arguments, as the API gives them."""
    return compact_json(dict(part.call.arguments))


def _call(part: CallPart) -> dict[str, Any]:
    function = {"name": part.call.name, "arguments": arguments_text(part)}
    return {"id": part.id, "type": "function", "function": function}


def extra(answer: Answer) -> dict[str, Any]:
    """What the OpenAI API has no word for; its clients hand it through."""
    dispatch = answer.dispatch
    return {
        "confidence": round(dispatch.confidence, 4),
        "is_confident": dispatch.is_confident,
        "confidences": [_confidence(found) for found in dispatch.confidences],
        "reference_date": None if answer.reference_date is None else answer.reference_date.isoformat(),
        "queue_ms": round(1000 * answer.queue_s, 2),
        "prefill_ms": round(dispatch.timings.prefill_ms, 2),
        "decode_ms": round(dispatch.timings.decode_ms, 2),
        "grammar_ms": round(dispatch.timings.grammar_ms, 2),
        "total_ms": round(1000 * answer.model_s, 2),
        **({"tokens": _tokens(dispatch.written)} if answer.explains else {}),
    }


def _confidence(found: CallConfidence) -> dict[str, Any]:
    arguments = {name: round(value, 4) for name, value in found.arguments.items()}
    return {"call": round(found.call, 4), "tool": round(found.tool, 4), "arguments": arguments}


def _tokens(written: Sequence[WrittenToken]) -> list[dict[str, Any]]:
    """A character that takes several tokens stands with the one that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [
        {
            "text": decoder.decode(token.data),
            "probability": None if token.probability is None else round(token.probability, 4),
        }
        for token in written
    ]
