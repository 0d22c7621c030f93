"""Damaged GGUF files, again and again: `python -m scripts.fuzz_gguf MODEL.gguf … --minutes 10`.

Each damaged file has to be refused with an error of ours, or run. A process that ends, hangs, or takes much memory is
a finding: it is counted, and the file is kept. One process opens file after file; only a finding starts another. The
same seed makes the same file, so a finding can be repeated with `--first SEED --files 1`. `scripts/gguf_damage.py` has
the kinds of damage.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.gguf_damage import Kind, damage
from scripts.gguf_parts import take_apart
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model

_MEMORY_BYTES = 8 << 30
_TEXT = "What's the weather in Oslo?"
_BEGINS = "at"


class Fate(StrEnum):
    """What became of a damaged file: refused for its header, later, or run."""

    HEADER = "header"
    LATER = "later"
    RAN = "ran"


@dataclass
class Findings:
    """What came of one file's damaged copies, by kind of damage; `failures` are seeds with what happened."""

    fates: Counter[tuple[Kind, Fate]] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def n_files(self) -> int:
        """Files that were refused or run."""
        return self.fates.total()

    def count(self, fate: Fate, kind: Kind | None = None) -> int:
        """Files of that fate, of one kind of damage or of all."""
        return sum(n for (of_kind, of_fate), n in self.fates.items() if of_fate is fate and kind in (None, of_kind))


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing found, 1: findings, 2: bad input."""
    arguments = _parser().parse_args(argv)
    if arguments.worker is not None:
        return _work(arguments.models[0], arguments.worker, arguments.first, arguments.files)
    try:
        for path in arguments.models:
            read_header(path)
    except GgufError as error:
        print(f"fuzz_gguf: {error}", file=sys.stderr)
        return 2
    total, begin = Findings(), time.monotonic()
    for path in arguments.models:
        seconds = arguments.minutes * 60 / len(arguments.models)
        found = fuzz(path, arguments.first, arguments.files, seconds, arguments.hang_s)
        print(f"{path}: {found.n_files:,} damaged files, {len(found.failures)} findings", flush=True)
        for seed, what in found.failures:
            print(f"  seed {seed}: {what}; repeat with --first {seed} --files 1")
        total.fates += found.fates
        total.failures += found.failures
    print(_table(total, time.monotonic() - begin))
    return 1 if total.failures else 0


def _table(found: Findings, seconds: float) -> str:
    heads = ("files", "refused: header", "refused later", "ran")
    lines = [f"{'kind of damage':<16}" + "".join(f"{head:>17}" for head in heads)]
    for kind in (*Kind, None):
        counts = [found.count(fate, kind) for fate in Fate]
        lines.append(f"{kind or 'all':<16}" + "".join(f"{count:>17,}" for count in (sum(counts), *counts)))
    rate = found.n_files / seconds
    return "\n".join([*lines, f"{seconds:.0f} s, {rate:.0f} files a second, {len(found.failures)} findings"])


def fuzz(path: Path, first: int, n_files: int | None, seconds: float, hang_s: float) -> Findings:
    """Run workers over seeds from `first` until `n_files` are done or the time is up; a finding starts a new worker.

    Args:
        n_files: None takes as many as fit the time.
        hang_s: after so many seconds of the wall clock on one file it is a hang.
    """
    found, seed, deadline = Findings(), first, time.monotonic() + seconds
    with TemporaryDirectory() as folder:
        while (n_files is None or seed < first + n_files) and time.monotonic() < deadline:
            rest = None if n_files is None else first + n_files - seed
            seed, what = _watch(path, Path(folder) / "damaged.gguf", seed, rest, deadline, hang_s, found)
            if what is not None:
                found.failures.append((seed, what))
                kept = Path(f"fuzz-{path.stem}-{seed}.gguf")
                kept.write_bytes(damage(take_apart(path), seed)[1])
                seed += 1
    return found


def _watch(
    path: Path, scratch: Path, first: int, n_files: int | None, deadline: float, hang_s: float, found: Findings
) -> tuple[int, str | None]:
    """One worker to its end: the next seed and None, or the seed at which it ended and what happened."""
    command = [sys.executable, "-m", "scripts.fuzz_gguf", str(path), "--worker", str(scratch), "--first", str(first)]
    command += [] if n_files is None else ["--files", str(n_files)]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}  # a debugger would be attached otherwise
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, env=environment, stdout=pipe, stderr=pipe) as worker:
        lines: queue.Queue[str | None] = queue.Queue()
        errors: list[str] = []
        threading.Thread(target=_pump, args=(worker.stdout or (), lines), daemon=True).start()
        threading.Thread(target=lambda: errors.extend(worker.stderr or ()), daemon=True).start()
        seed = first
        while True:
            try:
                line = lines.get(timeout=hang_s)
            except queue.Empty:
                worker.kill()
                return seed, f"no end after {hang_s:g} s"
            if line is None:
                break
            word, number, *rest = line.split()
            if word == _BEGINS:
                seed = int(number)
                continue
            seed = int(number) + 1
            found.fates[Kind(rest[0]), Fate(word)] += 1
            if time.monotonic() > deadline:
                worker.kill()
                return seed, None
        status = worker.wait()
    tail = "".join(errors[-3:]).strip()[-300:]
    return seed, None if status == 0 else f"the process ended with status {status}: {tail}"


def _pump(stream: Iterable[str], lines: queue.Queue[str | None]) -> None:
    with contextlib.suppress(ValueError):  # closed by the other side, after the worker was killed
        for line in stream:
            lines.put(line.rstrip("\n"))
    lines.put(None)


def _work(path: Path, scratch: Path, first: int, n_files: int | None) -> int:
    """Say which seed is at hand, open its file, say what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    parts, seed = take_apart(path), first
    while n_files is None or seed < first + n_files:
        print(_BEGINS, seed, flush=True)
        kind, content = damage(parts, seed)
        # ext4 flushes a file that is written over to the disk, which takes 7 ms or far more; a new one it does not.
        scratch.unlink(missing_ok=True)
        scratch.write_bytes(content)
        print(_fate(scratch, is_native=bool(seed % 2)), seed, kind, flush=True)
        seed += 1
    return 0


def _fate(path: Path, *, is_native: bool) -> Fate:
    """What becomes of a file on our graphs where we have one, or on llama.cpp's."""
    try:
        read_header(path)
    except GgufError:
        return Fate.HEADER
    try:
        with open_model(path, 32, 1, is_native=is_native) as model:
            _use(model)
    except (ValueError, RuntimeError):
        return Fate.LATER
    return Fate.RAN


def _use(model: GgufModel) -> None:
    """Everything that a dispatcher asks of a model."""
    ids = model.tokenize(_TEXT, parse_special=True)[:16] or [1]
    model.detokenize([*range(min(model.n_vocab, 64)), model.n_vocab - 1, *ids])
    for role in ("bos", "eos", "pad"):
        model.special_token(role)
    model.decode(ids)
    model.decode_all(ids[:2])
    model.load_state(model.save_state())
    model.truncate(1)
    model.decode([model.n_vocab - 1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.fuzz_gguf", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf", help="small files; each gets its share")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--files", type=int, help="stop after so many damaged files of each model")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--hang-s", type=float, default=60, help="seconds on one file that count as a hang (default 60)"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
