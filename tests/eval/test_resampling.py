"""Bootstrap and pass^k against values that can be worked out by hand, and by brute force."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import UnknownRateError, paired_bootstrap, pass_hat_k


def verdicts(bits: str, prefix: str = "c") -> dict[str, bool | None]:
    return {f"{prefix}{index}": bit == "1" for index, bit in enumerate(bits)}


def test_the_difference_is_that_of_the_rates_and_the_interval_holds_it() -> None:
    found = paired_bootstrap(verdicts("1100" * 25), verdicts("1110" * 25))
    assert found.rate == 0.25
    assert found.low < 0.25 < found.high
    # Of a mean of 100 paired differences of variance 3/16: 0.25 ± 1.96 × 0.0433
    assert (found.low, found.high) == pytest.approx((0.165, 0.335), abs=0.015)


def test_equal_runs_differ_by_nothing_and_opposite_ones_by_everything() -> None:
    same = paired_bootstrap(verdicts("1010"), verdicts("1010"))
    assert (same.rate, same.low, same.high) == (0, 0, 0)
    opposite = paired_bootstrap(verdicts("0000"), verdicts("1111"))
    assert (opposite.rate, opposite.low, opposite.high) == (1, 1, 1)


def test_cases_of_one_origin_count_as_one_observation() -> None:
    first, second = verdicts("0" * 70), verdicts("1" * 35 + "0" * 35)
    origin = {case: str(index // 7) for index, case in enumerate(first)}
    alone, together = paired_bootstrap(first, second), paired_bootstrap(first, second, cluster_of=origin)
    assert (alone.clusters, together.clusters) == (70, 10)
    assert together.rate == alone.rate
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    runs = verdicts("110100"), verdicts("011101")
    assert paired_bootstrap(*runs) == paired_bootstrap(*runs)
    assert paired_bootstrap(*runs, seed=1).rate == paired_bootstrap(*runs).rate


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="not the same cases"):
        paired_bootstrap(verdicts("1"), verdicts("1", "d"))
    with pytest.raises(UnknownRateError, match="c0 have no verdict"):
        paired_bootstrap({"c0": None, "c1": True}, verdicts("11"))
    with pytest.raises(ValueError, match="no cases"):
        paired_bootstrap({}, {})


@pytest.mark.parametrize(
    ("bits", "k", "chance"), [("1111", 4, 1.0), ("1110", 4, 0.0), ("1110", 2, 0.5), ("1000", 1, 0.25)]
)
def test_pass_hat_k_of_one_case_by_hand(bits: str, k: int, chance: float) -> None:
    assert pass_hat_k({"a": [bit == "1" for bit in bits]}, k) == chance


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=6), min_size=1, max_size=4), st.integers(1, 3))
def test_pass_hat_k_is_the_share_of_k_subsets_that_are_all_right(draws: list[list[bool]], k: int) -> None:
    by_case = {str(index): draw for index, draw in enumerate(draws)}
    shares = [[all(subset) for subset in itertools.combinations(draw, k)] for draw in draws]
    expected = sum(sum(share) / len(share) for share in shares) / len(shares)
    assert math.isclose(pass_hat_k(by_case, k), expected)


def test_pass_hat_k_never_rises_with_k_and_refuses_what_it_cannot_know() -> None:
    draws = {"a": [True, True, False], "b": [True, True, True]}
    rates = [pass_hat_k(draws, k) for k in (1, 2, 3)]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(ValueError, match="'a' was drawn 3 times, fewer than k=4"):
        pass_hat_k(draws, 4)
    with pytest.raises(UnknownRateError, match="a, draw 2 have no verdict"):
        pass_hat_k({"a": [True, None]}, 1)
    with pytest.raises(ValueError, match="no cases"):
        pass_hat_k({}, 1)
