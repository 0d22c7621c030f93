"""A run goes on from the first stage that is not complete."""

import os
from pathlib import Path

import pytest

from scripts.stages import Ledger, Stage
from tests.fixtures_models import make_tiny_qwen3
from training.config import RunConfig, load_run_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_qwen3(tmp_path / "model")


def run_config(tmp_path: Path, model: Path, *overrides: str) -> RunConfig:
    return load_run_config("nano.yaml", [f"runs_dir={tmp_path}", f"model.path={model}", *overrides])


def finish(ledger: Ledger, stage: Stage, *outputs: str) -> None:
    with ledger.running(stage):
        for name in outputs:
            path = ledger.path.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")


def finish_two(ledger: Ledger) -> None:
    finish(ledger, Stage.PREPARE, "data/train.jsonl", "data_card.json")
    finish(ledger, Stage.TRAIN, "checkpoint/config.json")


def test_a_finished_stage_is_complete_for_the_next_process(tmp_path: Path, model: Path) -> None:
    finish_two(Ledger(run_config(tmp_path, model), model))
    later = Ledger(run_config(tmp_path, model), model)
    assert later.is_complete(Stage.PREPARE)
    assert later.is_complete(Stage.TRAIN)
    assert not later.is_complete(Stage.EVALUATE)


def test_a_stage_that_failed_is_not_complete(tmp_path: Path, model: Path) -> None:
    ledger = Ledger(run_config(tmp_path, model), model)
    finish_two(ledger)
    with pytest.raises(RuntimeError), ledger.running(Stage.TRAIN):
        raise RuntimeError
    assert ledger.is_complete(Stage.PREPARE)
    assert not ledger.is_complete(Stage.TRAIN)


def test_a_changed_setting_redoes_its_stage_and_what_follows(tmp_path: Path, model: Path) -> None:
    finish_two(Ledger(run_config(tmp_path, model), model))
    other_rate = Ledger(run_config(tmp_path, model, "training.learning_rate=0.5"), model)
    assert other_rate.is_complete(Stage.PREPARE)
    assert not other_rate.is_complete(Stage.TRAIN)
    other_seed = Ledger(run_config(tmp_path, model, "seed=5"), model)
    assert not other_seed.is_complete(Stage.PREPARE)
    assert not other_seed.is_complete(Stage.TRAIN)


def test_a_stage_whose_files_are_gone_is_not_complete(tmp_path: Path, model: Path) -> None:
    ledger = Ledger(run_config(tmp_path, model), model)
    finish_two(ledger)
    (ledger.path.parent / "checkpoint" / "config.json").unlink()
    assert not ledger.is_complete(Stage.TRAIN)


def test_a_touch_or_a_copy_redoes_nothing_and_another_content_of_the_same_size_does(
    tmp_path: Path, model: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1}', "utf-8")
    settings = (f"data.sources=[{{kind: openai_jsonl, path: {rows}}}]",)
    finish(Ledger(run_config(tmp_path, model, *settings), model), Stage.PREPARE, "data/train.jsonl", "data_card.json")
    stat = rows.stat()
    os.utime(rows, (1, 1))
    for file in model.iterdir():
        os.utime(file, (1, 1))
    assert Ledger(run_config(tmp_path, model, *settings), model).is_complete(Stage.PREPARE)
    rows.write_text('{"a": 2}', "utf-8")
    assert rows.stat().st_size == stat.st_size
    assert not Ledger(run_config(tmp_path, model, *settings), model).is_complete(Stage.PREPARE)


def test_forcing_a_stage_forgets_it_and_what_follows(tmp_path: Path, model: Path) -> None:
    ledger = Ledger(run_config(tmp_path, model), model)
    finish_two(ledger)
    ledger.forget_from(Stage.TRAIN)
    again = Ledger(run_config(tmp_path, model), model)
    assert again.is_complete(Stage.PREPARE)
    assert not again.is_complete(Stage.TRAIN)


def test_a_record_that_is_no_json_counts_as_nothing_done(tmp_path: Path, model: Path) -> None:
    ledger = Ledger(run_config(tmp_path, model), model)
    finish_two(ledger)
    ledger.path.write_text("{torn")
    assert not Ledger(run_config(tmp_path, model), model).is_complete(Stage.PREPARE)
