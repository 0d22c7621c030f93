"""What an evaluation found, as frozen types and as the JSON file in a run's `eval/` folder."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.matching import REMEDY, Outcome
from eval.metrics import Tally, tally, tally_by


class ResultError(ValueError):
    """A result file that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class CaseResult:
    """One case: the last user message, what was wanted, what came, and the verdict.

    `outcome` is None when the case was not scored; `explanation` then says why, and `got` is None. `latency_s` and
    `tokens` are those of the reply. Of a case that was played, `got` is the reply that decided, `latency_s` the mean
    of its replies, `tokens` their sum, `transcript` what was said after the case's messages, and `is_goal_reached`
    tells whether the final state was right, by whatever way. `parent` is the case that this one was derived from.
    `is_lenient_pass` is the verdict of the suite's other rule, where it has one.
    """

    id: str
    category: str
    prompt: str
    expected: tuple[Mapping[str, Any], ...]
    got: str | None
    outcome: Outcome | None
    explanation: str
    latency_s: float | None
    tokens: int | None
    parent: str = ""
    transcript: tuple[Mapping[str, Any], ...] = ()
    is_goal_reached: bool | None = None
    is_lenient_pass: bool | None = None

    @property
    def is_correct(self) -> bool | None:
        """Whether the case passed; None when it was not scored."""
        return None if self.outcome is None else self.outcome is Outcome.CORRECT


@dataclass(frozen=True)
class EvalResult:
    """One model on one suite. Results may be compared when their `suite_fingerprint` is the same.

    `draw` counts the runs of one sampling model from 1, None for a single run. `size_bytes` is that of the model's
    weights on disk, None where they lie somewhere else. `lenient_rule` names the suite's other rule, "" without one.
    """

    suite: str
    suite_fingerprint: str
    model_name: str
    categories: tuple[str, ...]
    cases: tuple[CaseResult, ...]
    draw: int | None = None
    size_bytes: int | None = None
    lenient_rule: str = ""

    @property
    def by_category(self) -> dict[str, Tally]:
        """Counts per category, in the suite's order."""
        return tally_by([(case.category, case.is_correct) for case in self.cases], self.categories)

    @property
    def overall(self) -> Tally:
        """Counts over all cases."""
        return tally([case.is_correct for case in self.cases])

    @property
    def lenient_by_category(self) -> dict[str, Tally]:
        """Counts per category by the suite's other rule; empty without one."""
        if not self.lenient_rule:
            return {}
        return tally_by([(case.category, case.is_lenient_pass) for case in self.cases], self.categories)

    @property
    def median_latency_s(self) -> float | None:
        """Median over the cases that have a reply."""
        latencies = [case.latency_s for case in self.cases if case.latency_s is not None]
        return statistics.median(latencies) if latencies else None

    @property
    def tokens_per_reply(self) -> float | None:
        """Mean over all replies, those of played cases counted one by one; None without any, or where none is known."""
        answered = [case for case in self.cases if case.tokens is not None]
        replies = sum(max(1, sum(turn["role"] == "assistant" for turn in case.transcript)) for case in answered)
        tokens = sum(case.tokens or 0 for case in answered)
        return tokens / replies if tokens else None

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How often each outcome other than `correct` occurred, most frequent first."""
        counts = Counter(case.outcome for case in self.cases if case.outcome not in (None, Outcome.CORRECT))
        return {outcome: count for outcome, count in counts.most_common() if outcome is not None}

    @property
    def goals_reached(self) -> Tally | None:
        """Of played cases, how many led to the right final state by whatever way; None without played cases."""
        played = [case for case in self.cases if case.transcript]
        return tally([case.is_goal_reached for case in played]) if played else None

    def verdicts(self) -> dict[str, bool | None]:
        """Passed, failed or not scored, by case id."""
        return {case.id: case.is_correct for case in self.cases}

    def to_json(self) -> dict[str, Any]:
        """The file's content; `summary` is derived from `cases`."""
        return {
            "suite": self.suite,
            "suite_fingerprint": self.suite_fingerprint,
            "model": self.model_name,
            **({"draw": self.draw} if self.draw is not None else {}),
            **({"size_bytes": self.size_bytes} if self.size_bytes is not None else {}),
            **({"lenient_rule": self.lenient_rule} if self.lenient_rule else {}),
            "summary": {
                "overall": self.overall.to_json(),
                "categories": {name: count.to_json() for name, count in self.by_category.items()},
                "failures": {
                    str(outcome): {"count": count, "remedy": REMEDY[outcome]}
                    for outcome, count in self.outcomes.items()
                },
                "median_latency_s": self.median_latency_s,
                **({"goals_reached": self.goals_reached.to_json()} if self.goals_reached is not None else {}),
            },
            "cases": [case_to_json(case) for case in self.cases],
        }

    def save(self, folder: Path) -> Path:
        """Write `<suite>-<model>.json`, or `…-draw<n>.json`, whole or not at all; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{result_stem(self.suite, self.model_name, self.draw)}.json"
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n"
        partial = path.with_suffix(".json.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path


def load_result(path: Path) -> EvalResult:
    """Read what `EvalResult.save` wrote.

    Raises:
        ResultError: no such file, or not a result.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        cases = tuple(case_from_json(case) for case in value["cases"])
        categories = tuple(value["summary"]["categories"])
        names = value["suite"], value["suite_fingerprint"], value["model"]
        return EvalResult(
            *names, categories, cases, value.get("draw"), value.get("size_bytes"), value.get("lenient_rule", "")
        )
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise ResultError(f"{path}: no evaluation result: key {error} is missing") from error
    except (ValueError, TypeError) as error:
        raise ResultError(f"{path}: no evaluation result: {error}") from error


def case_to_json(case: CaseResult) -> dict[str, Any]:
    """A case as files hold it."""
    return {
        **vars(case),
        "expected": list(case.expected),
        "outcome": case.outcome or "unscored",
        "transcript": list(case.transcript),
    }


def case_from_json(value: dict[str, Any]) -> CaseResult:
    """What `case_to_json` wrote."""
    outcome = None if value["outcome"] == "unscored" else Outcome(value["outcome"])
    transcript = tuple(value.get("transcript", ()))
    return CaseResult(**{**value, "expected": tuple(value["expected"]), "outcome": outcome, "transcript": transcript})


def result_stem(suite: str, model_name: str, draw: int | None) -> str:
    """The name of a result's file without its ending."""
    return f"{file_name(suite)}-{file_name(model_name)}{'' if draw is None else f'-draw{draw}'}"


def file_name(name: str) -> str:
    """A model's or suite's name as part of a file name: hub ids have slashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_") or "unnamed"
