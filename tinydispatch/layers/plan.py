"""A plan as data: calls with references to each other's results, checked before anything is run."""

from __future__ import annotations

import graphlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tinydispatch.formats import json_decoder
from tinydispatch.layers.conditions import RESERVED, Condition, ConditionError, parse_condition
from tinydispatch.layers.references import CALL_ID, BadReferenceError, Path, Reference, references_in
from tinydispatch.tools import Tool

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
