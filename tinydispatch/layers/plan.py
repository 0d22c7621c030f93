"""Plans as data: calls with references to results and conditions over them, checked, then run as a graph."""

from __future__ import annotations

import graphlib
import json
import operator
import queue
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from tinydispatch.formats import json_decoder
from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome
from tinydispatch.layers.toolbox import start
from tinydispatch.tools import Tool, ToolCall

Path = tuple[str | int, ...]

CALL_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_\-]*)|\[([0-9]{1,6})\]|\[(\"(?:[^\"\\]|\\.)*\")\]")
# `$${` stands for the characters `${` themselves.
_IN_TEXT = re.compile(r"(\$?)\$\{([^{}]*)\}")


class BadReferenceError(ValueError):
    """A reference that cannot be read, or that leads nowhere in the results there are."""


@dataclass(frozen=True)
class Reference:
    """A place in the result of the call `call`: keys and positions, () for the whole result."""

    call: str
    path: Path = ()

    def __str__(self) -> str:
        return self.call + "".join(_shown_step(step) for step in self.path)


def _shown_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _STEP.fullmatch(f".{step}") else f"[{json.dumps(step)}]"


def read_reference(text: str, start: int = 0) -> tuple[Reference, int]:
    """The longest reference at `start`, and where it ends.

    Raises:
        BadReferenceError: no call's id stands there.
    """
    name = CALL_ID.match(text, start)
    if name is None:
        raise BadReferenceError(f"expected a call's id at {text[start : start + 20]!r}")
    path: list[str | int] = []
    end = name.end()
    while step := _STEP.match(text, end):
        key, position, quoted = step.groups()
        path.append(key if key is not None else int(position) if position is not None else str(json.loads(quoted)))
        end = step.end()
    return Reference(name.group(), tuple(path)), end


def parse_reference(text: str) -> Reference:
    """The reference that `text` is from end to end.

    Raises:
        BadReferenceError: it is none.
    """
    reference, end = read_reference(text.strip())
    if end != len(text.strip()):
        raise BadReferenceError(f"{text!r} is no reference; expected for example calendar.events[0].start")
    return reference


def lookup(reference: Reference, results: Mapping[str, Any]) -> Any:
    """The value that the reference leads to.

    Raises:
        BadReferenceError: the call has no result, or the result has no such place.
    """
    if reference.call not in results:
        raise BadReferenceError(f"{reference}: '{reference.call}' has no result")
    value = results[reference.call]
    for step in reference.path:
        is_item = isinstance(step, int) and isinstance(value, list) and step < len(value)
        is_key = isinstance(step, str) and isinstance(value, Mapping) and step in value
        if not (is_item or is_key):
            raise BadReferenceError(f"{reference}: the result has no {step!r}; {_shown_shape(value)}")
        value = value[step]
    return value


def _shown_shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"its keys are {list(value)[:8]}"
    return f"it has {len(value)} items" if isinstance(value, list) else f"it is a {type(value).__name__}"


def whole_reference(text: str) -> Reference | None:
    """The reference that a string consists of; its value then keeps its type. None where there is other text too."""
    found = _IN_TEXT.fullmatch(text)
    return parse_reference(found.group(2)) if found and not found.group(1) else None


def references_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Reference, bool]]:
    """Every reference within arguments: where it stands, what it names, whether it is the whole value there.

    Raises:
        BadReferenceError: what stands in `${…}` is no reference.
    """
    if isinstance(value, str):
        is_whole = whole_reference(value) is not None
        for escape, inner in _IN_TEXT.findall(value):
            if not escape:
                yield path, parse_reference(inner), is_whole
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from references_in(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from references_in(item, (*path, index))


def resolve(value: Any, results: Mapping[str, Any]) -> Any:
    """Arguments with every reference replaced by what it leads to; what a result says is never read as a reference.

    Raises:
        BadReferenceError: a reference leads nowhere.
    """
    if isinstance(value, str):
        whole = whole_reference(value)
        return lookup(whole, results) if whole is not None else _IN_TEXT.sub(lambda at: _inserted(at, results), value)
    if isinstance(value, Mapping):
        return {key: resolve(item, results) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, results) for item in value]
    return value


def _inserted(found: re.Match[str], results: Mapping[str, Any]) -> str:
    if found.group(1):
        return f"${{{found.group(2)}}}"
    value = lookup(parse_reference(found.group(2)), results)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_MAX_LENGTH, _MAX_DEPTH = 500, 16
_TOKEN = re.compile(
    r"\s*(==|!=|<=|>=|<|>|\(|\)|\[|\]|,|\"(?:[^\"\\]|\\.)*\"|-?[0-9]+(?:\.[0-9]+)?|[A-Za-z_][A-Za-z0-9_]*)"
)
RESERVED = frozenset(
    {"and", "or", "not", "in", "true", "false", "null", "done", "failed", "skipped", "count", "exists"}
)
_STATE_FUNCTIONS = frozenset({"done", "failed", "skipped"})
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class ConditionError(ValueError):
    """A condition that cannot be read, or that has no truth value with the results there are."""


@dataclass(frozen=True)
class Facts:
    """What a condition may look at: results of calls that were done, and how each call ended ("done", …)."""

    results: Mapping[str, Any]
    states: Mapping[str, str]


Node = Callable[[Facts], Any]


@dataclass(frozen=True)
class Condition:
    """A condition that has been read.

    `references` are all that it looks at, `states` the calls whose end it asks for, `needs` those without whose
    result it has no truth value.
    """

    text: str
    node: Node
    references: tuple[Reference, ...]
    states: frozenset[str]
    needs: frozenset[str]

    def holds(self, facts: Facts) -> bool:
        """Whether the call may be made.

        Raises:
            ConditionError: a reference leads nowhere, or values of different kinds are compared by size.
        """
        return _truth(self.node(facts), self.text)


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        ConditionError: says what stands where it should not.
    """
    if len(text) > _MAX_LENGTH:
        raise ConditionError(f"a condition of {len(text)} characters; at most {_MAX_LENGTH} are read")
    parser = _Parser(text)
    node = parser.alternatives(0)
    if parser.peek():
        raise ConditionError(f"unexpected {parser.peek()!r} in {text!r}")
    return Condition(text, node, tuple(parser.references), frozenset(parser.states), parser.needs)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0
        self.references: list[Reference] = []
        self.states: set[str] = set()
        self._optional: set[int] = set()  # positions in `references` that exists() or a state function asks for

    @property
    def needs(self) -> frozenset[str]:
        """Calls whose result is used as a value."""
        used = (reference.call for at, reference in enumerate(self.references) if at not in self._optional)
        return frozenset(used) - self.states

    def peek(self) -> str:
        """The next token, "" at the end."""
        found = _TOKEN.match(self._text, self._position)
        if found is None and self._text[self._position :].strip():
            raise ConditionError(f"cannot read {self._text[self._position :].strip()[:20]!r} in {self._text!r}")
        return found.group(1) if found else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise ConditionError(f"expected {wanted or 'a value'!r}, found {token or 'the end'!r} in {self._text!r}")
        found = _TOKEN.match(self._text, self._position)
        assert found is not None, "peek has found it"
        self._position = found.end()
        return token

    def alternatives(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise ConditionError(f"nested more than {_MAX_DEPTH} deep: {self._text[:40]!r} …")
        parts = [self._all_of(depth)]
        while self.peek() == "or":
            self.take()
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else lambda facts: any(_truth(part(facts), self._text) for part in parts)

    def _all_of(self, depth: int) -> Node:
        parts = [self._negated(depth)]
        while self.peek() == "and":
            self.take()
            parts.append(self._negated(depth))
        return parts[0] if len(parts) == 1 else lambda facts: all(_truth(part(facts), self._text) for part in parts)

    def _negated(self, depth: int) -> Node:
        is_negated = False
        while self.peek() == "not":
            self.take()
            is_negated = not is_negated
        node = self._comparison(depth)
        return (lambda facts: not _truth(node(facts), self._text)) if is_negated else node

    def _comparison(self, depth: int) -> Node:
        left = self._operand(depth)
        token = self.peek()
        if token in ("==", "!=", *_ORDERED, "in"):
            return _compared(self.take(), left, self._operand(depth))
        if token == "not":
            self.take()
            self.take("in")
            contains = _compared("in", left, self._operand(depth))
            return lambda facts: not contains(facts)
        return left

    def _operand(self, depth: int) -> Node:
        token = self.peek()
        if token == "(":
            self.take()
            inside = self.alternatives(depth + 1)
            self.take(")")
            return inside
        if token == "[":
            return self._list()
        if token[:1] in '"-0123456789' or token in ("true", "false", "null"):
            return self._literal()
        if token in ("count", "exists", *_STATE_FUNCTIONS):
            return self._function(self.take())
        if not token or token in RESERVED:
            raise ConditionError(f"expected a value, found {token or 'the end'!r} in {self._text!r}")
        reference = self._reference()
        return lambda facts: _looked_up(reference, facts)

    def _literal(self) -> Node:
        token = self.take()
        try:
            value = json.loads(token)
        except ValueError as error:
            raise ConditionError(f"{token!r} is no JSON value in {self._text!r}") from error
        return lambda _: value

    def _list(self) -> Node:
        self.take("[")
        items: list[Node] = []
        while self.peek() != "]":
            if items:
                self.take(",")
            items.append(self._literal())
        self.take("]")
        return lambda facts: [item(facts) for item in items]

    def _reference(self) -> Reference:
        start = self._position + len(self._text[self._position :]) - len(self._text[self._position :].lstrip())
        try:
            reference, self._position = read_reference(self._text, start)
        except BadReferenceError as error:
            raise ConditionError(f"{error} in {self._text!r}") from error
        self.references.append(reference)
        return reference

    def _function(self, name: str) -> Node:
        self.take("(")
        reference = self._reference()
        self.take(")")
        if name != "count":
            self._optional.add(len(self.references) - 1)
        if name in _STATE_FUNCTIONS:
            if reference.path:
                raise ConditionError(f"{name}() asks about a call, not about a place in its result: {reference}")
            self.states.add(reference.call)
            return lambda facts: facts.states.get(reference.call) == name
        if name == "exists":
            return lambda facts: _exists(reference, facts)
        return lambda facts: _counted(reference, facts)


def _compared(sign: str, left: Node, right: Node) -> Node:
    if sign in ("==", "!="):
        return lambda facts: _is_equal(left(facts), right(facts)) is (sign == "==")
    if sign == "in":
        return lambda facts: _is_in(left(facts), right(facts))

    def ordered(facts: Facts) -> bool:
        one, other = left(facts), right(facts)
        if not ((_is_number(one) and _is_number(other)) or (isinstance(one, str) and isinstance(other, str))):
            raise ConditionError(f"cannot tell whether {one!r} {sign} {other!r}: two numbers or two strings are needed")
        return _ORDERED[sign](one, other)

    return ordered


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_equal(one: Any, other: Any) -> bool:
    """As in JSON: 5 and 5.0 are equal, 1 and true are not."""
    if _is_number(one) and _is_number(other):
        return bool(one == other)
    return type(one) is type(other) and bool(one == other)


def _is_in(one: Any, other: Any) -> bool:
    if isinstance(other, str) and isinstance(one, str):
        return one in other
    if isinstance(other, list):
        return any(_is_equal(one, item) for item in other)
    raise ConditionError(f"'in' needs a list, or two strings; the right side is {other!r}")


def _truth(value: Any, text: str) -> bool:
    if not isinstance(value, bool):
        raise ConditionError(f"{text!r}: {value!r} is neither true nor false; compare it with something")
    return value


def _looked_up(reference: Reference, facts: Facts) -> Any:
    try:
        return lookup(reference, facts.results)
    except BadReferenceError as error:
        raise ConditionError(str(error)) from error


def _exists(reference: Reference, facts: Facts) -> bool:
    try:
        return lookup(reference, facts.results) is not None
    except BadReferenceError:
        return False


def _counted(reference: Reference, facts: Facts) -> int:
    value = _looked_up(reference, facts)
    if not isinstance(value, list | dict | str):
        raise ConditionError(f"count({reference}): {value!r} cannot be counted")
    return len(value)


MAX_CALLS = 64
_KEYS = {"id", "tool", "arguments", "depends_on", "condition"}
_EXAMPLES: dict[str, Any] = {
    "string": "",
    "integer": 0,
    "number": 0.5,
    "boolean": False,
    "array": [],
    "object": {},
    "null": None,
}


@dataclass(frozen=True)
class PlanProblem:
    """What is wrong with a plan and where: `calls[2].arguments.start`."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass(frozen=True)
class BadPlan:
    """A plan that must not be run; at least one problem."""

    problems: tuple[PlanProblem, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.problems))


@dataclass(frozen=True)
class PlannedCall:
    """One call of a plan. `depends_on` holds every call that it has to wait for, those it refers to included."""

    id: str
    tool: str
    arguments: Mapping[str, Any]
    depends_on: tuple[str, ...] = ()
    condition: Condition | None = None

    @cached_property
    def sources(self) -> frozenset[str]:
        """The calls whose results the arguments are made of."""
        return frozenset(reference.call for _, reference, _ in references_in(self.arguments))


@dataclass(frozen=True)
class Plan:
    """Calls without cycles, in the order in which they were written."""

    calls: tuple[PlannedCall, ...]

    def sorter(self) -> graphlib.TopologicalSorter[str]:
        """A prepared sorter over the ids."""
        sorter = graphlib.TopologicalSorter({call.id: call.depends_on for call in self.calls})
        sorter.prepare()
        return sorter


def plan_from_text(text: str, tools: Sequence[Tool], result_schemas: Mapping[str, Any] | None = None) -> Plan | BadPlan:
    """Read what a planning model wrote: a JSON document, in a Markdown fence or not."""
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body[body.index("\n") + 1 : -3]
    try:
        value = json_decoder().decode(body.strip())
    except (ValueError, RecursionError) as error:
        return BadPlan((PlanProblem("", f"not JSON: {error}"),))
    return plan_from_json(value, tools, result_schemas)


def plan_from_json(
    value: Any, tools: Sequence[Tool], result_schemas: Mapping[str, Any] | None = None
) -> Plan | BadPlan:
    """Check a plan `{"calls": [{"id", "tool", "arguments", "depends_on", "condition"}]}`; the last two are optional.

    Args:
        tools: the tools that the plan may call.
        result_schemas: by tool, the JSON schema of its result where it is known: references are checked against it.
    """
    calls = value.get("calls") if isinstance(value, dict) else None
    if not isinstance(calls, list) or not calls or set(value) != {"calls"}:
        return BadPlan((PlanProblem("", "expected an object with 'calls', a non-empty array, and nothing else"),))
    if len(calls) > MAX_CALLS:
        return BadPlan((PlanProblem("calls", f"{len(calls)} calls; at most {MAX_CALLS} are run"),))
    check = _Check({tool.name: tool for tool in tools}, result_schemas or {})
    planned = [check.call(call, f"calls[{index}]") for index, call in enumerate(calls)]
    found = [call for call in planned if call is not None]
    if not check.problems:
        check.graph(found)
    if not check.problems:
        check.schemas(found)
    return BadPlan(tuple(check.problems)) if check.problems else Plan(tuple(found))


@dataclass
class _Check:
    tools: Mapping[str, Tool]
    result_schemas: Mapping[str, Any]
    problems: list[PlanProblem] = field(default_factory=list)

    def _problem(self, place: str, message: str) -> None:
        self.problems.append(PlanProblem(place, message))

    def call(self, value: Any, place: str) -> PlannedCall | None:
        """One entry, as far as it can be judged alone."""
        if not isinstance(value, dict) or not {"id", "tool", "arguments"} <= set(value) <= _KEYS:
            keys = list(value) if isinstance(value, dict) else type(value).__name__
            self._problem(place, f"expected id, tool, arguments, and perhaps depends_on and condition; got {keys}")
            return None
        name, tool, arguments = value["id"], value["tool"], value["arguments"]
        if not isinstance(name, str) or not CALL_ID.fullmatch(name) or name in RESERVED:
            self._problem(f"{place}.id", f"{name!r}: expected a word of letters, digits and _ that means nothing else")
            return None
        if not isinstance(tool, str) or tool not in self.tools:
            self._problem(f"{place}.tool", f"unknown tool {tool!r}; there are {', '.join(sorted(self.tools))}")
        if not isinstance(arguments, dict):
            self._problem(f"{place}.arguments", "expected an object")
            return None
        depends_on = value.get("depends_on") or []
        if not isinstance(depends_on, list) or not all(isinstance(item, str) for item in depends_on):
            self._problem(f"{place}.depends_on", "expected an array of ids")
            return None
        condition = self._condition(value.get("condition"), f"{place}.condition")
        references = self._references(arguments, f"{place}.arguments")
        references += list(condition.references) if condition else []
        needed = dict.fromkeys([*depends_on, *(reference.call for reference in references)])
        return PlannedCall(name, str(tool), arguments, tuple(needed), condition)

    def _condition(self, text: Any, place: str) -> Condition | None:
        if text is None:
            return None
        if not isinstance(text, str):
            self._problem(place, f"expected a string, not {json.dumps(text)[:60]}")
            return None
        try:
            return parse_condition(text)
        except ConditionError as error:
            self._problem(place, str(error))
            return None

    def _references(self, arguments: Mapping[str, Any], place: str) -> list[Reference]:
        try:
            return [reference for _, reference, _ in references_in(arguments)]
        except BadReferenceError as error:
            self._problem(place, str(error))
            return []

    def graph(self, calls: Sequence[PlannedCall]) -> None:
        """Ids are unique, every call that is waited for is there, and none waits for itself."""
        index_of: dict[str, int] = {}
        for index, call in enumerate(calls):
            if call.id in index_of:
                self._problem(f"calls[{index}].id", f"'{call.id}' is calls[{index_of[call.id]}] already")
            index_of.setdefault(call.id, index)
        for index, call in enumerate(calls):
            for needed in call.depends_on:
                if needed not in index_of:
                    self._problem(f"calls[{index}]", f"'{call.id}' refers to '{needed}', and no call has that id")
        if self.problems:
            return
        try:
            Plan(tuple(calls)).sorter()
        except graphlib.CycleError as error:
            cycle = list(reversed(error.args[1]))
            self._problem(f"calls[{index_of[cycle[0]]}]", f"waits for itself: {' waits for '.join(cycle)}")

    def schemas(self, calls: Sequence[PlannedCall]) -> None:
        """Arguments hold their tool's schema as far as that can be known before the results are there."""
        tool_of = {call.id: call.tool for call in calls}
        for index, call in enumerate(calls):
            tool = self.tools[call.tool]
            unknown: dict[Path, bool] = {}  # place → whether the type of what will stand there is known
            filled: Any = json.loads(json.dumps(call.arguments))
            for path, reference, is_whole in references_in(call.arguments):
                schema = self._schema_at(reference, tool_of[reference.call]) if is_whole else {"type": "string"}
                if schema is None:
                    self._problem(
                        _place(index, path), f"{reference}: results of '{tool_of[reference.call]}' have no such place"
                    )
                    continue
                kind = schema.get("type")
                unknown[path] = isinstance(kind, str) and kind in _EXAMPLES
                _put(filled, path, _EXAMPLES.get(str(kind)))
            self._violations(index, tool, filled, unknown)

    def _schema_at(self, reference: Reference, tool: str) -> Mapping[str, Any] | None:
        """What is known of the place in a result: {} for nothing, None where the result cannot have it."""
        schema = self.result_schemas.get(tool, {})
        for step in reference.path:
            if isinstance(step, int):
                if schema.get("type") not in (None, "array"):
                    return None
                schema = schema.get("items", {})
            else:
                properties = schema.get("properties")
                if schema.get("type") not in (None, "object"):
                    return None
                if properties is not None and step not in properties and schema.get("additionalProperties") is False:
                    return None
                schema = (properties or {}).get(step, {})
            if not isinstance(schema, Mapping):
                return {}
        return schema if isinstance(schema, Mapping) else {}

    def _violations(self, index: int, tool: Tool, arguments: Mapping[str, Any], unknown: Mapping[Path, bool]) -> None:
        for error in tool.schema.violations(dict(arguments)):
            path = error.place
            # Of what a reference will bring, at most the type is known.
            if any(path[: len(place)] == place and not (known and error.keyword == "type")
                   for place, known in unknown.items()):  # fmt: skip
                continue
            self._problem(_place(index, path), error.message)
        if self.problems:
            return
        for violation in tool.violations(arguments):
            path = violation.place
            if not any(path[: len(place)] == place for place in unknown):
                self._problem(_place(index, path), violation.message)


def _place(index: int, path: Path) -> str:
    return f"calls[{index}].arguments" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _put(value: Any, path: Path, item: Any) -> None:
    for step in path[:-1]:
        value = value[step]
    value[path[-1]] = item


class StepState(StrEnum):
    """How a planned call ended; `done`, `failed` and `skipped` are the words of conditions."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_REACHED = "not reached"  # the time was up before it could start, or before it ended


@dataclass(frozen=True)
class StepEnd:
    """`reason` says why a call was not made or failed; `outcome` is there when it was handed to its tool."""

    id: str
    state: StepState
    reason: str = ""
    outcome: ToolOutcome | None = None


Execute = Callable[[PlannedCall, Mapping[str, Any]], ToolOutcome]


def run_plan(
    plan: Plan, execute: Execute, *, deadline: float = float("inf"), clock: Callable[[], float] = time.monotonic
) -> dict[str, StepEnd]:
    """The end of every call, in the order in which they ended.

    A call is skipped when its condition is false, or when it is made of the result of a call that was skipped. It
    fails when its condition has no truth value. It is not reached when a call that it waits for failed, unless its
    condition asks for that very call's end.

    Args:
        execute: runs one call with its arguments filled in; called from one thread per running call. After an
            exception nobody knows what it did.
        deadline: by `clock`; nothing is started after it, and what has not ended by then is not waited for.
    """
    return _Runner(plan, execute, deadline, clock).run()


class _Runner:
    def __init__(self, plan: Plan, execute: Execute, deadline: float, clock: Callable[[], float]) -> None:
        self._calls = {call.id: call for call in plan.calls}
        self._sorter = plan.sorter()
        self._execute, self._deadline, self._clock = execute, deadline, clock
        self._ends: dict[str, StepEnd] = {}
        self._results: dict[str, Any] = {}
        self._finished: queue.SimpleQueue[tuple[str, ToolOutcome]] = queue.SimpleQueue()
        self._running: set[str] = set()

    def run(self) -> dict[str, StepEnd]:
        while self._sorter.is_active():
            self._start_ready()
            if self._running and not self._wait():
                break
        for name in self._calls:
            if name not in self._ends:
                doing = "was still running" if name in self._running else "was not started"
                self._ends[name] = StepEnd(name, StepState.NOT_REACHED, f"{doing} when the time was up")
        return self._ends

    def _start_ready(self) -> None:
        # What is skipped makes others ready at once, so the sorter is asked until it has nothing more.
        while ready := self._sorter.get_ready():
            for name in ready:
                end, arguments = self._judge(self._calls[name])
                if end is not None:
                    self._end(end)
                elif self._clock() < self._deadline:
                    self._running.add(name)
                    start(lambda call=self._calls[name], filled=arguments: self._work(call, filled), f"plan-{name}")  # type: ignore[misc]
                else:
                    self._end(StepEnd(name, StepState.NOT_REACHED, "was not started when the time was up"))

    def _work(self, call: PlannedCall, arguments: Mapping[str, Any]) -> None:
        try:
            outcome = self._execute(call, arguments)
        except Exception as error:  # noqa: BLE001 (it would end this thread only, and the plan would wait for ever)
            reason = f"{type(error).__name__}: {error}"
            outcome = ToolOutcome(ToolCall(call.tool, arguments), "", CallStatus.UNKNOWN, error=reason)
        self._finished.put((call.id, outcome))

    def _wait(self) -> bool:
        """Take in one call that has ended; False when the time is up first."""
        left = self._deadline - self._clock()
        try:
            name, outcome = self._finished.get(timeout=None if left == float("inf") else max(0.0, left))
        except queue.Empty:
            return False
        self._running.discard(name)
        if outcome.is_done:
            self._results[name] = outcome.value
            self._end(StepEnd(name, StepState.DONE, outcome=outcome))
        else:
            self._end(StepEnd(name, StepState.FAILED, outcome.error, outcome))
        return True

    def _end(self, end: StepEnd) -> None:
        self._ends[end.id] = end
        self._sorter.done(end.id)

    def _judge(self, call: PlannedCall) -> tuple[StepEnd | None, Mapping[str, Any]]:
        """Why the call is not made, or None and its arguments."""
        asked_about = call.condition.states if call.condition else frozenset()
        made_of = call.sources | (call.condition.needs if call.condition else frozenset())
        for needed in call.depends_on:
            state = self._ends[needed].state
            if state in (StepState.FAILED, StepState.NOT_REACHED) and needed not in asked_about:
                return StepEnd(call.id, StepState.NOT_REACHED, f"'{needed}' {_STATE_TEXT[state]}"), {}
            if state is not StepState.DONE and needed in made_of:
                return StepEnd(call.id, StepState.SKIPPED, f"is made of the result of '{needed}', which {state}"), {}
        try:
            if call.condition is not None:
                states = {name: str(end.state) for name, end in self._ends.items()}
                if not call.condition.holds(Facts(self._results, states)):
                    return StepEnd(call.id, StepState.SKIPPED, f"the condition is false: {call.condition.text}"), {}
            return None, resolve(call.arguments, self._results)
        except (ConditionError, BadReferenceError) as error:
            return StepEnd(call.id, StepState.FAILED, str(error)), {}


_STATE_TEXT = {StepState.FAILED: "failed", StepState.NOT_REACHED: "was not reached"}


def is_uncertain(end: StepEnd) -> bool:
    """Whether the call may have had an effect that nobody knows of."""
    return end.outcome is not None and end.outcome.status is CallStatus.UNKNOWN
