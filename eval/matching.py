"""One reply against one case: exactly one outcome, decided by rules alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from eval.cases import Case, ExpectedCall
from eval.matchers import Difference, accepts, differences, pair_up
from tinydispatch.formats import ParsedReply
from tinydispatch.tools import SchemaViolation, Tool, ToolCall


class Outcome(StrEnum):
    """What became of a case. The order here is the order of `match`'s checks, `correct` apart."""

    CORRECT = "correct"
    UNPARSEABLE = "unparseable"
    PREMATURE_CALL = "premature_call"
    IGNORED_ERROR = "ignored_error"
    WRONG_ORDER = "wrong_order"
    NO_CALL = "no_call"
    EXTRA_CALL = "extra_call"
    WRONG_TOOL = "wrong_tool"
    SCHEMA_VIOLATION = "schema_violation"
    MISSING_ARGUMENT = "missing_argument"
    WRONG_ARGUMENT = "wrong_argument"


REMEDY: dict[Outcome, str] = {
    Outcome.CORRECT: "nothing to do",
    Outcome.UNPARSEABLE: "constrain decoding to the schemas, raise eval.max_new_tokens, or train longer on the format",
    Outcome.PREMATURE_CALL: "add training examples with 'then', 'after that', 'if': first one call, then its result",
    Outcome.IGNORED_ERROR: "add training examples in which a tool result is an error and the next turn reacts to it",
    Outcome.WRONG_ORDER: "add training examples in which the order of the calls follows the order of the words",
    Outcome.NO_CALL: "add requests of this wording; if text came instead, lower the share of no-call examples",
    Outcome.EXTRA_CALL: "add examples without a call: small talk, nothing suitable on offer, an argument missing",
    Outcome.WRONG_TOOL: "sharpen the tools' descriptions and add examples in which both tools are on offer",
    Outcome.SCHEMA_VIOLATION: "constrain decoding to the tools' schemas",
    Outcome.MISSING_ARGUMENT: "add examples that name this argument in other words and at other places of the sentence",
    Outcome.WRONG_ARGUMENT: "add examples with such values (dates, numbers, names, quotes) to be copied or looked up",
}


@dataclass(frozen=True)
class Score:
    """The verdict on one reply; `explanation` says what differs, "" when nothing does."""

    outcome: Outcome
    explanation: str = ""

    @property
    def is_correct(self) -> bool:
        """Whether the case counts as passed."""
        return self.outcome is Outcome.CORRECT


def match(predicted: ParsedReply, case: Case, tools: Sequence[Tool]) -> Score:
    """Score a reply. Calls count as a set with repetitions, in order only where the case asks for it.

    The first rule that applies decides:

    1. unparseable: a call that cannot be read, or neither text nor calls where text was due
    2. correct: the calls are the wanted ones, no more and no fewer
    3. premature_call: a call to a tool that had to wait for a result
    4. ignored_error: a failed call once more, unchanged
    5. wrong_order: the wanted calls in another order than asked for
    6. no_call: none, or fewer than wanted, and nothing else in their place
    7. extra_call: more than wanted, or any where none was wanted
    8. wrong_tool: another tool in place of the wanted one, or one that is not on offer
    9. schema_violation: the right tools, but a value or parameter that the schema refuses
    10. missing_argument: a wanted argument is absent
    11. wrong_argument: a value differs, or an argument that nobody asked for
    """
    if broken := score_form(predicted, is_text_due=not case.expected):
        return broken
    schemas = {tool.name: tool for tool in tools}
    pairs = pair_up(case.expected, predicted.calls, lambda wanted, got: fits(wanted, got, schemas))
    if len(pairs) == len(case.expected) == len(predicted.calls):
        return _score_order(predicted, case, schemas)
    return (
        _premature(predicted.calls, case)
        or _ignored_error(predicted.calls, case)
        or _score_names(predicted.calls, case, schemas)
        or score_arguments(
            [call for index, call in enumerate(predicted.calls) if index not in set(pairs.values())],
            [wanted for index, wanted in enumerate(case.expected) if index not in pairs],
            schemas,
        )
    )


def score_form(reply: ParsedReply, *, is_text_due: bool) -> Score | None:
    """`unparseable` for a call that cannot be read, or nothing at all where text was due; else None."""
    if reply.unparsed:
        broken = reply.unparsed[0]
        return Score(Outcome.UNPARSEABLE, f"{broken.error}: {broken.raw_text[:200]!r}")
    if is_text_due and not (reply.calls or reply.content.strip()):
        return Score(Outcome.UNPARSEABLE, "an empty reply: neither text nor a call")
    return None


def fits(wanted: ExpectedCall, got: ToolCall, tools: Mapping[str, Tool]) -> bool:
    """Whether `got` is the wanted call, on offer and within its tool's schema."""
    tool = tools.get(got.name)
    return (
        tool is not None
        and wanted.name == got.name
        and not tool.violations(got.arguments)
        and accepts(wanted.arguments, got.arguments, tool.parameters)
    )


def _score_order(predicted: ParsedReply, case: Case, tools: dict[str, Tool]) -> Score:
    in_order = all(fits(wanted, got, tools) for wanted, got in zip(case.expected, predicted.calls, strict=True))
    if case.is_ordered and not in_order:
        return Score(
            Outcome.WRONG_ORDER, f"wanted {_names(case.expected)} in this order, got {_names(predicted.calls)}"
        )
    return Score(Outcome.CORRECT)


def _premature(calls: Sequence[ToolCall], case: Case) -> Score | None:
    surplus = Counter(call.name for call in calls) - Counter(wanted.name for wanted in case.expected)
    early = [name for name in case.premature if surplus[name]]
    return Score(Outcome.PREMATURE_CALL, f"{', '.join(early)} must wait for a result") if early else None


def _ignored_error(calls: Sequence[ToolCall], case: Case) -> Score | None:
    if not case.is_after_error:
        return None
    failed = next((message.tool_calls for message in reversed(case.messages) if message.tool_calls), ())
    again = [call.name for call in calls if any(is_same_call(call, before) for before in failed)]
    return Score(Outcome.IGNORED_ERROR, f"{', '.join(again)} failed and is called again unchanged") if again else None


def is_same_call(one: ToolCall, other: ToolCall) -> bool:
    """Whether two calls are the same by value and type."""
    return one.name == other.name and accepts(one.arguments, other.arguments, {})


def _score_names(calls: Sequence[ToolCall], case: Case, tools: dict[str, Tool]) -> Score | None:
    wanted, got = Counter(call.name for call in case.expected), Counter(call.name for call in calls)
    missing, surplus = list((wanted - got).elements()), list((got - wanted).elements())
    if missing and not surplus:
        return Score(Outcome.NO_CALL, f"no call to {', '.join(missing)}")
    if surplus and not missing:
        return Score(Outcome.EXTRA_CALL, f"not asked for: {', '.join(surplus)}")
    if surplus:
        unknown = [name for name in surplus if name not in tools]
        offered = f" ({', '.join(unknown)} is not on offer)" if unknown else ""
        return Score(Outcome.WRONG_TOOL, f"wanted {', '.join(missing)}, got {', '.join(surplus)}{offered}")
    return None


def _names(calls: Sequence[ToolCall] | Sequence[ExpectedCall]) -> str:
    return ", ".join(call.name for call in calls)


def score_arguments(calls: Sequence[ToolCall], expected: Sequence[ExpectedCall], tools: Mapping[str, Tool]) -> Score:
    """What is wrong with calls of the right tools; for each of `calls`, one of `expected` has its name."""
    left = list(expected)
    violations: list[SchemaViolation] = []
    found: list[Difference] = []
    for call in calls:
        schema = tools[call.name].parameters
        same_tool = [wanted for wanted in left if wanted.name == call.name]
        nearest = min(same_tool, key=lambda wanted: len(differences(wanted.arguments, call.arguments, schema)))
        left.remove(nearest)
        found += differences(nearest.arguments, call.arguments, schema)
        # An absent required argument has an outcome of its own.
        tool = replace(tools[call.name], parameters={**schema, "required": []})
        violations += tool.violations(call.arguments)
    if violations:
        text = "; ".join(f"{violation.path}: {violation.message}" for violation in violations)
        return Score(Outcome.SCHEMA_VIOLATION, text)
    missing = any(difference.is_missing for difference in found)
    outcome = Outcome.MISSING_ARGUMENT if missing else Outcome.WRONG_ARGUMENT
    return Score(outcome, "; ".join(difference.explanation for difference in found))
