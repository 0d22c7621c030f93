"""Speed and memory of GGUF files side by side: `python -m scripts.bench_gguf FIRST.gguf SECOND.gguf …`.

Each row is one file: prefill and decode in tokens a second (medians, the files taking turns), their ratio to the first
file, and how much of the memory's bandwidth decoding uses: bytes of weights that a token needs, times tokens a
second, over what the same threads read from a large array. With one thread the processor's time is counted and not
the wall's, so that a busy machine does not spoil it. Each file's memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.model import GgufModel, default_threads
from tinydispatch.ggml.open import open_model

_ARRAY_BYTES = 256 << 20
# Rows that are looked up, not multiplied: a token reads one of them.
_LOOKED_UP = ("position_embd.weight",)


@dataclass
class Timing:
    """Tokens a second of one file, a number per repetition."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 for a file that cannot be run."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.measure_memory:
            print(_peak_megabytes(arguments.models[0], arguments.prompt, arguments.generate, arguments.threads))
            return 0
        threads = arguments.threads or max(default_threads(path.stat().st_size) for path in arguments.models)
        models = {path: open_model(path, arguments.prompt + arguments.generate, threads) for path in arguments.models}
    except (ValueError, OSError) as error:
        print(f"bench_gguf: {error}", file=sys.stderr)
        return 2
    clock = time.process_time if threads == 1 else time.perf_counter
    timings = {path: Timing() for path in models}
    bandwidth: list[float] = []
    for _ in range(arguments.repeats):
        for path, model in models.items():
            bandwidth.append(_read_bandwidth(threads, clock))
            _measure(model, timings[path], arguments.prompt, arguments.generate, clock)
    for model in models.values():
        model.close()
    _print_table(timings, statistics.median(bandwidth), arguments, threads)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_gguf", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt (default 256)")
    parser.add_argument("--generate", type=int, default=64, help="tokens decoded one by one (default 64)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as suit the largest file")
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    return parser


def _measure(
    model: GgufModel, timing: Timing, n_prompt: int, n_generate: int, clock: Callable[[], float] = time.perf_counter
) -> None:
    ids = np.random.default_rng(0).integers(5, min(model.n_vocab, 1000), n_prompt + n_generate).tolist()
    model.truncate(0)
    started = clock()
    model.decode(ids[:n_prompt])
    prefilled = clock()
    for token in ids[n_prompt:]:
        model.decode([token])
    timing.prefill.append(n_prompt / (prefilled - started))
    timing.decode.append(n_generate / (clock() - prefilled))


def _read_bandwidth(threads: int, clock: Callable[[], float]) -> float:
    """Bytes a second that so many threads read, summing an array far larger than any cache."""
    parts = np.array_split(np.ones(_ARRAY_BYTES // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        started = clock()
        list(pool.map(np.sum, parts))
        return _ARRAY_BYTES / (clock() - started)


def _bytes_per_token(path: Path) -> int:
    tensors = read_header(path).tensors
    has_head = any(tensor.name == "output.weight" for tensor in tensors)
    skipped = (*_LOOKED_UP, "token_embd.weight") if has_head else _LOOKED_UP
    return sum(tensor.n_bytes for tensor in tensors if tensor.name not in skipped)


def _peak_megabytes(path: Path, n_prompt: int, n_generate: int, threads: int | None) -> int:
    with open_model(path, n_prompt + n_generate, threads) as model:
        _measure(model, Timing(), n_prompt, min(n_generate, 4))
    # Unlike getrusage's, this peak begins with the program and not with the process that started it.
    peak = next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) // 1024


def _print_table(timings: dict[Path, Timing], bandwidth: float, arguments: argparse.Namespace, threads: int) -> None:
    print(
        f"{threads} threads, prompt {arguments.prompt}, {arguments.repeats} repetitions; "
        f"memory is read at {bandwidth / 1e9:.1f} GB/s"
    )
    head = ("file", "MB", "graph", "prefill/s", "ratio", "decode/s", "ratio", "bandwidth", "peak MB")
    print(f"{head[0]:<36}" + "".join(f"{name:>10}" for name in head[1:]))
    first = next(iter(timings.values()))
    for path, timing in timings.items():
        prefill, decode = statistics.median(timing.prefill), statistics.median(timing.decode)
        share = decode * _bytes_per_token(path) / bandwidth
        values = (
            f"{path.stat().st_size / 1e6:.1f}",
            read_header(path).architecture,
            f"{prefill:.1f}",
            f"{prefill / statistics.median(first.prefill):.2f}",
            f"{decode:.1f}",
            f"{decode / statistics.median(first.decode):.2f}",
            f"{share:.0%}",
            _memory(path, arguments),
        )
        print(f"{path.name:<36}" + "".join(f"{value:>10}" for value in values))


def _memory(path: Path, arguments: argparse.Namespace) -> str:
    options = ["--prompt", str(arguments.prompt), "--threads", str(arguments.threads or 1), "--measure-memory"]
    command = [sys.executable, "-m", "scripts.bench_gguf", str(path), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
