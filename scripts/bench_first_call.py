"""`python -m scripts.bench_first_call MODEL.gguf`: the first call of a new process that finds the tools' prompt saved.

Each repetition is a process of its own. Making the dispatcher, which loads the model and what is kept of the tools'
prompt and compiles the grammar, is left out. The first call is compared with the same call in the same process, asked
once more after another one: its words are new again then, and only the tools' prompt is kept. With one thread the
processor's time is counted and not the wall's, so that a busy machine does not spoil it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinydispatch.bundled import bundled_tools
from tinydispatch.dispatcher import Dispatcher

_TODAY = dt.date(2026, 3, 19)
_FIRST, _BETWEEN = "What's the weather in Oslo tomorrow?", "Convert 25 USD to EUR, please."


@dataclass(frozen=True)
class FirstCall:
    """Milliseconds of a first call with nothing saved, of one with a saved prefix, and of a warm one; medians."""

    bare_ms: float
    cold_ms: float
    warm_ms: float

    def __str__(self) -> str:
        return (
            f"first call of a new process, the model's load aside: {self.cold_ms:.1f} ms with a saved prefix "
            f"({self.bare_ms:.1f} ms without), warm {self.warm_ms:.1f} ms: {self.cold_ms / self.warm_ms:.2f} times"
        )


def measure(model: Path, n_ctx: int, threads: int, repeats: int) -> FirstCall:
    """Run the processes, the first of which saves the prefix.

    Raises:
        ValueError: the model cannot be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.bench_first_call", str(model), "--folder", folder]
        command += ["--n-ctx", str(n_ctx), "--threads", str(threads)]
        rows = []
        for _ in range(repeats + 1):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(done.stderr.strip().splitlines()[-1])
            rows.append([float(word) for word in done.stdout.split()])
    cold, warm = zip(*rows[1:], strict=True)
    return FirstCall(rows[0][0], statistics.median(cold), statistics.median(warm))


def _one_process(model: Path, folder: Path, n_ctx: int, threads: int) -> str:
    clock = time.process_time if threads == 1 else time.perf_counter
    taken = []
    with Dispatcher(model, bundled_tools(), _TODAY, n_ctx=n_ctx, threads=threads, cache=folder) as dispatcher:
        for text in (_FIRST, _BETWEEN, _FIRST):
            dispatcher.forget_replies()  # or the repeated question's answer would be known
            started = clock()
            dispatcher.dispatch(text)
            taken.append(1000 * (clock() - started))
    return f"{taken[0]} {taken[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; 0: done, 2: bad input."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_first_call", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of one of the processes
    arguments = parser.parse_args(argv)
    setting = (arguments.n_ctx, arguments.threads)
    try:
        if arguments.folder is not None:
            print(_one_process(arguments.model, arguments.folder, *setting))
        else:
            print(measure(arguments.model, *setting, arguments.repeats))
    except ValueError as error:
        print(f"bench_first_call: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
