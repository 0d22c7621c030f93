from __future__ import annotations

from pathlib import Path

import pytest

from eval.matching import Outcome
from eval.results import CaseResult, EvalResult
from export.choice import choose, choose_file, judge


def _result(verdicts: str, suite: str = "core", model: str = "model") -> EvalResult:
    """One case a letter: P passed, F failed, U unscored."""
    outcomes = {"P": Outcome.CORRECT, "F": Outcome.WRONG_TOOL, "U": None}
    cases = tuple(
        CaseResult(f"case-{index}", "all", "", (), None, outcomes[letter], "", None, None)
        for index, letter in enumerate(verdicts)
    )
    return EvalResult(suite, f"fingerprint of {suite}", model, ("all",), cases)


def test_a_file_that_loses_more_cases_than_chance_explains_is_worse() -> None:
    assert judge([_result("P" * 20)], [_result("P" * 14 + "F" * 6)]).is_worse
    assert not judge([_result("P" * 20)], [_result("P" * 15 + "F" * 5)]).is_worse


def test_a_file_that_gains_as_many_cases_is_not_worse_nor_is_one_that_only_gains() -> None:
    assert not judge([_result("P" * 8 + "F" * 8)], [_result("F" * 8 + "P" * 8)]).is_worse
    assert not judge([_result("F" * 20)], [_result("P" * 20)]).is_worse


def test_unscored_cases_count_for_neither() -> None:
    verdict = judge([_result("PPUP" + "P" * 10)], [_result("PUPF" + "P" * 10)])
    assert (verdict.n, verdict.only_checkpoint, verdict.only_file) == (12, 1, 0)


def test_suites_are_pooled_although_they_share_case_names() -> None:
    checkpoint = [_result("P" * 4), _result("P" * 4, "workflow")]
    file = [_result("F" * 4), _result("F" * 4, "workflow")]
    assert judge(checkpoint, file).n == 8
    assert judge(checkpoint, file).is_worse


def test_the_smallest_good_file_is_offered_and_a_worse_one_never() -> None:
    checkpoint = [_result("P" * 20)]
    files = {"f16": [_result("P" * 20)], "q8_0": [_result("P" * 19 + "F")], "q4_k_m": [_result("P" * 8 + "F" * 12)]}
    choice = choose(checkpoint, files, {"f16": 300, "q8_0": 200, "q4_k_m": 100})
    assert choice.default == "q8_0"
    assert choice.marked == ("q4_k_m",)


def test_nothing_is_offered_where_every_file_is_worse() -> None:
    assert choose([_result("P" * 20)], {"f16": [_result("F" * 20)]}, {"f16": 1}).default is None


def test_other_suites_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="on the same suites"):
        judge([_result("P")], [_result("P", "workflow")])


def test_a_runs_results_decide_what_is_offered_and_what_is_said(tmp_path: Path) -> None:
    files = {name: tmp_path / f"x-{name}.gguf" for name in ("q8_0", "q4_k_m")}
    for n_bytes, path in zip((20, 10), files.values(), strict=True):
        path.write_bytes(bytes(n_bytes))
    for model, verdicts in (("checkpoint", "P" * 20), ("gguf-q8_0", "P" * 20), ("gguf-q4_k_m", "F" * 20)):
        _result(verdicts, model=model).save(tmp_path / "eval")
    offered, lines = choose_file(tmp_path / "eval", ["core"], files)
    assert offered == files["q8_0"]
    assert len(lines) == 1
    assert "x-q4_k_m.gguf is significantly worse than its checkpoint: of 20 cases it fails 20" in lines[0]
