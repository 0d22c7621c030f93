"""A case that is played to its end: what the model must do step by step, and the world that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.expected import ExpectedCall, arguments_of, expected_calls, tool_name, tool_names
from eval.places import Place
from tinydispatch.tools import Tool

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
