"""When a layer's turn is handed up: judged on the user's words, on the reply, and on what was called before."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tinydispatch.layers.names import Handover, Reason
from tinydispatch.layers.tool_calls import canonical
from tinydispatch.tools import CallViolation, Message, Role, ToolCall

# Phrases that make one request wait for another's result or end. A word too many costs one request to the layer above.
_ORDER = (
    r"\bthen\b",
    r"\bafter (?:that|this|which|wards?)\b",
    r"\bafterwards?\b",
    r"\bonce (?:you|that|it|this|they|i|we|he|she|the)\b",
    r"\bas soon as\b",
    r"\bbefore (?:you|that|doing)\b",
    r"\bfirst\b(?=.*\b(?:and|then|next|second)\b)",
    r"\bfinally\b",
    r"\bnext,",
)
_CONDITION = (
    r"\bif\b",
    r"\bunless\b",
    r"\bin case\b",
    r"\bwhether\b",
    r"\botherwise\b",
    r"\bprovided\b",
    r"\bas long as\b",
    r"\bdepending on\b",
    r"\bshould (?:it|that|there|i|we|he|she|they)\b",
    r"\bwhen (?:it|that|there|i|we|he|she|they)(?:'s|'re|'m| is| are| am| has| have| was)\b",
    r"\bonly when\b",
    r"\bor else\b",
)
_RESULT = (
    r"\bthe (?:result|answer|outcome|first (?:one|result|hit)|temperature|amount|rate|forecast)\b.*\bto\b",
    r"\b(?:with|using|based on|according to) (?:the|that|its|those) (?:result|answer|outcome|rate|amount|list)s?\b",
    r"\bwhatever (?:it|you|comes|they)\b",
    r"\band (?:e-?mail|send|tell|text|forward) (?:it|that|them|the (?:result|answer|amount|forecast|list))\b",
)
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|(?<!\w)'[^']*'(?!\w)")


@dataclass(frozen=True)
class Dependence:
    """Words of dependence found in a request, in their order; `is_conditional`: one of them states a condition."""

    marks: tuple[str, ...]
    is_conditional: bool


def dependence(text: str) -> Dependence:
    """Words that make one step wait for another; what stands in quotation marks is text to copy and says nothing."""
    plain = _QUOTED.sub(" ", text.replace("’", "'")).lower()
    found: list[tuple[int, str]] = []
    for pattern in (*_ORDER, *_CONDITION, *_RESULT):
        found += [(match.start(), match.group()) for match in re.finditer(pattern, plain, re.DOTALL)]
    is_conditional = any(re.search(pattern, plain) for pattern in _CONDITION)
    return Dependence(tuple(text[:40] for _, text in sorted(found)), is_conditional)


def request_text(messages: Sequence[Message]) -> str:
    """What the user said last. Only the user's words count: a result that says "then send …" asks for nothing."""
    return next((message.content for message in reversed(messages) if message.role is Role.USER), "")


def request_number(messages: Sequence[Message]) -> int:
    """How many messages the user has written."""
    return sum(message.role is Role.USER for message in messages)


@dataclass(frozen=True)
class ReplyView:
    """What the rules look at in a reply of any layer; `is_confident` is None where nothing was calibrated."""

    calls: tuple[ToolCall, ...]
    text: str
    violations: tuple[CallViolation, ...]
    n_unparsed: int
    is_complete: bool
    confidence: float | None = None
    is_confident: bool | None = None


def reply_reasons(reply: ReplyView, made: Collection[str], min_confidence: float | None) -> list[Handover]:
    """Why a reply should not be acted on, most telling first; [] when nothing speaks against it.

    Args:
        made: the canonical texts of calls made for this request already, whether they succeeded or not.
        min_confidence: below it, a reply is handed up; None trusts the reply's own judgement.
    """
    found = []
    if not reply.is_complete:
        found.append(Handover(Reason.INVALID_CALL, "the reply was cut off"))
    if reply.n_unparsed:
        found.append(Handover(Reason.INVALID_CALL, f"{reply.n_unparsed} calls could not be read"))
    for violation in reply.violations:
        details = "; ".join(f"{item.path}: {item.message}".lstrip(": ") for item in violation.details)
        found.append(Handover(Reason.INVALID_CALL, f"{violation.call.name}: {details or 'there is no such tool'}"))
    seen: set[str] = set()
    for call in reply.calls:
        text = canonical(call)
        if text in made or text in seen:
            shown = f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"
            found.append(Handover(Reason.REPEATED_CALL, shown[:200]))
        seen.add(text)
    # What was never calibrated is unknown, and unknown is not confident.
    is_low = reply.is_confident is not True if min_confidence is None else (reply.confidence or 0.0) < min_confidence
    if reply.confidence is not None and is_low:
        found.append(Handover(Reason.LOW_CONFIDENCE, _shown(reply.confidence, reply.is_confident)))
    if not reply.calls and not reply.text and not found:
        found.append(Handover(Reason.NOTHING_SAID))
    return found


def _shown(confidence: float, is_confident: bool | None) -> str:
    unknown = "; the model was not calibrated, so nobody knows what that is worth"
    return f"{confidence:.2f}{unknown if is_confident is None else ''}"


def first_group(calls: Sequence[ToolCall]) -> tuple[tuple[ToolCall, ...], tuple[ToolCall, ...]]:
    """Of calls to a request with words of dependence: those that may be made now, and those held back.

    Calls of one tool that stand first are one step ("the weather in Oslo and Rome, then …"); the rest may depend on it.
    """
    end = next((index for index, call in enumerate(calls) if call.name != calls[0].name), len(calls))
    return tuple(calls[:end]), tuple(calls[end:])
