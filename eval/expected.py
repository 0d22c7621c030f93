"""A call that a case wants, and its reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.matchers import MatcherError, is_open, object_examples, parse_expected, to_json
from eval.places import Place
from tinydispatch.tools import Tool, ToolCall


@dataclass(frozen=True)
class ExpectedCall:
    """A call that the case wants; argument values may be matchers."""

    name: str
    arguments: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the case file."""
        return {"name": self.name, "arguments": to_json(self.arguments)}

    def examples(self) -> list[ToolCall]:
        """Concrete calls that are right, every alternative in one of them."""
        return [ToolCall(self.name, arguments) for arguments in object_examples(self.arguments)]


def expected_calls(value: Any, tools: Sequence[Tool], key: str, place: Place) -> tuple[ExpectedCall, ...]:
    """Read an array of calls, [] when no call may be made; each must fit its tool's schema."""
    if not isinstance(value, list):
        place.fail(key, "expected an array of calls, [] when no call may be made")
    return tuple(_expected_call(call, tools, f"{key}.{index}", place) for index, call in enumerate(value))


def arguments_of(value: Any, key: str, place: Place) -> dict[str, Any]:
    """Read an object whose values may hold matchers."""
    if not isinstance(value, dict):
        place.fail(key, "expected an object")
    try:
        arguments = parse_expected(value)
    except MatcherError as error:
        place.fail(f"{key}.{error.key}".rstrip("."), error.message)
    if not isinstance(arguments, dict):
        place.fail(key, "a matcher may stand for a value in this object, not for the whole")
    return arguments


def tool_name(value: Any, tools: Sequence[Tool], key: str, place: Place) -> Tool:
    """Read the name of one of the suite's tools."""
    tool = next((tool for tool in tools if tool.name == value), None)
    if tool is None:
        place.fail(key, f"{value!r} is none of the suite's tools: {[tool.name for tool in tools]}")
    return tool


def tool_names(value: Any, tools: Sequence[Tool], key: str, place: Place) -> tuple[str, ...]:
    """Read an array of names of the suite's tools."""
    if not isinstance(value, list):
        place.fail(key, "expected an array of tool names")
    return tuple(tool_name(name, tools, key, place).name for name in value)


def _expected_call(call: Any, tools: Sequence[Tool], key: str, place: Place) -> ExpectedCall:
    place.check_keys(call, {"name", "arguments"}, key)
    tool = tool_name(call.get("name"), tools, f"{key}.name", place)
    arguments = arguments_of(call.get("arguments"), f"{key}.arguments", place)
    wanted = ExpectedCall(tool.name, arguments)
    for example in wanted.examples():
        for violation in tool.violations(example.arguments):
            # Examples of open matchers are made up, and need not keep to a format.
            if not is_open(arguments.get(violation.path.split(".")[0])):
                place.fail(f"{key}.arguments.{violation.path}".rstrip("."), f"breaks the schema: {violation.message}")
    return wanted
