"""Damaged GGUF files, again and again: `python -m scripts.fuzz_gguf MODEL.gguf … --minutes 10`.

Each damaged file has to be refused with an error of ours, or run. A process that ends, hangs, or takes much memory is
a finding: it is counted, and the file is kept. The same seed makes the same file, so a finding can be repeated with
`--first SEED --files 1`.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.open import open_model

_EXTREMES = (0, 1, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_MEMORY_BYTES = 8 << 30
_TEXT = "What's the weather in Oslo?"


@dataclass
class Findings:
    """Counts of one file's damaged copies; `failures` are seeds with what happened."""

    n_files: int
    n_refused: int
    failures: list[tuple[int, str]]


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
    is_bad = False
    for path in arguments.models:
        seconds = arguments.minutes * 60 / len(arguments.models)
        found = fuzz(path, arguments.first, arguments.files, seconds, arguments.hang_s)
        print(f"{path}: {found.n_files} damaged files, {found.n_refused} refused, {len(found.failures)} findings")
        for seed, what in found.failures:
            print(f"  seed {seed}: {what}; repeat with --first {seed} --files 1")
        is_bad |= bool(found.failures)
    return 1 if is_bad else 0


def damage(content: bytes, n_header: int, seed: int) -> bytes:
    """A copy of a file with a few wrong bytes or numbers in its header, or with its end cut off."""
    draw = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        # Most of a header is the vocabulary; keys and the tensor table at its ends decide more.
        low, high = draw.choice(((0, 400), (0, n_header), (n_header - 4000, n_header)))
        at = draw.randrange(max(low, 0), min(high, n_header))
        if draw.random() < 0.3:  # a count, a length or an offset that lies
            number = draw.choice((*_EXTREMES, len(content), len(content) - at, draw.getrandbits(64))) % (1 << 64)
            damaged[at : at + 8] = number.to_bytes(8, "little")
        else:
            byte = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256), damaged[at] ^ (1 << draw.randrange(8))))
            damaged[at] = byte
    if draw.random() < 0.2:
        at, size = draw.randrange(n_header), draw.randrange(1, 64)
        damaged[at : at + size] = draw.choice((b"", bytes(size), draw.randbytes(size)))
    if draw.random() < 0.1:
        del damaged[draw.randrange(len(damaged)) :]
    return bytes(damaged)


def fuzz(path: Path, first: int, n_files: int | None, seconds: float, hang_s: float) -> Findings:
    """Run workers over seeds from `first` until `n_files` are done or the time is up; a finding starts a new worker.

    Args:
        n_files: None takes as many as fit the time.
        hang_s: after so many seconds of the wall clock on one file it is a hang.
    """
    found, seed, deadline = Findings(0, 0, []), first, time.monotonic() + seconds
    with TemporaryDirectory() as folder:
        while (n_files is None or seed < first + n_files) and time.monotonic() < deadline:
            rest = None if n_files is None else first + n_files - seed
            seed, what = _watch(path, Path(folder) / "damaged.gguf", seed, rest, deadline, hang_s, found)
            if what is not None:
                found.failures.append((seed, what))
                kept = Path(f"fuzz-{path.stem}-{seed}.gguf")
                kept.write_bytes(damage(path.read_bytes(), read_header(path).data_offset, seed))
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
            word, _, number = line.partition(" ")
            found.n_refused += word == "refused"
            found.n_files += word in ("refused", "ran")
            seed = int(number) + (word != "at")
            if word != "at" and time.monotonic() > deadline:
                worker.kill()
                return seed, None
        status = worker.wait()
    tail = "".join(errors[-3:]).strip()[-300:]
    return seed, None if status == 0 else f"the process ended with status {status}: {tail}"


def _pump(stream: Iterable[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _work(path: Path, scratch: Path, first: int, n_files: int | None) -> int:
    """Say which seed is at hand, open its file, say what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    content, n_header = path.read_bytes(), read_header(path).data_offset
    seed = first
    while n_files is None or seed < first + n_files:
        print("at", seed, flush=True)
        scratch.write_bytes(damage(content, n_header, seed))
        try:
            with open_model(scratch, 32, 1) as model:
                model.decode(model.tokenize(_TEXT, parse_special=True)[:16] or [1])
                model.load_state(model.save_state())
        except (ValueError, RuntimeError):
            print("refused", seed, flush=True)
        else:
            print("ran", seed, flush=True)
        seed += 1
    return 0


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
