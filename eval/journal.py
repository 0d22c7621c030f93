"""Results of cases kept as they come: a killed evaluation goes on, and several processes share one.

Beside the result file of a suite and a model lies, until that is written, `<suite>-<model>.progress-<process>.jsonl`:
what is being measured in its first line, then a line for each case.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.results import CaseResult, case_from_json, case_to_json

_T = TypeVar("_T")
# Of a file of weights, so many pieces of that length stand for all: training moves every one of them.
_PIECES, _PIECE_BYTES = 16, 1 << 16


@dataclass(frozen=True)
class Share:
    """Which part of the cases a process takes: `number` of `count` processes, from 0. `launch` names their start."""

    number: int = 0
    count: int = 1
    launch: str = ""

    @classmethod
    def of_this_process(cls) -> Share:
        """As torch's launcher (`accelerate launch`) states it; all of its processes have one parent."""
        environment = os.environ
        return cls(int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1")), str(os.getppid()))

    def of(self, cases: Sequence[_T]) -> Sequence[_T]:
        """One piece in a row, because neighbours begin alike."""
        return cases[len(cases) * self.number // self.count : len(cases) * (self.number + 1) // self.count]


ALONE = Share()


class Journal:
    """The lines of one suite and model. `known` holds what earlier starts have scored, by case id.

    Args:
        stem: the result file's name without its ending.
        measured: what decides the results; lines that were written for anything else do not count.
        sleep: waits for other processes; a test passes its own.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        measured: Mapping[str, Any],
        share: Share = ALONE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.share = share
        self._folder, self._stem, self._sleep = folder, stem, sleep
        self._measured = json.loads(json.dumps(measured))
        folder.mkdir(parents=True, exist_ok=True)
        self.known = {case.id: case for path in self._paths() for case in self._cases(path) if case.outcome is not None}
        self._path = folder / f"{stem}.progress-{share.number}.jsonl"
        if not self._is_mine(self._path):
            fresh = self._path.with_suffix(".partial")
            fresh.write_text(json.dumps(self._measured) + "\n", "utf-8")
            fresh.replace(self._path)
        self._file = self._path.open("ab")
        if not self._path.read_bytes().endswith(b"\n"):  # a kill in the midst of a line
            self._file.write(b"\n")

    def keep(self, cases: Sequence[CaseResult]) -> None:
        """Write results of cases; once this returns, a kill does not lose them."""
        for case in cases:
            self._file.write(json.dumps(case_to_json(case), ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def gathered(self) -> dict[str, CaseResult] | None:
        """What all processes have found, by case id, once all are through; None for all processes but the first."""
        self._file.write(json.dumps({"finished": self.share.launch}).encode() + b"\n")
        self._file.close()
        if self.share.number:
            return None
        others = [self._folder / f"{self._stem}.progress-{number}.jsonl" for number in range(1, self.share.count)]
        while not all(any(line.get("finished") == self.share.launch for line in _lines(path)) for path in others):
            self._sleep(0.2)
        found = [case for path in self._paths() for case in self._cases(path)]
        unscored = {case.id: case for case in found if case.outcome is None}
        return unscored | {case.id: case for case in found if case.outcome is not None}

    def remove(self) -> None:
        """Drop what all processes wrote: the result is saved."""
        for path in self._folder.glob(f"{self._stem}.progress-*.jsonl"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the lines for the next start."""
        self._file.close()

    def _paths(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob(f"{self._stem}.progress-*.jsonl")) if self._is_mine(path)]

    def _is_mine(self, path: Path) -> bool:
        return bool(next(_lines(path), None) == self._measured)

    def _cases(self, path: Path) -> Iterator[CaseResult]:
        for line in _lines(path):
            if "id" in line and "outcome" in line:
                yield case_from_json(line)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; one that a kill has cut is left out."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value
    except FileNotFoundError:
        return


def weights_digest(model: str | Path) -> str:
    """What tells a model on disk from another of the same name and size, by samples of its contents; else its name."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not path.exists() or not files:
        return str(model)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as stream:
            for piece in range(_PIECES):
                stream.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()
