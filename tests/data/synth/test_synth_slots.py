from __future__ import annotations

import datetime as dt
import random
import re
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synth import temporal
from data.synth.values import SCALARS, Context, SlotError, SlotSpec, coordinate
from tinydispatch.tools import Tool

THURSDAY = dt.date(2026, 3, 19)
COMPOUND: list[object] = [
    {"integer": [0, 100]},
    {"number": [0.5, 80]},
    {"boolean": True},
    {"enum": {"low": ["low", "[poor|bad] quality"], "high": []}},
    {"words": ["porch", "kitchen"]},
    {"list": "city"},
    {"list": {"enum": {"a": ["an a"], "b": ["a b"]}}},
    "recurrence",
    "emails",
]


@pytest.mark.parametrize("raw", [*SCALARS, *COMPOUND], ids=str)
def test_every_value_fits_the_slots_schema(raw: object) -> None:
    slot = SlotSpec.parse(raw)
    tool = Tool("t", "", {"type": "object", "properties": {"value": slot.schema()}, "required": ["value"]})
    for seed in range(60):
        filled = slot.sample(Context(random.Random(seed), THURSDAY))
        assert tool.violations({"value": filled.value}) == []
        assert filled.form() == filled.form("no such form") != ""


@pytest.mark.parametrize("kind", list(SCALARS))
def test_a_copied_value_is_what_is_said_and_a_computed_one_says_so(kind: str) -> None:
    computed = {"date", "time", "datetime", "duration_minutes", "amount", "currency", "timezone"}
    for seed in range(60):
        filled = SlotSpec(kind).sample(Context(random.Random(seed), THURSDAY))
        assert filled.is_copied == (kind not in computed)
        assert not filled.is_copied or filled.form() == filled.value


def test_a_list_says_each_of_its_values_once() -> None:
    for seed in range(100):
        filled = SlotSpec.parse({"list": "email"}).sample(Context(random.Random(seed), THURSDAY))
        assert 1 <= len(filled.value) <= 3
        assert len(set(filled.value)) == len(filled.value)
        assert all(value in filled.form() for value in filled.value)


def test_noise_is_a_share_of_the_places() -> None:
    real = {SlotSpec("city").sample(Context(random.Random(seed), THURSDAY, noise_share=0)).value for seed in range(50)}
    noise = {SlotSpec("city").sample(Context(random.Random(seed), THURSDAY, noise_share=1)).value for seed in range(50)}
    assert not real & noise


@pytest.mark.parametrize(
    "raw",
    [
        "plaec",
        {"integer": [1]},
        {"enum": ["a"]},
        {"boolean": "yes"},
        {"list": "plaec"},
        {"city": 1, "place": 2},
        {"words": "a b"},
        None,
    ],
    ids=str,
)
def test_an_unknown_slot_is_named(raw: object) -> None:
    with pytest.raises(SlotError, match="unknown slot"):
        SlotSpec.parse(raw)


@given(st.integers(0, 2**32))
@settings(deadline=None)
def test_times_codes_and_zones_have_the_form_that_calls_need(seed: int) -> None:
    context = Context(random.Random(seed), THURSDAY)
    assert dt.time.fromisoformat(SlotSpec("time").sample(context).value).second == 0
    assert re.fullmatch(r"[A-Z]{3}", SlotSpec("currency").sample(context).value)
    assert SlotSpec("timezone").sample(context).value in zoneinfo.available_timezones()


@given(st.integers(0, 2**32))
@settings(deadline=None)
def test_an_amount_written_in_digits_is_the_number_written(seed: int) -> None:
    value, said = temporal.amount(random.Random(seed))
    assert value >= 0
    if said[0].isdigit() and said[-1].isdigit():
        assert float(said.replace(",", "")) == pytest.approx(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (42, "forty-two"),
        (100, "one hundred"),
        (250, "two hundred and fifty"),
    ],
)
def test_numbers_are_spelled_in_words(value: int, words: str) -> None:
    assert temporal.number_words(value) == words


@pytest.mark.parametrize(("day", "said"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (22, "22nd")])
def test_days_of_the_month_get_their_ending(day: int, said: str) -> None:
    assert temporal.ordinal(day) == said


def test_several_values_are_joined_by_commas_and_one_last_word() -> None:
    rng = random.Random(0)
    assert coordinate(rng, ["a"]) == "a"
    assert {coordinate(rng, ["a", "b"]) for _ in range(99)} == {"a and b", "a, and b", "a & b", "a, b"}
    assert all(coordinate(rng, ["a", "b", "c"]).startswith("a, b") for _ in range(9))
