"""One GGUF file in a process of its own, measured whenever a line arrives on standard input: the worker of bench_gguf.

Each answer is one line of JSON: tokens a second in prefill and decode, and the process's peak memory so far.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tinydispatch.bench import memory
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model

_ARRAY_BYTES = 256 << 20
Clock = Callable[[], float]


@dataclass(frozen=True)
class Speed:
    """One repetition: tokens a second, and the most memory that the process has had, in megabytes."""

    prefill: float
    decode: float
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 for a file that cannot be run."""
    arguments = _parser().parse_args(argv)
    open_file = LlamaModel if arguments.llama_cpp else open_model
    if arguments.flash:
        LlamaModel.flash_attention = 1
    try:
        model = open_file(arguments.model, arguments.prompt + arguments.generate, arguments.threads)
    except (ValueError, OSError) as error:
        print(f"gguf_speed: {error}", file=sys.stderr)
        return 2
    with model:
        print("ready", flush=True)
        for _ in sys.stdin:
            found = measure(model, arguments.prompt, arguments.generate, clock_for(arguments.threads))
            print(json.dumps(asdict(found)), flush=True)
    return 0


def clock_for(threads: int) -> Clock:
    """The processor's time where one thread computes, so that a busy machine does not spoil it; else the wall's."""
    return time.process_time if threads == 1 else time.perf_counter


def measure(model: GgufModel, n_prompt: int, n_generate: int, clock: Clock) -> Speed:
    """A prompt at once, then tokens one by one."""
    ids = np.random.default_rng(0).integers(5, min(model.n_vocab, 1000), n_prompt + n_generate).tolist()
    model.truncate(0)
    started = clock()
    model.decode(ids[:n_prompt])
    prefilled = clock()
    for token in ids[n_prompt:]:
        model.decode([token])
    return Speed(n_prompt / (prefilled - started), n_generate / (clock() - prefilled), memory().peak_mb)


class MemoryReader:
    """Measures how fast so many threads read memory: libc's search for a byte that is not there, in a large array."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._array = np.ones(_ARRAY_BYTES, dtype=np.uint8)
        self._search = ctypes.CDLL(None).memchr
        self._search.argtypes, self._search.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p

    def bandwidth(self, clock: Clock) -> float:
        """Bytes a second."""
        parts = np.array_split(self._array, self._threads)
        with ThreadPoolExecutor(self._threads) as pool:
            started = clock()
            list(pool.map(lambda part: self._search(part.ctypes.data, 0, part.size), parts))
            return _ARRAY_BYTES / (clock() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.gguf_speed", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama-cpp", action="store_true", help="llama.cpp's own graph, whatever the architecture")
    parser.add_argument("--flash", action="store_true", help="llama.cpp with flash attention")
    return parser


if __name__ == "__main__":
    sys.exit(main())
