"""The phrase language of the generator: `[play|put on] {title}` multiplies wordings without listing them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(r"\{([^{}]*)\}|([\[\]|])|([^\[\]{}|]+)")


class PhraseError(ValueError):
    """A phrase that does not parse; the message shows it."""


@dataclass(frozen=True)
class Text:
    """Literal words."""

    text: str


@dataclass(frozen=True)
class SlotRef:
    """`{name}` or `{name:form}`; a name such as `start+end` fills both parameters."""

    name: str
    form: str = ""

    @property
    def covers(self) -> tuple[str, ...]:
        """The parameters that this reference fills."""
        return tuple(self.name.split("+"))


@dataclass(frozen=True)
class Choice:
    """`[a|b|]`: one branch is taken; an empty one makes the whole optional."""

    branches: tuple[Sequence, ...]


@dataclass(frozen=True)
class Sequence:
    """Parts said one after the other."""

    parts: tuple[Text | SlotRef | Choice, ...]


@dataclass(frozen=True)
class Segment:
    """A piece of an utterance; a value gets no typos, and a copied one keeps its case too."""

    text: str
    is_value: bool = False
    is_copied: bool = False


@lru_cache(maxsize=50_000)
def parse(phrase: str) -> Sequence:
    """Parse a phrase.

    Raises:
        PhraseError: brackets do not match or a character is left over.
    """
    tokens = _TOKEN.findall(phrase)
    if sum(len(slot) + 2 if not (mark or text) else len(mark or text) for slot, mark, text in tokens) != len(phrase):
        raise PhraseError(f"unmatched brace in phrase {phrase!r}")
    sequence, rest = _parse_sequence(tokens, 0, phrase, depth=0)
    assert rest == len(tokens)
    return sequence


def _parse_sequence(tokens: list[tuple[str, str, str]], at: int, phrase: str, depth: int) -> tuple[Sequence, int]:
    parts: list[Text | SlotRef | Choice] = []
    while at < len(tokens):
        slot, mark, text = tokens[at]
        if mark == "[":
            choice, at = _parse_choice(tokens, at + 1, phrase, depth + 1)
            parts.append(choice)
            continue
        if mark:
            if depth == 0:
                raise PhraseError(f"'{mark}' outside brackets in phrase {phrase!r}")
            return Sequence(tuple(parts)), at
        if text:
            parts.append(Text(text))
        else:
            name, _, form = slot.partition(":")
            parts.append(SlotRef(name, form))
        at += 1
    if depth:
        raise PhraseError(f"'[' is never closed in phrase {phrase!r}")
    return Sequence(tuple(parts)), at


def _parse_choice(tokens: list[tuple[str, str, str]], at: int, phrase: str, depth: int) -> tuple[Choice, int]:
    branches = []
    while True:
        branch, at = _parse_sequence(tokens, at, phrase, depth)
        branches.append(branch)
        at += 1
        if tokens[at - 1][1] == "]":
            return Choice(tuple(branches)), at


def slot_refs(node: Sequence | Choice) -> list[SlotRef]:
    """Every reference in every branch."""
    found: list[SlotRef] = []
    for part in node.parts if isinstance(node, Sequence) else node.branches:
        if isinstance(part, SlotRef):
            found.append(part)
        elif isinstance(part, Sequence | Choice):
            found += slot_refs(part)
    return found


def choose(phrase: str, rng: random.Random) -> list[Text | SlotRef]:
    """One way to say `phrase`: every choice made, the slots still open."""
    return _choose(parse(phrase), rng)


def _choose(sequence: Sequence, rng: random.Random) -> list[Text | SlotRef]:
    flat: list[Text | SlotRef] = []
    for part in sequence.parts:
        if isinstance(part, Choice):
            flat += _choose(rng.choice(part.branches), rng)
        else:
            flat.append(part)
    return flat


def fill(parts: list[Text | SlotRef], value_of: Callable[[SlotRef], Segment]) -> list[Segment]:
    """Put surface forms into the open slots."""
    return [Segment(part.text) if isinstance(part, Text) else value_of(part) for part in parts]


def join(segments: list[Segment]) -> str:
    """The text of segments, with the double spaces of empty branches removed."""
    text = re.sub(r"[^\S\n]+", " ", "".join(segment.text for segment in segments))
    text = re.sub(r"\b(on|at|for|from|in) \1\b", r"\1", text)  # "on {x}" where x brings its own preposition
    text = re.sub(r"\ba (eight|eleven|eighteen|8|11|18|80|hour)", r"an \1", text)
    return re.sub(r" ([,.;:?!])(?=\s|$)", r"\1", text).strip()


def expand(phrase: str, rng: random.Random, values: Mapping[str, str] | None = None) -> str:
    """One wording of `phrase` with slots taken from `values`.

    Raises:
        KeyError: a slot has no value.
    """
    filled = values or {}
    return join(fill(choose(phrase, rng), lambda ref: Segment(filled[ref.name])))
