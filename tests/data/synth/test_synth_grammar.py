from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synth import grammar
from data.synth.grammar import PhraseError, Segment, SlotRef, Text


def wordings(phrase: str, draws: int = 200, **values: str) -> set[str]:
    return {grammar.expand(phrase, random.Random(seed), values) for seed in range(draws)}


def test_a_choice_takes_each_of_its_branches() -> None:
    assert wordings("[play|put on] it") == {"play it", "put on it"}


def test_an_empty_branch_leaves_no_double_space() -> None:
    assert wordings("turn it [right |]off [now|].") == {"turn it right off now.", "turn it off now."} | {
        "turn it right off.",
        "turn it off.",
    }


def test_choices_nest() -> None:
    assert wordings("a[b[c|d]|e]") == {"abc", "abd", "ae"}


def test_slots_are_filled_with_their_surface() -> None:
    assert wordings("to {place}[ on {day}|]", place="Oslo", day="Friday") == {"to Oslo", "to Oslo on Friday"}


def test_a_slot_reference_splits_into_name_and_form_and_may_cover_two_parameters() -> None:
    (ref,) = grammar.slot_refs(grammar.parse("from {start+end:adv}"))
    assert (ref.name, ref.form, ref.covers) == ("start+end", "adv", ("start", "end"))


def test_references_are_found_in_every_branch() -> None:
    assert [ref.name for ref in grammar.slot_refs(grammar.parse("{a} [x|{b} [{c}|]]"))] == ["a", "b", "c"]


@pytest.mark.parametrize("phrase", ["[a|b", "a|b", "a]", "[a|[b]", "{a", "a}", "{a{b}}"])
def test_an_unbalanced_phrase_is_refused_and_shown(phrase: str) -> None:
    with pytest.raises(PhraseError, match="phrase") as error:
        grammar.parse(phrase)
    assert repr(phrase) in str(error.value)


def test_a_slot_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="day"):
        grammar.expand("on {day}", random.Random(0))


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["remind me on ", "on Friday"], "remind me on Friday"),
        (["a ", "8-minute", " call"], "an 8-minute call"),
        (["a ", "eighty-minute", " call"], "an eighty-minute call"),
        (["a ", "hundred"], "a hundred"),
        (["now", " , please"], "now, please"),
        (["1. a\n", " 2. b"], "1. a\n 2. b"),
        (["costs 5", " .50"], "costs 5 .50"),
    ],
)
def test_joining_mends_the_seams(pieces: list[str], text: str) -> None:
    assert grammar.join([Segment(piece) for piece in pieces]) == text


@given(st.lists(st.text(alphabet="abc é.-", min_size=1, max_size=5), min_size=1, max_size=4), st.integers())
@settings(deadline=None)
def test_the_wording_of_a_choice_is_always_one_of_its_branches(branches: list[str], seed: int) -> None:
    parts = grammar.choose(f"[{'|'.join(branches)}]", random.Random(seed))
    assert "".join(part.text for part in parts if isinstance(part, Text)) in branches
    assert not any(isinstance(part, SlotRef) for part in parts)
