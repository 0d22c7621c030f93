"""From what a model believes of its replies to how often such replies are right.

A product of probabilities is no promise: a model may be sure and wrong. `scripts/calibrate_dispatch.py` compares it
with what was right on a suite's cases, and the numbers that it fits turn a product into an expected share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinydispatch.confidence import CallConfidence

# Beside the model file: `model.gguf` → `model.calibration.json`.
_SUFFIX = ".calibration.json"
_LEAST = 1e-9
_SCALES = ("reply", "tool", "argument")

# No confidence reaches it: everything is handed up.
UNREACHABLE = 2.0


@dataclass(frozen=True)
class Scale:
    """Platt scaling (Platt, 1999): `sigmoid(slope * log(p / (1 - p)) + intercept)`; as given, it changes nothing."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, probability: float) -> float:
        """The share of right answers among those with this product of probabilities."""
        return _sigmoid(self.slope * _logit(probability) + self.intercept)


@dataclass(frozen=True)
class Calibration:
    """A scale each for whole replies (and single calls), for the choice of a tool, and for an argument.

    Below `threshold`, a calibrated confidence, a reply should be handed up. `model` is the fingerprint of the file that
    it was fitted to, "" for any.
    """

    reply: Scale = Scale()
    tool: Scale = Scale()
    argument: Scale = Scale()
    threshold: float = 0.0
    model: str = ""

    @property
    def is_fitted(self) -> bool:
        """Whether anything was fitted: as given, confidences are the model's own products of probabilities."""
        return self != Calibration()

    def of_call(self, raw: CallConfidence) -> CallConfidence:
        """A call's products of probabilities, each on its scale."""
        arguments = {name: self.argument(value) for name, value in raw.arguments.items()}
        return CallConfidence(self.tool(raw.tool), arguments, self.reply(raw.call))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")


def calibration_path(model: Path) -> Path:
    """Where a model file's calibration is looked for."""
    return model.with_suffix(_SUFFIX)


def load_calibration(path: Path) -> Calibration:
    """Read what `Calibration.save` wrote.

    Raises:
        ValueError: names the file and what is wrong in it.
    """
    try:
        value: Any = json.loads(path.read_text("utf-8"))
        reply, tool, argument = (Scale(float(value[k]["slope"]), float(value[k]["intercept"])) for k in _SCALES)
        return Calibration(reply, tool, argument, float(value["threshold"]), str(value["model"]))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected numbers 'slope' and 'intercept' in each of {', '.join(_SCALES)}, a number 'threshold' "
            f"and a text 'model', as scripts.calibrate_dispatch writes them: {error!r}"
        ) from error


def fit_scale(probabilities: Sequence[float], is_right: Sequence[bool], steps: int = 100) -> Scale:
    """Platt scaling by Newton's method, with his smoothed targets, so that few cases do not make it certain.

    Raises:
        ValueError: all answers were right, or none was, or the surer ones were wrong more often.
    """
    n_right = sum(is_right)
    n_wrong = len(is_right) - n_right
    if not n_right or not n_wrong:
        raise ValueError(f"cannot calibrate on {n_right} right and {n_wrong} wrong answers: both kinds are needed")
    targets = [(n_right + 1) / (n_right + 2) if right else 1 / (n_wrong + 2) for right in is_right]
    inputs = [_logit(probability) for probability in probabilities]
    slope, intercept = 1.0, 0.0
    for _ in range(steps):
        outputs = [_sigmoid(slope * x + intercept) for x in inputs]
        errors = [output - target for output, target in zip(outputs, targets, strict=True)]
        weights = [max(output * (1 - output), 1e-6) for output in outputs]
        gradient = (sum(e * x for e, x in zip(errors, inputs, strict=True)), sum(errors))
        xx = sum(w * x * x for w, x in zip(weights, inputs, strict=True)) + 1e-6
        x1, one = sum(w * x for w, x in zip(weights, inputs, strict=True)), sum(weights) + 1e-6
        determinant = xx * one - x1 * x1
        step = (
            (gradient[0] * one - gradient[1] * x1) / determinant,
            (gradient[1] * xx - gradient[0] * x1) / determinant,
        )
        # A full step may overshoot where the outputs are near 0 or 1.
        scale = min(1.0, 2.0 / max(abs(step[0]), abs(step[1]), 1e-12))
        slope, intercept = slope - scale * step[0], intercept - scale * step[1]
    if slope <= 0:
        raise ValueError("cannot calibrate: the surer the model was, the less often it was right")
    return Scale(slope, intercept)


def threshold_for(
    confidences: Sequence[float], is_right: Sequence[bool], max_error: float, sureness: float = 0.9
) -> float:
    """A confidence from which on few answers are wrong, as low as can be shown; `UNREACHABLE` if there is none.

    Few means: if more than a share of `max_error` of all such answers were wrong, so few wrong ones among so many
    would be seen with a probability of `1 - sureness` at most. Three right answers of three are no reason to trust.
    The surest answers are tested first, then more of them, at counts that are fixed beforehand; the first test that
    fails ends it. A scan that went on would hand out what luck showed at one of its many stops.
    """
    ranked = sorted(zip(confidences, is_right, strict=True), reverse=True)
    threshold, n_tested = UNREACHABLE, 0
    for stop in _test_counts(len(ranked), max_error, sureness):
        if stop <= n_tested:
            continue  # the answers before were as sure as these, and were tested with them
        # Equal confidences stand or fall together.
        n_tested = next((n for n in range(stop, len(ranked)) if ranked[n][0] < ranked[n - 1][0]), len(ranked))
        n_wrong = sum(not right for _, right in ranked[:n_tested])
        if _share_of_luck(n_wrong, n_tested, max_error) > 1 - sureness:
            break
        threshold = ranked[n_tested - 1][0]
    return threshold


def _test_counts(total: int, max_error: float, sureness: float) -> list[int]:
    """The least counts that show it with none wrong, with one, with two, and so on; and all answers, in the end."""
    counts, n_wrong = [], 0
    for count in range(1, total + 1):
        if _share_of_luck(n_wrong, count, max_error) <= 1 - sureness:
            counts.append(count)
            n_wrong += 1
    return [*counts, total] if counts and counts[-1] < total else counts


def error_bound(n_wrong: int, count: int, sureness: float = 0.9) -> float:
    """The largest share of wrong answers that is still plausible after so many of `count` (Clopper, Pearson, 1934)."""
    low, high = 0.0, 1.0
    if n_wrong >= count:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_of_luck(n_wrong, count, middle) > 1 - sureness else (low, middle)
    return high


def _share_of_luck(n_wrong: int, count: int, error: float) -> float:
    """How often at most `n_wrong` of `count` answers are wrong when each is wrong with probability `error`."""
    if error <= 0 or n_wrong >= count:
        return 1.0
    if error >= 1:
        return 0.0
    # In logarithms, because a binomial coefficient of hundreds exceeds what a float holds.
    total = 0.0
    for k in range(n_wrong + 1):
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(ways + k * math.log(error) + (count - k) * math.log1p(-error))
    return min(1.0, total)


def _logit(probability: float) -> float:
    clipped = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(clipped / (1 - clipped))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
