"""Stand-ins for the upper layers: servers on loopback that answer a played case from its own script.

They show what the stack does with upper layers that are always right. They are no models, and figures obtained with
them say so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.cases import Case, ExpectedCall, Step
from eval.episodes import ToolResult, World
from eval.matching import fits
from scripts.scripted_server import Reply, completion
from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolFailure, canonical
from tinydispatch.tools import Tool, ToolCall

# Changes the world in the bundled suite; a suite with its own tools names them in its simulators.
_READERS = {"get_weather", "convert_currency", "get_current_time", "search_web", "list_calendar_events"}


@dataclass
class Game:
    """One case while it is played: its world, what was attempted in this phase, and what that returned."""

    case: Case
    tools: tuple[Tool, ...]
    world: World
    phase: int = 0
    attempts: list[ToolResult] = field(default_factory=list)

    def bound(self) -> list[BoundTool]:
        """The suite's tools, answered by the world: a call that ends in an error had no effect."""
        return [BoundTool(tool, self._run(tool.name), tool.name not in _READERS) for tool in self.tools]

    def _run(self, name: str) -> Any:
        def run(arguments: Any, context: CallContext) -> Any:  # noqa: ARG001
            result = self.world.answer(ToolCall(name, arguments))
            self.attempts.append(result)
            value = json.loads(result.content)
            if result.is_error:
                raise ToolFailure(str(value["error"]), did_act=False)
            return value

        return run

    def due(self) -> list[tuple[Step, list[ExpectedCall]]]:
        """The steps of this phase with the calls that have not been attempted, in their order."""
        episode = self.case.episode
        assert episode is not None, "only cases with an episode are played"
        by_name = {tool.name: tool for tool in self.tools}
        left = [result.call for result in self.attempts]
        found: list[tuple[Step, list[ExpectedCall]]] = []
        for step in episode.phases[self.phase].steps:
            missing = []
            for wanted in step.calls:
                made = next((call for call in left if fits(wanted, call, by_name)), None)
                if made is None:
                    missing.append(wanted)
                else:
                    left.remove(made)
            if missing and not step.is_optional:
                found.append((step, missing))
        return found

    def orchestrate(self, _: dict[str, Any]) -> Reply:
        """The calls of the next step that is due, or a word at the end."""
        due = self.due()
        if not due:
            return completion("That is all.", prompt_tokens=600, tokens=8)
        return completion("", _examples(due[0][1]), prompt_tokens=600, tokens=40)

    def plan(self, _: dict[str, Any]) -> Reply:
        """A graph of the steps that are due. Of a case whose tools fail, the first: no plan foresees an error."""
        episode = self.case.episode
        assert episode is not None, "only cases with an episode are played"
        has_errors = any(rule.error is not None for rule in episode.rules)
        steps = self.due()[:1] if has_errors else self.due()
        if not steps:
            return completion("There is nothing to plan.", prompt_tokens=900, tokens=8)
        calls: list[dict[str, Any]] = []
        before: list[str] = []
        seen: set[str] = set()
        for number, (_step, missing) in enumerate(steps):
            ids = []
            for index, call in enumerate(_examples(missing)):
                if canonical(call) in seen:
                    continue
                seen.add(canonical(call))
                ids.append(f"s{number}c{index}")
                entry = {"id": ids[-1], "tool": call.name, "arguments": dict(call.arguments), "depends_on": before}
                calls.append(entry)
            before = ids or before
        return completion(json.dumps({"calls": calls}), prompt_tokens=900, tokens=80 * len(calls))


def _examples(wanted: Sequence[ExpectedCall]) -> list[ToolCall]:
    return [call.examples()[0] for call in wanted]
