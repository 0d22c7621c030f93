"""What a training leaves behind when it is killed, when the disk is full, and when it diverges."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.training.samples import MakeRun
from training import sft, trainer
from training.checkpoints import is_complete, newest_complete
from training.config import RunConfig, dump_run_config
from training.errors import CheckpointWriteError, TrainingDivergedError
from training.sft import train

STEPS = {"training__max_steps": 5, "training__save_steps": 2, "training__global_batch_size": 2}


class Killed(BaseException):
    """Stands for SIGKILL within one process: nothing catches it, so the disk is left as a kill leaves it."""


class KillAtStep(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.global_step == self._step:
            raise Killed


def killed_at_step(step: int, patch: pytest.MonkeyPatch) -> None:
    make = sft._trainer

    def with_killer(*arguments: Any) -> Any:
        made = make(*arguments)
        made.add_callback(KillAtStep(step))
        return made

    patch.setattr(sft, "_trainer", with_killer)


def killed_in_save(step: int, patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """In the midst of a checkpoint: weights and optimizer are written, what follows is not."""
    save = trainer.DispatchTrainer._save_rng_state

    def torn(self: trainer.DispatchTrainer, folder: str) -> None:
        if self.state.global_step == step:
            raise error
        save(self, folder)

    patch.setattr(trainer.DispatchTrainer, "_save_rng_state", torn)


def weights(run: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(run.run_dir / "checkpoint" / "model.safetensors")


def losses(run: RunConfig) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run.run_dir / "train_log.jsonl").read_text("utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def assert_same(first: RunConfig, second: RunConfig) -> None:
    """The same loss at every step and the same final weights, bit for bit."""
    assert losses(first) == losses(second)
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


@pytest.fixture(scope="module")
def uninterrupted(make_shared_run: MakeRun, train_path: Path) -> RunConfig:
    run = make_shared_run(name="straight", **STEPS)
    train(run, train_path, run.run_dir)
    return run


def test_a_kill_between_checkpoints_loses_nothing_but_time(
    make_run: MakeRun, train_path: Path, uninterrupted: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(name="killed", **STEPS)
    with monkeypatch.context() as patch:
        killed_at_step(3, patch)
        with pytest.raises(Killed):
            train(run, train_path, run.run_dir)
    assert newest_complete(run.run_dir / "checkpoints") == run.run_dir / "checkpoints" / "checkpoint-2"
    train(run, train_path, run.run_dir)
    assert_same(run, uninterrupted)


def test_a_kill_inside_a_save_continues_from_the_checkpoint_before(
    make_run: MakeRun, train_path: Path, uninterrupted: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(name="torn", **STEPS)
    with monkeypatch.context() as patch:
        killed_in_save(4, patch, Killed())
        with pytest.raises(Killed):
            train(run, train_path, run.run_dir)
    checkpoints = run.run_dir / "checkpoints"
    assert (checkpoints / "partial" / "checkpoint-4" / "model.safetensors").is_file()
    assert newest_complete(checkpoints) == checkpoints / "checkpoint-2"
    train(run, train_path, run.run_dir)
    assert_same(run, uninterrupted)


def test_a_kill_in_the_middle_of_a_run_with_trees_loses_nothing_but_time(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows in batches of two, for one epoch and a quarter: the kill is in the second epoch's first batch."""
    trees = {**STEPS, "training__packing": "tree", "training__epochs": 2, "training__save_steps": 3}
    straight, killed = make_run(name="straight-trees", **trees), make_run(name="killed-trees", **trees)
    train(straight, train_path, straight.run_dir)
    with monkeypatch.context() as patch:
        killed_at_step(4, patch)
        with pytest.raises(Killed):
            train(killed, train_path, killed.run_dir)
    assert newest_complete(killed.run_dir / "checkpoints") == killed.run_dir / "checkpoints" / "checkpoint-3"
    train(killed, train_path, killed.run_dir)
    assert_same(killed, straight)


def test_a_full_disk_says_so_and_leaves_the_last_checkpoint(
    make_run: MakeRun, train_path: Path, uninterrupted: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(name="full-disk", **STEPS)
    with monkeypatch.context() as patch:
        killed_in_save(4, patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(CheckpointWriteError) as caught:
            train(run, train_path, run.run_dir)
    checkpoints = run.run_dir / "checkpoints"
    assert "No space left on device" in str(caught.value)
    assert f"{checkpoints / 'checkpoint-2'} is whole and the same command continues from it" in str(caught.value)
    assert not (checkpoints / "partial").exists()
    train(run, train_path, run.run_dir)
    assert_same(run, uninterrupted)


def test_a_disk_that_really_is_full_is_reported_the_same_way(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch reports it as a RuntimeError of its own."""
    write = torch.save
    monkeypatch.setattr(torch, "save", lambda value, _path, *rest, **more: write(value, "/dev/full", *rest, **more))
    run = make_run(name="dev-full", training__max_steps=1)
    with pytest.raises(CheckpointWriteError, match="there is no earlier one"):
        train(run, train_path, run.run_dir)


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(**STEPS)
    clip = trainer.DispatchTrainer._clip_grad_norm

    def poisoned(self: trainer.DispatchTrainer, model: torch.nn.Module) -> Any:
        if self.state.global_step == 3:
            next(parameter for parameter in model.parameters() if parameter.grad is not None).grad.fill_(float("nan"))
        return clip(self, model)

    monkeypatch.setattr(trainer.DispatchTrainer, "_clip_grad_norm", poisoned)
    last = run.run_dir / "checkpoints" / "checkpoint-2"
    with pytest.raises(TrainingDivergedError, match=f"norm is nan at step 4; .* the last good checkpoint is {last}"):
        train(run, train_path, run.run_dir)
    assert is_complete(last)
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(last / "model.safetensors").values())


def test_only_the_last_checkpoints_are_kept(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(**STEPS | {"training__save_steps": 1, "training__keep_last_n": 2})
    train(run, train_path, run.run_dir)
    found = sorted(path.name for path in (run.run_dir / "checkpoints").glob("checkpoint-*"))
    assert found == ["checkpoint-4", "checkpoint-5"]


_CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from training import sft, trainer
from training.config import load_run_config
run, rows, step, where = load_run_config(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
number = signal.SIGTERM if where == "terminate" else signal.SIGKILL
hook = "_save_rng_state" if where == "save" else "training_step"
original = getattr(trainer.DispatchTrainer, hook)
def killing(self, *arguments, **keywords):
    if self.state.global_step == step:
        os.kill(os.getpid(), number)
    return original(self, *arguments, **keywords)
setattr(trainer.DispatchTrainer, hook, killing)
sft.train(run, rows, run.run_dir)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "step", "code", "continued_from"),
    [("step", 3, -signal.SIGKILL, 2), ("save", 4, -signal.SIGKILL, 2), ("terminate", 2, 143, 3)],
)
def test_a_process_that_is_killed_leaves_a_run_that_continues_to_the_same_weights(
    make_run: MakeRun,
    train_path: Path,
    uninterrupted: RunConfig,
    where: str,
    step: int,
    code: int,
    continued_from: int,
) -> None:
    run = make_run(name=f"real-{where}", **STEPS)
    run.runs_dir.mkdir(parents=True, exist_ok=True)
    settings = run.runs_dir / f"real-{where}.yaml"
    settings.write_text(dump_run_config(run), "utf-8")
    command = [sys.executable, "-c", _CHILD, str(settings), str(train_path), str(step), where]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == code, done.stderr[-2000:]
    checkpoints = run.run_dir / "checkpoints"
    assert newest_complete(checkpoints) == checkpoints / f"checkpoint-{continued_from}"
    train(run, train_path, run.run_dir)
    assert_same(run, uninterrupted)
