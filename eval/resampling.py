"""What may be concluded from paired and repeated runs: bootstrap intervals of a difference, and pass^k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


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
