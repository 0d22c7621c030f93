"""The world of an episode: it answers each call, remembers what the calls did, and fails where the case says so."""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.episode import Episode
from eval.matchers import accepts, pair_up, show
from eval.simulators import Simulator, SimulatorError, State
from tinydispatch.tools import Tool, ToolCall


@dataclass(frozen=True)
class ToolResult:
    """What a call returned, as the text of the tool's message; a call with `is_error` had no effect."""

    call: ToolCall
    content: str
    is_error: bool


class World:
    """Deterministic: the same calls in the same order get the same answers and lead to the same state."""

    def __init__(
        self, episode: Episode, tools: Sequence[Tool], simulators: Mapping[str, Simulator], today: dt.date | None
    ) -> None:
        self._episode = episode
        self._tools = {tool.name: tool for tool in tools}
        self._simulators = simulators
        self._today = today
        self._uses = [0] * len(episode.rules)
        records = {name: [dict(item) for item in items] for name, items in episode.state.items()}
        self.state: State = copy.deepcopy(records)

    def answer(self, call: ToolCall) -> ToolResult:
        """Run a call. One that names no offered tool, or breaks its schema, is answered by an error."""
        try:
            result = self._run(call)
        except SimulatorError as error:
            return ToolResult(call, json.dumps({"error": str(error)}, ensure_ascii=False), is_error=True)
        return ToolResult(call, json.dumps(result, ensure_ascii=False), is_error=False)

    def _run(self, call: ToolCall) -> Any:
        tool = self._tools.get(call.name)
        if tool is None:
            raise SimulatorError(f"unknown tool '{call.name}'")
        if found := tool.violations(call.arguments):
            raise SimulatorError("; ".join(f"{item.path}: {item.message}".lstrip(": ") for item in found))
        rule = next((index for index in range(len(self._uses)) if self._applies(index, call, tool)), None)
        if rule is not None:
            self._uses[rule] += 1
            error = self._episode.rules[rule].error
            if error is not None:
                raise SimulatorError(error)
        simulated = self._simulators[call.name].run(call.arguments, self.state, self._today)
        return simulated if rule is None else self._episode.rules[rule].result

    def _applies(self, index: int, call: ToolCall, tool: Tool) -> bool:
        rule = self._episode.rules[index]
        if rule.tool != call.name or (rule.times is not None and self._uses[index] >= rule.times):
            return False
        properties = tool.parameters.get("properties", {})
        return all(
            name in call.arguments and accepts(value, call.arguments[name], properties.get(name, {}))
            for name, value in rule.when.items()
        )

    def difference(self) -> str:
        """How the state differs from what the case wants it to be in the end, "" where it does not.

        A wanted record names the fields that matter; a record may have others. No record may be there besides.
        """
        found = []
        wanted_state = self._episode.final_state
        for name in sorted({*self.state, *self._episode.state, *wanted_state}):
            before = [dict(item) for item in self._episode.state.get(name, [])]
            wanted = list(wanted_state[name]) if name in wanted_state else before
            got = self.state.get(name, [])
            pairs = pair_up(wanted, got, _has_fields)
            absent = [show(item) for index, item in enumerate(wanted) if index not in pairs]
            surplus = [show(item) for index, item in enumerate(got) if index not in pairs.values()]
            found += [f"{name}: {item} is not there" for item in absent]
            found += [f"{name}: {item} should not be there" for item in surplus]
        return "; ".join(found)


def _has_fields(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
    # Numbers in the state come from arguments of either kind, so 5 and 5.0 are the same here.
    return all(name in got and accepts(value, got[name], {"type": "number"}) for name, value in wanted.items())
