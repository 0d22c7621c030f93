"""What the model is asked, whatever route the request came by; and the body of a chat request → `ChatRequest`."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn
from zoneinfo import ZoneInfo

from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.server.errors import invalid, unknown_model, unsupported_value, wrong_type
from tinydispatch.server.messages import read_messages
from tinydispatch.server.offer import Offer, ToolReader, read_offer
from tinydispatch.server.parameters import (
    Count,
    Dialogue,
    Generation,
    NamedSchema,
    ResponseFormat,
    answer_tool,
    max_new_tokens,
)
from tinydispatch.server.settings import ServerSettings
from tinydispatch.tools import Message, Tool

read_tools = ToolReader()


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be computed.

    `tools` is what the reply may call: for a named `tool_choice`, that tool alone, and `is_named` is True. `answer` is
    the one of them whose arguments are the reply's content: the form of a reply in JSON. `prompt` is a text to continue
    as it stands, in place of messages.

    `stop` are texts before which a reply in words ends. `n_alternatives` is how many `logprobs` name for each token,
    None for no logprobs. `reference_date` and `time_zone` are what "today" means to the client. `session` groups the
    requests of one dialogue in the log; `may_log` is False where the client said `"store": false`. `owner` tells one
    key's requests from another's; `explains` lists the reply's tokens in the answer. `warnings` tell the client what
    changed nothing.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    is_named: bool = False
    is_parallel: bool = True
    answer: Tool | None = None
    answer_place: str = ""
    prompt: str | None = None
    max_new_tokens: int = 384
    is_stream: bool = False
    includes_usage: bool = False
    stop: tuple[str, ...] = ()
    n_alternatives: int | None = None
    reference_date: dt.date | None = None
    time_zone: ZoneInfo | None = None
    session: str | None = None
    may_log: bool = True
    owner: str = ""
    explains: bool = False
    warnings: tuple[str, ...] = ()


class ChatBody(Dialogue, Generation):
    """The parameters of `/v1/chat/completions`."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "functions": "Use 'tools' and 'tool_choice' instead.",
        "function_call": "Use 'tools' and 'tool_choice' instead.",
        "audio": "It reads and writes text.",
        "web_search_options": "Offer a tool that searches.",
        "logit_bias": "The grammar of the tools says which tokens may come, and the likeliest of them is taken.",
        "grammar": "The server makes the grammar, from 'tools' or 'response_format'.",
        "guided_grammar": "The server makes the grammar, from 'tools' or 'response_format'.",
        "guided_regex": "Use 'response_format' with a 'pattern'.",
        "guided_choice": "Use 'response_format' with an 'enum'.",
        "guided_json": "Use 'response_format'.",
    }

    messages: Any = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    logit_bias: dict[str, Any] | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    grammar: Any = None
    guided_grammar: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_json: Any = None
    # Without effect here.
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prediction: Any = None


def read_request(body: bytes, settings: ServerSettings) -> ChatRequest:
    """Read and check a body of `/v1/chat/completions`.

    Raises:
        ApiError: 400 names the key at fault; 404 for another model.
    """
    value = read_json(body)
    check_model(value.get("model"), settings.model_name)
    read = ChatBody.read(value, is_strict=settings.is_strict)
    read.check_one()
    if value.get("messages") is None:
        raise invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if read.modalities not in (None, ["text"]):
        raise unsupported_value("modalities", "'modalities' supports only ['text'] with this model.")
    if read.top_logprobs is not None and not read.logprobs:
        raise invalid("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs", "invalid_value")
    form = read.response_format
    if form is not None and form.type == "json_schema" and form.json_schema is None:
        place = "response_format.json_schema"
        raise invalid(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    wanted = _NO_FORM if form is None or form.type == "text" else (form.form,)
    limits = {"max_tokens": read.max_tokens, "max_completion_tokens": read.max_completion_tokens}
    return dialogue_request(
        read,
        settings,
        messages=read_messages(read.messages),
        tools=None if read.tools is None else read_tools(read.tools, settings.limits.max_tools),
        choice=read.tool_choice,
        form=wanted,
        form_place="response_format.schema" if form and form.schema_ else "response_format.json_schema.schema",
        max_new_tokens=max_new_tokens(settings.limits.max_new_tokens, limits),
        n_alternatives=(read.top_logprobs or 0) if read.logprobs else None,
        stop=tuple(read.stop or ()),
    )


# (): the reply may be words; (None,): any JSON object; else the schema that it must fit.
Form = tuple[()] | tuple[NamedSchema | None]
_NO_FORM: Form = ()


def dialogue_request(
    read: Dialogue,
    settings: ServerSettings,
    *,
    messages: Sequence[Message],
    tools: tuple[Tool, ...] | None,
    choice: Any,
    form: Form,
    form_place: str,
    max_new_tokens: int,
    n_alternatives: int | None,
    stop: tuple[str, ...] = (),
) -> ChatRequest:
    """What a conversation asks for, from parts that are read already.

    A reply in JSON is the call of one more tool: it alone, or one of those that must be called.
    """
    # Who asks for JSON and brings no tools wants JSON, and none of the server's own tools.
    offered = tools if tools is not None else () if form else settings.tools or ()
    offer = read_offer(offered, choice)
    answer = None
    is_parallel = read.parallel_tool_calls is not False and not offer.is_named
    if form and (offer.choice is not ToolChoice.REQUIRED or not offer.tools):
        callable_tools = () if offer.choice is ToolChoice.NONE else offer.tools
        answer = answer_tool(form[0], form_place, [tool.name for tool in callable_tools])
        offer = Offer((*callable_tools, answer), ToolChoice.REQUIRED)
        is_parallel = is_parallel and bool(callable_tools)
    day, zone = read.today(read.metadata)
    return ChatRequest(
        messages=tuple(messages),
        tools=offer.tools,
        choice=offer.choice,
        is_named=offer.is_named,
        is_parallel=is_parallel,
        answer=answer,
        answer_place=form_place,
        max_new_tokens=max_new_tokens,
        is_stream=bool(read.stream),
        includes_usage=read.includes_usage,
        stop=stop,
        n_alternatives=n_alternatives,
        reference_date=day,
        time_zone=zone,
        session=(read.metadata or {}).get("session_id"),
        may_log=read.store is not False,
        explains=read.explains,
        warnings=read.warnings,
    )


def read_json(body: bytes) -> dict[str, Any]:
    """A body's object.

    Raises:
        ApiError: 400: it is none.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        # Half of a surrogate pair passes as JSON and is no text.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise invalid(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            f"library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON: {error})"
        ) from error
    if not isinstance(value, dict):
        raise wrong_type("body", "an object", value)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def check_model(name: Any, served: str) -> None:
    """A request names the model in service, or none.

    Raises:
        ApiError: 404 names the one in service.
    """
    if name is None:
        return
    if not isinstance(name, str):
        raise wrong_type("model", "a string", name)
    if name != served:
        raise unknown_model(name, served)
