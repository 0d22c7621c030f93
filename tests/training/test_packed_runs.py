"""Whole runs without padding: the losses of the padded ones, whole conversations, and no silence where it cannot be."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from tests.training.samples import MakeRun
from training import packing
from training.errors import PackingError
from training.sft import train


def log_of(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "train_log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def still_opt_dir(opt_dir: Path, tmp_path: Path) -> Path:
    """The tiny OPT without dropout, whose random numbers fall otherwise for another layout."""
    directory = tmp_path / "still-opt"
    shutil.copytree(opt_dir, directory)
    config = json.loads((directory / "config.json").read_text("utf-8")) | {"dropout": 0.0}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def test_accumulated_batches_make_the_step_of_one_large_batch(
    make_run: MakeRun, train_path: Path, still_opt_dir: Path
) -> None:
    """Loss and update weigh every trained token alike, however the conversations of a step are divided."""
    found = {}
    for batch, accumulation in ((8, 1), (2, 4), (3, 3)):
        run = make_run(
            name=f"batch-{batch}",
            model__path=still_opt_dir,
            training__per_device_batch_size=batch,
            training__global_batch_size=batch * accumulation,
            training__optimizer="adamw",
        )
        assert train(run, train_path, run.run_dir).metrics["steps"] == 1
        (row,) = log_of(run.run_dir)
        found[batch] = (row["loss"], row["grad_norm"])  # Adam's first step would hide the gradient's length
    assert found[2] == pytest.approx(found[8], rel=1e-4)
    assert found[3] == pytest.approx(found[8], rel=1e-4)


@pytest.mark.parametrize("family", ["opt", "qwen3"])
def test_a_run_without_padding_has_the_losses_of_the_padded_one(
    make_run: MakeRun, train_path: Path, still_opt_dir: Path, qwen_dir: Path, family: str
) -> None:
    losses = {}
    for layout in ("off", "batch"):
        run = make_run(
            name=layout,
            model__path=still_opt_dir if family == "opt" else qwen_dir,
            training__packing=layout,
            training__per_device_batch_size=2,
            training__global_batch_size=2,
            training__max_steps=1 if family == "opt" else 3,
            training__optimizer="adamw",
        )
        train(run, train_path, run.run_dir)
        losses[layout] = [row["loss"] for row in log_of(run.run_dir)]
    assert losses["off"] == pytest.approx(losses["batch"], abs=2e-5)


def test_rows_are_filled_with_whole_conversations(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(training__packing="rows", training__global_batch_size=2, training__per_device_batch_size=1)
    result = train(run, train_path, run.run_dir)
    rows_of_2048 = -(-result.metrics["tokens_per_epoch"] // 2048)
    assert result.metrics["sequences"] == 8
    assert result.metrics["steps"] < 8 / 2  # two a step, were they not packed
    assert result.metrics["steps"] >= rows_of_2048 / 2


def test_a_model_that_cannot_be_packed_is_padded_with_a_warning_or_refused(
    make_run: MakeRun,
    train_path: Path,
    opt_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(packing, "_has_full_attention_only", lambda _: False)
    run = make_run(model__path=opt_dir, training__max_steps=1, training__global_batch_size=2)
    with caplog.at_level(logging.WARNING):
        train(run, train_path, run.run_dir)
    assert "batches are padded instead" in caplog.text
    filled = make_run(name="filled", model__path=opt_dir, training__packing="rows")
    with pytest.raises(PackingError, match=r"training.packing is 'rows', but conversations of opt"):
        train(filled, train_path, filled.run_dir)
