"""`/v1/responses`: the Responses API without its memory. What it says and what is answered stand in one request."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tinydispatch.server.errors import ApiError, invalid, wrong_type
from tinydispatch.server.job import Answer, CallPart, ChatJob, Part
from tinydispatch.server.messages import History, empty_array, read_role, read_text
from tinydispatch.server.parameters import Count, Dialogue, NamedSchema, Schema, max_new_tokens
from tinydispatch.server.parameters import Part as BodyPart
from tinydispatch.server.reply import arguments_text, event, extra, logprob
from tinydispatch.server.request import (
    ChatRequest,
    Form,
    check_model,
    dialogue_request,
    read_json,
    read_tools,
)
from tinydispatch.server.settings import ServerSettings
from tinydispatch.tools import Message, Role

_LOGPROBS = "message.output_text.logprobs"
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")


class TextFormat(BodyPart):
    """`text.format`: what `response_format` is to chat completions, without its inner object."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(BodyPart):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponseBody(Dialogue):
    """The parameters of `/v1/responses`."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "previous_response_id": "Nothing is kept between requests: send the whole conversation as 'input'.",
        "conversation": "Nothing is kept between requests: send the whole conversation as 'input'.",
        "background": "Every response is answered at once.",
        "background_options": "Every response is answered at once.",
        "prompt": "There are no stored prompts: send 'instructions'.",
        "context_management": "Nothing is kept between requests.",
        "image": "It reads and writes text.",
    }

    input: Any = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    background_options: Any = None
    prompt: Any = None
    context_management: Any = None
    image: Any = None
    # Without effect here.
    reasoning: dict[str, Any] | None = None
    truncation: Annotated[str, Field(pattern="^(auto|disabled)$")] | None = None
    max_tool_calls: Count | None = None
    access_programs: Any = None


def read_response_request(body: bytes, settings: ServerSettings) -> tuple[ChatRequest, ResponseBody]:
    """Read and check a body of `/v1/responses`.

    Raises:
        ApiError: 400 names the key at fault; 404 for another model.
    """
    value = read_json(body)
    check_model(value.get("model"), settings.model_name)
    read = ResponseBody.read(value, is_strict=settings.is_strict)
    wants_logprobs = _LOGPROBS in (read.include or ()) or bool(read.top_logprobs)
    request = dialogue_request(
        read,
        settings,
        messages=_messages(read),
        tools=None if read.tools is None else read_tools(read.tools, settings.limits.max_tools, is_flat=True),
        choice=_choice(read.tool_choice),
        form=_form(read.text.format if read.text else None),
        form_place="text.format.schema",
        max_new_tokens=max_new_tokens(settings.limits.max_new_tokens, {"max_output_tokens": read.max_output_tokens}),
        n_alternatives=(read.top_logprobs or 0) if wants_logprobs else None,
    )
    return request, read


def _messages(read: ResponseBody) -> list[Message]:
    history = History()
    if read.instructions:
        history.say(Role.SYSTEM, read.instructions, "instructions")
    if read.input is None:
        raise invalid("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    if isinstance(read.input, str):
        history.say(Role.USER, read.input, "input")
        return history.messages
    if not isinstance(read.input, list):
        raise wrong_type("input", "a string or an array of objects", read.input)
    if not read.input:
        raise empty_array("input")
    for index, item in enumerate(read.input):
        _read_item(history, item, f"input[{index}]")
    history.check_nothing_due(f"input[{len(read.input) - 1}]")
    return history.messages


def _read_item(history: History, item: Any, where: str) -> None:
    if not isinstance(item, Mapping):
        raise wrong_type(where, "an object", item)
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        role = read_role(item, where)
        if role is Role.TOOL:
            message = f"Invalid value: '{item['role']}'. A tool's result is an item of type 'function_call_output'."
            raise invalid(message, f"{where}.role", "invalid_value")
        content = read_text(item.get("content"), f"{where}.content", _TEXT_PARTS)
        history.say(role, content, where, ends_calls=False)
    elif kind == "function_call":
        history.call(item.get("name"), item.get("arguments"), item.get("call_id"), where, f"{where}.call_id")
    elif kind == "function_call_output":
        content = read_text(item.get("output"), f"{where}.output", _TEXT_PARTS)
        history.result(item.get("call_id"), content, f"{where}.call_id", where)
    elif kind != "reasoning":  # another model's thoughts are not this one's
        known = "'message', 'function_call', 'function_call_output' and 'reasoning'"
        message = f"Invalid value: {kind!r}. Supported values are: {known}."
        raise invalid(message, f"{where}.type", "invalid_value")


def _choice(choice: Any) -> Any:
    """`tool_choice` as chat completions write it: a function stands in an object of its own."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        return {"type": "allowed_tools", "allowed_tools": {**choice, "tools": [*map(_choice, choice["tools"])]}}
    return choice


def _form(form: TextFormat | None) -> Form:
    if form is None or form.type == "text":
        return ()
    if form.type == "json_object":
        return (None,)
    for key, given in (("name", form.name), ("schema", form.schema_)):
        if given is None:
            place = f"text.format.{key}"
            raise invalid(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    return (NamedSchema.model_validate(form.model_dump(by_alias=True)),)


class ResponseWriter:
    """Writes a response: its items as they come, or all of them at the end, made by the same steps."""

    def __init__(self, job: ChatJob, model: str, read: ResponseBody) -> None:
        self.id = f"resp_{job.id}"
        self._job, self._model, self._read = job, model, read
        self._items: list[dict[str, Any]] = []
        self._is_speaking = False  # the last item is a message that may go on
        self._n_events = 0

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        for part in answer.parts:
            self.part(part)
        self._finish(answer)
        return self._response(answer)

    def first(self) -> bytes:
        """That the response was begun."""
        body = self._response(None)
        return self._event("response.created", response=body) + self._event("response.in_progress", response=body)

    def part(self, part: Part) -> bytes:
        """A piece of a message, or a whole call."""
        if isinstance(part, CallPart):
            return self._stop_speaking([]) + self._call(part)
        written = b"" if self._is_speaking else self._start_speaking({"type": "output_text", "text": "", **_EMPTY})
        place = self._place()
        self._items[-1]["content"][0]["text"] += part
        return written + self._event("response.output_text.delta", **place, delta=part, logprobs=[])

    def last(self, answer: Answer) -> bytes:
        """The end of the last item, and the whole response."""
        written = self._finish(answer)
        body = self._response(answer)
        return written + self._event(f"response.{body['status']}", response=body)

    def error(self, error: ApiError) -> bytes:
        """The error twice: as the API's event has it, and under `error`, which the official client raises."""
        body = error.body()["error"]
        told = {key: body[key] for key in ("code", "message", "param")}
        return self._event("error", **told, error=body)

    def _finish(self, answer: Answer) -> bytes:
        logprobs = [logprob(token) for token in answer.dispatch.logprobs]
        written = self._stop_speaking(logprobs, is_cut=answer.finish_reason == "length")
        if answer.refusal is None:
            return written
        written += self._start_speaking({"type": "refusal", "refusal": ""})
        self._items[-1]["content"][0]["refusal"] = answer.refusal
        written += self._event("response.refusal.delta", **self._place(), delta=answer.refusal)
        return written + self._stop_speaking([])

    def _start_speaking(self, content: dict[str, Any]) -> bytes:
        item: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        added = self._added(item)
        item["content"] = [content]
        self._is_speaking = True
        return added + self._event("response.content_part.added", **self._place(), part=content)

    def _stop_speaking(self, logprobs: list[dict[str, Any]], *, is_cut: bool = False) -> bytes:
        if not self._is_speaking:
            return b""
        self._is_speaking = False
        item, place = self._items[-1], self._place()
        (content,) = item["content"]
        item["status"] = "incomplete" if is_cut else "completed"
        if content["type"] == "refusal":
            written = self._event("response.refusal.done", **place, refusal=content["refusal"])
        else:
            content["logprobs"] = logprobs
            written = self._event("response.output_text.done", **place, text=content["text"], logprobs=logprobs)
        written += self._event("response.content_part.done", **place, part=content)
        return written + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _call(self, part: CallPart) -> bytes:
        item: dict[str, Any] = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": part.id,
            "name": part.call.name,
            "arguments": "",
            "status": "in_progress",
        }
        written = self._added(item)
        item |= {"arguments": arguments_text(part), "status": "completed"}
        place = {"item_id": item["id"], "output_index": len(self._items) - 1}
        written += self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        done = {"name": item["name"], "arguments": item["arguments"]}
        written += self._event("response.function_call_arguments.done", **place, **done)
        return written + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _added(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _event(self, kind: str, **more: Any) -> bytes:
        number = self._n_events
        self._n_events += 1
        return event({"type": kind, "sequence_number": number, **more}, kind)

    def _response(self, answer: Answer | None) -> dict[str, Any]:
        read = self._read
        is_cut = answer is not None and answer.finish_reason == "length"
        given = read.model_dump(
            by_alias=True,
            include={
                "instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key", "safety_identifier",
                "service_tier", "temperature", "top_logprobs", "top_p", "user",
            },
        )  # fmt: skip
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._job.created,
            "status": "in_progress" if answer is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            **given,
            "model": self._model,
            "output": self._items if answer is not None else [],
            "parallel_tool_calls": read.parallel_tool_calls is not False,
            "previous_response_id": None,
            "background": False,
            "reasoning": {"effort": None, "summary": None, **(read.reasoning or {})},
            "store": False,
            "text": {"format": {"type": "text"}} if read.text is None else read.text.model_dump(by_alias=True),
            "tool_choice": read.tool_choice or "auto",
            "tools": read.tools or [],
            "truncation": read.truncation or "disabled",
            "metadata": read.metadata or {},
            "usage": None if answer is None else _usage(answer),
            **({} if answer is None else {"tinydispatch": extra(answer)}),
        }


_EMPTY: dict[str, Any] = {"annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    tokens = answer.dispatch.tokens
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens.prompt + tokens.generated,
    }
