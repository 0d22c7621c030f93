"""Suites of cases, read from `suite.json` and `cases.jsonl` into frozen types; every error names file, line and key."""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.matchers import MatcherError, is_open, object_examples, parse_expected, to_json
from eval.places import Place, SuiteError
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.tools import Message, Role, Tool, ToolCall, ToolError

SUITES_DIR = Path(__file__).parent / "suites"
_SUITE_KEYS = {"name", "description", "tools", "categories"}
_CASE_KEYS = {"id", "category", "reference_date", "messages", "expected", "premature", "after_error", "tools", "note"}
_MESSAGE_KEYS = {"role", "content", "tool_calls", "name"}


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


@dataclass(frozen=True)
class Case:
    """One conversation and the calls that its next reply must hold; no calls means that it must hold none.

    `premature` names the tools that must wait for a result. `is_after_error` says that the last assistant
    turn's calls failed. `tools` are the names on offer, () for all of the suite's.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    expected: tuple[ExpectedCall, ...]
    reference_date: dt.date | None = None
    is_ordered: bool = False
    premature: tuple[str, ...] = ()
    is_after_error: bool = False
    tools: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """Cases with the tools they are written against; `fingerprint` changes with either."""

    name: str
    description: str
    tools: tuple[Tool, ...]
    categories: tuple[str, ...]
    cases: tuple[Case, ...]
    fingerprint: str

    def tools_for(self, case: Case) -> tuple[Tool, ...]:
        """The tools on offer in `case`, in the suite's order."""
        return tuple(tool for tool in self.tools if not case.tools or tool.name in case.tools)


def shipped_suites() -> list[str]:
    """Names of the suites under `eval/suites/`."""
    return sorted(path.parent.name for path in SUITES_DIR.glob("*/suite.json"))


def load_suite(name_or_path: str | Path) -> Suite:
    """Read a shipped suite by name, or any folder that holds `suite.json` and `cases.jsonl`.

    Raises:
        SuiteError: no such suite, or something in it is not as `eval/suites/README.md` says.
    """
    folder = SUITES_DIR / name_or_path if str(name_or_path) in shipped_suites() else Path(name_or_path)
    if not (folder / "suite.json").is_file():
        near = difflib.get_close_matches(str(name_or_path), shipped_suites(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"shipped are {', '.join(shipped_suites())}"
        raise SuiteError(f"no suite '{name_or_path}': neither shipped ({hint}) nor a folder with a suite.json")
    head = _read_head(folder / "suite.json")
    tools = _read_tools(folder, head.get("tools", "bundled"))
    cases_path = folder / "cases.jsonl"
    cases = _read_cases(cases_path, tools)
    categories = tuple(head.get("categories") or dict.fromkeys(case.category for case in cases))
    for case in cases:
        if case.category not in categories:
            where = f"{cases_path}: case '{case.id}': key 'category'"
            raise SuiteError(f"{where}: {case.category!r} is none of the suite's {list(categories)}")
    definition = json.dumps([tool.to_openai() for tool in tools], sort_keys=True).encode() + cases_path.read_bytes()
    fingerprint = hashlib.sha256(definition).hexdigest()[:16]
    return Suite(head["name"], head.get("description", ""), tools, categories, cases, fingerprint)


def load_case_texts() -> list[str]:
    """What users say in all shipped suites, for keeping cases out of training data."""
    return [
        message.content
        for name in shipped_suites()
        for case in load_suite(name).cases
        for message in case.messages
        if message.role is Role.USER
    ]


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from error


def _read_head(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise SuiteError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    place = Place(str(path))
    place.check_keys(head, _SUITE_KEYS, "")
    for key in ("name", "description", "tools"):
        if not isinstance(head.get(key, "" if key != "name" else None), str):
            place.fail(key, "expected a string")
    categories = head.get("categories", [])
    if not isinstance(categories, list) or not all(isinstance(item, str) for item in categories):
        place.fail("categories", "expected an array of strings")
    assert isinstance(head, dict)
    return head


def _read_tools(folder: Path, source: str) -> tuple[Tool, ...]:
    if source == "bundled":
        return bundled_tools()
    try:
        return load_tools(folder / source)
    except ToolError as error:
        raise SuiteError(f"{folder / 'suite.json'}: key 'tools': {error}") from error


def _read_cases(path: Path, tools: Sequence[Tool]) -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(f"{path}:{number}")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SuiteError(f"{path}:{number}: not JSON at column {error.colno}: {error.msg}") from error
        case = _case_from_row(row, tools, place)
        if case.id in cases:
            place.fail("id", "occurs twice in this file")
        cases[case.id] = case
    if not cases:
        raise SuiteError(f"{path}: holds no cases")
    return tuple(cases.values())


def _case_from_row(row: Any, tools: Sequence[Tool], place: Place) -> Case:
    place.check_keys(row, _CASE_KEYS, "")
    for key in ("id", "category"):
        if not isinstance(row.get(key), str) or not row[key]:
            place.fail(key, "expected a non-empty string")
    place.case_id = row["id"]
    expected = row.get("expected")
    place.check_keys(expected, {"calls", "ordered"}, "expected")
    if not isinstance(expected.get("calls"), list):
        place.fail("expected.calls", "expected an array of calls, [] when no call may be made")
    names = [tool.name for tool in tools]
    return Case(
        id=row["id"],
        category=row["category"],
        messages=_messages(row.get("messages"), place),
        expected=tuple(
            _expected_call(call, tools, f"expected.calls.{index}", place)
            for index, call in enumerate(expected["calls"])
        ),
        reference_date=_date(row.get("reference_date"), place),
        is_ordered=_flag(expected.get("ordered", False), "expected.ordered", place),
        premature=_tool_names(row.get("premature", []), names, "premature", place),
        is_after_error=_flag(row.get("after_error", False), "after_error", place),
        tools=_tool_names(row.get("tools", []), names, "tools", place),
        note=str(row.get("note", "")),
    )


def _expected_call(call: Any, tools: Sequence[Tool], key: str, place: Place) -> ExpectedCall:
    place.check_keys(call, {"name", "arguments"}, key)
    tool = next((tool for tool in tools if tool.name == call.get("name")), None)
    if tool is None:
        place.fail(f"{key}.name", f"{call.get('name')!r} is none of the suite's tools: {[tool.name for tool in tools]}")
    if not isinstance(call.get("arguments"), dict):
        place.fail(f"{key}.arguments", "expected an object")
    try:
        arguments = parse_expected(call["arguments"])
    except MatcherError as error:
        place.fail(f"{key}.arguments.{error.key}", error.message)
    if not isinstance(arguments, dict):
        place.fail(f"{key}.arguments", "a matcher may stand for an argument's value, not for all arguments")
    wanted = ExpectedCall(tool.name, arguments)
    for example in wanted.examples():
        for violation in tool.violations(example.arguments):
            # Examples of open matchers are made up, and need not keep to a format.
            if not is_open(arguments.get(violation.path.split(".")[0])):
                place.fail(f"{key}.arguments.{violation.path}".rstrip("."), f"breaks the schema: {violation.message}")
    return wanted


def _messages(value: Any, place: Place) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        place.fail("messages", "expected a non-empty array")
    messages = tuple(_message(item, f"messages.{index}", place) for index, item in enumerate(value))
    if messages[-1].role not in (Role.USER, Role.TOOL):
        place.fail(f"messages.{len(value) - 1}.role", "the last message must be the user's or a tool's")
    return messages


def _message(value: Any, key: str, place: Place) -> Message:
    place.check_keys(value, _MESSAGE_KEYS, key)
    if value.get("role") not in list(Role):
        place.fail(f"{key}.role", f"{value.get('role')!r} is none of {', '.join(Role)}")
    for name in ("content", "name"):
        if not isinstance(value.get(name, ""), str):
            place.fail(f"{key}.{name}", "expected a string")
    calls = value.get("tool_calls", [])
    if not isinstance(calls, list):
        place.fail(f"{key}.tool_calls", "expected an array")
    for index, call in enumerate(calls):
        place.check_keys(call, {"name", "arguments"}, f"{key}.tool_calls.{index}")
        if not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), dict):
            place.fail(f"{key}.tool_calls.{index}", "expected a 'name' string and an 'arguments' object")
    return Message(
        Role(value["role"]),
        value.get("content", ""),
        tuple(ToolCall(call["name"], call["arguments"]) for call in calls),
        value.get("name"),
    )


def _date(value: Any, place: Place) -> dt.date | None:
    if value is None:
        return None
    try:
        return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        place.fail("reference_date", f"{value!r} is no date; expected YYYY-MM-DD")


def _flag(value: Any, key: str, place: Place) -> bool:
    if not isinstance(value, bool):
        place.fail(key, "expected true or false")
    return value


def _tool_names(value: Any, names: list[str], key: str, place: Place) -> tuple[str, ...]:
    if not isinstance(value, list):
        place.fail(key, "expected an array of tool names")
    for name in value:
        if name not in names:
            place.fail(key, f"{name!r} is none of the suite's tools: {names}")
    return tuple(value)
