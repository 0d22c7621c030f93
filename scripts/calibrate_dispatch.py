"""`python -m scripts.calibrate_dispatch MODEL.gguf`: how far a model's confidence can be believed, and from where on.

Fits the scales of replies, tool choices and arguments on a suite's cases, and prints for each how far confidence and
accuracy lie apart. For replies it prints how error falls as coverage falls, and the threshold that keeps it acceptable.
A kind of answers that was never wrong (or never right) keeps the model's own scale, and the report says so.
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
from eval.cases import Case, Suite
from eval.evaluate import score_generation
from eval.matchers import accepts, pair_up
from eval.matching import fits
from eval.suites import load_suite
from scripts.calibration_figures import coverage, reliability, summary
from tinydispatch.calibration import UNREACHABLE, Calibration, Scale, calibration_path, fit_scale, threshold_for
from tinydispatch.confidence import CallConfidence, call_confidences, reply_confidence
from tinydispatch.dispatcher import model_fingerprint
from tinydispatch.engine import Engine
from tinydispatch.formats import parse_reply, with_reference_date
from tinydispatch.ggml.open import open_model
from tinydispatch.tools import Tool, ToolCall

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

    def fitted(self) -> tuple[Scale, str]:
        """The scale fitted to all of them; or, with the reason, one that changes nothing."""
        return _fit(self.probabilities, self.is_right)

    def cross_validated(self) -> list[float]:
        """The confidence of each by a scale that was fitted to the other cases."""
        confidences = [0.0] * len(self.cases)
        for fold in range(_N_FOLDS):
            kept = [index for index, case in enumerate(self.cases) if case % _N_FOLDS != fold]
            held = [index for index, case in enumerate(self.cases) if case % _N_FOLDS == fold]
            scale, _ = _fit([self.probabilities[index] for index in kept], [self.is_right[index] for index in kept])
            for index in held:
                confidences[index] = scale(self.probabilities[index])
        return confidences


def _fit(probabilities: Sequence[float], is_right: Sequence[bool]) -> tuple[Scale, str]:
    try:
        return fit_scale(probabilities, is_right), ""
    except ValueError as error:
        return Scale(), str(error)


@dataclass
class Replies:
    """What a model answered to a suite, judged as a whole, by its choice of tools, and by its arguments.

    The calls of `n_unread` replies have a form in which confidences cannot be told apart; they count as a whole alone.
    """

    reply: Judged = field(default_factory=Judged)
    tool: Judged = field(default_factory=Judged)
    argument: Judged = field(default_factory=Judged)
    n_unread: int = 0

    def kinds(self) -> dict[str, Judged]:
        """By the names that a calibration has for their scales."""
        return {"reply": self.reply, "tool": self.tool, "argument": self.argument}


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print and write; 0: done, 2: bad input or nothing to learn."""
    arguments = _parser().parse_args(argv)
    try:
        for name in ("max_error", "sureness"):
            if not 0 < (share := getattr(arguments, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {share:g}: must lie between 0 and 1")
        suites = [load_suite(name) for name in (arguments.suite, *arguments.check)]
        with open_model(arguments.model, 4096, arguments.threads) as runtime:
            fitted_on, *checked = [answers(Engine(runtime), suite) for suite in suites]
            fingerprint = model_fingerprint(runtime)
            calibration, report = fit(fitted_on, arguments.max_error, arguments.sureness, fingerprint)
    except ValueError as error:
        print(f"calibrate_dispatch: {error}", file=sys.stderr)
        return 2
    print(f"fitted on {arguments.suite}, cross-validated:\n{report}")
    for name, replies in zip(arguments.check, checked, strict=True):
        print(
            f"\nchecked on {name}, by the scales fitted on {arguments.suite}:\n"
            f"{check(replies, calibration, arguments.sureness)}"
        )
    path = arguments.out or calibration_path(arguments.model)
    calibration.save(path)
    print(f"\nwritten to {path}: {_advice(calibration.threshold, arguments)}")
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
    parser.add_argument(
        "--sureness", type=float, default=0.9, help="how sure the threshold must be of that share (default: 0.9)"
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
        done = engine.complete(with_reference_date(case.messages, case.today), tools, max_new_tokens)
        calls = parse_reply(done.text, tools).calls
        generation = Generation(done.text, 0.0, done.tokens.generated, done.is_complete)
        is_right = score_generation(generation, case, tools).is_correct
        replies.reply.add(reply_confidence(done.choices, has_calls=bool(calls)), number, is_right=is_right)
        confidences = call_confidences(done.text, done.choices)
        if len(confidences) == len(calls):
            _judge_calls(replies, number, case, tools, calls, confidences)
        else:
            replies.n_unread += 1
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


def fit(replies: Replies, max_error: float, sureness: float = 0.9, model: str = "") -> tuple[Calibration, str]:
    """The calibration, and the report of its cross-validation.

    Raises:
        ValueError: there is no reply to learn from.
    """
    if not replies.reply.is_right:
        raise ValueError("the suite asks for no reply, so there is nothing to calibrate on")
    scales, lines = {}, []
    for name, judged in replies.kinds().items():
        scales[name], problem = judged.fitted()
        lines.append(summary(name, judged.probabilities, judged.cross_validated(), judged.is_right))
        if problem:
            lines.append(f"{'':<9}{'':>5}  keeps the model's own scale: {problem}")
    if replies.n_unread:
        lines.append(
            f"{replies.n_unread} replies have calls whose parts cannot be told apart; they count as a whole alone"
        )
    crossed, is_right = replies.reply.cross_validated(), replies.reply.is_right
    threshold = threshold_for(crossed, is_right, max_error, sureness)
    lines += [reliability(crossed, is_right), coverage(crossed, is_right, threshold, sureness)]
    return Calibration(**scales, threshold=threshold, model=model), "\n".join(lines)


def check(replies: Replies, calibration: Calibration, sureness: float = 0.9) -> str:
    """The same figures for cases that had no part in the calibration."""
    lines = []
    for name, judged in replies.kinds().items():
        scale = getattr(calibration, name)
        lines.append(summary(name, judged.probabilities, list(map(scale, judged.probabilities)), judged.is_right))
    confidences, is_right = list(map(calibration.reply, replies.reply.probabilities)), replies.reply.is_right
    lines += [reliability(confidences, is_right), coverage(confidences, is_right, calibration.threshold, sureness)]
    return "\n".join(lines)


def _advice(threshold: float, arguments: argparse.Namespace) -> str:
    few = f"at most {arguments.max_error:.0%} of the replies wrong ({arguments.sureness:.0%} sure)"
    if threshold == UNREACHABLE:
        return f"at no confidence are {few}, so every reply should be handed up"
    return f"below a confidence of {threshold:.3f} a reply should be handed up; above it are {few}"


if __name__ == "__main__":
    sys.exit(main())
