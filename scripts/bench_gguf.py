"""Speed and memory of GGUF files side by side: `python -m scripts.bench_gguf FIRST.gguf SECOND.gguf …`.

Each row is one file in a process of its own, the processes taking turns: prefill and decode in tokens a second
(medians), their ratios to the first file's (medians of the ratios within a turn), how much of the memory's bandwidth
decoding uses (bytes of weights that a token needs, times tokens a second, over what as many threads read from a large
array), and peak memory. With one thread the processor's time is counted and not the wall's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from scripts.gguf_speed import MemoryReader, Speed, clock_for
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.library import LIBRARY_VARIABLE
from tinydispatch.ggml.model import default_threads
from tinydispatch.native.library import VARIABLE as NATIVE_VARIABLE

# Rows that are looked up, not multiplied: a token reads one of them.
_LOOKED_UP = ("position_embd.weight",)


@dataclass(frozen=True)
class Contestant:
    """A file and what runs it: what suits it best or llama.cpp's own graph, on the wheel's library or another.

    `is_native` False leaves to ggml what the native decoder would compute.
    """

    label: str
    path: Path
    is_llama_cpp: bool = False
    has_flash: bool = False
    library: Path | None = None
    is_native: bool = True

    @property
    def variables(self) -> dict[str, str]:
        """What its process finds in the environment."""
        library = {LIBRARY_VARIABLE: str(self.library.resolve())} if self.library else {}
        return library | ({} if self.is_native else {NATIVE_VARIABLE: "off"})


@dataclass(frozen=True)
class Bench:
    """What is measured: so many tokens at once, then so many one by one, each file `repeats` times."""

    prompt: int
    generate: int
    repeats: int
    threads: int


class BenchError(ValueError):
    """A contestant that cannot run; the message is its own."""


class _Worker:
    """The process of one contestant."""

    def __init__(self, contestant: Contestant, bench: Bench) -> None:
        command = [sys.executable, "-m", "scripts.gguf_speed", str(contestant.path)]
        command += ["--prompt", str(bench.prompt), "--generate", str(bench.generate), "--threads", str(bench.threads)]
        command += ["--llama-cpp"] * contestant.is_llama_cpp + ["--flash"] * contestant.has_flash
        self._process = subprocess.Popen(
            command,
            env=os.environ | contestant.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:
            self._pipe(self._process.stdin).close()

    def measure(self) -> Speed:
        """One repetition."""
        pipe = self._pipe(self._process.stdin)
        pipe.write("\n")
        pipe.flush()
        return Speed(**json.loads(self._read_line()))

    def _read_line(self) -> str:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise BenchError(self._pipe(self._process.stderr).read().strip() or "the measuring process ended")
        return line

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 for a file that cannot be run."""
    arguments = _parser().parse_args(argv)
    try:
        contestants = [Contestant(path.name, path) for path in arguments.models]
        threads = arguments.threads or max(default_threads(path.stat().st_size) for path in arguments.models)
        print(compare(contestants, Bench(arguments.prompt, arguments.generate, arguments.repeats, threads)))
    except (ValueError, OSError) as error:
        print(f"bench_gguf: {error}", file=sys.stderr)
        return 2
    return 0


def compare(contestants: Sequence[Contestant], bench: Bench) -> str:
    """A table of all contestants, measured in turns.

    Raises:
        BenchError: one of them cannot run.
    """
    for path in {contestant.path for contestant in contestants}:
        _drop_from_memory(path)
    clock, reader = clock_for(bench.threads), MemoryReader(bench.threads)
    bandwidth: list[float] = []
    speeds: list[list[Speed]] = [[] for _ in contestants]
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(contestant, bench)) for contestant in contestants]
        for repeat in range(bench.repeats + 1):
            bandwidth.append(reader.bandwidth(clock))
            for worker, found in zip(workers, speeds, strict=True):
                speed = worker.measure()
                if repeat:  # the first turn reads the files into memory
                    found.append(speed)
    return _table(contestants, speeds, statistics.median(bandwidth), bench)


def _drop_from_memory(path: Path) -> None:
    """Let the file be read anew, as after a restart: it then comes in huge pages; what was just written does not."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _table(contestants: Sequence[Contestant], speeds: Sequence[Sequence[Speed]], bandwidth: float, bench: Bench) -> str:
    lines = [
        f"{bench.threads} threads, prompt of {bench.prompt}, {bench.generate} generated, {bench.repeats} repetitions; "
        f"memory is read at {bandwidth / 1e9:.1f} GB/s",
        f"{'':<40}" + "".join(f"{name:>10}" for name in ("MB", "prefill/s", "ratio", "decode/s", "ratio"))
        + f"{'bandwidth':>11}{'peak MB':>9}",
    ]  # fmt: skip
    first = speeds[0]
    for contestant, found in zip(contestants, speeds, strict=True):
        decode = statistics.median(speed.decode for speed in found)
        share = decode * bytes_per_token(contestant.path) / bandwidth
        prefill_ratio = statistics.median(a.prefill / b.prefill for a, b in zip(found, first, strict=True))
        decode_ratio = statistics.median(a.decode / b.decode for a, b in zip(found, first, strict=True))
        lines.append(
            f"{contestant.label:<40}{contestant.path.stat().st_size / 1e6:>10.1f}"
            f"{statistics.median(speed.prefill for speed in found):>10.1f}{prefill_ratio:>10.2f}"
            f"{decode:>10.1f}{decode_ratio:>10.2f}{share:>11.0%}{found[-1].peak_mb:>9.0f}"
        )
    return "\n".join(lines)


def bytes_per_token(path: Path) -> int:
    """Bytes of weights that one token's computation reads."""
    tensors = read_header(path).tensors
    has_head = any(tensor.name == "output.weight" for tensor in tensors)
    skipped = (*_LOOKED_UP, "token_embd.weight") if has_head else _LOOKED_UP
    return sum(tensor.n_bytes for tensor in tensors if tensor.name not in skipped)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_gguf", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt (default 256)")
    parser.add_argument("--generate", type=int, default=64, help="tokens decoded one by one (default 64)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as suit the largest file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
