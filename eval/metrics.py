"""Counts and what may be concluded from them: Wilson intervals, McNemar's exact test, bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np

_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Wanted(StrEnum):
    """What a case asks for; it holds across suites, whatever their categories are called."""

    NO_CALL = "no_call"
    ONE_CALL = "one_call"
    SEVERAL_CALLS = "several_calls"


def wanted(n_calls: int) -> Wanted:
    """The kind of a case whose right answer makes so many calls."""
    return (Wanted.NO_CALL, Wanted.ONE_CALL, Wanted.SEVERAL_CALLS)[min(n_calls, 2)]


@dataclass(frozen=True)
class Tally:
    """How many of `total` cases passed. Cases without a verdict (`unscored`) are in neither number.

    While any case is unscored the denominator is unknown, so `rate` and `interval` are None; so they are for no cases.
    """

    hits: int
    total: int
    unscored: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.hits <= self.total, "hits must lie in 0..total"
        assert self.unscored >= 0, "unscored must not be negative"

    @property
    def rate(self) -> float | None:
        """Share passed, 0 to 1."""
        return self.hits / self.total if self.total and not self.unscored else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson 95 % interval of the rate."""
        return wilson_interval(self.hits, self.total) if self.total and not self.unscored else None

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.hits + other.hits, self.total + other.total, self.unscored + other.unscored)

    def to_json(self) -> dict[str, Any]:
        """`{"hits", "total", "wilson_95"}`; with unscored cases `total` is null, `scored` and `unscored` are added."""
        interval = [round(bound, 4) for bound in self.interval] if self.interval else None
        if not self.unscored:
            return {"hits": self.hits, "total": self.total, "wilson_95": interval}
        counts = {"scored": self.total, "unscored": self.unscored}
        return {"hits": self.hits, "total": None, "wilson_95": None, **counts}


def tally(verdicts: Sequence[bool | None]) -> Tally:
    """Count verdicts; None is a case that was not scored."""
    scored = [verdict for verdict in verdicts if verdict is not None]
    return Tally(sum(scored), len(scored), len(verdicts) - len(scored))


def tally_by(verdicts: Sequence[tuple[str, bool | None]], categories: Sequence[str]) -> dict[str, Tally]:
    """Counts per category, in the order of `categories`, empty ones included.

    Raises:
        ValueError: a verdict's category is not listed; it would vanish from the counts.
    """
    if strays := {category for category, _ in verdicts} - set(categories):
        raise ValueError(f"categories without a column: {sorted(strays)}; known are {list(categories)}")
    return {name: tally([verdict for category, verdict in verdicts if category == name]) for name in categories}


def wilson_interval(hits: int, total: int) -> tuple[float, float] | None:
    """95 % score interval of a proportion (Wilson 1927); None for no trials.

    Unlike the normal approximation it stays within 0..1 and is not empty at 0 or all hits.
    """
    if total == 0:
        return None
    rate, z2 = hits / total, _Z_95**2
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same cases: how many only one of them passed, and the chance of a split so uneven."""

    only_first: int
    only_second: int
    both: int
    neither: int
    p_value: float


def compare(first: Mapping[str, bool | None], second: Mapping[str, bool | None]) -> Comparison:
    """McNemar's exact test over verdicts by case id.

    Raises:
        ValueError: the two were not scored on the same cases.
    """
    if first.keys() != second.keys():
        raise ValueError(f"not the same cases: {sorted(first.keys() ^ second.keys())[:5]} are in one result only")
    if unscored := [case for case in first if first[case] is None or second[case] is None]:
        raise ValueError(f"cases without a verdict cannot be compared: {unscored[:5]}")
    pairs = [(bool(first[case]), bool(second[case])) for case in first]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    p_value = mcnemar_exact(only_first, only_second)
    return Comparison(only_first, only_second, pairs.count((True, True)), pairs.count((False, False)), p_value)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that `only_first` against `only_second` discordant pairs arise from equal models (binomial)."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / float(2**n))


def paired_score(lost: int, won: int, total: int, loss: float) -> float:
    """Tango's score statistic (1998) for a true loss of `loss`: standard normal if it is so, high if more was lost.

    Args:
        lost: cases that only the first of two models passed.
        won: cases that only the second passed.
        loss: share of the cases, -1 to 1.
    """
    a, b, c = 2 * total, (2 * total - lost + won) * loss - lost - won, -won * loss * (1 - loss)
    # Of the cases that only the second passes, the likeliest share where the loss is given.
    share = max(0.0, (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a))
    variance = total * (2 * share + loss * (1 - loss))
    distance = lost - won - total * loss
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def loss_bounds(lost: int, won: int, total: int, confidence: float) -> tuple[float, float]:
    """Tango's bounds of what share of the cases the second model loses on the first; each is one-sided.

    Either bound holds with this confidence by itself, so the two are an interval of `2 * confidence - 1`. Pairs where
    both models do the same count; with no discordant pair the bounds are still apart.
    """
    assert total > 0, "no cases, no bounds"
    z = NormalDist().inv_cdf(confidence)
    return _where_score(lost, won, total, z), _where_score(lost, won, total, -z)


def _where_score(lost: int, won: int, total: int, z: float) -> float:
    low, high = -1.0, 1.0
    for _ in range(50):  # the score falls as the loss grows
        middle = (low + high) / 2
        low, high = (middle, high) if paired_score(lost, won, total, middle) > z else (low, middle)
    return (low + high) / 2


class UnknownRateError(ValueError):
    """A rate over an unknown number of cases was asked for; the message names the cases without a verdict."""


@dataclass(frozen=True)
class Difference:
    """`rate`: how much more of the cases the second run passes, -1 to 1, with its 95 % interval."""

    rate: float
    low: float
    high: float
    clusters: int


def paired_bootstrap(
    first: Mapping[str, bool | None],
    second: Mapping[str, bool | None],
    *,
    cluster_of: Mapping[str, str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Percentile interval of the difference in pass rate, from resampled cases (Efron 1979), verdicts kept in pairs.

    Args:
        cluster_of: what each case was derived from; cases of one origin are resampled together, because they
            pass and fail together. None takes each case for itself.

    Raises:
        UnknownRateError: a case has no verdict.
        ValueError: not the same cases, or none.
    """
    if first.keys() != second.keys():
        raise ValueError(f"not the same cases: {sorted(first.keys() ^ second.keys())[:5]} are in one result only")
    if not first:
        raise ValueError("no cases to compare")
    require_verdicts(first)
    require_verdicts(second)
    clusters: dict[str, list[int]] = {}
    for case in first:
        cluster = cluster_of[case] if cluster_of is not None else case
        clusters.setdefault(cluster, []).append(int(bool(second[case])) - int(bool(first[case])))
    gain_C = np.array([sum(gains) for gains in clusters.values()])
    size_C = np.array([len(gains) for gains in clusters.values()])
    drawn_RC = np.random.default_rng(seed).integers(0, len(gain_C), size=(resamples, len(gain_C)))
    rates_R = gain_C[drawn_RC].sum(axis=1) / size_C[drawn_RC].sum(axis=1)
    low, high = np.quantile(rates_R, [0.025, 0.975])
    return Difference(float(gain_C.sum() / size_C.sum()), float(low), float(high), len(gain_C))


def pass_hat_k(samples: Mapping[str, Sequence[bool | None]], k: int) -> float:
    """The chance that `k` sampled replies to one case are all right, averaged over the cases (pass^k).

    Of n draws with c right, C(c, k) / C(n, k) is the unbiased estimate (Yao et al. 2024, tau-bench).

    Raises:
        UnknownRateError: a draw has no verdict.
        ValueError: no cases, or fewer than `k` draws of one.
    """
    if not samples:
        raise ValueError("no cases to average over")
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    for case, verdicts in samples.items():
        if len(verdicts) < k:
            raise ValueError(f"case '{case}' was drawn {len(verdicts)} times, fewer than k={k}")
        require_verdicts({f"{case}, draw {number + 1}": verdict for number, verdict in enumerate(verdicts)})
    chances = [math.comb(sum(map(bool, v)), k) / math.comb(len(v), k) for v in samples.values()]
    return sum(chances) / len(chances)


def require_verdicts(verdicts: Mapping[str, bool | None]) -> None:
    """Raise `UnknownRateError` unless every case has a verdict."""
    if unscored := [case for case, verdict in verdicts.items() if verdict is None]:
        more = f" and {len(unscored) - 5} more" if len(unscored) > 5 else ""
        raise UnknownRateError(
            f"no rate over an unknown number of cases: {', '.join(unscored[:5])}{more} have no verdict; run them again"
        )
