"""Retraining as Dagster assets: one for each stage, the gate as a blocking check, a weekly schedule, the web UI.

    pip install 'tinydispatch[dagster]'
    TINYDISPATCH_RETRAIN_CONFIG=retrain.yaml dagster dev -f deploy/dagster/definitions.py      # from the checkout

Each asset does what `python -m scripts.retrain --until STAGE` does: the ledger is the same, so a run that was begun by
the timer may be finished here, and the other way round. Where a run ends early (too little new data, refused,
or inconclusive), the assets after it are not made.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of the functions below.
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # `dagster dev -f` imports this file by its path
    sys.path.insert(0, str(ROOT))

from retraining.config import load_retrain_config  # noqa: E402
from retraining.ledger import Ledger  # noqa: E402
from retraining.measure import answer, evaluator  # noqa: E402
from retraining.run import LEDGER, retrain  # noqa: E402
from retraining.stages import RunState, Stage  # noqa: E402
from retraining.work import Work, load_base  # noqa: E402

CONFIG = os.environ.get("TINYDISPATCH_RETRAIN_CONFIG", "retrain.yaml")
GROUP = "retraining"
# Where a run may end by itself: what comes after is then not made.
_MAY_END = {Stage.INTAKE, Stage.VERIFY, Stage.COMPARE}


def run_stage(stage: Stage) -> dict[str, Any]:
    """Go on with the run up to this stage; its id, state, reason and the stage's own result.

    Raises:
        dagster.Failure: a stage failed for good.
    """
    config = load_retrain_config(CONFIG)
    base = load_base(config)
    run = retrain(config, lambda ledger: Work(config, base, ledger, evaluator(base.eval), answer).steps(), stage)
    if run.state is RunState.FAILED:
        raise dg.Failure(run.reason)
    with Ledger(config.registry / LEDGER) as ledger:
        record = ledger.stage(run.id, stage)
    known: dict[str, Any] = {"run": run.id, "state": str(run.state), "reason": run.reason}
    return known | (dict(record.result) if record is not None else {})


def _asset(stage: Stage, before: Stage | None) -> dg.AssetsDefinition:
    check = dg.AssetCheckSpec("gate", asset=stage.value, blocking=True) if stage is Stage.COMPARE else None

    @dg.asset(
        name=stage.value,
        group_name=GROUP,
        deps=[before.value] if before is not None else [],
        check_specs=[check] if check is not None else [],
        output_required=stage not in _MAY_END or stage is Stage.COMPARE,
    )
    def made(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        found = run_stage(stage)
        context.log.info("%s: %s %s", found["run"], found["state"], found["reason"])
        if check is not None:
            yield dg.MaterializeResult(metadata=_shown(found))
            yield dg.AssetCheckResult(
                passed=found["is_promotion"], check_name="gate", metadata={"reason": str(found["reason"])}
            )
        elif found["state"] in (RunState.RUNNING, RunState.PROMOTED):
            yield dg.MaterializeResult(metadata=_shown(found))

    return made


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """What the web UI shows beside an asset."""
    return {
        key: value if isinstance(value, str | int | float) else dg.MetadataValue.json(value)
        for key, value in found.items()
    }


_STAGES = list(Stage)
ASSETS = [_asset(stage, before) for stage, before in zip(_STAGES, [None, *_STAGES[:-1]], strict=True)]
# One process: the stages of a run follow each other anyway, and the registry's lock admits one at a time.
JOB = dg.define_asset_job("retrain", selection=dg.AssetSelection.groups(GROUP), executor_def=dg.in_process_executor)
WEEKLY = dg.ScheduleDefinition(job=JOB, cron_schedule="0 3 * * 1")

defs = dg.Definitions(assets=ASSETS, jobs=[JOB], schedules=[WEEKLY], executor=dg.in_process_executor)
