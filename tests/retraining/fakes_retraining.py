"""A registry whose stages take milliseconds: the engine, ledger, lock and promotion are the real ones.

Run as a program it is a retraining run that a test may kill: `python -m tests.retraining.fakes_retraining REGISTRY`.
It imports neither torch nor pydantic, so that thirty starts take seconds.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from retraining.engine import Engine
from retraining.errors import LockHeldError
from retraining.ledger import Ledger, RunRecord, SwitchKind
from retraining.lock import run_lock
from retraining.registry import install, settle, switch
from retraining.stages import Done, RunState, Stage, Step, StepContext, Stop
from tinydispatch.registry import SelfTest

LOCKED = 75


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_work(name: str, pause_s: float, journal: Path) -> Callable[[StepContext], Done]:
    """A stage that writes one file in many small steps, and notes each start and end."""

    def work(context: StepContext) -> Done:
        with journal.open("a") as stream:
            stream.write(f"{context.run_id} {name} begun\n")
        path = context.folder / name / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            for part in range(8):
                stream.write(f"{context.run_id} {name} {part}\n" * 200)
                stream.flush()
                time.sleep(pause_s / 8)
        return Done((path,), {"name": name})

    return work


def promotion(registry: Path, ledger: Ledger, pause_s: float) -> Callable[[StepContext], Done]:
    def work(context: StepContext) -> Done:
        time.sleep(pause_s / 3)
        source = context.folder / Stage.EXPORT / "file"
        model = install(
            registry, source, sha256=digest(source), run_id=context.run_id, self_test=SelfTest(), details={}
        )
        time.sleep(pause_s / 3)
        switch(registry, ledger, SwitchKind.PROMOTE, model, context.run_id)
        time.sleep(pause_s / 3)
        return Done((), {"model": model.id}, Stop(RunState.PROMOTED, "no worse"))

    return work


def fake_steps(registry: Path, ledger: Ledger, pause_s: float = 0.0) -> list[Step]:
    journal = registry / "journal"
    steps = [Step(stage, file_work(stage, pause_s, journal)) for stage in Stage if stage is not Stage.PROMOTE]
    return [*steps, Step(Stage.PROMOTE, promotion(registry, ledger, pause_s))]


def run_fake(registry: Path, pause_s: float = 0.0) -> RunRecord:
    with run_lock(registry / "lock"), Ledger(registry / "ledger.sqlite") as ledger:
        settle(registry, ledger, with_runs=False)
        return Engine(ledger, fake_steps(registry, ledger, pause_s), registry / "runs").run()


if __name__ == "__main__":
    try:
        print(run_fake(Path(sys.argv[1]), float(sys.argv[2])).state)
    except LockHeldError as error:
        print(error, file=sys.stderr)
        sys.exit(LOCKED)
