"""`python -m scripts.calibrate_dispatch MODEL.gguf`: how far a model's confidence can be believed, and from where on.

Fits the calibration on a suite's cases, prints calibration error and error at falling coverage, and writes
`MODEL.calibration.json`, which the dispatcher reads beside the model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.backends import Generation
from eval.cases import Suite, load_suite
from eval.evaluate import score_generation
from tinydispatch.confidence import (
    Calibration,
    calibration_error,
    calibration_path,
    fit_calibration,
    reply_confidence,
)
from tinydispatch.engine import Engine
from tinydispatch.formats import parse_reply, with_reference_date
from tinydispatch.ggml.open import open_model

_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print and write; 0: done, 2: bad input or nothing to learn."""
    arguments = _parser().parse_args(argv)
    try:
        with open_model(arguments.model, 4096, arguments.threads) as runtime:
            engine = Engine(runtime)
            probabilities, is_right = _replies(engine, load_suite(arguments.suite))
            fitted = fit_calibration(probabilities, is_right)
            threshold = _threshold([fitted(value) for value in probabilities], is_right, arguments.max_error)
            calibration = Calibration(fitted.slope, fitted.intercept, threshold)
            print(f"fitted on {arguments.suite}:")
            print(_report(calibration, probabilities, is_right))
            for name in arguments.check:
                print(f"\nchecked on {name}:")
                print(_report(calibration, *_replies(engine, load_suite(name))))
    except ValueError as error:
        print(f"calibrate_dispatch: {error}", file=sys.stderr)
        return 2
    path = arguments.out or calibration_path(arguments.model)
    calibration.save(path)
    print(f"\nwritten to {path}: below a confidence of {threshold:.3f} a reply should be handed up")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.calibrate_dispatch", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--suite", default="dev", help="cases to fit on (default: dev)")
    parser.add_argument("--check", action="append", default=[], metavar="SUITE", help="report on this suite, too")
    parser.add_argument(
        "--max-error", type=float, default=0.1, help="the share of wrong replies that is acceptable (default: 0.1)"
    )
    parser.add_argument("--out", type=Path, help="write here instead of beside the model")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    return parser


def _replies(engine: Engine, suite: Suite, max_new_tokens: int = 384) -> tuple[list[float], list[bool]]:
    """The uncalibrated confidence of each reply, and whether it was right."""
    probabilities, is_right = [], []
    for case in suite.cases:
        if case.episode:
            continue
        tools = suite.tools_for(case)
        done = engine.complete(with_reference_date(case.messages, case.reference_date), tools, max_new_tokens)
        generation = Generation(done.text, 0.0, done.tokens.generated, done.is_complete)
        probabilities.append(reply_confidence(done.choices, has_calls=bool(parse_reply(done.text).calls)))
        is_right.append(score_generation(generation, case, tools).is_correct)
    return probabilities, is_right


def _threshold(confidences: Sequence[float], is_right: Sequence[bool], max_error: float) -> float:
    """The lowest confidence at and above which at most that share of replies is wrong; above all when none is."""
    ranked = sorted(zip(confidences, is_right, strict=True), reverse=True)
    threshold, wrong = 1.0, 0
    for count, (confidence, right) in enumerate(ranked, 1):
        wrong += not right
        if wrong <= max_error * count:
            threshold = confidence
    return threshold


def _report(calibration: Calibration, probabilities: Sequence[float], is_right: Sequence[bool]) -> str:
    confidences = [calibration(value) for value in probabilities]
    ranked = [right for _, right in sorted(zip(confidences, is_right, strict=True), key=lambda pair: -pair[0])]
    lines = [
        f"{len(ranked)} cases, {sum(is_right)} right; expected calibration error "
        f"{calibration_error(probabilities, is_right):.3f} as the model says it, "
        f"{calibration_error(confidences, is_right):.3f} calibrated",
        "coverage  kept  wrong  error",
    ]
    for coverage in _COVERAGES:
        kept = ranked[: max(1, round(coverage * len(ranked)))]
        wrong = len(kept) - sum(kept)
        lines.append(f"{coverage:>8.0%}{len(kept):>6}{wrong:>7}{wrong / len(kept):>7.0%}")
    above = [
        right for confidence, right in zip(confidences, is_right, strict=True) if confidence >= calibration.threshold
    ]
    lines.append(f"at the threshold: {len(above)} kept, {len(above) - sum(above)} wrong")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
