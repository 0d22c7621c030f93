"""The closed sets of the stack: its layers, why a turn is handed up, and how a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Layer(StrEnum):
    """From the cheapest to the dearest."""

    DISPATCH = "dispatch"
    ORCHESTRATION = "orchestration"
    PLANNING = "planning"

    @property
    def above(self) -> tuple[Layer, ...]:
        """The layers that a turn may be handed up to, nearest first."""
        order = list(Layer)
        return tuple(order[order.index(self) + 1 :])


class Reason(StrEnum):
    """Why a layer's turn is handed up."""

    LOW_CONFIDENCE = "low_confidence"
    INVALID_CALL = "invalid_call"
    REPEATED_CALL = "repeated_call"
    UNKNOWN_ERROR = "unknown_error"
    DEPENDENT_WORDS = "dependent_words"
    EFFECT_BEFORE_RESULT = "effect_before_result"
    TOO_MANY_TOOLS = "too_many_tools"
    LAYER_FAILED = "layer_failed"
    BAD_PLAN = "bad_plan"
    NOTHING_SAID = "nothing_said"


@dataclass(frozen=True)
class Handover:
    """Why, and the evidence in words: the phrase, the call, the number."""

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


class EndState(StrEnum):
    """How a run ended; every run ends in just one of these."""

    ANSWERED = "answered"
    ASKED = "asked"  # the reply is a question to the user, or says why nothing was done
    NEEDS_CONFIRMATION = "needs_confirmation"  # calls wait for a person; run again with what they said
    UNCERTAIN = "uncertain"  # a call may have had its effect; a person has to look
    REFUSED_PLAN = "refused_plan"
    STEP_LIMIT = "step_limit"
    TIME_LIMIT = "time_limit"
    COST_LIMIT = "cost_limit"
