"""New records in: read, cleared of personal data, reviewed, and added to what earlier runs took in.

A run's `intake/pool.jsonl` holds every record that it trains on beyond the base run's sources, `intake/held.jsonl`
those that the gate asks instead (`retraining/cases.py`), `intake/new.jsonl` what it was the first to take, and
`intake/quarantine.jsonl` what needs a person's eyes. None of them changes later.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.clean import check_conversation
from data.overlap import OverlapIndex
from data.rejected import Rejected
from data.sources.dispatch_log import Trust
from data.store import StoreError
from data.truth import clear
from retraining.cases import HELD, HeldRow, held_row, hold_out
from retraining.config import AfterRefusal, IntakeConfig
from retraining.engine import sha256_of
from retraining.errors import RetrainError
from retraining.ledger import Ledger, RunRecord
from retraining.records import PoolRow, Record, Withdrawn, decided_in, pool_row, read_records, to_line
from retraining.review import Finding, Reviewed, review
from retraining.stages import Done, RunState, Stage, Stop
from tinydispatch.redaction import Redactor, load_redactor
from tinydispatch.tools import Tool

POOL, NEW, QUARANTINE = "pool.jsonl", "new.jsonl", "quarantine.jsonl"


@dataclass(frozen=True)
class Earlier:
    """What runs before took in: `pool` is trained on again, `held` was asked by the gate and trained on by no run.

    `seen` holds the key of every record that was decided.
    """

    pool: tuple[PoolRow, ...] = ()
    seen: frozenset[str] = frozenset()
    held: tuple[HeldRow, ...] = ()


@dataclass(frozen=True)
class _Rules:
    """What is looked at in each record by itself."""

    overlap: OverlapIndex
    redactor: Redactor


@dataclass
class _Read:
    """Records of all sources that came through on their own, and why others did not."""

    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    redacted: int = 0
    withdrawn: set[str] = field(default_factory=set)  # keys


def take_in(
    folder: Path,
    config: IntakeConfig,
    earlier: Earlier,
    *,
    default_tools: Sequence[Tool],
    case_texts: Sequence[str],
    seed: int,
) -> Done:
    """Write the run's pool, and say how much of it is new; the run ends here where that is too little.

    Raises:
        DataFileError: a source cannot be read or fetched.
    """
    redactor = Redactor() if config.redaction is None else load_redactor(config.redaction)
    held = [replace(row, gates=row.gates + 1) for row in earlier.held]
    in_use = [row for row in held if row.gates <= config.held_gates]
    texts = [*case_texts, *(text for row in in_use for text in row.texts)]
    read = _read(config, earlier.seen, default_tools, _Rules(OverlapIndex(texts), redactor), seed)
    in_use = [row for row in in_use if row.row.key not in read.withdrawn]
    known = {row.key for row in earlier.pool}
    retired = [row for row in held if row.gates > config.held_gates]
    before = [*earlier.pool, *(row.row for row in retired if row.row.key not in known)]
    kept = [row for row in before if row.key not in read.withdrawn]
    reviewed = review(read.records, kept, config)
    findings = [*read.findings, *reviewed.findings]
    split = hold_out(reviewed.new, reviewed.kept, config.held_share)
    pool = [*(row.line for row in reviewed.kept), *(to_line(record) for record in split.trained)]
    taken = [HeldRow(pool_row(to_line(record), "a new record"), 1) for record in split.held]
    paths = tuple(folder / name for name in (POOL, NEW, QUARANTINE, HELD))
    _write(paths[3], (row.line() for row in [*retired, *in_use, *taken]))
    _write(paths[0], pool)
    _write(paths[1], (json.dumps({"key": record.key, "source": record.source}) for record in reviewed.new))
    _write(paths[2], (json.dumps(finding.to_json(), ensure_ascii=False) for finding in findings))
    result = _result(config, read, reviewed) | {"withdrawn": len(before) - len(kept)}
    result |= {"held": len(in_use) + len(taken), "retired": len(retired), "pool": len(pool)}
    return Done(paths, result, _too_little(len(reviewed.new), config))


def counted_runs(ledger: Ledger, after_refusal: AfterRefusal) -> list[str]:
    """The runs whose records are trained on again, oldest first; of one that nobody could tell to be worse they are."""
    states = {RunState.PROMOTED, RunState.INCONCLUSIVE} | (
        {RunState.REFUSED} if after_refusal is AfterRefusal.KEEP else set()
    )
    return [run.id for run in ledger.runs() if run.state in states]


def earlier_runs(ledger: Ledger, runs_dir: Path, after_refusal: AfterRefusal) -> Earlier:
    """What the finished runs leave to the next.

    Raises:
        RetrainError: a pool is gone or was changed since.
    """
    counted = set(counted_runs(ledger, after_refusal))
    decided = {RunState.PROMOTED, RunState.REFUSED, RunState.INCONCLUSIVE, RunState.ROLLED_BACK}
    seen: set[str] = set()
    set_aside: set[str] = set()
    pool: tuple[PoolRow, ...] = ()
    held: tuple[HeldRow, ...] = ()
    for run in ledger.runs():
        intake = ledger.stage(run.id, Stage.INTAKE)
        if run.state not in decided or intake is None:
            continue
        folder = runs_dir / run.id
        keys = {json.loads(line)["key"] for line in _lines(ledger, run, folder, NEW)}
        seen |= keys
        set_aside |= keys if run.id not in counted else set()
        where = folder / "intake" / HELD
        if f"intake/{HELD}" in intake.outputs:  # not of runs before there was such a file
            held = tuple(held_row(line, f"{where}:{n}") for n, line in enumerate(_lines(ledger, run, folder, HELD), 1))
        if run.id in counted:
            where = folder / "intake" / POOL
            lines = _lines(ledger, run, folder, POOL)
            pool = tuple(pool_row(line, f"{where}:{number}") for number, line in enumerate(lines, 1))
    return Earlier(pool, frozenset(seen), tuple(row for row in held if row.row.key not in set_aside))


def _read(config: IntakeConfig, seen: frozenset[str], default_tools: Sequence[Tool], rules: _Rules, seed: int) -> _Read:
    read = _Read()
    keys = set(seen)
    said = set[str]()  # by a person
    decided = decided_in(config.sources)
    for source in config.sources:
        for row in read_records(source, default_tools, seed, decided):
            if isinstance(row, Withdrawn):
                conversation = clear(row.record.conversation, rules.redactor).conversation
                read.withdrawn.add(replace(row.record, conversation=conversation).key)
                continue
            found = _checked(row, rules, read)
            if found is None:
                continue
            if found.trust is Trust.PERSON:
                said.add(found.key)
            if found.key in keys:
                read.counts["already_known"] += 1
                continue
            keys.add(found.key)
            read.records.append(found)
    read.withdrawn -= said
    return read


def _checked(row: Record | Rejected, rules: _Rules, read: _Read) -> Record | None:
    """The record without personal data, where nothing is wrong with it by itself."""
    read.counts["read"] += 1
    if isinstance(row, Rejected):
        read.counts[str(row.reason)] += 1
        return None
    cleared = clear(row.conversation, rules.redactor)
    read.redacted += cleared.is_changed
    record = replace(row, conversation=cleared.conversation)
    if (rejected := check_conversation(record.conversation)) is not None:
        read.counts[str(rejected.reason)] += 1
        return None
    if rules.overlap.match(record.conversation) is not None:
        read.counts["evaluation_overlap"] += 1
        return None
    try:
        to_line(record).encode("utf-8")
    except (StoreError, ValueError, TypeError):
        read.counts["unstorable"] += 1
        return None
    return record


def _result(config: IntakeConfig, read: _Read, reviewed: Reviewed) -> dict[str, Any]:
    dropped = {name: count for name, count in sorted(read.counts.items()) if name != "read"}
    return {
        "read": read.counts["read"],
        "new": len(reviewed.new),
        "pool": len(reviewed.kept) + len(reviewed.new),
        "new_by_source": dict(Counter(record.source for record in reviewed.new)),
        "new_by_trust": dict(Counter(record.trust.name.lower() for record in reviewed.new)),
        "quarantined": dict(Counter(finding.reason for finding in reviewed.findings)),
        "superseded": reviewed.superseded,
        "postponed": reviewed.postponed,
        "dropped": dropped,
        "redacted": read.redacted,
        "min_new": config.min_new,
    }


def _too_little(new: int, config: IntakeConfig) -> Stop | None:
    if new >= config.min_new:
        return None
    reason = f"{new} new records, fewer than the {config.min_new} that intake.min_new asks for"
    return Stop(RunState.SKIPPED, reason)


def _lines(ledger: Ledger, run: RunRecord, folder: Path, name: str) -> list[str]:
    record = ledger.stage(run.id, Stage.INTAKE)
    assert record is not None
    path = folder / "intake" / name
    if not path.is_file() or sha256_of(path) != record.outputs[f"intake/{name}"]:
        raise RetrainError(f"{path}: gone, or changed since run {run.id} wrote it; restore it from a backup")
    return path.read_text("utf-8").splitlines()


def _write(path: Path, lines: Iterable[str]) -> None:
    """Whole or not at all, and for its owner alone, as the log is that it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    partial = path.with_suffix(".jsonl.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(f"{line}\n" for line in lines)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def quarantined(path: Path) -> Iterator[Mapping[str, Any]]:
    """The entries of a quarantine file."""
    yield from (json.loads(line) for line in path.read_text("utf-8").splitlines())
