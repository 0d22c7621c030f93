"""Suite `workflow` under the stack: whatever a reckless dispatch model fires at once, nothing is run too early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from eval.matching import Outcome
from eval.suites import load_suite
from scripts.play_layers import CONFIGURATIONS, _stacked, table
from tests.layers.kitchen import ScriptedDispatcher
from tinydispatch.layers.stack import Layer, shares
from tinydispatch.layers.tool_calls import canonical
from tinydispatch.tools import Message, Role, Tool

SUITE = load_suite("workflow")


class Reckless(ScriptedDispatcher):
    """Fires every call that a sequential request asks for at once, and those that were not run once more.

    In the other categories later steps follow from an error, which nobody can fire before it is there.
    """

    reference_date = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Any]] = {}
        for case in SUITE.cases:
            assert case.episode is not None
            for phase, said in zip(case.episode.phases, case.user_texts[-len(case.episode.phases) :], strict=True):
                steps = phase.steps if case.category == "sequential" else phase.steps[:1]
                wanted = [call.examples()[0] for step in steps for call in step.calls]
                self.calls[said] = max(self.calls.get(said, []), wanted, key=len)

    def dispatch(self, messages: Sequence[Message], *, tools: Sequence[Tool], listener: Any) -> Any:
        start = max(index for index, message in enumerate(messages) if message.role is Role.USER)
        made = {canonical(call) for message in messages[start:] for call in message.tool_calls}
        left = {canonical(call): call for call in self.calls[messages[start].content]}
        self.script = [[call for text, call in left.items() if text not in made] or "Done."]
        return super().dispatch(messages, tools=tools, listener=listener)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_dependent_call_is_made_before_the_result_that_it_waits_for(name: str) -> None:
    dispatcher: Any = Reckless()
    row = _stacked(name, CONFIGURATIONS[name], dispatcher, SUITE, SUITE.cases, None)
    premature = [case for case, outcome in row.outcomes.items() if outcome is Outcome.PREMATURE_CALL]
    assert premature == []
    found = shares(row.uses)
    assert found is not None
    assert sum(found.values()) == pytest.approx(1.0)
    assert (found[Layer.ORCHESTRATION] > 0) is (Layer.ORCHESTRATION in CONFIGURATIONS[name])
    lines = table([row, row])
    layers_used = {layer for use in row.uses for layer in use}
    assert len([line for line in lines if line.startswith(f"| {name} |")]) == 2 + len(layers_used)
    assert any("answer from the cases' own answers" in line for line in lines)
