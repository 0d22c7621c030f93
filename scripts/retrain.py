"""Scheduled retraining: one run from new data to a decision, or a look at what earlier runs decided.

python -m scripts.retrain --config retrain.yaml [key=value …]     one run; killed, the same command goes on
python -m scripts.retrain rollback --config retrain.yaml          the champion before this one, again
python -m scripts.retrain history --config retrain.yaml           runs and champions
python -m scripts.retrain adopt model.gguf --config retrain.yaml  bring in the model that is in service now
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from data.config import SynthSource
from data.sources import check_source
from data.sources.files import require_exists
from eval.suites import load_suite
from retraining.config import RetrainConfig, load_retrain_config
from retraining.errors import LockHeldError
from retraining.gate import check_floors
from retraining.ledger import Ledger, RunRecord
from retraining.measure import answer, evaluator
from retraining.page import write_page
from retraining.registry import adopt, rollback, succession
from retraining.run import LEDGER, locked_ledger, retrain
from retraining.stages import RunState, Stage
from retraining.work import Work, load_base
from tinydispatch.registry import champion_id

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_REFUSED, EXIT_INCONCLUSIVE, EXIT_LOCKED = 0, 1, 2, 3, 4, 75
_EXIT_OF = {RunState.FAILED: EXIT_FAILED, RunState.REFUSED: EXIT_REFUSED, RunState.INCONCLUSIVE: EXIT_INCONCLUSIVE}
_COMMANDS = ("run", "rollback", "history", "adopt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0: promoted, or nothing to do; 1: a stage failed; 2: bad input; 3: refused; 4: too little is known; 75: another run
    holds the lock.
    """
    arguments = _parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("retraining").setLevel(logging.INFO)
    words = list(arguments.words)
    command = words.pop(0) if words and words[0] in _COMMANDS else "run"
    try:
        model = Path(words.pop(0)) if command == "adopt" and words and "=" not in words[0] else None
        config = load_retrain_config(arguments.config, words)
        if command == "history":
            return _history(config)
        if command == "rollback":
            with locked_ledger(config.registry) as ledger:
                print(f"champion: {rollback(config.registry, ledger).id}")
                write_page(config.registry, ledger, config.cost_per_hour)
            return EXIT_OK
        if command == "adopt":
            return _adopt(config, model)
        return _run(config, arguments.until)
    except LockHeldError as error:
        print(f"retrain: another run is at work: {error}", file=sys.stderr)
        return EXIT_LOCKED
    except ValueError as error:  # every error of the user's side is one; its message names file, key and value
        print(f"retrain: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("retrain: interrupted; the same command goes on from the last complete stage", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.retrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--until", type=Stage, choices=list(Stage), help="stop after this stage; the next run goes on")
    parser.add_argument("words", nargs="*", metavar="COMMAND | key=value", help=f"{', '.join(_COMMANDS)}; settings")
    return parser


def _run(config: RetrainConfig, until: Stage | None) -> int:
    base = load_base(config)
    for index, source in enumerate(base.data.sources):
        check_source(source, f"data.sources.{index}")
    for index, source in enumerate(config.intake.sources):
        if not isinstance(source, SynthSource) and source.path is not None:
            require_exists(source.path, f"intake.sources.{index}.path")  # an empty folder will do
    check_floors({suite.name: suite.categories for suite in map(load_suite, config.gate.suites)}, config.gate)
    evaluate = evaluator(base.eval)
    run = retrain(config, lambda ledger: Work(config, base, ledger, evaluate, answer).steps(), until)
    print(f"{run.id}: {run.state}{f': {run.reason}' if run.reason else ''}")
    return _EXIT_OF.get(run.state, EXIT_OK)


def _adopt(config: RetrainConfig, model: Path | None) -> int:
    if model is None:
        raise ValueError("adopt: name the GGUF file")
    with locked_ledger(config.registry) as ledger:
        work = Work(config, load_base(config), ledger, evaluator(load_base(config).eval), answer)
        print(f"champion: {adopt(config.registry, ledger, model, work.self_test()).id}")
        write_page(config.registry, ledger, config.cost_per_hour)
    return EXIT_OK


def _history(config: RetrainConfig) -> int:
    if not (config.registry / LEDGER).is_file():
        print(f"{config.registry}: no run yet")
        return EXIT_OK
    with Ledger(config.registry / LEDGER) as ledger:
        for run in ledger.runs():
            print(_line(run))
        in_line = {each.id for each in succession(ledger.switches())}
        for each in ledger.switches():
            note = "" if each.is_done else " (not done)"
            print(f"{each.at}  {each.kind:<9} {each.model_id}{note if each.id not in in_line else ''}")
    print(f"champion: {champion_id(config.registry) or 'none'}")
    return EXIT_OK


def _line(run: RunRecord) -> str:
    return f"{run.started_at}  {run.id}  {run.state:<11} {run.reason}"


def _terminated(_signal: int, _frame: object) -> None:
    print("retrain: terminated; the same command goes on from the last complete stage", file=sys.stderr)
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
