"""Suites made from conversations: each turn is a case whose right answer is the turn itself.

`heldout_suite` is of a run's held-out rows (`toolbench` where they belong to ToolBench's groups), `turn_suite` of any
conversations, one turn each. A call is right when name and arguments are those of the turn, by the same strict rules as
everywhere; a turn in words wants a reply without a call. What it says is not judged.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.groups import HeldoutGroup
from data.store import StoreError, encode, read_conversations
from eval.cases import Case, ExpectedCall, Suite, SuiteError, drawn
from eval.metrics import Wanted, wanted
from tinydispatch.tools import Conversation, Role

TOOLBENCH = "toolbench"
_UNGROUPED = "heldout"
# Of a generator that hardly makes one kind of turn, so many conversations per case are read at most.
_MOST_READ = 60
_DESCRIPTIONS = {
    TOOLBENCH: "ToolBench's six held-out groups: is the next reply the one that was held out?",
    _UNGROUPED: "held-out conversations of a run: is the next reply the one that was held out?",
}


@dataclass(frozen=True)
class _Turn:
    """A case and what it was made from."""

    case: Case
    mark: str


def open_suite(name: str, *, max_per_category: int | None) -> Suite | None:
    """The suite of a file of conversations."""
    return heldout_suite(Path(name), max_per_category=max_per_category) if name.endswith(".jsonl") else None


def heldout_suite(path: Path, *, max_per_category: int | None = None) -> Suite:
    """The suite of a `heldout.jsonl`: `toolbench`, of the rows that belong to one of its groups, if any does.

    Otherwise it is `heldout`, of all rows by their category. Turns that carry no loss are no cases, so a dialogue whose
    rows were not joined asks nothing twice.

    Args:
        max_per_category: so many cases of each category, drawn by a hash of the dialogue; None takes all.

    Raises:
        SuiteError: the file cannot be read, or holds no turn to ask for.
    """
    try:
        rows = list(read_conversations(path))
    except StoreError as error:
        raise SuiteError(str(error)) from error
    grouped = [row for row in rows if "heldout_group" in row.metadata]
    name = TOOLBENCH if grouped else _UNGROUPED
    turns = list(_turns(grouped or rows))
    marks = {turn.case.id: turn.mark for turn in turns}
    cases = drawn([turn.case for turn in turns], max_per_category)
    if not cases:
        raise SuiteError(f"{path}: holds no assistant turn to ask for")
    found = dict.fromkeys(case.category for case in cases)
    categories = [group for group in map(str, HeldoutGroup) if group in found]
    digest = hashlib.sha256("\n".join(marks[case.id] for case in cases).encode()).hexdigest()
    return Suite(
        name,
        _DESCRIPTIONS[name],
        (),  # each case brings its own tools
        tuple(dict.fromkeys([*categories, *found])),
        tuple(cases),
        digest[:16],
    )


def turn_suite(
    name: str,
    description: str,
    conversations: Iterable[Conversation],
    *,
    count: int | None = None,
    beside: Mapping[Wanted, int] | None = None,
    seen: Collection[str] = frozenset(),
) -> Suite:
    """One turn of each conversation, so that the cases are independent; the categories are what is wanted.

    A turn in words that tells a tool's result is no case.

    Args:
        count: so many cases, the same number of each category as far as the conversations go; None takes all.
        beside: cases of each kind that others have; the sum of both is what is made equal.
        seen: what users said where it must not be asked again: the training data.
    """
    quota = shares(count or 0, beside or {})
    found: Counter[Wanted] = Counter()
    cases: list[Case] = []
    marks, asked = [], set(seen)
    for number, conversation in enumerate(conversations):
        if count is not None and (len(cases) == count or number == _MOST_READ * count):
            break
        turns = [turn for turn in _turns([conversation]) if _is_asked(turn.case) and turn.case.prompt not in asked]
        random.Random(conversation.dialogue_id).shuffle(turns)
        # A kind of turn that is still wanted is taken wherever it comes up.
        for turn in turns:
            kind = wanted(len(turn.case.expected))
            if count is None or found[kind] < quota[kind]:
                found[kind] += 1
                asked.add(turn.case.prompt)
                cases.append(replace(turn.case, category=str(kind), parent=""))
                marks.append(turn.mark)
                break
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    return Suite(name, description, (), tuple(map(str, Wanted)), tuple(cases), digest[:16])


def shares(count: int, beside: Mapping[Wanted, int]) -> Counter[Wanted]:
    """So many in all, each given to the kind of which there are the fewest."""
    given: Counter[Wanted] = Counter()
    for _ in range(count):
        given[min(Wanted, key=lambda kind: beside.get(kind, 0) + given[kind])] += 1
    return given


def _is_asked(case: Case) -> bool:
    return bool(case.expected) or case.messages[-1].role is not Role.TOOL


def _turns(rows: Sequence[Conversation]) -> Iterator[_Turn]:
    seen: dict[str, int] = {}
    for row in rows:
        line = encode(row)
        for index, message in enumerate(row.messages):
            if message.role is not Role.ASSISTANT or not message.is_trained or index == 0:
                continue
            name = f"{row.dialogue_id}#{index}"
            seen[name] = seen.get(name, 0) + 1
            case = Case(
                id=name if seen[name] == 1 else f"{name}.{seen[name]}",
                category=str(row.metadata.get("heldout_group", row.category)),
                messages=row.messages[:index],
                expected=tuple(ExpectedCall(call.name, call.arguments) for call in message.tool_calls),
                reference_date=row.reference_date,
                # The turns of one dialogue are not independent of each other.
                parent=row.dialogue_id,
                offer=row.tools,
            )
            yield _Turn(case, f"{index} {line}")
