"""The writing side of the registry: a file becomes a model, a model becomes champion, and goes back.

A model is written under another name and takes its own when all of it is on disk, then never changes. The champion is
one link, replaced in one step. The ledger knows of a switch before it happens and after, so one that a kill fell into
is either there or not, and `settle` finds out which.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retraining.engine import sha256_of
from retraining.errors import RetrainError
from retraining.ledger import Ledger, Switch, SwitchKind
from retraining.stages import RunState, Stage, Stop
from tinydispatch.calibration import calibration_path
from tinydispatch.registry import (
    CHAMPION,
    FALLBACK,
    MODEL_CARD,
    MODEL_FILE,
    MODELS,
    RegisteredModel,
    RegistryError,
    SelfTest,
    champion_id,
    read_model,
    verify_file,
)


def install(
    registry: Path,
    source: Path,
    *,
    sha256: str,
    run_id: str | None,
    self_test: SelfTest,
    details: Mapping[str, Any],
    beside: Mapping[str, Path] | None = None,
) -> RegisteredModel:
    """Copy a GGUF file into the registry, where it is verified; one that is already there is verified and kept.

    Args:
        sha256: of the file that was judged; a file that changed since is refused.
        beside: further files of the model by the name they get, such as its calibration.

    Raises:
        RegistryError: the copy is not the file that was judged.
    """
    model_id = f"{run_id or 'adopted'}-{sha256[:12]}"
    folder = registry / MODELS / model_id
    if folder.is_dir():
        model = read_model(registry, model_id)
        verify_file(model)
        return model
    partial = registry / MODELS / f".{model_id}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, path in {MODEL_FILE: source, **(beside or {})}.items():
        shutil.copyfile(path, partial / name)
        _sync(partial / name)
    n_bytes = (partial / MODEL_FILE).stat().st_size
    model = RegisteredModel(model_id, folder.absolute(), sha256, n_bytes, run_id, self_test, details)
    if sha256_of(partial / MODEL_FILE) != sha256:
        shutil.rmtree(partial)
        raise RegistryError(f"{source}: not the file that was judged: its SHA-256 is no longer {sha256}")
    (partial / MODEL_CARD).write_text(json.dumps(model.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    _sync(partial / MODEL_CARD)
    _sync(partial)
    partial.rename(folder)
    _sync(folder.parent)
    return model


def switch(registry: Path, ledger: Ledger, kind: SwitchKind, model: RegisteredModel, run_id: str | None = None) -> int:
    """Make a verified model the champion; returns the switch's number, for the caller to settle.

    Raises:
        RegistryError: the model's file is not what its card says.
    """
    verify_file(model)
    previous = champion_id(registry)
    number = ledger.intend_switch(kind, model.id, previous, run_id)
    # What is rolled back from is nothing to fall back on.
    if previous is not None and previous != model.id and kind is not SwitchKind.ROLLBACK:
        _point(registry, FALLBACK, previous)
    _point(registry, CHAMPION, model.id)
    return number


def _point(registry: Path, name: str, model_id: str) -> None:
    """Replace a link in one step, and have it on disk."""
    partial = registry / f".{name}.partial"
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    partial.symlink_to(Path(MODELS) / model_id)
    partial.replace(registry / name)
    _sync(registry)


def settle(registry: Path, ledger: Ledger, *, with_runs: bool = True) -> None:
    """Find out what became of switches that a kill fell into.

    A promotion that did not take place stays intended: its run, when it goes on, promotes again. `with_runs` ends a
    run whose promotion did take place; without it the run is left to go on and end by itself.
    """
    present = champion_id(registry)
    for each in ledger.switches():
        if each.is_done:
            continue
        took_place = present == each.model_id
        if each.kind is SwitchKind.PROMOTE:
            if took_place and with_runs:
                assert each.run_id is not None
                ledger.finish_run(each.run_id, Stop(RunState.PROMOTED, f"{each.model_id} is champion"))
                ledger.settle_switch(each.id, took_place=True)
        else:
            if took_place and each.kind is SwitchKind.ROLLBACK:
                _mark_rolled_back(registry, ledger, each)
            ledger.settle_switch(each.id, took_place=took_place)


def adopt(registry: Path, ledger: Ledger, source: Path, self_test: SelfTest) -> RegisteredModel:
    """Make a file from elsewhere the champion: the model that is in service before the first run.

    Raises:
        RetrainError: there is no such file.
    """
    if not source.is_file():
        raise RetrainError(f"{source}: no such file")
    settle(registry, ledger)
    details = {"source": source.name}
    digest = sha256_of(source)
    beside = beside_model(source)
    model = install(registry, source, sha256=digest, run_id=None, self_test=self_test, details=details, beside=beside)
    ledger.settle_switch(switch(registry, ledger, SwitchKind.ADOPT, model), took_place=True)
    return model


def rollback(registry: Path, ledger: Ledger) -> RegisteredModel:
    """Make the champion before this one champion again; once more goes back further.

    The run that promoted the model is marked, so that its data is not trained on again.

    Raises:
        RetrainError: there is none before.
        RegistryError: its file is not what its card says; the present champion stays.
    """
    settle(registry, ledger)
    line = succession(ledger.switches())
    if len(line) < 2:
        raise RetrainError(f"{registry}: no champion before {champion_id(registry) or 'the first'} to go back to")
    model = read_model(registry, line[-2].model_id)
    number = switch(registry, ledger, SwitchKind.ROLLBACK, model)
    settle(registry, ledger)
    assert all(each.is_done for each in ledger.switches() if each.id == number)
    return model


def beside_model(source: Path) -> dict[str, Path]:
    """What belongs to a GGUF file, by the names that it gets in the registry: its calibration, if there is one."""
    calibration = calibration_path(source)
    return {calibration_path(Path(MODEL_FILE)).name: calibration} if calibration.is_file() else {}


def best_champion(
    registry: Path, ledger: Ledger, fingerprints: Mapping[str, str], since: dt.datetime, present: str
) -> str | None:
    """The champion since then that passed more of the written suites than the present one, by their own gates' records.

    Models that were rolled back do not count, nor do those that are no longer in the registry. None where the present
    champion is the best itself.

    Args:
        fingerprints: of the suites, by name; a record on another version of a suite says nothing.
    """
    line = succession(ledger.switches())
    ends = [each.at for each in line[1:]]
    recent = {each.model_id for each, end in zip(line, ends, strict=False) if dt.datetime.fromisoformat(end) >= since}
    rates = {
        model: rate for model, rate in _recorded_rates(ledger, fingerprints).items() if model in recent | {present}
    }
    own = rates.pop(present, None)
    there = {model: rate for model, rate in rates.items() if (registry / MODELS / model / MODEL_CARD).is_file()}
    best = max(there, key=lambda model: there[model], default=None)
    return best if best is not None and (own is None or there[best] > own) else None


def _recorded_rates(ledger: Ledger, fingerprints: Mapping[str, str]) -> dict[str, float]:
    """The pass rate of each model on these versions of the suites, from the gates' records; the latest counts."""
    promoted = {each.run_id: each.model_id for each in ledger.switches() if each.kind is SwitchKind.PROMOTE}
    rates = {}
    for run in ledger.runs():
        record = ledger.stage(run.id, Stage.COMPARE)
        if record is None or any(record.result["fingerprints"].get(n) != p for n, p in fingerprints.items()):
            continue
        for role, model in (("champion", record.result["champion"]), ("challenger", promoted.get(run.id))):
            if model is not None:
                counts = [record.result["rates"][role][name]["overall"] for name in fingerprints]
                rates[model] = sum(count["hits"] for count in counts) / sum(count["total"] for count in counts)
    return rates


def _mark_rolled_back(registry: Path, ledger: Ledger, each: Switch) -> None:
    """The run behind the model that was taken out of service."""
    run_id = read_model(registry, each.previous).run_id if each.previous is not None else None
    if run_id is not None:
        ledger.finish_run(run_id, Stop(RunState.ROLLED_BACK, f"rolled back to {each.model_id}"))


def succession(switches: list[Switch]) -> list[Switch]:
    """How the present champion came about, first to last, without what was rolled back since."""
    line: list[Switch] = []
    for each in switches:
        if not each.is_done:
            continue
        if each.kind is SwitchKind.ROLLBACK:
            line.pop()
        else:
            line.append(each)
    return line


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
