"""How far confidences can be believed: the figures that `scripts.calibrate_dispatch` prints."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinydispatch.calibration import error_bound

N_BINS = 10
_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Bin:
    """The answers with a confidence from `low` on: how many, how sure they were, and what share was right."""

    low: float
    count: int
    confidence: float
    accuracy: float


def bins(confidences: Sequence[float], is_right: Sequence[bool]) -> Iterator[Bin]:
    """Bins of equal width, those left out that nothing fell into."""
    for index in range(N_BINS):
        inside = [
            (confidence, right)
            for confidence, right in zip(confidences, is_right, strict=True)
            if min(int(confidence * N_BINS), N_BINS - 1) == index
        ]
        if inside:
            sure, right = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            yield Bin(index / N_BINS, len(inside), sure, right)


def calibration_error(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, averaged over bins of equal width."""
    found = bins(confidences, is_right)
    return sum(part.count * abs(part.confidence - part.accuracy) for part in found) / len(confidences)


def brier_score(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """The mean squared distance from 1 for what was right and from 0 for what was wrong."""
    distances = (confidence - right for confidence, right in zip(confidences, is_right, strict=True))
    return sum(distance**2 for distance in distances) / len(confidences)


def separation(confidences: Sequence[float], is_right: Sequence[bool]) -> float | None:
    """How often a right answer is surer than a wrong one (the area under the ROC curve); 0.5 is chance.

    None where all were right, or none was.
    """
    pairs = list(zip(confidences, is_right, strict=True))
    wrong = sorted(confidence for confidence, right in pairs if not right)
    right = [confidence for confidence, is_one in pairs if is_one]
    if not wrong or not right:
        return None
    won = sum(bisect_left(wrong, value) + bisect_right(wrong, value) for value in right) / 2
    return won / (len(right) * len(wrong))


def summary(name: str, raw: Sequence[float], scaled: Sequence[float], is_right: Sequence[bool]) -> str:
    """One line: the errors before and after scaling."""
    if not is_right:
        return f"{name:<9}none"
    apart = separation(scaled, is_right)
    surer = "" if apart is None else f"; a right one is surer than a wrong one {apart:.0%} of the time"
    return (
        f"{name:<9}{len(is_right):>5}, {sum(is_right)} right; expected calibration error "
        f"{calibration_error(raw, is_right):.3f} as the model says it, {calibration_error(scaled, is_right):.3f} "
        f"calibrated; Brier score {brier_score(raw, is_right):.3f} and {brier_score(scaled, is_right):.3f}{surer}"
    )


def reliability(confidences: Sequence[float], is_right: Sequence[bool]) -> str:
    """A line for each bin: what was said and what came true."""
    lines = ["confidence  replies   said  right"]
    for part in bins(confidences, is_right):
        span = f"{part.low:.1f}-{part.low + 1 / N_BINS:.1f}"
        lines.append(f"{span:>10}{part.count:>9}{part.confidence:>7.0%}{part.accuracy:>7.0%}")
    return "\n".join(lines)


def coverage(confidences: Sequence[float], is_right: Sequence[bool], threshold: float, sureness: float) -> str:
    """How error falls as only the surest replies are kept, and what is kept at the threshold."""
    ranked = [right for _, right in sorted(zip(confidences, is_right, strict=True), key=lambda pair: -pair[0])]
    lines = ["coverage  kept  wrong  error  at most"]
    for share in _COVERAGES:
        kept = ranked[: max(1, round(share * len(ranked)))]
        n_wrong = len(kept) - sum(kept)
        bound = error_bound(n_wrong, len(kept), sureness)
        lines.append(f"{share:>8.0%}{len(kept):>6}{n_wrong:>7}{n_wrong / len(kept):>7.0%}{bound:>9.0%}")
    above = [right for confidence, right in zip(confidences, is_right, strict=True) if confidence >= threshold]
    lines.append(f"(at most: of all replies as sure as these, by {sureness:.0%})")
    lines.append(f"at the threshold: {len(above)} of {len(ranked)} kept, {len(above) - sum(above)} wrong")
    return "\n".join(lines)
