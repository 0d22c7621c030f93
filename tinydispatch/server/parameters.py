"""The parameters of a chat request that are neither messages nor tools: read, checked, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinydispatch.server.errors import ApiError, invalid, too_long_array, unsupported, unsupported_value, wrong_type

# What changes the wording of replies in other models: decoding is greedy here, so they are checked and change nothing.
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_TEXTS = (
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "verbosity",
    "service_tier",
)
_READ = {
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options", "stop", "store",
    "max_tokens", "max_completion_tokens", "metadata", "n", "seed", "logprobs", "top_logprobs", "response_format",
    "modalities", "logit_bias",
}  # fmt: skip
# Nothing that a reply depends on here.
_WITHOUT_EFFECT = {"prediction", "prompt_cache_options", "moderation"}
# Other servers' own, which clients that know them send anywhere.
_OF_OTHER_SERVERS = {
    "top_k", "min_p", "repetition_penalty", "repeat_penalty", "cache_prompt", "chat_template_kwargs",
}  # fmt: skip
_REFUSED = {
    "functions": "Use 'tools' and 'tool_choice' instead.",
    "function_call": "Use 'tools' and 'tool_choice' instead.",
    "audio": "It reads and writes text.",
    "web_search_options": "Offer a tool that searches.",
}
_KNOWN = {*_READ, *_RANGES, *_TEXTS, *_WITHOUT_EFFECT, *_OF_OTHER_SERVERS, *_REFUSED}
_MAX_STOPS = 4
_MAX_METADATA, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512


def optional(value: Mapping[str, Any], key: str, kind: Any, expected: str, default: Any) -> Any:
    """The value of a key, `default` where it is left out or null.

    Raises:
        ApiError: it has another type.
    """
    found = value.get(key)
    if found is None:
        return default
    if not isinstance(found, kind) or (kind is not bool and isinstance(found, bool)):
        raise wrong_type(key, expected, found)
    return found


def required(value: Mapping[str, Any], key: str) -> Any:
    """The value of a key that must be there."""
    if value.get(key) is None:
        raise invalid(f"Missing required parameter: '{key}'.", key, "missing_required_parameter")
    return value[key]


def flag(value: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean."""
    return bool(optional(value, key, bool, "a boolean", default))


def check_parameters(value: Mapping[str, Any]) -> None:
    """Refuse what is unknown, out of range, or not done here.

    Raises:
        ApiError: 400, names the parameter.
    """
    for key in value:
        if key not in _KNOWN:
            # A misspelled name would otherwise change nothing, without a word.
            raise invalid(f"Unknown parameter: '{key}'.", key, "unknown_parameter")
    for key, advice in _REFUSED.items():
        if value.get(key) is not None:
            raise unsupported(key, f"'{key}' is not supported with this model. {advice}")
    for key in _TEXTS:
        optional(value, key, str, "a string", "")
    for key, (low, high) in _RANGES.items():
        number = optional(value, key, (int | float), "a decimal number", low)
        if not low <= number <= high:
            message = f"Invalid '{key}': expected a value between {low:g} and {high:g}, but got {number} instead."
            raise invalid(message, key, "decimal_out_of_range")
    optional(value, "seed", int, "an integer", 0)
    _check_choices(value)
    _check_form(value)


def _check_choices(value: Mapping[str, Any]) -> None:
    n_choices = optional(value, "n", int, "an integer", 1)
    if n_choices < 1:
        raise _below_minimum("n", n_choices)
    if n_choices > 1:
        raise unsupported_value("n", f"'n' does not support {n_choices} with this model: it decodes greedily.")
    if flag(value, "logprobs", False):
        raise unsupported("logprobs", "'logprobs' is not supported with this model.")
    if optional(value, "top_logprobs", int, "an integer", None) is not None:
        raise unsupported("top_logprobs", "'top_logprobs' is not supported with this model.")
    if optional(value, "logit_bias", dict, "an object", {}):
        raise unsupported("logit_bias", "'logit_bias' is not supported with this model.")


def _check_form(value: Mapping[str, Any]) -> None:
    form = optional(value, "response_format", dict, "an object", {"type": "text"})
    if form.get("type") not in ("text", "json_object", "json_schema"):
        raise invalid(
            f"Invalid value: {form.get('type')!r}. Supported values are: 'text'.",
            "response_format.type",
            "invalid_value",
        )
    if form["type"] != "text":
        raise unsupported_value(
            "response_format",
            f"'response_format' of type '{form['type']}' is not supported with this model. Offer a tool instead and "
            "name it in 'tool_choice'.",
        )
    modalities = optional(value, "modalities", list, "an array of strings", ["text"])
    if modalities != ["text"]:
        raise unsupported_value("modalities", "'modalities' supports only ['text'] with this model.")


def max_new_tokens(value: Mapping[str, Any], limit: int) -> int:
    """How long the reply may become. Agent frameworks send generous defaults, so more than the limit is capped."""
    found: dict[str, int] = {}
    for key in ("max_completion_tokens", "max_tokens"):
        number: int | None = optional(value, key, int, "an integer", None)
        if number is None:
            continue
        if number < 1:
            raise _below_minimum(key, number)
        found[key] = number
    if len(found) > 1:
        message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise invalid(message, "max_tokens", "invalid_parameter_combination")
    return min([limit, *found.values()])


def _below_minimum(key: str, number: int) -> ApiError:
    message = f"Invalid '{key}': integer below minimum value. Expected a value >= 1, but got {number} instead."
    return invalid(message, key, "integer_below_min_value")


def includes_usage(value: Mapping[str, Any]) -> bool:
    """Whether a stream ends in the token counts."""
    options = optional(value, "stream_options", dict, "an object", None)
    if options is None:
        return False
    if value.get("stream") is not True:
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    found = options.get("include_usage")
    if not isinstance(found, bool | None):
        raise wrong_type("stream_options.include_usage", "a boolean", found)
    return bool(found)


def stops(value: Any) -> tuple[str, ...]:
    """The texts before which a reply in words ends."""
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(texts) > _MAX_STOPS:
        raise too_long_array("stop", len(texts), _MAX_STOPS)
    if "" in texts:
        raise invalid("Invalid 'stop': the empty text stands before every reply.", "stop", "invalid_value")
    return tuple(texts)


def session(value: Mapping[str, Any]) -> str | None:
    """`metadata.session_id`; all of the metadata is checked."""
    metadata: dict[str, str] = optional(value, "metadata", dict, "an object", {})
    if len(metadata) > _MAX_METADATA:
        raise invalid(f"Invalid 'metadata': at most {_MAX_METADATA} keys are allowed.", "metadata")
    for key, text in metadata.items():
        if not isinstance(text, str):
            raise wrong_type(f"metadata.{key}", "a string", text)
        if len(key) > _MAX_KEY_CHARS or len(text) > _MAX_VALUE_CHARS:
            message = f"Invalid 'metadata': keys have at most {_MAX_KEY_CHARS} characters, values {_MAX_VALUE_CHARS}."
            raise invalid(message, "metadata", "string_above_max_length")
    return metadata.get("session_id")
