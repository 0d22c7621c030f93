"""The suites' own answers, played back as a model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.backends import Request
from eval.evaluate import evaluate
from eval.gold import gold_backend
from eval.suites import load_suite
from scripts import evaluate as script
from tests.eval.test_bfcl import GOLD, write


@pytest.mark.parametrize("name", ["core", "dev", "workflow", "unseen_tools", "own_tools", "robust"])
def test_every_case_of_a_shipped_suite_can_be_passed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["gold", "--suite", name, "--fail-under", f"{name}=1", "--out", str(tmp_path)]) == 0
    count = len(load_suite(name).cases)
    assert f"{count}/{count}" in capsys.readouterr().out


def test_the_leaderboards_answers_pass_by_its_rule_and_the_rows_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, gold=[{**GOLD[0], "geo.area": {**GOLD[0]["geo.area"], "unit": [None]}}])
    assert script.main(["gold", "--suite", str(folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "10 rows of 10 categories, 10 of them cases here" in printed
    assert "skipped 1 rows of simple_java" in printed
    assert "by the leaderboard's rule (lenient): 10/10" in printed
    assert "schema_violation" in printed, "null is no text by our rules, though it is by theirs"


def test_a_request_that_is_in_no_suite_has_no_answer() -> None:
    suite = load_suite("core")
    case = suite.cases[0]
    with gold_backend([suite]) as gold:
        asked = Request(case.messages, suite.tools_for(case), case.today)
        assert len(gold.generate([asked, Request(case.messages, (), None)])) == 2
        assert "no reply is recorded" in str(gold.generate([Request(case.messages, (), None)])[0])


def test_a_request_that_stands_twice_gets_the_answer_of_each_case_in_turn() -> None:
    suite = load_suite("core")
    with_call = next(case for case in suite.cases if case.expected)
    twice = replace(suite, cases=(with_call, replace(with_call, id="again", expected=())))
    with gold_backend([twice]) as gold:
        for _ in range(2):
            result = evaluate(gold, twice, model_name="gold", progress=False)
            assert [case.is_correct for case in result.cases] == [True, True]
