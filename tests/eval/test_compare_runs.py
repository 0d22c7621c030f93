"""Paired comparison as a command, floors for CI, and the report's sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from eval.backends import PlaybackBackend
from eval.cases import Suite
from eval.comparison import ComparisonError, pair_runs, reply_lines
from eval.evaluate import evaluate
from eval.matching import REMEDY, Outcome
from eval.report import print_report
from eval.results import EvalResult, load_result
from eval.suites import load_suite
from scripts import compare_runs
from scripts import evaluate as evaluate_script
from tests.eval.gold_answers import gold_calls
from tinydispatch.formats import render_calls

DEV = load_suite("dev")
GOLD = {prompt: render_calls(calls) or "What do you mean?" for prompt, calls in gold_calls(DEV).items()}


def run(name: str, *, failing: int = 0, suite: Suite = DEV, draw: int | None = None) -> EvalResult:
    """A model that answers all but the first `failing` cases."""
    replies = GOLD | {case.prompt: "No idea." for case in DEV.cases[:failing]}
    return replace(evaluate(PlaybackBackend(replies), suite, model_name=name, progress=False), draw=draw)


def report_of(*results: EvalResult, show_outcomes: bool = False) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        print_report(results, console, show_outcomes=show_outcomes)
    return captured.get()


Saved = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(name: str, failing: int = 0) -> str:
        return str(run(name, failing=failing).save(tmp_path))

    return save


def test_two_files_are_compared_case_by_case(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    files = saved("good", failing=2), saved("bad", failing=14)
    assert evaluate_script.main(["compare", *files]) == 0
    out = capsys.readouterr().out
    assert "B − A = -10.0 points, 95 % interval" in out
    assert "McNemar's exact p = 0.0005" in out, "2 × 1/2^12"
    assert "B fails, A passes (12):" in out
    assert f"12 × no_call: {REMEDY[Outcome.NO_CALL]}"[:60] in out
    assert "118/120" in out
    assert compare_runs.main([*files, "--fail-if-worse"]) == 1
    assert compare_runs.main([*files[::-1], "--fail-if-worse"]) == 0


def test_a_loss_within_chance_does_not_count_as_worse(saved: Saved) -> None:
    assert compare_runs.main([saved("a"), saved("b", failing=3), "--fail-if-worse"]) == 0


def test_what_cannot_be_compared_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run("good")
    cases = (replace(good.cases[0], outcome=None), *good.cases[1:])
    others = {
        "no rate over an unknown number of cases: ts-01 have no verdict; run them again": replace(good, cases=cases),
        "evaluate both models again": replace(good, suite_fingerprint="0"),
        "one result is on suite 'dev', the other on 'core'": replace(good, suite="core"),
    }
    first = good.save(tmp_path)
    for index, (message, other) in enumerate(others.items()):
        second = other.save(tmp_path / str(index))
        assert compare_runs.main([str(first), str(second)]) == 2
        assert message in capsys.readouterr().err
    assert compare_runs.main([str(first), str(tmp_path / "absent.json")]) == 2
    assert "absent.json: cannot be read" in capsys.readouterr().err


def test_derived_cases_are_resampled_by_parent_and_mcnemar_is_left_out() -> None:
    result = run("m")
    cases = tuple(replace(case, parent=case.id[:4]) for case in result.cases)
    runs = pair_runs(replace(result, cases=cases), replace(result, cases=cases))
    assert runs.p_value is None
    assert runs.difference.clusters == len({case.parent for case in cases}) < 120
    with pytest.raises(ComparisonError):
        pair_runs(result, replace(result, cases=cases[:-1]))


def test_the_report_names_each_outcome_with_its_remedy() -> None:
    text = report_of(run("a", failing=5), run("b"), show_outcomes=True)
    row = next(line for line in text.splitlines() if line.startswith("no_call"))
    assert row.split()[1] == "5"
    assert REMEDY[Outcome.NO_CALL] in row
    assert "remedy" not in report_of(run("b"), show_outcomes=True), "nothing failed"


def test_the_report_says_what_perturbations_cost_and_keeps_them_out_of_mcnemar(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text('{"name": "mine", "derived_from": "dev"}')
    derived = load_suite(tmp_path)
    replies = {
        case.prompt: GOLD[parent.prompt] for case in derived.cases for parent in DEV.cases if parent.id == case.parent
    }
    replies |= {case.prompt: "No idea." for case in derived.cases if case.category == "typos"}
    result = evaluate(PlaybackBackend(replies), derived, model_name="m", progress=False)
    text = report_of(run("m", failing=10), result, replace(result, model_name="n"))
    line = next(line for line in text.splitlines() if "still passes" in line)
    assert line.startswith("m: of the dev cases that it passes unchanged, it still passes: typos ")
    assert "typos 88/88" not in line
    assert "fillers 110/110" in line
    assert "n against m" not in text


def test_draws_of_one_model_give_pass_hat_k(tmp_path: Path) -> None:
    draws = [run("m", failing=failing, draw=number + 1) for number, failing in enumerate((0, 60, 60))]
    paths = [draw.save(tmp_path) for draw in draws]
    assert [path.name for path in paths] == [f"dev-m-draw{number}.json" for number in (1, 2, 3)]
    assert [load_result(path) for path in paths] == draws
    text = report_of(*draws)
    assert "m: pass^k over 3 draws of 120 cases: k=1 66.7 %, k=2 50.0 %, k=3 50.0 %" in text
    assert "m (draw 2)" in text


def test_a_floor_decides_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    replies = GOLD | {DEV.cases[0].prompt: "No idea."}
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: PlaybackBackend(replies))
    command = ["a.gguf", "--suite", "dev", "--fail-under"]
    assert evaluate_script.main([*command, "dev=0.99"]) == 0
    assert evaluate_script.main([*command, "dev=0.995"]) == 1
    assert "a on dev: pass rate 0.992, wanted at least 0.995" in capsys.readouterr().err
    for word in ("core=0.9", "dev=90", "dev=x", "dev"):
        assert evaluate_script.main([*command, word]) == 2
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: PlaybackBackend({}))
    assert evaluate_script.main([*command, "dev=0"]) == 1
    assert "pass rate unknown, cases are unscored" in capsys.readouterr().err


def test_replies_that_are_not_the_same_text_are_listed(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    files = saved("good"), saved("bad", failing=2)
    assert evaluate_script.main(["compare", *files, "--replies"]) == 0
    out = capsys.readouterr().out
    assert f"the same replies in {len(DEV.cases) - 2} of {len(DEV.cases)} cases" in out
    assert "  A correct, B no_call\n    A <tool_call>" in out
    assert "    B No idea." in out
    assert evaluate_script.main(["compare", *files]) == 0
    assert "    B No idea." not in capsys.readouterr().out


def test_replies_that_say_the_same_in_other_spacing_are_the_same(saved: Saved) -> None:
    first = load_result(Path(saved("a")))
    spaced = [replace(case, got=(case.got or "").replace('"arguments": {', '"arguments" :{ ')) for case in first.cases]
    assert reply_lines(first, replace(first, cases=tuple(spaced)))[1:] == []
    typed = [replace(case, got=(case.got or "").replace("10", '"10"')) for case in first.cases]
    assert len(reply_lines(first, replace(first, cases=tuple(typed)))) > 1
