"""Free text by kind (tasks, events, messages, …), worded by the phrases of vocabulary.yaml."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import yaml

from data.synth import grammar, lexicon, temporal

_PATH = Path(__file__).with_name("vocabulary.yaml")


def free_text(kind: str, rng: random.Random) -> str:
    """A wording of a kind of vocabulary.yaml."""
    parts = grammar.choose(rng.choice(_vocabulary()[kind]), rng)
    return grammar.join(grammar.fill(parts, lambda ref: grammar.Segment(_filler(ref.name, rng))))


@lru_cache(maxsize=1)
def common_words() -> tuple[str, ...]:
    """Nouns and adjectives of the vocabulary itself, so that free text shares words without sharing sentences."""
    words: set[str] = set()
    for phrases in _vocabulary().values():
        for phrase in phrases:
            words.update(word for word in phrase.translate(_NO_BRACKETS).split() if word.isalpha())
    return tuple(sorted(word.lower() for word in words if len(word) > 3))


_NO_BRACKETS = str.maketrans("|[]", "   ")


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = yaml.safe_load(_PATH.read_text("utf-8"))
    return loaded


def _filler(name: str, rng: random.Random) -> str:
    if name in {"Event", "food"}:
        text = free_text(name.lower(), rng)
        return text[:1].upper() + text[1:]
    if name in {"word", "Word"}:
        word = lexicon.pseudo_word(rng) if rng.random() < 0.45 else rng.choice(common_words())
        return word.capitalize() if name == "Word" else word
    return str(_FILLERS[name](rng))


_FILLERS: dict[str, Callable[[random.Random], object]] = {
    "person": lexicon.person,
    "first": lambda rng: lexicon.person(rng).split(" ")[0],
    "last": lambda rng: lexicon.person(rng).split(" ")[-1],
    "city": lexicon.city,
    "company": lexicon.company,
    "street": lexicon.street,
    "weekday": lambda rng: rng.choice(temporal.WEEKDAYS),
    "n": lambda rng: rng.randint(2, 40),
    "digit": lambda rng: rng.randint(1, 9),
    "letter": lambda rng: rng.choice("ABCDEFGH"),
    "odd": lexicon.odd_string,
    "ascii": lexicon.pseudo_ascii,
}
