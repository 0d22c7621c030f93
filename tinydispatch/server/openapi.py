"""`/openapi.json`: the routes as an OpenAPI document, the bodies from the models that read them.

What those models leave to other readers (messages, tools, prompts) is described here, as those readers take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

import tinydispatch
from tinydispatch.server.completions import CompletionBody
from tinydispatch.server.parameters import MAX_STOPS, Body
from tinydispatch.server.request import ChatBody
from tinydispatch.server.responses import ResponseBody
from tinydispatch.server.settings import ServerSettings

Json = dict[str, Any]
_STATUSES = {
    "400": "The request's content is wrong; `param` names the key.",
    "401": "There is no right key.",
    "403": "The request names another host than this machine.",
    "404": "No such model, answer or path.",
    "405": "The path has another method.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not said to be plain JSON.",
    "429": "Too many requests wait; `retry-after-ms` says when to come again.",
    "431": "The header is too large.",
    "500": "A fault of the server.",
    "503": "The server is stopping, its model was changed, or the answer took too long.",
}


def _object(properties: Json, required: Sequence[str] | None = None, **more: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(required or properties), **more}


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def _some(*kinds: Json) -> Json:
    return {"anyOf": list(kinds)}


def _const(*values: Any) -> Json:
    return {"enum": list(values)}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Json = {"type": "string"}
_NULL: Json = {"type": "null"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_TEXT_OR_NULL, _NUMBER = _some(_TEXT, _NULL), {"type": "number"}
_FUNCTION = _object(
    {
        "name": {"type": "string", "minLength": 1},
        "description": _TEXT_OR_NULL,
        "parameters": _some({"type": "object", "description": "A JSON schema."}, _NULL),
        "strict": _some({"type": "boolean"}, _NULL),
    },
    ["name"],
)
_NAMED = _object({"name": _TEXT})


def _parts(*kinds: str) -> Json:
    """A text, or texts in parts of these types."""
    parts = [_object({"type": _const(kind), ("refusal" if kind == "refusal" else "text"): _TEXT}) for kind in kinds]
    return _some(_TEXT, _array(_some(*parts), minItems=1))


_CONTENT = _parts("text", "refusal")
_CALL = _object(
    {
        "id": _TEXT,
        "type": _const("function"),
        "function": _object({"name": _TEXT, "arguments": {**_TEXT, "description": "A JSON object, as text."}}),
    }
)
_MESSAGE = _some(
    _object(
        {"role": _const("system", "developer", "user"), "content": _CONTENT, "name": _TEXT_OR_NULL},
        ["role", "content"],
    ),
    _object(
        {
            "role": _const("assistant"),
            "content": _some(*_CONTENT["anyOf"], _NULL),
            "refusal": _TEXT_OR_NULL,
            "tool_calls": _some(_array(_ref("ToolCall")), _NULL),
        },
        ["role"],
    ),
    _object({"role": _const("tool"), "tool_call_id": _TEXT, "content": _CONTENT}),
    _object({"role": _const("function"), "name": _TEXT, "content": _CONTENT}),
)
_ITEM_TEXT = _parts("input_text", "output_text", "text", "refusal")
_ITEM = _some(
    _object(
        {"type": _const("message"), "role": _const("system", "developer", "user", "assistant"), "content": _ITEM_TEXT},
        ["role", "content"],
    ),
    _object({"type": _const("function_call"), "call_id": _TEXT, "name": _TEXT, "arguments": _TEXT}),
    _object({"type": _const("function_call_output"), "call_id": _TEXT, "output": _ITEM_TEXT}),
    _object({"type": _const("reasoning")}),
)
_WORDS = _const("none", "auto", "required")
_ALLOWED = {"type": _const("allowed_tools"), "mode": _const("auto", "required")}


def _choice(function: Json) -> Json:
    """`tool_choice` where a function is named in this way."""
    return _object({"type": _const("function"), **function})


_CHAT_NAMED, _FLAT_NAMED = _choice({"function": _NAMED}), _choice({"name": _TEXT})
_ALLOWED_TOOLS = _object({"mode": _ALLOWED["mode"], "tools": _array(_CHAT_NAMED, minItems=1)})
_CHAT_ALLOWED = _object({"type": _ALLOWED["type"], "allowed_tools": _ALLOWED_TOOLS})
_FLAT_ALLOWED = _object({**_ALLOWED, "tools": _array(_FLAT_NAMED, minItems=1)})

# What the keys' readers take, where pydantic's models say nothing.
_DESCRIBED: Mapping[type[Body], Json] = {
    ChatBody: {
        "messages": _array(_ref("Message"), minItems=1),
        "tools": _array(_object({"type": _const("function"), "function": _FUNCTION})),
        "tool_choice": _some(_WORDS, _CHAT_NAMED, _CHAT_ALLOWED),
        "modalities": _array(_const("text"), minItems=1, maxItems=1),
    },
    ResponseBody: {
        "input": _some(_TEXT, _array(_ref("InputItem"), minItems=1)),
        "tools": _array(_object({"type": _const("function"), **_FUNCTION["properties"]}, ["type", "name"])),
        "tool_choice": _some(_WORDS, _FLAT_NAMED, _FLAT_ALLOWED),
    },
    CompletionBody: {"prompt": _some({"type": "string", "minLength": 1}, _array(_TEXT, minItems=1, maxItems=1))},
}
_REQUIRED: Mapping[type[Body], str] = {ChatBody: "messages", ResponseBody: "input", CompletionBody: "prompt"}

_HEAD: Json = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "system_fingerprint": _TEXT}
_OWN = _object(
    {
        "confidence": _NUMBER,
        "is_confident": _some({"type": "boolean"}, _NULL),
        "confidences": _array(_object({"call": _NUMBER, "tool": _NUMBER, "arguments": {"type": "object"}})),
        "reference_date": _TEXT_OR_NULL,
        **{f"{part}_ms": _NUMBER for part in ("queue", "prefill", "decode", "grammar", "total")},
    }
)
_USAGE = _object(
    {
        **{f"{kind}_tokens": _COUNT for kind in ("prompt", "completion", "total")},
        "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
    }
)
_LOGPROBS = _some({"type": "object"}, _NULL)
_REPLY = _object(
    {
        "role": _const("assistant"),
        "content": _TEXT_OR_NULL,
        "refusal": _TEXT_OR_NULL,
        "tool_calls": _array(_ref("ToolCall"), minItems=1),
    },
    ["role", "content", "refusal"],
)
_MODEL = _object({"id": _TEXT, "object": _const("model"), "created": _COUNT, "owned_by": _TEXT})
_SCHEMAS: Json = {
    "Message": _MESSAGE,
    "ToolCall": _CALL,
    "InputItem": _ITEM,
    "ChatCompletion": _object(
        {
            **_HEAD,
            "object": _const("chat.completion"),
            "choices": _array(
                _object(
                    {
                        "index": _const(0),
                        "message": _REPLY,
                        "logprobs": _LOGPROBS,
                        "finish_reason": _const("stop", "length", "tool_calls"),
                    }
                ),
                minItems=1,
                maxItems=1,
            ),
            "usage": _USAGE,
            "tinydispatch": _OWN,
        }
    ),
    "TextCompletion": _object(
        {
            **_HEAD,
            "object": _const("text_completion"),
            "choices": _array(
                _object(
                    {
                        "text": _TEXT,
                        "index": _const(0),
                        "logprobs": _LOGPROBS,
                        "finish_reason": _const("stop", "length"),
                    }
                ),
                minItems=1,
                maxItems=1,
            ),
            "usage": _USAGE,
            "tinydispatch": _OWN,
        }
    ),
    "Response": _object(
        {
            "id": _TEXT,
            "object": _const("response"),
            "created_at": _COUNT,
            "status": _const("completed", "incomplete"),
            "model": _TEXT,
            "output": _array(_object({"id": _TEXT, "type": _const("message", "function_call")})),
            "usage": _object({f"{kind}_tokens": _COUNT for kind in ("input", "output", "total")}),
            "tinydispatch": _OWN,
        }
    ),
    "Feedback": _object({"id": _TEXT, "object": _const("feedback"), "recorded": _array(_TEXT, minItems=1)}),
    "Model": _MODEL,
    "Models": _object({"object": _const("list"), "data": _array(_ref("Model"), minItems=1)}),
    "Health": _object(
        {
            "status": _const("ok", "stopping"),
            "model": _TEXT,
            "serving": _TEXT,
            "busy": {"type": "boolean"},
            "waiting": _COUNT,
        }
    ),
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
    ),
    "FeedbackBody": _object(
        {
            "id": {"type": "string", "minLength": 1, "description": "Of an answer, or of one of its calls."},
            "tool_error": _some(_TEXT, {"type": "boolean"}),
            **{key: _object({"calls": {"type": "array"}}) for key in ("correction", "escalation")},
            "corrected_by": {},
        },
        ["id"],
        minProperties=2,
        additionalProperties=False,
    ),
}


def document(settings: ServerSettings, *, is_keyed: bool) -> Json:
    """The routes of one server.

    Args:
        is_keyed: whether requests need a key.
    """
    _, bodies = models_json_schema(
        [(kind, "validation") for kind in _DESCRIBED], ref_template="#/components/schemas/{model}"
    )
    schemas = dict(bodies["$defs"]) | _SCHEMAS
    for kind in _DESCRIBED:
        schemas[kind.__name__] = _body(schemas[kind.__name__], kind, settings)
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "tinydispatch", "version": tinydispatch.__version__},
        "paths": {
            "/v1/chat/completions": _post("ChatBody", "ChatCompletion", "A reply to a conversation: calls, or words."),
            "/v1/responses": _post("ResponseBody", "Response", "The same in the shapes of the Responses API."),
            "/v1/completions": _post("CompletionBody", "TextCompletion", "A text, continued as it stands."),
            "/v1/feedback": _post("FeedbackBody", "Feedback", "What became of an answer.", streams=False),
            "/v1/models": _get("Models", "The names that may be asked for."),
            "/v1/models/{name}": {
                **_get("Model", "One of them."),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
            },
            "/health": _get("Health", "Whether requests are taken; answers while the model computes."),
            "/metrics": {"get": _operation({"200": _answer("Prometheus' text.", "text/plain", _TEXT)})},
            "/openapi.json": {
                "get": _operation({"200": _answer("This document.", "application/json", {"type": "object"})})
            },
        },
        "components": {"schemas": schemas},
    }
    if is_keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        found["paths"]["/health"]["get"]["security"] = []
    return found


def _body(made: Json, kind: type[Body], settings: ServerSettings) -> Json:
    """A body's schema: without what is refused whatever it says, and with what its readers take."""
    properties = {key: schema for key, schema in made["properties"].items() if key not in kind.REFUSED}
    for key, schema in _DESCRIBED[kind].items():
        properties[key] = schema if key == _REQUIRED[kind] else _some(schema, _NULL)
    properties["model"] = _some(_TEXT, _NULL)
    one, stop = _const(1), {"type": "string", "minLength": 1}
    for key, schema in (("n", one), ("best_of", one), ("stop", _some(stop, _array(stop, maxItems=MAX_STOPS)))):
        if key in properties:
            properties[key] = _some(schema, _NULL)
    refused = ", ".join(f"`{key}`" for key in kind.REFUSED)
    return {
        "type": "object",
        "description": f"Not supported, and refused with the reason: {refused}.",
        "properties": properties,
        "required": [_REQUIRED[kind]],
        "additionalProperties": not settings.is_strict,
    }


def _post(body: str, answer: str, summary: str, *, streams: bool = True) -> Json:
    shapes = {"application/json": {"schema": _ref(answer)}}
    if streams:
        shapes["text/event-stream"] = {}
    responses = {"200": {"description": summary, "content": shapes}}
    content = {"application/json": {"schema": _ref(body)}}
    return {"post": _operation(responses, summary=summary, requestBody={"required": True, "content": content})}


def _get(answer: str, summary: str) -> Json:
    responses = {"200": _answer(summary, "application/json", _ref(answer))}
    if answer == "Health":
        responses["503"] = _answer("The server is stopping.", "application/json", _some(_ref(answer), _ref("Error")))
    return {"get": _operation(responses, summary=summary)}


def _operation(responses: Json, **more: Any) -> Json:
    refusals = {status: _answer(told, "application/json", _ref("Error")) for status, told in _STATUSES.items()}
    return {"responses": refusals | responses, **more}


def _answer(told: str, kind: str, schema: Json) -> Json:
    return {"description": told, "content": {kind: {"schema": schema}}}
