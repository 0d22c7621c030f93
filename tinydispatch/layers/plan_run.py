"""Runs a plan: every call as soon as what it waits for has ended, all that are ready at the same time."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tinydispatch.layers.conditions import ConditionError, Facts
from tinydispatch.layers.plan import Plan, PlannedCall
from tinydispatch.layers.references import BadReferenceError, resolve
from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome
from tinydispatch.layers.worker import start
from tinydispatch.tools import ToolCall


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
