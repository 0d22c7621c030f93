"""What a reply may call: the `tools` and the `tool_choice` of a chat request."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinydispatch.decoding.child import shared_child
from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.server.errors import ApiError, invalid, too_long_array, wrong_type
from tinydispatch.server.nesting import MAX_LEVELS, is_too_deep
from tinydispatch.tools import Tool, ToolError

# Of JSON texts whose tools are remembered; as objects they take several times as much.
_MAX_REMEMBERED_CHARS = 2_000_000


@dataclass(frozen=True)
class Offer:
    """The tools that the reply may call: for a named `tool_choice`, that tool alone, and `is_named` is True."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    is_named: bool = False


class ToolReader:
    """Reads `tools`, and remembers those of the last requests.

    Most requests bring the same tools again, and checking their schemas may take longer than a call.
    """

    def __init__(self, max_chars: int = _MAX_REMEMBERED_CHARS) -> None:
        self._max_chars, self._n_chars = max_chars, 0
        self._known: OrderedDict[str, tuple[Tool, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, value: Any, max_tools: int, *, is_flat: bool = False) -> tuple[Tool, ...]:
        """The tools in their order; none for an empty array.

        Args:
            is_flat: what describes a function stands beside its type, as in the Responses API, not under `function`.

        Raises:
            ApiError: names the tool and the key.
        """
        if not isinstance(value, list):
            raise wrong_type("tools", "an array of objects", value)
        if len(value) > max_tools:
            raise too_long_array("tools", len(value), max_tools)
        text = f"{'flat' if is_flat else ''}{json.dumps(value)}"
        with self._lock:
            if (found := self._known.get(text)) is not None:
                self._known.move_to_end(text)
                return found
        try:
            shared_child().check(value)
        except GrammarError as error:
            raise invalid(f"Invalid 'tools': {error}.", "tools", "invalid_function_parameters") from error
        tools = _tools(value, is_flat)
        self._remember(text, tools)
        return tools

    def _remember(self, text: str, tools: tuple[Tool, ...]) -> None:
        with self._lock:
            if len(text) > self._max_chars or text in self._known:
                return
            self._known[text] = tools
            self._n_chars += len(text)
            while self._n_chars > self._max_chars:
                oldest, _ = self._known.popitem(last=False)
                self._n_chars -= len(oldest)


def _tools(value: list[Any], is_flat: bool) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(value):
        tool = _tool(entry, f"tools[{index}]", is_flat)
        if any(tool.name == other.name for other in tools):
            where = f"tools[{index}].{'' if is_flat else 'function.'}name"
            raise invalid(f"Invalid '{where}': '{tool.name}' occurs twice.", where)
        tools.append(tool)
    return tuple(tools)


def _tool(entry: Any, where: str, is_flat: bool) -> Tool:
    if not isinstance(entry, dict):
        raise wrong_type(where, "an object", entry)
    if entry.get("type") is None:
        raise invalid(f"Missing required parameter: '{where}.type'.", f"{where}.type", "missing_required_parameter")
    if entry["type"] != "function":
        message = (
            f"Invalid value: {entry['type']!r}. Supported values are: 'function'; this server runs no tools itself."
        )
        raise invalid(message, f"{where}.type", "invalid_value")
    function = entry if is_flat else entry.get("function")
    where += "" if is_flat else ".function"
    if function is None:
        raise invalid(f"Missing required parameter: '{where}'.", where, "missing_required_parameter")
    if not isinstance(function, dict):
        raise wrong_type(where, "an object", function)
    if function.get("name") is None:
        raise invalid(f"Missing required parameter: '{where}.name'.", f"{where}.name", "missing_required_parameter")
    types: tuple[tuple[str, type, str], ...] = (
        ("name", str, "a string"),
        ("description", str, "a string"),
        ("parameters", dict, "an object"),
        ("strict", bool, "a boolean"),
    )
    for key, kind, expected in types:
        if key == "parameters" and function.get(key) == []:
            continue  # PHP's empty object
        if not isinstance(function.get(key), kind | None):
            raise wrong_type(f"{where}.{key}", expected, function[key])
    if is_too_deep(function.get("parameters")):
        message = f"Invalid schema for function '{function['name']}': it is nested more than {MAX_LEVELS} levels deep."
        raise invalid(message, f"{where}.parameters", "invalid_function_parameters")
    try:
        return Tool.from_openai(entry)
    except ToolError as error:
        raise invalid(f"Invalid '{where}': {error}.", where, "invalid_function_parameters") from error


def read_offer(tools: tuple[Tool, ...], choice: Any) -> Offer:
    """The tools as `tool_choice` narrows them.

    Raises:
        ApiError: names the key.
    """
    offer = Offer(tools)
    if choice is None:
        return offer
    if choice == ToolChoice.NONE:
        return replace(offer, choice=ToolChoice.NONE)
    if not tools and choice == ToolChoice.AUTO:
        return offer
    if not tools:
        raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    if isinstance(choice, str):
        if choice not in list(ToolChoice):
            raise invalid(
                f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', and 'required'.",
                "tool_choice",
                "invalid_value",
            )
        return replace(offer, choice=ToolChoice(choice))
    if not isinstance(choice, dict):
        raise wrong_type("tool_choice", "a string or an object", choice)
    readers: dict[Any, Callable[[Offer, Any], Offer]] = {"function": _named, "allowed_tools": _allowed}
    kind = choice.get("type")
    if not isinstance(kind, str) or kind not in readers:
        message = f"Invalid value: {kind!r}. Supported values are: 'function' and 'allowed_tools'."
        raise invalid(message, "tool_choice.type", "invalid_value")
    # The Responses API writes the name beside the type.
    return readers[kind](offer, choice if choice.get(kind) is None else choice[kind])


def _named(offer: Offer, function: Any) -> Offer:
    name = function.get("name") if isinstance(function, Mapping) else None
    tool = _tool_named(offer, name, "tool_choice.function.name")
    return Offer((tool,), ToolChoice.REQUIRED, is_named=True)


def _allowed(offer: Offer, allowed: Any) -> Offer:
    where = "tool_choice.allowed_tools"
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list) or not allowed["tools"]:
        raise wrong_type(f"{where}.tools", "a non-empty array of objects", allowed)
    if allowed.get("mode") not in ("auto", "required"):
        message = f"Invalid value: {allowed.get('mode')!r}. Supported values are: 'auto' and 'required'."
        raise invalid(message, f"{where}.mode", "invalid_value")
    functions = [entry.get("function") if isinstance(entry, dict) else None for entry in allowed["tools"]]
    names = [function.get("name") if isinstance(function, dict) else None for function in functions]
    tools = dict.fromkeys(_tool_named(offer, name, f"{where}.tools").name for name in names)
    return Offer(tuple(tool for tool in offer.tools if tool.name in tools), ToolChoice(allowed["mode"]))


def _tool_named(offer: Offer, name: Any, where: str) -> Tool:
    tool = next((tool for tool in offer.tools if tool.name == name), None)
    if tool is None:
        raise _not_offered(name, where)
    return tool


def _not_offered(name: Any, where: str) -> ApiError:
    return invalid(f"Invalid value for '{where}': Tool choice '{name}' not found in 'tools' parameter.", where)
