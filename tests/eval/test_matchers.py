"""Matchers accept what they say and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from eval.matchers import MatcherError, accepts, examples, pair_up, parse_expected, to_json

ITEMS = {"type": "array", "items": {"type": "string"}}


def match_of(kind: str, **operand: Any) -> Any:
    return parse_expected({"$match": kind, **operand})


@pytest.mark.parametrize(
    ("expected", "accepted", "refused"),
    [
        (match_of("one_of", values=["a", 1]), ["a", 1], ["A", True, 1.0, "1", ["a"], None]),
        (match_of("any"), ["a", 1, None, [], {}], []),
        (match_of("any_string"), ["a"], ["", "  ", 1, None, ["a"]]),
        (match_of("contains", values=["Kew", "map"]), ["map of Kew"], ["kew map", "Kew", ["Kew", "map"], 5]),
        (match_of("text", values=["call Ana"]), ["Call Ana", "call Ana."], ["call ana", "call Ana!", " call Ana"]),
        (match_of("unordered", values=["a", "b"]), [["a", "b"], ["b", "a"]], [["a"], ["a", "a"], ["a", "b", "b"]]),
        (match_of("optional", value="none"), ["none"], ["daily", None, ""]),
        (match_of("number", value=5, tolerance=0.5), [5, 5.5, 4.5, 5.0], [5.51, 4.4, "5", True, None, [5]]),
        (match_of("date_time", value="2026-03-20T15:00"), ["2026-03-20T15:00", "2026-03-20 15:00:00"],
         ["2026-03-20", "2026-03-20T15:01", "2026-03-20T15:00+01:00", "soon", None, 5]),
        (match_of("date_time", value="2026-03-20"), ["2026-03-20", "20260320"], ["2026-03-20T00:00", "2026-03-21"]),
        (match_of("email", value="Jo@Kew.example"), ["jo@kew.example"], ["jo@kew.example ", "jo", None]),
        ({"frequency": "daily", "count": 3}, [{"count": 3, "frequency": "daily"}], [{"frequency": "daily"}, [], "x"]),
        (["a", "b"], [["a", "b"]], [["b", "a"], ["a"], ("a", "b"), {"a": "b"}]),
        (1, [1], [1.0, True, "1", [1], None]),
        (False, [False], [0, 0.0, None, ""]),
        (None, [None], [False, 0, "", "null"]),
    ],
)  # fmt: skip
def test_a_matcher_accepts_its_values_only(expected: Any, accepted: list[Any], refused: list[Any]) -> None:
    assert [value for value in accepted if not accepts(expected, value, {})] == []
    assert [value for value in refused if accepts(expected, value, {})] == []


def test_whole_floats_equal_integers_for_numbers_only_and_at_any_depth() -> None:
    number, integer = {"type": "number"}, {"type": "integer"}
    assert accepts(5, 5.0, number)
    assert accepts(5.0, 5, number)
    assert not accepts(5, 5.0, integer)
    assert not accepts(1, True, number)
    assert not accepts(5, 5.5, number)
    assert accepts([5], [5.0], {"type": "array", "items": number})
    assert not accepts([5], [5.0], {"type": "array", "items": integer})
    assert accepts({"x": 5}, {"x": 5.0}, {"type": "object", "properties": {"x": number}})


def test_matchers_may_be_nested() -> None:
    expected = parse_expected(
        [{"$match": "optional", "value": {"to": {"$match": "unordered", "values": [{"$match": "any_string"}, "b"]}}}]
    )
    assert accepts(expected, [{"to": ["b", "x"]}], {})
    assert not accepts(expected, [{"to": ["x", "y"]}], {})


def test_reading_and_writing_matchers_are_inverse() -> None:
    value = {"a": {"$match": "one_of", "values": [1, {"$match": "any"}]}, "b": [{"$match": "optional", "value": None}]}
    assert to_json(parse_expected(value)) == value


def test_every_named_alternative_occurs_in_an_example_and_is_accepted() -> None:
    expected = parse_expected(
        {"x": {"$match": "one_of", "values": ["a", "b"]}, "y": {"$match": "optional", "value": 1}}
    )
    found = examples(expected)
    assert {"x": "b", "y": 1} in found
    assert {"x": "a"} in found
    assert all(accepts(expected, example, {}) for example in found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"$match": "fuzzy"}, "x: unknown matcher 'fuzzy'; known are one_of"),
        ({"$match": ["any"]}, "unknown matcher"),
        ({"$match": "number", "value": 5}, "takes the keys"),
        ({"$match": "number", "value": 5, "tolerance": -1}, "a tolerance from 0"),
        ({"$match": "number", "value": True, "tolerance": 1}, "takes a number"),
        ({"$match": "date_time", "value": "soon"}, "'soon' is no ISO date"),
        ({"$match": "email", "value": "jo"}, "'jo' is no address"),
        ({"$match": "one_of"}, "x: matcher 'one_of' takes the keys"),
        ({"$match": "one_of", "values": []}, "needs a non-empty array"),
        ({"$match": "any", "values": ["a"]}, "takes the keys"),
        ({"$match": "text", "values": [1]}, "strings only"),
        ({"$match": "contains", "values": [""]}, "strings only"),
    ],
)
def test_a_malformed_matcher_is_refused_by_place(value: Any, message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        parse_expected({"x": value})


def test_pairing_reassigns_when_the_first_choice_blocks_another() -> None:
    fits = {("a", 1), ("a", 2), ("b", 1)}
    assert pair_up("ab", [1, 2], lambda one, other: (one, other) in fits) == {0: 1, 1: 0}
