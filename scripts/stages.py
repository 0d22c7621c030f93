"""The stages of a run and the record of which are complete, so that a run goes on from where it stopped."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from data.config import SynthSource
from data.sources.files import content_hash
from eval.suites import load_case_texts, load_suite
from tinydispatch.formats import default_chat_template
from training.config import RunConfig

_RECORD = "stages.json"


class Stage(StrEnum):
    """In the order in which they run."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"
    EVALUATE_GGUF = "evaluate_gguf"


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: the fingerprint of everything that decided its result, when, and how long it took."""

    fingerprint: str
    finished_at: str
    seconds: float


class Ledger:
    """What is complete in a run folder. A stage whose inputs changed since counts as not complete.

    A fingerprint covers the stage's settings, the content of the files that it reads from outside the run, and the
    fingerprint of the stage before, so a change anywhere redoes everything after it, and a copy or a touch nothing.
    """

    def __init__(self, run: RunConfig, model_dir: Path) -> None:
        self.path = run.run_dir / _RECORD
        self.fingerprints = fingerprints(run, model_dir)
        self._records = _read(self.path)

    def is_complete(self, stage: Stage) -> bool:
        """Whether the stage ended with the inputs that it would have now, and its files are there."""
        record = self._records.get(stage)
        outputs = self.path.parent
        there = all((outputs / name).exists() for name in _OUTPUTS[stage])
        return there and record is not None and record.fingerprint == self.fingerprints[stage]

    def forget_from(self, first: Stage) -> None:
        """Make `first` and everything after it count as not done."""
        stages = list(Stage)
        for stage in stages[stages.index(first) :]:
            self._records.pop(stage, None)
        self._write()

    @contextmanager
    def running(self, stage: Stage) -> Iterator[None]:
        """Record the stage as complete when the block ends without an error."""
        self.forget_from(stage)
        started = time.monotonic()
        yield
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._records[stage] = StageRecord(self.fingerprints[stage], now, round(time.monotonic() - started, 1))
        self._write()

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each complete stage."""
        return {stage: self._records[stage].seconds for stage in Stage if stage in self._records}

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".json.part")
        part.write_text(json.dumps({stage: vars(record) for stage, record in self._records.items()}, indent=2), "utf-8")
        part.replace(self.path)


_OUTPUTS: Mapping[Stage, tuple[str, ...]] = {
    Stage.PREPARE: ("data/train.jsonl", "data_card.json"),
    Stage.TRAIN: ("checkpoint/config.json",),
    Stage.EVALUATE: ("eval",),
    Stage.EXPORT: ("gguf",),
    Stage.EVALUATE_GGUF: ("eval",),
}


def fingerprints(run: RunConfig, model_dir: Path) -> dict[Stage, str]:
    """The fingerprint of each stage."""
    tree = run.model_dump(mode="json")
    suites = [load_suite(name).fingerprint for name in run.eval.suites]
    sources = [_seen(source.path) for source in run.data.sources if not isinstance(source, SynthSource)]
    parts: dict[Stage, Any] = {
        Stage.PREPARE: [tree["data"], run.seed, sources, _seen(model_dir), load_case_texts(), _seen(run.data.tools)],
        Stage.TRAIN: [tree["model"], tree["training"], default_chat_template()],
        Stage.EVALUATE: [tree["eval"], suites],
        Stage.EXPORT: [tree["export"], tree["name"]],
        Stage.EVALUATE_GGUF: [],
    }
    found: dict[Stage, str] = {}
    before = ""
    for stage in Stage:
        text = json.dumps([before, parts[stage]], sort_keys=True, ensure_ascii=False)
        before = found[stage] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def _seen(path: Path | None) -> list[Any]:
    """Name and content of a file, or of everything in a folder and below: a gigabyte a second, or nearly."""
    if path is None:
        return []
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[str(file.relative_to(path)), content_hash(file)] for file in files if file.is_file()]


def _read(path: Path) -> dict[Stage, StageRecord]:
    try:
        value = json.loads(path.read_text("utf-8"))
        return {Stage(name): StageRecord(**record) for name, record in value.items()}
    except (OSError, ValueError, TypeError):
        return {}  # nothing recorded, or not by this version: every stage runs
