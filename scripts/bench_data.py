"""`python -m scripts.bench_data --file /tmp/rows.json --tokenizer runs/…/tokenizer.json`: the data stage at full size.

Prints rows a second, processor time and the peak memory of all processes, beside the naive way
(scripts/naive_toolbench.py) and the floor (cutting and parsing the file). With `--check` it is also killed (-9)
half-way and gone on with by one process: the bytes must be the same. `--parts` runs some of this alone.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from data.config import DataConfig, ToolBenchSource
from data.lengths import TokenCounter
from data.prepare import prepare
from data.sources.files import iter_pieces, read_piece
from scripts import naive_toolbench
from tinydispatch.formats import default_chat_template

_POLL_S = 0.25
_PARTS = ("convert", "floor", "naive")


@dataclass(frozen=True)
class Measured:
    """Seconds on the clock, seconds of processor time, and the most memory at one time in bytes, of all processes."""

    wall_s: float
    cpu_s: float
    peak_bytes: int

    def projected(self, start: Measured, scale: float) -> Measured:
        """For `scale` times as many rows; what a process takes to start, in time and memory, is not multiplied."""
        wall_s = start.wall_s + max(0.0, self.wall_s - start.wall_s) * scale
        cpu_s = start.cpu_s + max(0.0, self.cpu_s - start.cpu_s) * scale
        peak_bytes = start.peak_bytes + max(0, self.peak_bytes - start.peak_bytes) * scale
        return Measured(wall_s, cpu_s, int(peak_bytes))

    def line(self, name: str, rows: int) -> str:
        """A table row."""
        return (
            f"| {name} | {self.wall_s:,.0f} | {self.cpu_s:,.0f} | {rows / self.wall_s:,.0f} | "
            f"{rows / self.cpu_s:,.0f} | {self.peak_bytes / 1e6:,.0f} |"
        )


def counter_of(tokenizer: Path) -> TokenCounter:
    """Counts with a `tokenizer.json` and the default chat template."""
    return TokenCounter(tokenizer.read_text("utf-8"), default_chat_template(), {})


def convert(file: Path, out: Path, workers: int, tokenizer: Path) -> None:
    """The data stage on one file."""
    source = ToolBenchSource(kind="toolbench", path=file)
    config = DataConfig(sources=(source,), workers=workers)
    prepare(config, seed=0, out_dir=out, case_texts=[], count_tokens=counter_of(tokenizer))


def literal_only(file: Path) -> None:
    """No more than `json.load` and `ast.literal_eval` of every row's tools: no check, no length, nothing written."""
    for row in json.loads(file.read_text("utf-8")):
        text = row["conversations"][0]["value"].partition("following APIs: ")[2]
        ast.literal_eval(text[: text.rfind("]") + 1])


def floor(file: Path) -> None:
    """Cut the file into rows and parse each; nothing else can be faster in one process."""
    for piece in iter_pieces(file, file.name):
        for _ in read_piece(piece):
            pass


_WAYS: dict[str, Callable[[argparse.Namespace], None]] = {
    "convert": lambda a: convert(a.file, a.out, a.workers, a.tokenizer),
    "naive": lambda a: print(naive_toolbench.convert(a.file, a.out / "naive.jsonl", a.tokenizer), "rows kept by it"),
    "literal": lambda a: literal_only(a.file),
    "floor": lambda a: floor(a.file),
    "start": lambda _: None,
}


def measured(
    way: str, file: Path, arguments: argparse.Namespace, workers: int = 1, out: Path | None = None
) -> Measured:
    """Run one way in a process of its own and watch it and its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(_command(way, file, arguments, workers, out or arguments.out))
    peak = 0
    while not _has_ended(process):
        peak = max(peak, _memory(process.pid))
    wall_s = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{way} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak)


def _command(way: str, file: Path, arguments: argparse.Namespace, workers: int, out: Path) -> list[str]:
    command = [sys.executable, "-m", "scripts.bench_data", "--way", way, "--file", str(file), "--workers", str(workers)]
    return [*command, "--tokenizer", str(arguments.tokenizer), "--out", str(out)]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Waits a moment, but no longer than the process takes."""
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _memory(pid: int) -> int:
    """Memory of a process and its children in bytes; pages that they share count once."""
    memory = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            memory += process.memory_full_info().pss
    except psutil.Error:
        pass  # one ended while it was looked at
    return memory


def _digest(out: Path) -> str:
    files = [out / "data" / "train.jsonl", out / "data" / "heldout.jsonl"]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def killed_half_way(arguments: argparse.Namespace, out: Path) -> None:
    """Start a conversion, kill it (-9) once half of its shards are there, and wait until its workers are gone."""
    shutil.rmtree(out, ignore_errors=True)
    n_shards = sum(1 for _ in iter_pieces(arguments.file, ""))
    process = subprocess.Popen(_command("convert", arguments.file, arguments, arguments.workers, out))
    while len(list(out.glob("data/.work/*/*.meta"))) < n_shards // 2 and process.poll() is None:
        time.sleep(_POLL_S)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=30)
    assert not any(child.is_running() for child in children), "a worker outlived its parent"
    assert not (out / "data_card.json").exists(), "it was done before it could be killed"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 when `--check` finds other bytes."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_data", description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="as scripts.make_toolbench_file writes it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("/tmp/tinydispatch-bench"))
    parser.add_argument("--sample", type=Path, help="a smaller file of the same kind for the naive way")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--parts", nargs="*", choices=_PARTS, default=_PARTS, help="default: all of them")
    parser.add_argument("--way", choices=sorted(_WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.way:
        _WAYS[arguments.way](arguments)
        return 0
    return _bench(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    rows = sum(len(piece.spans) for piece in iter_pieces(arguments.file, ""))
    print(f"{rows:,} rows, {arguments.file.stat().st_size / 1e6:,.0f} MB\n")
    print("| way | seconds | CPU seconds | rows/s | rows per CPU second | peak MB |\n" + "| --- " * 6 + "|")
    if "convert" in arguments.parts:
        shutil.rmtree(arguments.out, ignore_errors=True)
        ours = measured("convert", arguments.file, arguments, arguments.workers)
        print(ours.line(f"this, {arguments.workers} processes", rows), flush=True)
    if "floor" in arguments.parts:
        print(measured("floor", arguments.file, arguments).line("floor: cut and parse", rows), flush=True)
    if "naive" in arguments.parts and arguments.sample:
        _naive_lines(arguments, rows)
    return _check(arguments) if arguments.check else 0


def _check(arguments: argparse.Namespace) -> int:
    """Kill a conversion, go on with one process; 1 where the bytes differ from those that `convert` left in `--out`."""
    expected = _digest(arguments.out)
    again = arguments.out.with_name(arguments.out.name + "-again")
    killed_half_way(arguments, again)
    resumed = measured("convert", arguments.file, arguments, 1, again)
    print(f"after kill -9 half-way, the rest by 1 process: {resumed.wall_s:,.0f} s, {resumed.cpu_s:,.0f} CPU s")
    same = _digest(again) == expected
    print(
        f"bytes after kill -9, restart and another number of processes: {'the same' if same else 'OTHERS'} ({expected})"
    )
    shutil.rmtree(again)
    return 0 if same else 1


def _naive_lines(arguments: argparse.Namespace, rows: int) -> None:
    """The naive ways on the sample, in turns, the one in the middle projected to all rows; memory grows with rows."""
    sample_rows = sum(len(piece.spans) for piece in iter_pieces(arguments.sample, ""))
    ways = ("start", "naive", "literal")
    runs = [{way: measured(way, arguments.sample, arguments) for way in ways} for _ in range(3)]
    middle = {way: sorted((run[way] for run in runs), key=lambda run: run.cpu_s)[1] for way in ways}
    for way in ways[1:]:
        projected = middle[way].projected(middle["start"], rows / sample_rows)
        print(projected.line(f"{way}, from {sample_rows:,} rows", rows), flush=True)


if __name__ == "__main__":
    sys.exit(main())
