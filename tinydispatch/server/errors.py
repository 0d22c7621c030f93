"""Errors as the OpenAI API words them: a status, and a body with message, type, param and code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INVALID_REQUEST, SERVER_ERROR = "invalid_request_error", "server_error"


@dataclass(eq=False)  # not frozen: Python writes an exception's traceback into it
class ApiError(Exception):
    """An answer other than a completion. `param` is the key at fault, `code` a word that programs may compare."""

    status: int
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request's content is wrong."""
    return ApiError(400, message, INVALID_REQUEST, param, code)


def wrong_type(param: str, expected: str, value: Any) -> ApiError:
    """400: a value has another JSON type than it must have."""
    message = f"Invalid type for '{param}': expected {expected}, but got {json_type(value)} instead."
    return invalid(message, param, "invalid_type")


def unsupported(param: str, message: str) -> ApiError:
    """400: something that the OpenAI API knows and this server does not do."""
    return invalid(f"Unsupported parameter: {message}", param, "unsupported_parameter")


def unsupported_value(param: str, message: str) -> ApiError:
    """400: a parameter is known and may not have that value."""
    return invalid(f"Unsupported value: {message}", param, "unsupported_value")


def too_long_array(param: str, number: int, limit: int) -> ApiError:
    """400: more entries than are allowed."""
    return invalid(
        f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, but got an array with "
        f"length {number} instead.",
        param,
        "array_above_max_length",
    )


def unknown_model(name: str, served: str) -> ApiError:
    """404: another model than the one in service was asked for."""
    message = f"The model `{name[:200]}` does not exist here: this server has `{served}`. Ask for it, or name no model."
    return ApiError(404, message, param="model", code="model_not_found")


def missing_key() -> ApiError:
    """401: no key at all."""
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY)."
    )
    return ApiError(401, message, headers={"www-authenticate": "Bearer"})


def wrong_key() -> ApiError:
    """401: a key that is none of ours; it is not repeated, because answers end up in logs."""
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def too_large(limit: int) -> ApiError:
    """413: more bytes than a body may have."""
    message = f"Request body is too large: the limit is {limit} bytes."
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})


def queue_full(retry_after_s: float) -> ApiError:
    """429: as many requests wait as may wait; the official client waits as long as it is told and tries again."""
    milliseconds = max(1, round(1000 * retry_after_s))
    headers = {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
    message = "Too many requests are waiting for the model, please try again later."
    return ApiError(429, message, "requests", code="rate_limit_exceeded", headers=headers)


def stopping() -> ApiError:
    """503: the server takes nothing more."""
    return ApiError(503, "The server is stopping.", SERVER_ERROR, code="service_unavailable")


def timed_out(limit_s: float) -> ApiError:
    """503: not answered in time. Asking the same again would take as long, so clients are told not to."""
    message = f"The request was not answered within the server's limit of {limit_s:g} seconds."
    return ApiError(503, message, SERVER_ERROR, code="timeout", headers={"x-should-retry": "false"})


def internal() -> ApiError:
    """500: a fault of ours; what it was stands in the server's log."""
    return ApiError(500, "The server had an error while processing your request.", SERVER_ERROR)


def json_type(value: Any) -> str:
    """A value's type in the words of the OpenAI API's messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: tuple[tuple[type, str], ...] = (
        (str, "a string"),
        (int, "an integer"),
        (float, "a decimal number"),
        (list, "an array"),
        (dict, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def unknown_reply(reply_id: str) -> ApiError:
    """404: feedback on an answer that is no longer, or was never, known here."""
    message = f"No answer '{reply_id[:200]}' is known here: the last 2,000 are, since the server started."
    return ApiError(404, message, param="id", code="reply_not_found")
