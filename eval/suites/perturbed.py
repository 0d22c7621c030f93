"""Suite `robust`, and every suite derived from another by small changes after which the same calls are right.

Typos, casing, another day, other tools beside: what an expected argument is copied from is never touched, and a
change that might alter what is asked for is left out.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from eval.cases import Case, ExpectedCall, Suite, SuiteError, drawn, read_head
from eval.matchers import Matcher
from eval.suites import load_suite, suite_folder
from tinydispatch.tools import Message, Role, Tool

_OPENINGS = ("Hmm, okay. ", "Right, so: ", "Hello there! ", "Um, well, ", "One more thing, ", "Sorry to bother you. ")
# Words that carry a date, a time or a number: a slip in them could mean something else.
_WORD = re.compile(r"[^\W\d_]+")
_MONTHS = _WORD.findall("january february march april may june july august september october november december")
_VALUE_WORDS = frozenset(
    _WORD.findall(
        """monday tuesday wednesday thursday friday saturday sunday today tomorrow tonight noon midnight morning
        afternoon evening night daily weekly monthly hourly yearly every weekday weekend second third fourth fifth
        sixth seventh eighth ninth tenth three seven eight eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million
        dozen quarter celsius fahrenheit minute minutes hours weeks months years times never without nothing"""
    )
) | set(_MONTHS)
# A day that is named and not counted from today, so that it cannot be moved along with today.
_FIXED_DAY = re.compile(
    rf"\b(?:\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)|\d{{1,2}}[./]\d{{1,2}}|{'|'.join(f'{m}|{m[:3]}' for m in _MONTHS)}"
    r"|months?|years?|christmas|easter|new year\S*|birthday|fortnight)\b",
    re.IGNORECASE,
)
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(T\d{2}:\d{2})?")
_WEEKDAY = "(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_CLOCK = r"\d{1,2}(?::\d\d)?(?: ?[ap]m)?"
_DAY = re.compile(rf" ((?:tomorrow|(?:on|this) {_WEEKDAY})(?: at {_CLOCK})?)(?=[\s,.?!]|$)", re.IGNORECASE)
# Words that cannot stand before the gap that a moved day leaves, or belong to it when they come after.
_HANGING = frozenset(
    _WORD.findall("and or but for from to till until through by at of in on the a my between starting beginning")
)
_BELONGS = re.compile(
    r" (?:at|and|or|till|until|through|between|from|morning|afternoon|evening|night|noon|\d)", re.IGNORECASE
)
_REFERS_BACK = re.compile(
    r"\b(it|its|that|this|there|then|them|they|these|those|same|also|too|both|after|before|once|first|second|next"
    r"|finally|he|she|his|her|him|if|when|instead|else|other|another)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|‘[^’]*’|(?<!\w)'[^']*'(?!\w)|`[^`]*`")


class Perturbation(StrEnum):
    """What is changed; each is a category of the derived suite."""

    TYPOS = "typos"
    CASING = "casing"
    FILLERS = "fillers"
    WORD_ORDER = "word_order"
    REFERENCE_DATE = "reference_date"
    TOOL_ORDER = "tool_order"
    MORE_TOOLS = "more_tools"


def open_suite(name: str, *, max_per_category: int | None) -> Suite | None:
    """The suite of a folder whose `suite.json` says what it is derived from."""
    folder = suite_folder(name)
    head = read_head(folder / "suite.json") if (folder / "suite.json").is_file() else {}
    if "derived_from" not in head:
        return None
    parent = load_suite(head["derived_from"])
    pool = load_suite(head["distractors"]).tools if "distractors" in head else ()
    cases = tuple(drawn(list(perturbed_cases(parent, pool, seed=head.get("seed", 0))), max_per_category))
    if not cases:
        raise SuiteError(f"{folder / 'suite.json'}: key 'derived_from': no case of '{parent.name}' can be perturbed")
    categories = tuple(dict.fromkeys(case.category for case in cases))
    definition = "\n".join([parent.fingerprint, *map(repr, cases)]).encode()
    fingerprint = hashlib.sha256(definition).hexdigest()[:16]
    description = head.get("description", "")
    return Suite(
        head["name"], description, parent.tools, categories, cases, fingerprint, parent.simulators, is_derived=True
    )


def perturbed_cases(suite: Suite, distractors: Sequence[Tool], *, seed: int) -> Iterator[Case]:
    """Each case of `suite` under each perturbation that is safe for it; played cases are left out.

    Args:
        distractors: tools that `more_tools` draws from; they must do nothing that the suite's tools do.
    """
    for kind in Perturbation:
        for case in suite.cases:
            if case.episode is not None:
                continue
            rng = random.Random(f"{seed}:{kind}:{case.id}")
            changed = _perturb(kind, case, suite.tools_for(case), distractors, rng)
            if changed is not None:
                yield replace(changed, id=f"{case.id}~{kind}", category=str(kind), parent=case.id)


def _perturb(
    kind: Perturbation, case: Case, tools: Sequence[Tool], distractors: Sequence[Tool], rng: random.Random
) -> Case | None:
    """The changed case, None where the change does not apply or is not safe."""
    match kind:
        case Perturbation.REFERENCE_DATE:
            return _move_to_another_day(case, rng)
        case Perturbation.TOOL_ORDER:
            shuffled = _shuffled(tools, rng)
            return replace(case, offer=shuffled) if shuffled != tuple(tools) else None
        case Perturbation.MORE_TOOLS:
            # Where no call may be made, an added tool might just be what the user wants.
            if not case.expected or len(distractors) < 4:
                return None
            return replace(case, offer=_shuffled([*tools, *rng.sample(list(distractors), 4)], rng))
    changers: dict[Perturbation, Callable[[str, Case, random.Random], str]] = {
        Perturbation.TYPOS: _with_typos,
        Perturbation.CASING: _with_other_casing,
        Perturbation.FILLERS: lambda text, _, rng: rng.choice(_OPENINGS) + text,
        Perturbation.WORD_ORDER: _with_other_order,
    }
    last = len(case.messages) - 1
    if case.messages[last].role is not Role.USER:
        return None
    before = case.messages[last].content
    text = changers[kind](before, case, rng)
    if text == before:
        return None
    return replace(case, messages=(*case.messages[:last], Message(Role.USER, text)))


def _shuffled(tools: Sequence[Tool], rng: random.Random) -> tuple[Tool, ...]:
    return tuple(rng.sample(list(tools), len(tools)))


def _with_typos(text: str, case: Case, rng: random.Random) -> str:
    """Two neighbouring letters inside a word swapped, in up to two words."""
    free = [
        span for span in _free_words(text, case)
        if len(word := text[slice(*span)]) >= 5 and word.islower() and word not in _VALUE_WORDS
    ]  # fmt: skip
    for start, end in sorted(rng.sample(free, min(2, len(free))), reverse=True):
        swapped = [
            text[start:place] + text[place + 1] + text[place] + text[place + 2 : end]
            for place in range(start + 1, end - 2)
            if text[place] != text[place + 1]
        ]
        if swapped and (word := rng.choice(swapped)) not in _VALUE_WORDS:
            text = text[:start] + word + text[end:]
    return text


def _with_other_casing(text: str, case: Case, rng: random.Random) -> str:
    """All letters small, or all capitals; abbreviations stay as they are."""
    change = rng.choice((str.lower, str.upper))
    for start, end in _free_words(text, case):
        word = text[start:end]
        if not (word.isupper() and len(word) > 1) and len(change(word)) == len(word):
            text = text[:start] + change(word) + text[end:]
    return text


def _with_other_order(text: str, case: Case, rng: random.Random) -> str:  # noqa: ARG001
    """A day moved to the front, or two requests that do not refer to each other swapped."""
    if case.premature or case.is_ordered or _QUOTED.search(text):
        return text
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)
    copied = [leaf.casefold() for leaf in _leaves(case.expected) if isinstance(leaf, str) and " " in leaf]
    is_split = len(sentences) == 2 and len(case.expected) >= 2 and text[-1] in ".?!"
    if is_split and not copied and not _REFERS_BACK.search(text):
        return f"{sentences[1]} {sentences[0]}"
    days = list(_DAY.finditer(text))
    if len(days) != 1 or len(sentences) > 1 or len(case.expected) != 1 or _BELONGS.match(text, days[0].end()):
        return text
    day, before, after = days[0].group(1), text[: days[0].start()], text[days[0].end() :]
    is_copied = any(day.casefold() in leaf for leaf in copied)
    if is_copied or len(f"{before}{after}".split()) < 3 or before.split()[-1].casefold() in _HANGING:
        return text
    return f"{day[0].upper()}{day[1:]}: {before}{after}"


def _free_words(text: str, case: Case) -> list[tuple[int, int]]:
    """Spans of the words that no expected argument is copied from, outside quotation marks, addresses and numbers."""
    copied = {word.casefold() for leaf in _leaves(case.expected) for word in _WORD.findall(str(leaf))}
    quoted = [found.span() for found in _QUOTED.finditer(text)]
    spans = []
    for token in re.finditer(r"\S+", text):
        if re.search(r"[\d@_/\\]|\w\.\w", token.group()):
            continue
        for word in _WORD.finditer(token.group()):
            start, end = token.start() + word.start(), token.start() + word.end()
            is_quoted = any(first <= start < last for first, last in quoted)
            if not is_quoted and word.group().casefold() not in copied:
                spans.append((start, end))
    return spans


def _move_to_another_day(case: Case, rng: random.Random) -> Case | None:
    """Today, and every expected date, later by the same whole number of weeks, so that weekdays keep their names."""
    if case.reference_date is None or any(_FIXED_DAY.search(_spoken(message)) for message in case.messages):
        return None
    weeks = dt.timedelta(weeks=rng.randint(3, 60))
    try:
        expected = tuple(
            ExpectedCall(call.name, {name: _later(value, weeks) for name, value in call.arguments.items()})
            for call in case.expected
        )
    except ValueError:
        return None
    return replace(case, reference_date=case.reference_date + weeks, expected=expected)


def _spoken(message: Message) -> str:
    """All text of a message, arguments of its calls included."""
    return " ".join([message.content, *(str(dict(call.arguments)) for call in message.tool_calls)])


def _later(value: Any, by: dt.timedelta) -> Any:
    """`value` with each date in it moved; raises ValueError for a date inside other text."""
    if isinstance(value, Matcher):
        return Matcher(value.kind, tuple(_later(item, by) for item in value.values))
    if isinstance(value, Mapping):
        return {name: _later(item, by) for name, item in value.items()}
    if isinstance(value, list):
        return [_later(item, by) for item in value]
    if not isinstance(value, str) or not _DATE.search(value):
        return value
    found = _DATE.fullmatch(value)
    if found is None:
        raise ValueError(f"a date inside {value!r}")
    return (dt.date.fromisoformat(found.group(1)) + by).isoformat() + (found.group(2) or "")


def _leaves(value: Any) -> Iterator[Any]:
    """Every plain value in expected calls, those of matchers included."""
    if isinstance(value, ExpectedCall):
        yield from _leaves(value.arguments)
    elif isinstance(value, Matcher):
        yield from _leaves(value.values)
    elif isinstance(value, Mapping):
        yield from _leaves(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
