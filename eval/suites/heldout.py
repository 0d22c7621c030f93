"""Suite `toolbench`: the held-out rows of a run's data, each turn a case whose right answer is the turn itself.

A call is right when name and arguments are those that were held out, by the same strict rules as everywhere; a turn in
words wants a reply without a call. What it says is not judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.groups import HeldoutGroup
from data.store import StoreError, encode, read_conversations
from eval.cases import Case, ExpectedCall, Suite, SuiteError, drawn
from tinydispatch.tools import Conversation, Role

TOOLBENCH = "toolbench"
_UNGROUPED = "heldout"
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
