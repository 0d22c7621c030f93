"""Only whole checkpoints of the same run are continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints import (
    is_complete,
    is_unfinished,
    mark_finished,
    newest_complete,
    prepare_resume,
    prune,
    publish,
    seal,
)
from training.errors import ResumeError

INPUTS: dict[str, Any] = {"training.learning_rate": 1e-3, "data": "abc"}
OTHER = INPUTS | {"training.learning_rate": 1e-4}


def make(directory: Path, step: int) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    save_file({"weight": torch.zeros(100)}, path / "model.safetensors")
    torch.save({}, path / "optimizer.pt")
    torch.save({}, path / "shards" / "0.distcp")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}), "utf-8")
    seal(path)
    return path


def test_the_newest_is_by_step_not_by_spelling(tmp_path: Path) -> None:
    make(tmp_path, 9)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-9"
    make(tmp_path, 10)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "shards/0.distcp", "trainer_state.json", "complete.json"]
)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    whole = make(tmp_path, 1)
    torn = make(tmp_path, 2)
    data = (torn / name).read_bytes()
    if damage == "missing":
        (torn / name).unlink()
    else:
        (torn / name).write_bytes(data[: len(data) // 2])
    assert not is_complete(torn)
    assert newest_complete(tmp_path) == whole


def test_a_checkpoint_gets_its_name_in_one_step(tmp_path: Path) -> None:
    written = make(tmp_path / "partial", 3)
    older = make(tmp_path, 3)
    publish(written, older)
    assert newest_complete(tmp_path) == older
    assert not written.exists()


def test_pruning_keeps_the_newest_whole_ones_and_removes_torn_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    prune(tmp_path, keep_last_n=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_an_empty_folder_begins_and_records_its_inputs(tmp_path: Path) -> None:
    assert prepare_resume(tmp_path / "new", INPUTS, restart=False) is None
    assert json.loads((tmp_path / "new" / "inputs.json").read_text("utf-8"))["inputs"] == INPUTS


def test_the_same_inputs_continue(tmp_path: Path) -> None:
    prepare_resume(tmp_path, INPUTS, restart=False)
    whole = make(tmp_path, 3)
    assert prepare_resume(tmp_path, INPUTS, restart=False) == whole


def test_only_a_stopped_training_with_a_checkpoint_and_the_same_inputs_is_unfinished(tmp_path: Path) -> None:
    assert not is_unfinished(tmp_path, INPUTS)
    prepare_resume(tmp_path, INPUTS, restart=False)
    assert not is_unfinished(tmp_path, INPUTS)
    make(tmp_path, 3)
    assert is_unfinished(tmp_path, INPUTS)
    assert not is_unfinished(tmp_path, OTHER)
    mark_finished(tmp_path, INPUTS)
    assert not is_unfinished(tmp_path, INPUTS)


def test_an_unfinished_training_is_never_continued_with_other_inputs(tmp_path: Path) -> None:
    prepare_resume(tmp_path, INPUTS, restart=False)
    make(tmp_path, 3)
    with pytest.raises(ResumeError, match=r"training.learning_rate: 0.001 → 0.0001"):
        prepare_resume(tmp_path, OTHER, restart=False)
    assert (tmp_path / "checkpoint-3").is_dir()


def test_without_a_checkpoint_other_inputs_simply_begin(tmp_path: Path) -> None:
    prepare_resume(tmp_path, INPUTS, restart=False)
    assert prepare_resume(tmp_path, OTHER, restart=False) is None


def test_a_finished_training_makes_room_for_other_inputs(tmp_path: Path) -> None:
    prepare_resume(tmp_path, INPUTS, restart=False)
    make(tmp_path, 3)
    mark_finished(tmp_path, INPUTS)
    assert prepare_resume(tmp_path, OTHER, restart=False) is None
    assert not (tmp_path / "checkpoint-3").exists()


def test_a_restart_begins_anew(tmp_path: Path) -> None:
    prepare_resume(tmp_path, INPUTS, restart=False)
    make(tmp_path, 3)
    assert prepare_resume(tmp_path, OTHER, restart=True) is None
    assert newest_complete(tmp_path) is None
