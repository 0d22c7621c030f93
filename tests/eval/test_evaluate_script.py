"""`python -m scripts.evaluate` from its arguments to its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.backends import Backend, BackendError, Failure, PlaybackBackend
from eval.config import EvalConfig
from eval.suites import load_suite
from scripts.evaluate import main

REPLIES = {case.messages[-1].content: "Sorry?" for case in load_suite("core").cases}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, EvalConfig]]:
    """What the script wants loaded; each model answers "Sorry?" but for those named broken or silent."""
    calls: list[tuple[str, EvalConfig]] = []

    def open_playback(model: str | Path, config: EvalConfig) -> Backend:
        calls.append((str(model), config))
        if "broken" in str(model):
            raise BackendError(f"{model}: cannot be loaded")
        silent = dict.fromkeys(REPLIES, Failure("no room"))
        return PlaybackBackend(silent if "silent" in str(model) else REPLIES)

    monkeypatch.setattr("eval.evaluate.open_backend", open_playback)
    return calls


Opened = list[tuple[str, EvalConfig]]


def test_models_are_evaluated_and_saved(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["a.gguf", "b.gguf", "--out", str(tmp_path), "--failures", "eval.max_new_tokens=7"]) == 0
    assert [model for model, _ in opened] == ["a.gguf", "b.gguf"]
    assert opened[0][1].max_new_tokens == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core-a.json", "core-b.json", "report.html"]
    out = capsys.readouterr().out
    assert "4/40" in out
    assert "no_call" in out


def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["broken.gguf", "a.gguf"]) == 1
    assert len(opened) == 2
    assert "not evaluated: broken: broken.gguf: cannot be loaded" in capsys.readouterr().err


@pytest.mark.usefixtures("opened")
def test_unscored_cases_show_in_the_exit_status() -> None:
    assert main(["silent.gguf"]) == 1


@pytest.mark.usefixtures("opened")
def test_two_models_of_one_name_keep_apart(tmp_path: Path) -> None:
    assert main(["x/q8.gguf", "y/q8.gguf", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to evaluate"),
        (["a.gguf", "--suite", "kore"], "did you mean 'core'"),
        (["a.gguf", "training.max_steps=2"], "without --config only eval.… can be set"),
        (["a.gguf", "eval.batch=2"], "eval.batch=2: Extra inputs"),
        (["a.gguf", "eval.batch_size=none"], "eval.batch_size='none'"),
        (["a.gguf", "eval.batch_size=[1"], "the value is not YAML"),
        (["--config", "absent"], "no configuration 'absent'"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    opened: Opened, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert opened == []


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[], Path]:
    def write() -> Path:
        path = tmp_path / "toy.yaml"
        model = tmp_path / "base"
        model.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (model / name).write_text("{}")
        tree = {
            "runs_dir": str(tmp_path / "runs"),
            "model": {"path": str(model)},
            "data": {"sources": [{"kind": "synth", "count": 1}]},
        }
        path.write_text(json.dumps(tree))
        return path

    return write


def test_a_run_is_evaluated_from_its_folder(opened: Opened, tmp_path: Path, config_file: Callable[[], Path]) -> None:
    run_dir = tmp_path / "runs" / "toy"
    (run_dir / "checkpoint").mkdir(parents=True)
    (run_dir / "gguf").mkdir()
    (run_dir / "gguf" / "toy-q8_0.gguf").touch()
    assert main(["--config", str(config_file()), "eval.batch_size=3"]) == 0
    assert [Path(model).name for model, _ in opened] == ["base", "checkpoint", "toy-q8_0.gguf"]
    assert {config.batch_size for _, config in opened} == {3}
    names = ["core-base.json", "core-checkpoint.json", "core-gguf-q8_0.json", "report.html"]
    assert sorted(path.name for path in (run_dir / "eval").iterdir()) == names


@pytest.mark.usefixtures("opened")
def test_a_run_without_anything_trained_says_so(
    capsys: pytest.CaptureFixture[str], config_file: Callable[[], Path]
) -> None:
    assert main(["--config", str(config_file())]) == 2
    assert "run train.py with this config first" in capsys.readouterr().err
