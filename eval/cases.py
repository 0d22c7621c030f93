"""Suites and their cases: the types, and the readers of `cases.jsonl` and of simulated tools.

Every error names file, line, case and key. eval/suites/README.md describes the format.
"""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import json
import zlib
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, Protocol

from eval.matchers import MatcherError, is_open, object_examples, parse_expected, to_json
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.formats import ParsedReply, with_reference_date
from tinydispatch.tools import Message, Role, Tool, ToolCall, ToolError


class SuiteError(ValueError):
    """A suite that cannot be read; the message names the file, the line, the key and what was expected."""


@dataclass
class Place:
    """`where` is "file" or "file:line"; `case_id` is known once it has been read."""

    where: str
    case_id: str = ""

    def fail(self, key: str, message: str) -> NoReturn:
        """Raise a `SuiteError` about `key`."""
        case = f" case '{self.case_id}':" if self.case_id else ""
        raise SuiteError(f"{self.where}:{case} key '{key}': {message}")

    def check_keys(self, value: Any, known: set[str], key: str) -> None:
        """Refuse what is no object or has keys that nobody reads."""
        if not isinstance(value, dict):
            self.fail(key or "(whole)", f"expected an object, not {type(value).__name__}")
        for name in value:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}"
                self.fail(f"{key}.{name}".lstrip("."), f"unknown key; {hint}")

    def items(self, value: Any, name: str, prefix: str = "") -> list[tuple[str, Any]]:
        """The array `value[name]` with each item's key, `[]` where it is absent."""
        items = value.get(name, [])
        if not isinstance(items, list):
            self.fail(f"{prefix}{name}", "expected an array")
        return [(f"{prefix}{name}.{index}", item) for index, item in enumerate(items)]

    def flag(self, value: Any, name: str, prefix: str = "", *, default: bool = False) -> bool:
        """`value[name]`, which must be true or false."""
        flag = value.get(name, default)
        if not isinstance(flag, bool):
            self.fail(f"{prefix}{name}", "expected true or false")
        return flag


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


EPISODE_KEYS = {"steps", "follow_ups", "world", "final_state", "needs_success", "max_turns"}
_STEP_KEYS = {"calls", "waits", "optional"}
_RULE_KEYS = {"tool", "when", "result", "error", "times"}
# Turns beyond one per call that a model may take before it is stopped: enough to see whether it finds its way back.
_SPARE_TURNS = 3


@dataclass(frozen=True)
class Step:
    """Calls that belong together, in any order and over any number of turns.

    `waits`: they may be made only after the results of every earlier step are there. False asks for the order alone.
    `is_optional`: the step may be left out.
    """

    calls: tuple[ExpectedCall, ...]
    waits: bool = True
    is_optional: bool = False


@dataclass(frozen=True)
class Phase:
    """What follows one message of the user's: the steps, then a reply without calls. No steps: such a reply at once."""

    user: str | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Rule:
    """The world's answer to calls of `tool` whose arguments have the values in `when`, instead of the simulator's.

    An `error` keeps the call from having any effect; `result` replaces what is returned only. `times`: for how many
    calls the rule holds, None for all.
    """

    tool: str
    when: Mapping[str, Any]
    result: Any = None
    error: str | None = None
    times: int | None = None


@dataclass(frozen=True)
class Episode:
    """The script of a case, and the world at its beginning (`state`) and at its end (`final_state`).

    A collection in `final_state` must hold just these records in the end, any other what it held at the beginning.
    `needs_success` names tools whose call is `ignored_error` when it follows a failed call.
    `max_turns` limits the replies to one message of the user's.
    """

    phases: tuple[Phase, ...]
    rules: tuple[Rule, ...] = ()
    state: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    final_state: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    needs_success: tuple[str, ...] = ()
    max_turns: int = 1 + _SPARE_TURNS

    @property
    def first_calls(self) -> tuple[ExpectedCall, ...]:
        """What the very first reply should hold."""
        steps = self.phases[0].steps
        return steps[0].calls if steps else ()

    @property
    def waiting_tools(self) -> tuple[str, ...]:
        """Tools of the later steps that wait for a result."""
        later = (step for step in self.phases[0].steps[1:] if step.waits)
        return tuple(dict.fromkeys(call.name for step in later for call in step.calls))


def episode_from_row(row: Mapping[str, Any], tools: Sequence[Tool], place: Place) -> Episode:
    """Read the keys of `EPISODE_KEYS`.

    Raises:
        SuiteError: names file, line, case and key.
    """
    phases = [Phase(None, _steps(row["steps"], tools, "steps", place))]
    for key, follow_up in place.items(row, "follow_ups"):
        place.check_keys(follow_up, {"user", "steps"}, key)
        if not isinstance(follow_up.get("user"), str) or not follow_up["user"]:
            place.fail(f"{key}.user", "expected what the user says")
        phases.append(Phase(follow_up["user"], _steps(follow_up.get("steps", []), tools, f"{key}.steps", place)))
    world = row.get("world", {})
    place.check_keys(world, {"state", "rules"}, "world")
    longest = max(sum(len(step.calls) for step in phase.steps) for phase in phases)
    limit = row.get("max_turns", longest + _SPARE_TURNS)
    if type(limit) is not int or limit <= longest:
        place.fail("max_turns", f"{limit!r}: expected more than the {longest} calls of the longest phase")
    return Episode(
        phases=tuple(phases),
        rules=tuple(_rule(item, tools, key, place) for key, item in place.items(world, "rules", "world.")),
        state=_collections(world.get("state", {}), "world.state", place),
        final_state=_collections(row.get("final_state", {}), "final_state", place),
        needs_success=tool_names(row.get("needs_success", []), tools, "needs_success", place),
        max_turns=limit,
    )


def _steps(value: Any, tools: Sequence[Tool], key: str, place: Place) -> tuple[Step, ...]:
    if not isinstance(value, list):
        place.fail(key, "expected an array of steps, [] when no call may be made")
    steps = []
    for index, item in enumerate(value):
        where = f"{key}.{index}"
        place.check_keys(item, _STEP_KEYS, where)
        calls = expected_calls(item.get("calls"), tools, f"{where}.calls", place)
        if not calls:
            place.fail(f"{where}.calls", "a step without calls; leave the step out")
        waits = place.flag(item, "waits", f"{where}.", default=True)
        steps.append(Step(calls, waits, place.flag(item, "optional", f"{where}.")))
    return tuple(steps)


def _rule(value: Any, tools: Sequence[Tool], key: str, place: Place) -> Rule:
    place.check_keys(value, _RULE_KEYS, key)
    tool = tool_name(value.get("tool"), tools, f"{key}.tool", place)
    if ("result" in value) == ("error" in value):
        place.fail(key, "expected either 'result' or 'error'")
    if not isinstance(value.get("error", ""), str):
        place.fail(f"{key}.error", "expected a string")
    times = value.get("times")
    if times is not None and (type(times) is not int or times < 1):
        place.fail(f"{key}.times", f"{times!r}: expected a whole number from 1")
    when = arguments_of(value.get("when", {}), f"{key}.when", place)
    known = tool.parameters.get("properties", {})
    for name in when:
        if name not in known:
            place.fail(f"{key}.when.{name}", f"tool '{tool.name}' has no such parameter; it has {list(known)}")
    return Rule(tool.name, when, value.get("result"), value.get("error"), times)


def _collections(value: Any, key: str, place: Place) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(value, dict):
        place.fail(key, "expected an object of arrays of records")
    return {
        name: [arguments_of(record, where, place) for where, record in place.items(value, name, f"{key}.")]
        for name in value
    }


# Part of the fingerprint of suites that are played: raise it when a simulator below answers otherwise.
SIMULATORS_VERSION = b"1"

State = dict[str, list[dict[str, Any]]]
Arguments = Mapping[str, Any]


class SimulatorError(ValueError):
    """A call that fails; the message is what the tool reports."""


@dataclass(frozen=True)
class Simulator:
    """`run(arguments, state, today)` returns the result and may change `state`."""

    run: Callable[[Arguments, State, dt.date | None], Any]


class Action(StrEnum):
    """What a described tool does with its collection; `eval/suites/README.md` shows each with an example."""

    RETURN = "return"
    ADD = "add"
    FIND = "find"
    UPDATE = "update"
    REMOVE = "remove"


def described(spec: Mapping[str, Any]) -> Simulator:
    """The simulator for one entry of a suite's `simulators.json`, whose keys have been checked."""
    action = Action(spec["action"])
    name = spec.get("collection", "")
    where: Mapping[str, str] = spec.get("where", {})
    returns = spec.get("returns", {"status": "ok"})

    def run(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
        if action is Action.RETURN:
            return returns
        records = state.setdefault(name, [])
        if action is Action.ADD:
            records.append(dict(arguments))
            return returns
        found = [item for item in records if _matches(item, arguments, where)]
        if action is Action.FIND:
            return {"count": len(found), name: found}
        if not found:
            wanted = ", ".join(f"{field} {arguments.get(argument)!r}" for field, argument in where.items())
            raise SimulatorError(f"nothing in {name} with {wanted}")
        if action is Action.REMOVE:
            records[:] = [item for item in records if item not in found]
        else:
            changes = {key: value for key, value in arguments.items() if key not in where.values()}
            for item in found:
                item.update(changes)
        return returns

    return Simulator(run)


def _matches(record: Arguments, arguments: Arguments, where: Mapping[str, str]) -> bool:
    """An argument that was not given does not narrow the search."""
    return all(
        argument not in arguments or record.get(field) == arguments[argument] for field, argument in where.items()
    )


def load_simulators(path: Path, tools: Mapping[str, Mapping[str, Any]]) -> dict[str, Simulator]:
    """Read a suite's `simulators.json`; `tools` are the parameters' schemas by tool name.

    Raises:
        SuiteError: names the file, the tool and the key.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SuiteError(f"{path}: not JSON: {error}") from error
    place = Place(str(path))
    place.check_keys(value, set(tools), "")
    found = {}
    for name, spec in value.items():
        place.check_keys(spec, {"action", "collection", "where", "returns"}, name)
        if spec.get("action") not in list(Action):
            place.fail(f"{name}.action", f"{spec.get('action')!r} is none of {', '.join(Action)}")
        if spec["action"] != Action.RETURN and not isinstance(spec.get("collection"), str):
            place.fail(f"{name}.collection", "expected the name of a collection of the world's state")
        where = spec.get("where", {})
        known = tools[name].get("properties", {})
        if not isinstance(where, dict) or not all(argument in known for argument in where.values()):
            place.fail(f"{name}.where", f"expected an object, field → parameter; parameters are {list(known)}")
        found[name] = described(spec)
    return found


def _number(low: int, high: int, *parts: object) -> int:
    """A number between `low` and `high` that depends on `parts` alone."""
    return low + zlib.crc32("|".join(map(str, parts)).encode()) % (high - low + 1)


def _get_weather(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    day = arguments.get("date") or (today.isoformat() if today else "today")
    celsius = _number(-5, 30, "temperature", arguments["location"], day)
    is_celsius = arguments.get("units", "celsius") == "celsius"
    return {
        "location": arguments["location"],
        "date": day,
        "temperature": celsius if is_celsius else round(celsius * 9 / 5 + 32),
        "units": "celsius" if is_celsius else "fahrenheit",
        "conditions": ("sunny", "cloudy", "rain", "windy")[_number(0, 3, "sky", arguments["location"], day)],
    }


def _convert_currency(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    pair = arguments["from_currency"], arguments["to_currency"]
    rate = 1.0 if pair[0] == pair[1] else _number(50, 200, "rate", *pair) / 100
    return {"amount": round(arguments["amount"] * rate, 2), "currency": pair[1], "rate": rate}


def _get_current_time(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    noon = dt.datetime.combine(today or dt.date(2026, 1, 1), dt.time(12), tzinfo=dt.UTC)
    zone = arguments["timezone"]
    return {"timezone": zone, "time": noon.astimezone(zoneinfo.ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M")}


def _search_web(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    count = min(arguments.get("max_results", 3), 3)
    return {"results": [{"title": f"{arguments['query']}: result {number + 1}"} for number in range(count)]}


def _list_calendar_events(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    first, last = arguments["start_date"], arguments["end_date"]
    if last < first:
        raise SimulatorError("end_date lies before start_date")
    found = [event for event in state.get("events", []) if first <= event["start"][:10] <= last]
    return {"count": len(found), "events": sorted(found, key=lambda event: str(event["start"]))}


BUNDLED_SIMULATORS: dict[str, Simulator] = {
    "get_weather": Simulator(_get_weather),
    "convert_currency": Simulator(_convert_currency),
    "get_current_time": Simulator(_get_current_time),
    "search_web": Simulator(_search_web),
    "list_calendar_events": Simulator(_list_calendar_events),
    "set_reminder": described({"action": "add", "collection": "reminders", "returns": {"status": "set"}}),
    "send_email": described({"action": "add", "collection": "outbox", "returns": {"status": "sent"}}),
    "create_calendar_event": described({"action": "add", "collection": "events", "returns": {"status": "created"}}),
}


_KEYS = {"id", "category", "reference_date", "messages", "tools", "note"}
_SINGLE_TURN_KEYS = {"expected", "premature", "after_error"}
_MESSAGE_KEYS = {"role", "content", "tool_calls", "name"}


UNDATED_DAY = dt.date(2026, 3, 19)


@dataclass(frozen=True)
class Case:
    """One conversation and the calls that its next reply must hold; no calls means that it must hold none.

    `premature` names the tools that must wait for a result. `is_after_error` says that the last assistant
    turn's calls failed. `tools` are the names on offer, () for all of the suite's; `offer`, where given, are the
    tools themselves in the order of the prompt. A case with an `episode` is played to its end, and `expected` are the
    calls of its first step. `parent` is the id of the case that this one was derived from.
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
    episode: Episode | None = None
    parent: str = ""
    offer: tuple[Tool, ...] = ()

    @property
    def today(self) -> dt.date:
        """The day that the model is told; `UNDATED_DAY` where the case has none, as service tells one every time."""
        return self.reference_date or UNDATED_DAY

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((message.content for message in reversed(self.messages) if message.role is Role.USER), "")

    @property
    def user_texts(self) -> list[str]:
        """All that the user says, in an episode's later messages too."""
        later = self.episode.phases[1:] if self.episode else ()
        said = [message.content for message in self.messages if message.role is Role.USER]
        return said + [phase.user for phase in later if phase.user is not None]


def case_from_row(row: Any, tools: Sequence[Tool], place: Place) -> Case:
    """Read one line; a row with `steps` is played, one with `expected` is scored on the next reply alone.

    Raises:
        SuiteError: names file, line, case and key.
    """
    is_episode = isinstance(row, dict) and "steps" in row
    if isinstance(row, dict) and isinstance(row.get("id"), str):
        place.case_id = row["id"]
    place.check_keys(row, _KEYS | (EPISODE_KEYS if is_episode else _SINGLE_TURN_KEYS), "")
    for key in ("id", "category"):
        if not isinstance(row.get(key), str) or not row[key]:
            place.fail(key, "expected a non-empty string")
    messages = _messages(row.get("messages"), place)
    common: dict[str, Any] = {
        "id": row["id"],
        "category": row["category"],
        "messages": messages,
        "reference_date": _date(row.get("reference_date"), place),
        "tools": tool_names(row.get("tools", []), tools, "tools", place),
        "note": str(row.get("note", "")),
    }
    if is_episode:
        episode = episode_from_row(row, tools, place)
        return Case(**common, expected=episode.first_calls, premature=episode.waiting_tools, episode=episode)
    expected = row.get("expected")
    place.check_keys(expected, {"calls", "ordered"}, "expected")
    return Case(
        **common,
        expected=expected_calls(expected.get("calls"), tools, "expected.calls", place),
        is_ordered=place.flag(expected, "ordered", "expected."),
        premature=tool_names(row.get("premature", []), tools, "premature", place),
        is_after_error=place.flag(row, "after_error"),
    )


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


_SUITE_KEYS = {"name", "description", "tools", "categories", "simulators"}
_DERIVED_KEYS = {"name", "description", "derived_from", "seed", "distractors"}


@dataclass(frozen=True)
class LenientRule:
    """Another rule by which replies are scored as well; its score has a column of its own, under `name`."""

    name: str
    passes: Callable[[Case, ParsedReply], bool]


@dataclass(frozen=True)
class Suite:
    """Cases with the tools they are written against; `fingerprint` changes with either, or with the simulators.

    `notes` say what of a data set is not among the cases.
    """

    name: str
    description: str
    tools: tuple[Tool, ...]
    categories: tuple[str, ...]
    cases: tuple[Case, ...]
    fingerprint: str
    simulators: Mapping[str, Simulator] = field(default_factory=dict, repr=False, compare=False)
    is_derived: bool = False
    lenient: LenientRule | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    def tools_for(self, case: Case) -> tuple[Tool, ...]:
        """The tools on offer in `case`, in the suite's order unless the case brings its own."""
        return case.offer or tuple(tool for tool in self.tools if not case.tools or tool.name in case.tools)


class Opener(Protocol):
    """`open_suite` of a module of eval/suites: the suite that a name means, None where it is not of its kind."""

    def __call__(self, name: str, *, max_per_category: int | None) -> Suite | None:
        """Raises SuiteError where it is of this kind, and something in it is wrong."""


def written_suite(folder: Path, head: Mapping[str, Any]) -> Suite:
    """The suite of a folder with `cases.jsonl`; `head` is what its `suite.json` says."""
    tools = _read_tools(folder, head.get("tools", "bundled"))
    cases_path = folder / "cases.jsonl"
    cases = _read_cases(cases_path, tools)
    categories = tuple(head.get("categories") or dict.fromkeys(case.category for case in cases))
    for case in cases:
        if case.category not in categories:
            where = f"{cases_path}: case '{case.id}': key 'category'"
            raise SuiteError(f"{where}: {case.category!r} is none of the suite's {list(categories)}")
    simulators = {tool.name: BUNDLED_SIMULATORS.get(tool.name, described({"action": "return"})) for tool in tools}
    definition = json.dumps([tool.to_openai() for tool in tools], sort_keys=True).encode() + cases_path.read_bytes()
    if "simulators" in head:
        path = folder / head["simulators"]
        simulators |= load_simulators(path, {tool.name: tool.parameters for tool in tools})
        definition += path.read_bytes()
    if any(case.episode for case in cases):
        definition += SIMULATORS_VERSION
    fingerprint = hashlib.sha256(definition).hexdigest()[:16]
    return Suite(head["name"], head.get("description", ""), tools, categories, cases, fingerprint, simulators)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from error


def read_head(path: Path) -> dict[str, Any]:
    """A `suite.json`, checked."""
    try:
        head = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise SuiteError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    place = Place(str(path))
    is_derived = isinstance(head, dict) and "derived_from" in head
    place.check_keys(head, _DERIVED_KEYS if is_derived else _SUITE_KEYS, "")
    for key in ("name", "description", "tools", "simulators", "derived_from", "distractors"):
        if not isinstance(head.get(key, "" if key != "name" else None), str):
            place.fail(key, "expected a string")
    if type(head.get("seed", 0)) is not int:
        place.fail("seed", "expected a whole number")
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
        case = case_from_row(row, tools, place)
        if case.id in cases:
            place.fail("id", "occurs twice in this file")
        cases[case.id] = case
    if not cases:
        raise SuiteError(f"{path}: holds no cases")
    return tuple(cases.values())


def drawn(cases: Sequence[Case], max_per_category: int | None) -> list[Case]:
    """So many cases of each category, in their order; None keeps all.

    Drawn by a hash of what a case comes from, so that more data later moves few of them.
    """
    if max_per_category is None:
        return list(cases)
    kept: set[str] = set()
    for category in {case.category for case in cases}:
        mine = [case for case in cases if case.category == category]
        mine.sort(key=lambda case: (hashlib.sha256((case.parent or case.id).encode()).digest(), case.id))
        kept |= {case.id for case in mine[:max_per_category]}
    return [case for case in cases if case.id in kept]


def by_shared_beginning(cases: Iterable[Case], suite: Suite) -> list[Case]:
    """The cases sorted by what their prompts consist of: tools, system message with the date, then what was said.

    Sorted texts have no better neighbour to share a beginning with, so a backend that keeps the last prompt's state
    computes each set of tools, and each day, once. The order is the same in every run; a report keeps the suite's.
    """

    def key(case: Case) -> list[Any]:
        tools = json.dumps([tool.to_openai() for tool in suite.tools_for(case)])
        messages = with_reference_date(case.messages, case.today)
        return [tools, *((str(said.role), said.content, repr(said.tool_calls)) for said in messages)]

    return sorted(cases, key=key)
