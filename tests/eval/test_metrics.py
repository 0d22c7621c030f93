"""Counts, intervals and tests against published or independently computed values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import Tally, compare, mcnemar_exact, tally, tally_by, wilson_interval


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (39, 40, 0.8712, 0.9956),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_agree_with_published_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_rate_and_stays_within_0_and_1(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    found = wilson_interval(hits, total)
    assert found is not None
    assert 0 <= found[0] <= hits / total + 1e-12
    assert hits / total - 1e-12 <= found[1] <= 1


def test_no_cases_have_no_rate() -> None:
    assert tally([]) == Tally(0, 0)
    assert Tally(0, 0).rate is None
    assert Tally(0, 0).interval is None
    assert wilson_interval(0, 0) is None


def test_an_unscored_case_takes_the_rate_away() -> None:
    count = tally([True, None, False])
    assert count == Tally(1, 2, unscored=1)
    assert count.rate is None
    assert count.to_json() == {"hits": 1, "total": None, "wilson_95": None, "scored": 2, "unscored": 1}


def test_counts_are_kept_per_category_and_empty_ones_stay() -> None:
    verdicts = [("a", True), ("a", False), ("b", True)]
    assert tally_by(verdicts, ["b", "a", "c"]) == {"b": Tally(1, 1), "a": Tally(1, 2), "c": Tally(0, 0)}


def test_a_category_without_a_column_is_an_error_and_not_lost() -> None:
    with pytest.raises(ValueError, match=r"without a column: \['b'\]"):
        tally_by([("b", True)], ["a"])


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # Binomial tails by hand: 2 × (1 + 10 + 45) / 2^10; one pair says nothing; 2 / 2^8
    [(2, 8, 0.109375), (8, 2, 0.109375), (1, 0, 1.0), (0, 0, 1.0), (0, 8, 0.0078125), (5, 5, 1.0)],
)
def test_mcnemar_is_the_exact_two_sided_binomial(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p_value)


def test_two_models_are_compared_case_by_case() -> None:
    found = compare({"a": True, "b": False, "c": True, "d": False}, {"a": True, "b": True, "c": False, "d": False})
    assert (found.both, found.only_first, found.only_second, found.neither) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("other", "message"), [({"b": True}, "not the same cases"), ({"a": None}, "without a verdict")]
)
def test_results_that_cannot_be_compared_are_refused(other: dict[str, bool | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare({"a": True}, other)
