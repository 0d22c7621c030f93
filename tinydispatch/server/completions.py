"""`/v1/completions`: a text is continued as it stands, without template, tools or grammar."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tinydispatch.server.errors import ApiError, invalid, unsupported_value, wrong_type
from tinydispatch.server.job import Answer, ChatJob, Part
from tinydispatch.server.parameters import Count, Generation, max_new_tokens
from tinydispatch.server.reply import DONE, event, extra, fingerprint, usage
from tinydispatch.server.request import ChatRequest, check_model, read_json
from tinydispatch.server.settings import ServerSettings

# The OpenAI API's own.
_DEFAULT_TOKENS = 16


class CompletionBody(Generation):
    """The parameters of `/v1/completions`."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "suffix": "Text is continued at its end.",
        "echo": "Put the prompt before the reply yourself.",
        "logit_bias": "The likeliest token is taken.",
        "grammar": "Use '/v1/chat/completions' with 'tools' or 'response_format'.",
    }

    prompt: Any = None
    best_of: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logit_bias: dict[str, Any] | None = None
    grammar: Any = None


def read_completion(body: bytes, settings: ServerSettings) -> ChatRequest:
    """Read and check a body of `/v1/completions`.

    Raises:
        ApiError: 400 names the key at fault; 404 for another model.
    """
    value = read_json(body)
    check_model(value.get("model"), settings.model_name)
    read = CompletionBody.read(value, is_strict=settings.is_strict)
    read.check_one("n")
    read.check_one("best_of")
    limit = min(read.max_tokens or _DEFAULT_TOKENS, settings.limits.max_new_tokens)
    return ChatRequest(
        messages=(),
        tools=(),
        prompt=_prompt(read.prompt),
        max_new_tokens=max_new_tokens(limit, {}),
        is_stream=bool(read.stream),
        includes_usage=read.includes_usage,
        stop=tuple(read.stop or ()),
        n_alternatives=read.logprobs,
        may_log=False,  # a text is no conversation, and no dispatch
        warnings=read.warnings,
    )


def _prompt(value: Any) -> str:
    if value is None:
        raise invalid("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise unsupported_value("prompt", "'prompt' must be one text: neither several nor tokens are read here.")
    if not isinstance(value, str):
        raise wrong_type("prompt", "a string", value)
    if not value:
        raise invalid("Invalid 'prompt': there is no text to continue.", "prompt", "invalid_value")
    return value


class CompletionWriter:
    """Writes `text_completion`s."""

    def __init__(self, job: ChatJob, model: str) -> None:
        self.id = f"cmpl-{job.id}"
        self._job, self._model = job, model

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        choice = self._choice(answer.content or "", answer.finish_reason, self._logprobs(answer))
        return {**self._head(), "choices": [choice], "usage": usage(answer), "tinydispatch": extra(answer)}

    def first(self) -> bytes:
        """Nothing: the first event holds text."""
        return b""

    def part(self, part: Part) -> bytes:
        """A piece of text."""
        assert isinstance(part, str), "there are no calls without tools"
        return event({**self._head(), "choices": [self._choice(part)]})

    def last(self, answer: Answer) -> bytes:
        """Why it ends, the usage where it was asked for, and `[DONE]`."""
        choice = self._choice("", answer.finish_reason, self._logprobs(answer))
        written = event({**self._head(), "choices": [choice], "tinydispatch": extra(answer)})
        if self._job.request.includes_usage:
            written += event({**self._head(), "choices": [], "usage": usage(answer)})
        return written + DONE

    def error(self, error: ApiError) -> bytes:
        """The error's body as the last event."""
        return event(error.body())

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if self._job.request.n_alternatives is None:
            return None
        found = answer.dispatch.logprobs
        texts = [token.data.decode("utf-8", "replace") for token in found]
        return {
            "tokens": texts,
            "token_logprobs": [round(token.logprob, 6) for token in found],
            "top_logprobs": [
                {data.decode("utf-8", "replace"): round(value, 6) for data, value in token.alternatives}
                for token in found
            ],
            "text_offset": [end - len(text) for text, end in zip(texts, accumulate(map(len, texts)), strict=True)],
        }

    def _choice(
        self, text: str, finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}

    def _head(self) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self._job.created, "model": self._model}
        return {**head, "system_fingerprint": fingerprint(self._job.serving_id)}
