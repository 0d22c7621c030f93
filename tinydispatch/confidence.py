"""How sure a model was of each call: probabilities of the choices that the grammar left it, and their calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinydispatch.decoding.greedy import Choice
from tinydispatch.formats import CALL_END, CALL_START

_DECODER = json.JSONDecoder()
_ARGUMENTS = ', "arguments": '
# Beside the model file: `model.gguf` → `model.calibration.json`.
_SUFFIX = ".calibration.json"
_LEAST = 1e-9


@dataclass(frozen=True)
class CallConfidence:
    """Products of probabilities, from 0 to 1: of the tool's choice, of each argument, and of all choices in the call.

    `tool` includes the decision to call at all; an argument's includes the decision to give it.
    """

    tool: float
    arguments: Mapping[str, float]
    call: float


def call_confidences(text: str, choices: Sequence[Choice]) -> tuple[CallConfidence, ...]:
    """One confidence for each complete call of a reply; every choice counts where its text begins."""
    found = []
    start = 0
    while (marker := text.find(CALL_START, start)) >= 0:
        end = text.find(CALL_END, marker)
        if end < 0:
            break
        spans = _spans(text, marker + len(CALL_START), end)
        if spans is not None:
            name_end, arguments = spans
            found.append(
                CallConfidence(
                    tool=_product(text, choices, start, name_end),
                    arguments={key: _product(text, choices, *span) for key, span in arguments.items()},
                    call=_product(text, choices, start, end + len(CALL_END)),
                )
            )
        start = end + len(CALL_END)
    return tuple(found)


def reply_confidence(choices: Sequence[Choice], *, has_calls: bool) -> float:
    """Of a reply with calls, all its choices together; of one in words, the first: to speak and not to call."""
    if not has_calls:
        return choices[0].probability if choices else 1.0
    return math.prod(choice.probability for choice in choices)


def _product(text: str, choices: Sequence[Choice], start: int, end: int) -> float:
    first, last = len(text[:start].encode()), len(text[:end].encode())
    return math.prod(choice.probability for choice in choices if first <= choice.position < last)


def _spans(text: str, start: int, end: int) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """Where a call's name ends, and where each argument stands with what leads to it; None for what is no call."""
    try:
        opening = text.index('"name": ', start, end)
        _, name_end = _DECODER.raw_decode(text, opening + len('"name": '))
        if not text.startswith(_ARGUMENTS + "{", name_end):
            return None
        return name_end, dict(_members(text, name_end + len(_ARGUMENTS) + 1))
    except ValueError:
        return None


def _members(text: str, position: int) -> Iterator[tuple[str, tuple[int, int]]]:
    while text[position] != "}":
        key_start = position + 2 if text.startswith(", ", position) else position
        key, key_end = _DECODER.raw_decode(text, key_start)
        _, value_end = _DECODER.raw_decode(text, key_end + len(": "))
        yield key, (position, value_end)
        position = value_end


@dataclass(frozen=True)
class Calibration:
    """From the product of probabilities to the share of such replies that were right on the cases it was fitted to.

    `sigmoid(slope * log(p / (1 - p)) + intercept)` (Platt, 1999). Below `threshold` a reply should be handed up.
    """

    slope: float = 1.0
    intercept: float = 0.0
    threshold: float = 0.0

    def __call__(self, probability: float) -> float:
        """The calibrated confidence."""
        return _sigmoid(self.slope * _logit(probability) + self.intercept)

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
        fields = {key: float(value[key]) for key in ("slope", "intercept", "threshold")}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected numbers 'slope', 'intercept' and 'threshold': {error}") from error
    return Calibration(**fields)


def fit_calibration(probabilities: Sequence[float], is_right: Sequence[bool], steps: int = 100) -> Calibration:
    """Platt scaling by Newton's method, with his smoothed targets, so that few cases do not make it certain.

    Raises:
        ValueError: all replies were right, or none was: nothing can be learned.
    """
    n_right = sum(is_right)
    n_wrong = len(is_right) - n_right
    if not n_right or not n_wrong:
        raise ValueError(f"cannot calibrate on {n_right} right and {n_wrong} wrong replies: both kinds are needed")
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
    return Calibration(slope, intercept)


def calibration_error(probabilities: Sequence[float], is_right: Sequence[bool], n_bins: int = 10) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, averaged over bins of equal width."""
    total = 0.0
    for index in range(n_bins):
        inside = [
            (probability, right)
            for probability, right in zip(probabilities, is_right, strict=True)
            if min(int(probability * n_bins), n_bins - 1) == index
        ]
        total += abs(sum(probability for probability, _ in inside) - sum(right for _, right in inside))
    return total / len(probabilities)


def _logit(probability: float) -> float:
    clipped = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(clipped / (1 - clipped))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
