"""An answer as the OpenAI API writes it: one `chat.completion`, or `chat.completion.chunk`s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinydispatch.server.job import Answer, CallPart, ChatJob, Part

DONE = b"data: [DONE]\n\n"


def json_bytes(value: Any) -> bytes:
    """Compact JSON; what no UTF-8 can express (half of a surrogate pair that a model wrote) is escaped."""
    return _compact(value).encode("utf-8")


def _compact(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def completion(job: ChatJob, answer: Answer, model: str) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
    if not answer.calls and answer.content is None and answer.refusal is None:
        message["content"] = ""
    if answer.calls:
        message["tool_calls"] = [_call(part) for part in answer.calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    head = _head(job, model, "chat.completion")
    return {
        **head,
        "choices": [choice],
        "usage": usage(answer),
        "system_fingerprint": fingerprint(answer.serving_id),
        "tinydispatch": _extra(answer),
    }


class Chunks:
    """Writes a reply's parts as server-sent events."""

    def __init__(self, job: ChatJob, model: str, serving_id: str) -> None:
        self._job = job
        self._head = _head(job, model, "chat.completion.chunk")
        self._head["system_fingerprint"] = fingerprint(serving_id)

    def first(self) -> bytes:
        """Who speaks; comes before everything else."""
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
        written += self._delta({}, answer.finish_reason, {"tinydispatch": _extra(answer)})
        if self._job.request.includes_usage:
            written += event({**self._head, "choices": [], "usage": usage(answer)})
        return written + DONE

    def _delta(
        self, delta: Mapping[str, Any], finish_reason: str | None = None, extra: Mapping[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        no_usage = {"usage": None} if self._job.request.includes_usage else {}
        return event({**self._head, "choices": [choice], **no_usage, **(extra or {})})


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"


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


def _head(job: ChatJob, model: str, kind: str) -> dict[str, Any]:
    return {"id": job.id, "object": kind, "created": job.created, "model": model}


def _call(part: CallPart) -> dict[str, Any]:
    function = {"name": part.call.name, "arguments": _compact(dict(part.call.arguments))}
    return {"id": part.id, "type": "function", "function": function}


def _extra(answer: Answer) -> dict[str, Any]:
    """What the OpenAI API has no word for; its clients hand it through."""
    dispatch = answer.dispatch
    return {
        "confidence": round(dispatch.confidence, 4),
        "is_confident": dispatch.is_confident,
        "queue_ms": round(1000 * answer.queue_s, 2),
        "prefill_ms": round(dispatch.timings.prefill_ms, 2),
        "decode_ms": round(dispatch.timings.decode_ms, 2),
        "total_ms": round(1000 * answer.model_s, 2),
    }
