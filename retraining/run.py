"""One registry: retrain, roll back, bring a model in, look back. Every change holds the registry's lock."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from retraining.config import RetrainConfig
from retraining.engine import Engine
from retraining.errors import StepFailedError
from retraining.ledger import Ledger, RunRecord
from retraining.lock import run_lock
from retraining.notify import notify
from retraining.page import write_page
from retraining.process import stop_leftovers
from retraining.registry import settle
from retraining.stages import RunState, Stage, Step
from tinydispatch.folders import owner_only
from tinydispatch.registry import champion_id

logger = logging.getLogger(__name__)

LEDGER, LOCK, RUNS = "ledger.sqlite", "lock", "runs"
# What a finished run no longer needs; its data, results, decision and logs stay.
_HEAVY = ("checkpoint", "checkpoints", "adapter", "gguf")

MakeSteps = Callable[[Ledger], list[Step]]


@contextmanager
def locked_ledger(registry: Path) -> Iterator[Ledger]:
    """The ledger of a registry, with its lock held; what is written meanwhile is for its owner alone, as the logs are.

    Raises:
        LockHeldError: another process is at work in it.
    """
    with owner_only(registry / RUNS), run_lock(registry / LOCK), Ledger(registry / LEDGER) as ledger:
        yield ledger


def retrain(config: RetrainConfig, make_steps: MakeSteps, until: Stage | None = None) -> RunRecord:
    """One run, start to end, or to the stage `until`; then the page and the news. A failed run comes back as such.

    Raises:
        LockHeldError: another run is at work.
    """
    registry = config.registry
    with locked_ledger(registry) as ledger:
        runs_dir = (registry / RUNS).absolute()
        if left := stop_leftovers(str(runs_dir)):
            logger.warning("stopped %d processes of a killed run: %s", len(left), left)
        settle(registry, ledger, with_runs=False)
        announce(config, ledger)  # of a run that was killed between its end and the news
        engine = Engine(ledger, make_steps(ledger), runs_dir, config.max_failures)
        try:
            run = engine.run(until)
        except StepFailedError as error:
            logger.warning("%s", error)
            run = ledger.runs()[-1]
        announce(config, ledger)
        _forget_heavy(ledger, runs_dir, config.keep_runs)
        write_page(registry, ledger, config.cost_per_hour)
    return run


def announce(config: RetrainConfig, ledger: Ledger) -> None:
    """Tell how the last run ended, once."""
    runs = ledger.runs()
    if runs and runs[-1].state is not RunState.RUNNING and not runs[-1].is_announced:
        notify(config.notify, runs[-1], champion_id(config.registry))
        ledger.announced(runs[-1].id)


def _forget_heavy(ledger: Ledger, runs_dir: Path, keep: int) -> None:
    """Delete the weights of all but the last runs; models that were promoted lie in the registry's own folder."""
    finished = [run for run in ledger.runs() if run.state not in (RunState.RUNNING, RunState.FAILED)]
    for run in finished[:-keep]:
        for name in _HEAVY:
            shutil.rmtree(runs_dir / run.id / name, ignore_errors=True)
