"""What a run has done so far, and what it hands back in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinydispatch.layers.names import EndState, Handover, Layer
from tinydispatch.layers.policy import Limits
from tinydispatch.layers.tool_calls import ToolOutcome
from tinydispatch.tools import Message, ToolCall


@dataclass
class LayerUse:
    """How much of a run one layer was. `calls` are those that it decided on and that were handed to their tools."""

    requests: int = 0
    failures: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True)
class Step:
    """One reply that was acted on: what was called, how it ended, what was held back until those results are there."""

    layer: Layer
    text: str
    outcomes: tuple[ToolOutcome, ...] = ()
    held_back: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """Calls that a person has to agree to, each with why it is asked about, and the key that says it is this call."""

    outcomes: tuple[ToolOutcome, ...]

    @property
    def keys(self) -> frozenset[str]:
        """The idempotency keys of the calls."""
        return frozenset(outcome.key for outcome in self.outcomes)


@dataclass
class RunState:
    """The run so far. `messages` grow by what was acted on, never by a reply that was handed up."""

    messages: list[Message]
    conversation: str
    layer: Layer
    started: float
    steps: list[Step] = field(default_factory=list)
    handovers: list[tuple[Layer, Handover]] = field(default_factory=list)
    use: dict[Layer, LayerUse] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)  # canonical texts of calls made for this request
    done: dict[str, ToolOutcome] = field(default_factory=dict)  # by key
    agreed: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)
    n_replies: int = 0
    n_calls: int = 0
    n_plans: int = 0
    n_repairs: int = 0
    resume: Callable[[], RunEnd | None] | None = None  # what to do first when a person has decided

    def used(self, layer: Layer) -> LayerUse:
        """The layer's share, to be added to."""
        return self.use.setdefault(layer, LayerUse())

    @property
    def cost(self) -> float:
        """What all layers have cost so far."""
        return sum(use.cost for use in self.use.values())

    def limit(self, limits: Limits, now: float) -> tuple[EndState, str] | None:
        """The limit that has been reached, if any."""
        if now - self.started >= limits.max_seconds:
            return EndState.TIME_LIMIT, f"I have stopped after {limits.max_seconds:g} seconds."
        if self.n_replies >= limits.max_steps or self.n_calls >= limits.max_calls:
            return EndState.STEP_LIMIT, f"I have stopped after {self.n_replies} steps and {self.n_calls} calls."
        if self.cost >= limits.max_cost:
            return EndState.COST_LIMIT, f"I have stopped at a cost of {self.cost:.4g}."
        return None


@dataclass(frozen=True)
class RunEnd:
    """How a run ended. `reply` is for the user; `waiting` are the calls that a person has to agree to.

    `steps` are the replies acted on in order, `handovers` who handed up and why, `use` what each layer had to do.
    """

    state: EndState
    reply: str
    messages: tuple[Message, ...]
    steps: tuple[Step, ...]
    handovers: tuple[tuple[Layer, Handover], ...]
    use: dict[Layer, LayerUse]
    seconds: float
    waiting: Waiting | None = None
    run: Any = field(default=None, repr=False, compare=False)

    @property
    def outcomes(self) -> tuple[ToolOutcome, ...]:
        """Every call that was handed to its tool, in the order of the steps."""
        return tuple(outcome for step in self.steps for outcome in step.outcomes)

    @property
    def cost(self) -> float:
        """What the layers cost."""
        return sum(use.cost for use in self.use.values())


def shares(uses: Sequence[dict[Layer, LayerUse]]) -> dict[Layer, float] | None:
    """The part of all calls that each layer decided on; None where no call was made."""
    counts = {layer: sum(use[layer].calls for use in uses if layer in use) for layer in Layer}
    total = sum(counts.values())
    return {layer: count / total for layer, count in counts.items()} if total else None
