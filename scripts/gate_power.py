"""How often the gate promotes, refuses or cannot tell, for models that are equal or worse: simulated, old rule and new.

python -m scripts.gate_power                        the table, and docs/images/gate-power.svg; 1 where a bar is missed
python -m scripts.gate_power churn A.json B.json    how many verdicts differ between two results on the same cases
python -m scripts.gate_power coverage               how often Tango's one-sided bound holds the true loss
python -m scripts.gate_power threshold              how often a threshold of confidence promises what is not so

A retrained model that is equal passes other cases than the one before it: its churn. It is read from
docs/benchmarks/gate-churn.json, which holds what `churn` printed for models of this project. A worse model is simulated
as an equal one that fails further cases. The old rule is McNemar's exact test in each category of `core` and `dev`,
with no invalid call allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval.metrics import Wanted, mcnemar_exact, paired_score, wanted
from eval.results import load_result
from eval.suites import load_suite
from eval.suites.heldout import shares
from retraining.config import GateConfig
from retraining.gate import Pair, Verdict, is_invalid, judge_invalid, judge_losses
from tinydispatch.calibration import UNREACHABLE, error_bound, threshold_for

CHURN = Path("docs/benchmarks/gate-churn.json")
PICTURE = Path("docs/images/gate-power.svg")
_OLD_SIZES = (8,) * 5 + (24,) * 5  # core and dev
_OLD_LEVEL = 0.05
_WEEKS = 8


@dataclass(frozen=True)
class Churn:
    """Shares of cases on which two equal models differ, each half one way: passed, and answered with an invalid call.

    `invalid` is the share of invalid replies of either.
    """

    passed: float
    changed_invalid: float
    invalid: float


@dataclass(frozen=True)
class Shares:
    """What became of the simulated challengers."""

    promoted: float
    refused: float

    @property
    def inconclusive(self) -> float:
        """The rest."""
        return max(0.0, 1 - self.promoted - self.refused)

    def __str__(self) -> str:
        return f"{self.promoted:7.1%} {self.refused:8.1%} {self.inconclusive:13.1%}"


@dataclass(frozen=True)
class Decline:
    """A model that loses the same every week: the champion's loss after each week, and when it was first stopped."""

    losses: np.ndarray  # trials × weeks
    first_stop: np.ndarray  # by trial


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, and every bar is held; 1: one is missed; 2: a file cannot be read."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "churn":
            print(json.dumps(churn_of(*arguments.results), indent=2))
            return 0
        if arguments.command == "threshold":
            _print_thresholds(arguments.trials)
            return 0
        if arguments.command == "coverage":
            _print_coverage(arguments.trials)
            return 0
        measured = json.loads(CHURN.read_text("utf-8"))["used"]
    except (ValueError, OSError, TypeError, KeyError) as error:
        print(f"gate_power: {error}", file=sys.stderr)
        return 2
    churn = Churn(measured["passed"], measured["changed_invalid"], measured["invalid"])
    if arguments.churn is not None:
        churn = Churn(arguments.churn, churn.changed_invalid, churn.invalid)
    return _report(GateConfig(), churn, arguments.trials, arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gate_power", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("power", "churn", "coverage", "threshold"), default="power")
    parser.add_argument("results", nargs="*", type=Path, help="of churn: two result files of scripts.evaluate")
    parser.add_argument("--trials", type=int, default=4000, help="simulated challengers each (default: %(default)s)")
    parser.add_argument("--churn", type=float, help="another share of cases that pass with one of two equal models")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture (default: %(default)s)")
    return parser


def churn_of(first: Path, second: Path) -> dict[str, object]:
    """How two results on the same cases differ, in all and by what the cases ask for."""
    before, after = load_result(first), load_result(second)
    others = {case.id: case for case in after.cases}
    if before.suite_fingerprint != after.suite_fingerprint:
        raise ValueError(f"{first} and {second} are not on the same cases")
    counts: dict[str, list[int]] = {}
    for case in before.cases:
        other = others[case.id]
        row = [1, *map(int, map(bool, (case.is_correct, other.is_correct)))]
        row += [
            int(bool(case.is_correct) and not other.is_correct),
            int(bool(other.is_correct) and not case.is_correct),
        ]
        row += [int(is_invalid(case)), int(is_invalid(other)), int(is_invalid(case) != is_invalid(other))]
        for name in ("all", str(wanted(len(case.expected)))):
            counts[name] = [a + b for a, b in zip(counts.get(name, [0] * len(row)), row, strict=True)]
    names = (
        "cases",
        "first",
        "second",
        "only_first",
        "only_second",
        "invalid_first",
        "invalid_second",
        "invalid_changed",
    )
    found = {name: dict(zip(names, row, strict=True)) for name, row in counts.items()}
    return {"models": [before.model_name, after.model_name], "suite": before.suite, "counts": found}


@lru_cache
def sizes(suites: tuple[str, ...], generated: int, looks: int) -> tuple[dict[Wanted, int], ...]:
    """How many cases of each kind the gate has asked after each of its looks, without any of production."""
    have = dict.fromkeys(Wanted, 0)
    for name in suites:
        for case in load_suite(name).cases:
            have[wanted(len(case.expected))] += not case.parent
    found = []
    for _ in range(looks):
        more = shares(generated, have)
        have = {kind: have[kind] + more[kind] for kind in Wanted}
        found.append(have)
    return tuple(found)


def new_rule(config: GateConfig, churn: Churn, losses: Sequence[float], trials: int, seed: int = 0) -> Shares:
    """Challengers that lose so much in each kind of cases, as a share."""
    verdicts = [_new_verdict(config, churn, [losses], _rng(seed, i)) for i in range(trials)]
    return Shares(*(sum(v is kind for v in verdicts) / trials for kind in (Verdict.PROMOTE, Verdict.REFUSE)))


def _new_verdict(
    config: GateConfig, churn: Churn, opponents: Sequence[Sequence[float]], rng: np.random.Generator
) -> Verdict:
    verdict = Verdict.INCONCLUSIVE
    before = dict.fromkeys(Wanted, 0)
    pairs = [{kind: Pair(0, 0, 0) for kind in map(str, Wanted)} for _ in opponents]
    invalid = Pair(0, 0, 0)
    for have in sizes(config.suites, config.generated, config.looks):
        for mine, losses in zip(pairs, opponents, strict=True):
            for kind, loss in zip(Wanted, losses, strict=True):
                mine[kind] += _drawn(have[kind] - before[kind], churn.passed, loss, rng)
        invalid += _drawn(sum(have.values()) - sum(before.values()), churn.changed_invalid, 0.0, rng)
        before = have
        found = {v for mine in pairs for v in judge_losses(mine, config, len(opponents)).values()}
        found.add(judge_invalid(Pair(invalid.won, invalid.lost, invalid.total), config, len(Wanted), len(opponents)))
        if Verdict.REFUSE in found:
            return Verdict.REFUSE
        if found == {Verdict.PROMOTE}:
            return Verdict.PROMOTE
    return verdict


def _drawn(count: int, churn: float, loss: float, rng: np.random.Generator) -> Pair:
    lost, won = max(0.0, churn / 2 + max(loss, 0.0)), churn / 2 + max(-loss, 0.0)
    drawn = rng.multinomial(count, [lost, won, 1 - lost - won])
    return Pair(int(drawn[0]), int(drawn[1]), count)


def old_rule(churn: Churn, losses: Sequence[float], trials: int, seed: int = 0, *, invalid: bool = True) -> Shares:
    """The rule before: refused at McNemar's p < 0.05 in a category or a suite, or for one invalid call."""
    promoted = sum(_old_verdict(churn, losses, _rng(seed, i), invalid=invalid) for i in range(trials)) / trials
    return Shares(promoted, 1 - promoted)


def _old_verdict(churn: Churn, losses: Sequence[float], rng: np.random.Generator, *, invalid: bool) -> bool:
    pairs = [_drawn(count, churn.passed, loss, rng) for count, loss in zip(_OLD_SIZES, [*losses, *losses], strict=True)]
    suites = [sum(part, Pair(0, 0, 0)) for part in (pairs[:5], pairs[5:])]
    is_worse = any(p.lost > p.won and _p_value(p.lost, p.won) < _OLD_LEVEL for p in [*pairs, *suites])
    return not is_worse and not (invalid and rng.binomial(sum(_OLD_SIZES), churn.invalid))


@lru_cache(maxsize=1 << 16)
def _p_value(lost: int, won: int) -> float:
    return mcnemar_exact(lost, won)


def decline(config: GateConfig, churn: Churn, loss: float, trials: int, *, is_new: bool) -> Decline:
    """Every week a challenger that has lost so much again on whoever is champion."""
    losses = np.zeros((trials, _WEEKS))
    first = np.full(trials, _WEEKS + 1)
    n_written = sum(len(load_suite(name).cases) for name in config.suites)
    spread = float(np.sqrt(churn.passed / n_written)) if is_new else 0.0
    for trial in range(trials):
        rng = _rng(7, trial)
        line = [(0.0, rng.normal(0, spread))]
        for week in range(_WEEKS):
            now = line[-1][0]
            if is_new:
                # The best by its record, which is as uncertain as the written suites are small.
                best = max(line, key=lambda each: each[1] - each[0])[0]
                opponents = [[loss] * len(Wanted), *([[now + loss - best] * len(Wanted)] if best != now else [])]
                is_promoted = _new_verdict(config, churn, opponents, rng) is Verdict.PROMOTE
            else:
                is_promoted = _old_verdict(churn, [loss] * 5, rng, invalid=False)
            if is_promoted:
                line.append((now + loss, rng.normal(0, spread)))
            elif first[trial] > _WEEKS:
                first[trial] = week + 1
            losses[trial, week] = line[-1][0]
    return Decline(losses, first)


def _rng(seed: int, trial: int) -> np.random.Generator:
    return np.random.default_rng([seed, trial])


def _report(config: GateConfig, churn: Churn, trials: int, out: Path) -> int:
    looks = sizes(config.suites, config.generated, config.looks)
    print(f"churn {churn.passed:.1%}, invalid replies {churn.invalid:.2%} ({churn.changed_invalid:.2%} changed)")
    for number, have in enumerate(looks, 1):
        print(f"look {number}: {sum(have.values())} cases, " + ", ".join(f"{n} {kind}" for kind, n in have.items()))
    print(f"{trials} challengers each{'':<22} promoted  refused  inconclusive")
    scenarios = {
        "equal": (0.0,) * 3,
        "-2 everywhere": (0.02,) * 3,
        "-3 everywhere": (0.03,) * 3,
        "-5 everywhere": (0.05,) * 3,
        "-10 everywhere": (0.10,) * 3,
        "-10 in the kindest category": (0.10, 0.0, 0.0),
        "-20 in one category": (0.20, 0.0, 0.0),
    }
    found = {}
    for name, losses in scenarios.items():
        if name.startswith("-10 in"):
            rotated = [tuple(losses[(i + k) % 3] for i in range(3)) for k in range(3)]
            found[name] = max((new_rule(config, churn, each, trials) for each in rotated), key=lambda s: s.promoted)
        else:
            found[name] = new_rule(config, churn, losses, trials)
        old_losses = [losses[0], *losses[1:], *losses[1:]]
        print(f"{name:<34} new {found[name]}")
        print(f"{'':<34} old {old_rule(churn, old_losses, trials)}")
    for share in (0.05, 0.10, 0.15, 0.20, 0.30):
        found_there = new_rule(config, replace(churn, passed=share), (0.0,) * 3, trials)
        print(f"{f'equal, at a churn of {share:.0%}':<34} new {found_there}")
    print(f"{'equal, invalid calls left aside':<34} old {old_rule(churn, [0.0] * 5, trials, invalid=False)}")
    new, old = (decline(config, churn, 0.02, trials // 4, is_new=is_new) for is_new in (True, False))
    for name, each in (("new", new), ("old", old)):
        last = each.losses[:, -1]
        print(
            f"-2 a week, {name}: promoted in all {_WEEKS} weeks {np.mean(each.first_stop > _WEEKS):.1%}; the "
            f"champion has lost {100 * np.median(last):.0f} points in the median and "
            f"{100 * np.quantile(last, 0.95):.0f} in the worst of 20 cases; "
            f"first stopped in week {np.median(each.first_stop):.0f} (median), "
            f"by week {np.quantile(each.first_stop, 0.95):.0f} in 95 %"
        )
    bars = {
        "equal: promoted or inconclusive >= 85 %": 1 - found["equal"].refused >= 0.85,
        "equal: promoted >= 85 %": found["equal"].promoted >= 0.85,
        "equal: refused <= 5 %": found["equal"].refused <= 0.05,
        "-10 in one category: promoted <= 10 %": found["-10 in the kindest category"].promoted <= 0.10,
        "-5 everywhere: promoted <= 2 %": found["-5 everywhere"].promoted <= 0.02,
        "-2 a week: stopped within eight weeks": float(np.mean(new.first_stop > _WEEKS)) <= 0.01,
    }
    for name, is_held in bars.items():
        print(f"{'held' if is_held else 'MISSED':<7} {name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_picture(config, churn, new, old, max(200, trials // 4)), "utf-8")
    print(f"drawn: {out}")
    return int(not all(bars.values()))


def _print_coverage(trials: int) -> None:
    """How often the true loss lies above the upper bound at 95 %: it should, in 5 % of trials."""
    z = 1.6448536269514722
    print("cases  churn   loss   above the bound (5 % are meant)")
    for count in (32, 199, 597):
        for churn in (0.05, 0.10, 0.20):
            for loss in (0.0, 0.03, 0.10):
                if loss > churn + 0.05:
                    continue
                rng = _rng(3, count)
                drawn = (_drawn(count, churn, loss, rng) for _ in range(trials))
                missed = sum(paired_score(p.lost, p.won, p.total, loss) < -z for p in drawn)
                print(f"{count:5}  {churn:5.0%}  {loss:5.0%}   {missed / trials:.1%}")


def _print_thresholds(trials: int) -> None:
    """The old scan took the lowest confidence at which a test passed, the new one ends at the first that fails."""
    print("answers  truth                        scan   promised   replies above it   wrong among them")
    for count in (120, 400):
        for name, error in (("11 % wrong at any confidence", None), ("the surer, the righter", 0.3)):
            for scan in ("old", "new"):
                promised, above, wrong = 0, [], []
                for trial in range(trials):
                    rng = _rng(5, trial)
                    sure = rng.random(count)
                    chances = np.full(count, 0.89) if error is None else sure**error
                    right = rng.random(count) < chances
                    choose = _last_passing if scan == "old" else threshold_for
                    kept = sure >= choose(sure.tolist(), right.tolist(), 0.1, 0.9)
                    promised += bool(kept.any())
                    above.append(kept.mean())
                    wrong += [1 - chances[kept].mean()] if kept.any() else []
                shown = f"{np.mean(wrong):.1%}" if wrong else "-"
                print(f"{count:7}  {name:<28} {scan:<5} {promised / trials:9.1%} {np.mean(above):18.1%} {shown:>18}")


def _last_passing(confidences: Sequence[float], is_right: Sequence[bool], max_error: float, sureness: float) -> float:
    ranked = sorted(zip(confidences, is_right, strict=True), reverse=True)
    threshold, n_wrong = UNREACHABLE, 0
    for count, (confidence, right) in enumerate(ranked, 1):
        n_wrong += not right
        if error_bound(n_wrong, count, sureness) <= max_error:
            threshold = confidence
    return threshold


_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.t{font-weight:600;fill:#1c2330}.old{stroke:#c0362c;fill:#c0362c}"
    ".new{stroke:#1a7f4b;fill:#1a7f4b}.ref{stroke:#1a7f4b;stroke-dasharray:4 4}"
    ".oref{stroke:#c0362c;stroke-dasharray:4 4}"
    "polyline{fill:none!important;stroke-width:2.2}.grid{stroke:#d9dee7}"
)
_PANEL, _LEFT, _TOP, _PLOT = 330, 46, 44, (250, 190)


def _picture(config: GateConfig, churn: Churn, new: Decline, old: Decline, trials: int) -> str:
    points = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10]
    wide = [0.0, 0.03, 0.06, 0.10, 0.15, 0.20]
    everywhere = [(x, new_rule(config, churn, (x,) * 3, trials), old_rule(churn, [x] * 5, trials)) for x in points]
    one = [
        (x, new_rule(config, churn, (x, 0.0, 0.0), trials), old_rule(churn, [x, 0, 0, 0, 0], trials, invalid=False))
        for x in wide
    ]
    panels = [
        _panel(0, "promoted, by the loss everywhere", "points lost", 0.10, 1.0, {
            "new": [(x, n.promoted) for x, n, _ in everywhere], "old": [(x, o.promoted) for x, _, o in everywhere]}),
        _panel(1, "promoted, by the loss in one category", "points lost there", 0.20, 1.0, {
            "new": [(x, n.promoted) for x, n, _ in one], "old": [(x, o.promoted) for x, _, o in one]}),
        _panel(2, "the champion's loss at -2 a week", "weeks", _WEEKS / 100, 0.16, {
            name: [(week / 100, float(np.quantile(each.losses[:, week - 1], q)) if week else 0.0)
                   for week in range(_WEEKS + 1)]
            for name, each, q in (("new", new, 0.5), ("ref", new, 0.95), ("old", old, 0.5), ("oref", old, 0.95))}),
    ]  # fmt: skip
    legend = (
        f'<text x="{_LEFT}" y="18" class="t">The gate before (red) and now (green), at a churn of {churn.passed:.1%}; '
        "in the last panel the median, dashed the worst of 20</text>"
    )
    size = f'viewBox="0 0 {3 * _PANEL} {_TOP + _PLOT[1] + 56}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>{legend}{"".join(panels)}</svg>\n'


def _panel(
    index: int, title: str, below: str, most_x: float, most_y: float, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    left, (width, height) = index * _PANEL + _LEFT, _PLOT
    parts = [f'<text x="{left}" y="{_TOP - 6}" class="t">{title}</text>']
    for part in range(5):
        y, x = _TOP + height * (1 - part / 4), left + width * part / 4
        shown = f"{100 * most_y * part / 4:.0f}{' %' if most_y == 1 else ''}"
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{left + width}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
        below_x = f"{100 * most_x * part / 4:g}"
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{below_x}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{_TOP + height + 38}" text-anchor="middle">{below}</text>')
    for name, points in lines.items():
        at = [(left + width * x / most_x, _TOP + height * (1 - min(1.0, y / most_y))) for x, y in points]
        parts.append(f'<polyline class="{name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main())
