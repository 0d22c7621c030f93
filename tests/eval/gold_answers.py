"""Right answers to a suite's cases, by what the user said last."""

from __future__ import annotations

from eval.cases import Suite
from tinydispatch.tools import ToolCall


def gold_calls(suite: Suite) -> dict[str, tuple[ToolCall, ...]]:
    """The first example of each expected call; () where none may be made."""
    return {case.prompt: tuple(wanted.examples()[0] for wanted in case.expected) for case in suite.cases}
