"""Numbers as people say and write them."""

from __future__ import annotations

import random

from data.synth.tables import tables

_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ROUND_AMOUNTS = (*range(1, 20), 20, 25, 30, 40, 50, 60, 75, 80, 90, 100, 200, 250, 300, 500, 750)
_THOUSANDS = (1, 2, 3, 5, 10, 12, 15, 20, 25, 50, 100)


def number_words(value: int) -> str:
    """English words of 0 to 999."""
    ones = tables().small_numbers
    if value < 20:
        return ones[value]
    if value < 100:
        return _TENS[value // 10] + (f"-{ones[value % 10]}" if value % 10 else "")
    rest = f" and {number_words(value % 100)}" if value % 100 else ""
    return f"{ones[value // 100]} hundred{rest}"


def ordinal(day: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    return f"{day}{'th' if 10 <= day % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def amount(rng: random.Random) -> tuple[int | float, str]:
    """A positive amount and how it is written or said."""
    roll = rng.random()
    if roll < 0.12:
        value = rng.choice(_ROUND_AMOUNTS)
        return value, "a hundred" if value == 100 and rng.random() < 0.5 else number_words(value)
    if roll < 0.2:
        thousands = rng.choice(_THOUSANDS)
        words = f"{number_words(thousands)} thousand"
        return thousands * 1000, rng.choice([f"{thousands}k", words, f"{thousands} thousand", f"{thousands},000"])
    if roll < 0.45:
        return _with_cents(rng)
    drawn = [rng.randint(1, 99), rng.randint(1, 999), rng.randint(1, 9999), rng.randint(1, 200) * 10]
    value = rng.choice([*drawn, rng.randint(1, 999_999), rng.randint(1, 90) * 100])
    return value, f"{value:,}" if rng.random() < 0.35 else str(value)


def _with_cents(rng: random.Random) -> tuple[int | float, str]:
    value = round(rng.uniform(0.01, rng.choice([10, 100, 1000, 10000])), rng.choice([1, 2, 2, 2])) or 0.01
    text = f"{value:,.2f}" if rng.random() < 0.3 else f"{value:.2f}" if rng.random() < 0.5 else str(value)
    return (int(value) if value == int(value) else value), text
