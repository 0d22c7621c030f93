"""The stages of a retraining run and what the engine is told about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Stage(StrEnum):
    """In the order in which they run."""

    INTAKE = "intake"
    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"
    VERIFY = "verify"
    COMPARE = "compare"
    CALIBRATE = "calibrate"
    PROMOTE = "promote"


class RunState(StrEnum):
    """What became of a run. `running` is also what a killed one is left as: the next start goes on with it."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Stop:
    """The end of a run after this stage: why, in one sentence, and as what."""

    state: RunState
    reason: str


@dataclass(frozen=True)
class Done:
    """What a stage leaves: files below the run's folder, a result as JSON values, and whether the run ends here."""

    outputs: tuple[Path, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    stop: Stop | None = None


@dataclass(frozen=True)
class StepContext:
    """What a stage may know: the run, its folder, the results of the stages before, and when it has to be done."""

    run_id: str
    folder: Path
    results: Mapping[Stage, Mapping[str, Any]]
    deadline: float | None = None  # of time.monotonic()


def _nothing(_run_id: str) -> None:
    """No inputs besides the stages before."""


@dataclass(frozen=True)
class Step:
    """A stage as the engine runs it.

    `work` may be killed at any moment and is then called again: what it finds complete it keeps. `inputs` gives, for a
    run's id, the JSON values that decide its result besides the stages before; when they change, it is done anew. It
    is tried `attempts` times, with waits of `backoff_s`, twice that, and so on, up to `max_backoff_s`.
    """

    stage: Stage
    work: Callable[[StepContext], Done]
    inputs: Callable[[str], Any] = _nothing
    budget_s: float | None = None
    attempts: int = 1
    backoff_s: float = 10.0
    max_backoff_s: float = 600.0
