"""`python -m scripts.calibrate_dispatch MODEL.gguf`: how far a model's confidence can be believed, and from where on.

Fits the scales of replies, tool choices and arguments on a suite's cases, and prints for each how far confidence and
accuracy lie apart. For replies it prints how error falls as coverage falls, and the threshold that keeps it acceptable.
All figures about the suite that was fitted on are cross-validated: each case is judged by scales that were fitted
without it. Written is `MODEL.calibration.json`, which the dispatcher reads beside the model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.backends import Generation
from eval.cases import Case, Suite, load_suite
from eval.evaluate import score_generation
from eval.matchers import accepts, pair_up
from eval.matching import fits
from tinydispatch.calibration import (
    UNREACHABLE,
    Calibration,
    Scale,
    calibration_error,
    calibration_path,
    fit_scale,
    threshold_for,
)
from tinydispatch.confidence import CallConfidence, call_confidences, reply_confidence
from tinydispatch.dispatcher import model_fingerprint
from tinydispatch.engine import Engine
from tinydispatch.formats import parse_reply, with_reference_date
from tinydispatch.ggml.open import open_model
from tinydispatch.tools import Tool, ToolCall

_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_N_FOLDS = 10
_PROGRESS_S = 10.0


@dataclass
class Judged:
    """Answers of one kind: the product of probabilities of each, whether it was right, and of which case it is."""

    probabilities: list[float] = field(default_factory=list)
    is_right: list[bool] = field(default_factory=list)
    cases: list[int] = field(default_factory=list)

    def add(self, probability: float, case: int, *, is_right: bool) -> None:
        """One answer more."""
        self.probabilities.append(probability)
        self.is_right.append(is_right)
        self.cases.append(case)

    def fitted(self) -> Scale:
        """The scale fitted to all of them."""
        return fit_scale(self.probabilities, self.is_right)

    def cross_validated(self) -> list[float]:
        """The confidence of each by a scale that was fitted to the other cases."""
        confidences = [0.0] * len(self.cases)
        for fold in range(_N_FOLDS):
            kept = [index for index, case in enumerate(self.cases) if case % _N_FOLDS != fold]
            held = [index for index, case in enumerate(self.cases) if case % _N_FOLDS == fold]
            scale = fit_scale([self.probabilities[index] for index in kept], [self.is_right[index] for index in kept])
            for index in held:
                confidences[index] = scale(self.probabilities[index])
        return confidences


@dataclass
class Replies:
    """What a model answered to a suite, judged as a whole, by its choice of tools, and by its arguments."""

    reply: Judged = field(default_factory=Judged)
    tool: Judged = field(default_factory=Judged)
    argument: Judged = field(default_factory=Judged)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print and write; 0: done, 2: bad input or nothing to learn."""
    arguments = _parser().parse_args(argv)
    try:
        suites = [load_suite(name) for name in (arguments.suite, *arguments.check)]
        with open_model(arguments.model, 4096, arguments.threads) as runtime:
            fitted_on, *checked = [answers(Engine(runtime), suite) for suite in suites]
            calibration, report = fit(fitted_on, arguments.max_error, model_fingerprint(runtime))
    except ValueError as error:
        print(f"calibrate_dispatch: {error}", file=sys.stderr)
        return 2
    print(f"fitted on {arguments.suite}, cross-validated:\n{report}")
    for name, replies in zip(arguments.check, checked, strict=True):
        print(f"\nchecked on {name}, by the scales fitted on {arguments.suite}:\n{check(replies, calibration)}")
    path = arguments.out or calibration_path(arguments.model)
    calibration.save(path)
    print(f"\nwritten to {path}: {_advice(calibration.threshold, arguments.max_error)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.calibrate_dispatch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--suite", default="dev", help="cases to fit on (default: dev)")
    parser.add_argument("--check", action="append", default=[], metavar="SUITE", help="report on this suite, too")
    parser.add_argument(
        "--max-error", type=float, default=0.1, help="the share of wrong replies that is acceptable (default: 0.1)"
    )
    parser.add_argument("--out", type=Path, help="write here instead of beside the model")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    return parser


def answers(engine: Engine, suite: Suite, max_new_tokens: int = 384) -> Replies:
    """A reply to each of the suite's cases that ask for one."""
    replies = Replies()
    cases = [case for case in suite.cases if not case.episode]
    said = time.monotonic()
    for number, case in enumerate(cases):
        if time.monotonic() - said > _PROGRESS_S:
            said = time.monotonic()
            print(f"{suite.name}: {number} of {len(cases)}", file=sys.stderr)
        tools = suite.tools_for(case)
        done = engine.complete(with_reference_date(case.messages, case.reference_date), tools, max_new_tokens)
        calls = parse_reply(done.text).calls
        generation = Generation(done.text, 0.0, done.tokens.generated, done.is_complete)
        is_right = score_generation(generation, case, tools).is_correct
        replies.reply.add(reply_confidence(done.choices, has_calls=bool(calls)), number, is_right=is_right)
        confidences = call_confidences(done.text, done.choices)
        if len(confidences) == len(calls):
            _judge_calls(replies, number, case, tools, calls, confidences)
    return replies


def _judge_calls(
    replies: Replies,
    number: int,
    case: Case,
    tools: Sequence[Tool],
    calls: Sequence[ToolCall],
    confidences: Sequence[CallConfidence],
) -> None:
    """A tool is right if a call to it is wanted; an argument, if the wanted call that it stands beside takes it."""
    by_name = {tool.name: tool for tool in tools}
    # First the calls that are right as a whole, so that of two calls to one tool each meets its own.
    pairs = pair_up(case.expected, calls, lambda wanted, got: fits(wanted, got, by_name))
    owners = {index: wanted for wanted, index in pairs.items()}
    for index, (call, confidence) in enumerate(zip(calls, confidences, strict=True)):
        free = (
            other
            for other, wanted in enumerate(case.expected)
            if wanted.name == call.name and other not in owners.values()
        )
        if index not in owners and (found := next(free, None)) is not None:
            owners[index] = found
        replies.tool.add(confidence.tool, number, is_right=index in owners)
        if index not in owners:
            continue
        expected = case.expected[owners[index]].arguments
        properties = by_name[call.name].parameters.get("properties", {})
        for name, value in call.arguments.items():
            is_right = name in expected and accepts(expected[name], value, properties.get(name, {}))
            replies.argument.add(confidence.arguments[name], number, is_right=is_right)


def fit(replies: Replies, max_error: float, model: str = "") -> tuple[Calibration, str]:
    """The calibration, and the report of its cross-validation.

    Raises:
        ValueError: one kind of answers was always right, or always wrong.
    """
    scales, crossed, lines = {}, {}, []
    for name, judged in vars(replies).items():
        try:
            scales[name], crossed[name] = judged.fitted(), judged.cross_validated()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        lines.append(_error_line(name, judged, crossed[name]))
    threshold = threshold_for(crossed["reply"], replies.reply.is_right, max_error)
    lines.append(_coverage(crossed["reply"], replies.reply.is_right, threshold))
    calibration = Calibration(scales["reply"], scales["tool"], scales["argument"], threshold, model)
    return calibration, "\n".join(lines)


def check(replies: Replies, calibration: Calibration) -> str:
    """The same figures for cases that had no part in the calibration."""
    lines = []
    for name, judged in vars(replies).items():
        scale = getattr(calibration, name)
        lines.append(_error_line(name, judged, [scale(value) for value in judged.probabilities]))
    confidences = [calibration.reply(value) for value in replies.reply.probabilities]
    return "\n".join([*lines, _coverage(confidences, replies.reply.is_right, calibration.threshold)])


def _error_line(name: str, judged: Judged, confidences: Sequence[float]) -> str:
    if not judged.is_right:
        return f"{name:<9}none"
    return (
        f"{name:<9}{len(judged.is_right):>5}, {sum(judged.is_right)} right; expected calibration error "
        f"{calibration_error(judged.probabilities, judged.is_right):.3f} as the model says it, "
        f"{calibration_error(confidences, judged.is_right):.3f} calibrated"
    )


def _coverage(confidences: Sequence[float], is_right: Sequence[bool], threshold: float) -> str:
    ranked = [right for _, right in sorted(zip(confidences, is_right, strict=True), key=lambda pair: -pair[0])]
    lines = ["coverage  kept  wrong  error"]
    for coverage in _COVERAGES:
        kept = ranked[: max(1, round(coverage * len(ranked)))]
        n_wrong = len(kept) - sum(kept)
        lines.append(f"{coverage:>8.0%}{len(kept):>6}{n_wrong:>7}{n_wrong / len(kept):>7.0%}")
    above = [right for confidence, right in zip(confidences, is_right, strict=True) if confidence >= threshold]
    lines.append(f"at the threshold: {len(above)} of {len(ranked)} kept, {len(above) - sum(above)} wrong")
    return "\n".join(lines)


def _advice(threshold: float, max_error: float) -> str:
    if threshold == UNREACHABLE:
        return f"at no confidence are at most {max_error:.0%} of the replies wrong, so every reply should be handed up"
    return f"below a confidence of {threshold:.3f} a reply should be handed up"


if __name__ == "__main__":
    sys.exit(main())
