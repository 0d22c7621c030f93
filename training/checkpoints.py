"""Checkpoints on disk: which one is whole, which belongs to this run, and what to continue from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.errors import ResumeError

logger = logging.getLogger(__name__)

_INPUTS = "inputs.json"
_SEAL = "complete.json"
# How a run is watched does not decide what it computes.
_HARMLESS = {"save_steps", "keep_last_n", "logging_steps", "pass_rate", "heldout", "require_gguf"}


def newest_complete(directory: Path) -> Path | None:
    """The `checkpoint-<step>` with the highest step that was written to its end; torn ones are passed over."""
    for path in _by_step(directory):
        if is_complete(path):
            return path
        logger.warning("%s is incomplete and is passed over", path)
    return None


def _by_step(directory: Path) -> list[Path]:
    """Every `checkpoint-<step>`, the highest step first."""
    found = []
    for path in directory.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if step and path.is_dir():
            found.append((int(step[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def seal(checkpoint: Path) -> None:
    """Force a written checkpoint onto the disk and record in it, last, the size of every file.

    Raises:
        OSError: the disk is full.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _SEAL)
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    marker = checkpoint / _SEAL
    marker.write_text(json.dumps({"files": sizes}, indent=1), "utf-8")
    _flush(marker)
    _flush(checkpoint)


def publish(written: Path, final: Path) -> None:
    """Give a sealed checkpoint its name: one rename, so that a kill leaves either all of it or none."""
    if final.exists():
        shutil.rmtree(final)
    written.rename(final)
    _flush(final.parent)


def prune(directory: Path, keep_last_n: int) -> None:
    """Remove all but the newest whole checkpoints, and torn ones; never called before a new one is whole."""
    whole = [path for path in _by_step(directory) if is_complete(path)]
    for path in set(_by_step(directory)) - set(whole[:keep_last_n]):
        shutil.rmtree(path)


def is_complete(checkpoint: Path) -> bool:
    """Whether the checkpoint was sealed, and every file still has the size that it had then."""
    try:
        sizes = json.loads((checkpoint / _SEAL).read_text("utf-8"))["files"]
        whole = all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return whole and read_step(checkpoint) is not None


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_step(checkpoint: Path) -> int | None:
    """The step that a checkpoint was made after; None when its trainer state cannot be read."""
    try:
        step = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def training_inputs(run: RunConfig, train_path: Path, template_hash: str) -> dict[str, Any]:
    """What decides the weights of every step, as flat JSON: settings, seed, and a hash of the data."""
    training = run.training.model_dump(mode="json")
    inputs = {f"training.{key}": value for key, value in training.items() if key not in _HARMLESS}
    inputs |= {f"model.{key}": value for key, value in run.model.model_dump(mode="json").items()}
    inputs |= {"seed": run.seed, "data.max_length_tokens": run.data.max_length_tokens}
    return inputs | {"chat template": template_hash, "data": file_sha256(train_path)}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unfinished(directory: Path, inputs: dict[str, Any]) -> bool:
    """Whether a training with the same inputs was stopped here and left a checkpoint to continue from."""
    record = _read_record(directory)
    if record is None or record["finished"] or record["inputs"] != inputs:
        return False
    return newest_complete(directory) is not None


def prepare_resume(directory: Path, inputs: dict[str, Any], *, restart: bool) -> Path | None:
    """The checkpoint to continue from, or None to begin; `inputs` is recorded beside the checkpoints.

    Checkpoints of a finished training with other inputs are removed, and so are all when `restart`.

    Raises:
        ResumeError: an unfinished training with other settings or data has a checkpoint there.
    """
    record = _read_record(directory)
    if restart:
        _clear(directory)
    elif record is not None and record["inputs"] != inputs:
        if not record["finished"] and newest_complete(directory) is not None:
            raise ResumeError(_mismatch(directory, record["inputs"], inputs))
        _clear(directory)
    checkpoint = newest_complete(directory) if directory.is_dir() else None
    _write_record(directory, inputs, finished=False)
    return checkpoint


def mark_finished(directory: Path, inputs: dict[str, Any]) -> None:
    """Record that nobody waits to continue these checkpoints: the training ended, or diverged."""
    _write_record(directory, inputs, finished=True)


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((directory / _INPUTS).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResumeError(
            f"{directory / _INPUTS} cannot be read ({error}); delete {directory} to start over"
        ) from error
    return dict(record)


def _write_record(directory: Path, inputs: dict[str, Any], *, finished: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f"{_INPUTS}.tmp"
    fresh.write_text(json.dumps({"finished": finished, "inputs": inputs}, indent=1), "utf-8")
    fresh.replace(directory / _INPUTS)  # atomic: a kill in between leaves the old record


def _clear(directory: Path) -> None:
    for path in [*directory.glob("checkpoint-*"), directory / "partial"]:
        shutil.rmtree(path, ignore_errors=True)


def _mismatch(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            same_for_reader = key in {"data", "chat template"}
            changed.append(f"{key} changed" if same_for_reader else f"{key}: {old.get(key)!r} → {new.get(key)!r}")
    return (
        f"{directory} holds an unfinished training with other inputs ({'; '.join(changed)}). Undo the change to "
        f"continue it, delete {directory} to start over, or give the run another name"
    )
