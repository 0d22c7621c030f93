"""`--no-worse-than`: the exit status follows the paired test against the champion's saved results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.backends import PlaybackBackend
from eval.evaluate import evaluate
from eval.suites import load_suite
from scripts import evaluate as evaluate_script
from tests.eval.gold_answers import gold_calls
from tinydispatch.formats import render_calls

DEV = load_suite("dev")
GOLD = {prompt: render_calls(calls) or "What?" for prompt, calls in gold_calls(DEV).items()}


@pytest.fixture
def champion(tmp_path: Path) -> Path:
    """A run that passes all but two cases, under the name of its checkpoint."""
    replies = GOLD | {case.prompt: "No idea." for case in DEV.cases[:2]}
    result = evaluate(PlaybackBackend(replies), DEV, model_name="checkpoint", progress=False)
    result.save(tmp_path / "champion" / "eval")
    return tmp_path / "champion"


def status(monkeypatch: pytest.MonkeyPatch, champion: Path, failing: int) -> int:
    replies = GOLD | {case.prompt: "No idea." for case in DEV.cases[len(DEV.cases) - failing :]}
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: PlaybackBackend(replies))
    return evaluate_script.main(["new.gguf", "--suite", "dev", "--no-worse-than", str(champion)])


def test_a_model_that_is_worse_than_the_champion_shows_in_the_exit_status(
    champion: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(monkeypatch, champion, failing=3) == 0, "one case fewer is within chance"
    assert status(monkeypatch, champion, failing=20) == 1
    message = capsys.readouterr().err
    assert "new on dev: worse than checkpoint of" in message
    assert "B − A = -15.0 points" in message
    assert status(monkeypatch, champion / "eval" / "dev-checkpoint.json", failing=20) == 1


def test_unscored_cases_do_not_hold_against_the_champion(champion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: PlaybackBackend({}))
    assert evaluate_script.main(["new.gguf", "--suite", "dev", "--no-worse-than", str(champion)]) == 1


def test_a_champion_that_decides_nothing_is_refused_before_a_model_is_loaded(
    champion: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> PlaybackBackend:
        raise AssertionError("no model is loaded")

    monkeypatch.setattr("eval.evaluate.open_backend", never)
    result = evaluate(PlaybackBackend(GOLD), DEV, model_name="gguf", progress=False)
    result.save(champion / "eval")
    words = ["new.gguf", "--suite", "dev", "--no-worse-than"]
    assert evaluate_script.main([*words, str(champion)]) == 2
    assert "checkpoint, gguf; give the one file to compare 'new' with" in capsys.readouterr().err
    assert evaluate_script.main([*words, str(champion / "absent.json")]) == 2
    assert "absent.json: cannot be read" in capsys.readouterr().err
    assert evaluate_script.main(["new.gguf", "--suite", "workflow", "--no-worse-than", str(champion)]) == 2
    assert "results on suite 'workflow': none" in capsys.readouterr().err
    old = replace(result, suite_fingerprint="0").save(champion / "old")
    assert evaluate_script.main([*words, str(old)]) == 2
    assert "was scored on another version of suite 'dev'; evaluate it again" in capsys.readouterr().err
