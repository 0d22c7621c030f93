"""Rows a second from conversations to token ids: one process, several, and a start that finds them encoded.

    python -m scripts.bench_encoding runs/opt350m/data/train.jsonl --model /path/to/opt-350m [--workers 1 2]

Seconds are by the wall clock and with the processes' start; on a busy machine `cpu` (of all processes) says more.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from training.encoding import encoded_data
from training.tokenizer import load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when the file or the model cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", type=Path, help="a train.jsonl of the data stage")
    parser.add_argument("--model", type=Path, required=True, help="folder with the tokenizer")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens; longer ones are left out")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes, one try for each number")
    options = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(options.model)
        with options.conversations.open("rb") as file:
            n_rows = sum(1 for _ in file)
        print("| processes | seconds | rows/s | cpu seconds | found again, seconds |\n| --- | --- | --- | --- | --- |")
        for workers in options.workers:
            with tempfile.TemporaryDirectory() as folder:
                timings = [_timed(options, tokenizer, Path(folder), workers) for _ in range(2)]
            (seconds, cpu), (again, _) = timings
            print(f"| {workers} | {seconds:.1f} | {n_rows / seconds:,.0f} | {cpu:.1f} | {again:.2f} |", flush=True)
    except (ValueError, OSError) as error:
        print(f"bench_encoding: {error}", file=sys.stderr)
        return 2
    return 0


def _timed(options: argparse.Namespace, tokenizer: object, folder: Path, workers: int) -> tuple[float, float]:
    """Seconds by the wall, and of this process and those that it started."""
    started, before = time.perf_counter(), os.times()
    encoded_data(options.conversations, tokenizer, options.max_length, folder, workers=workers)
    after = os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return time.perf_counter() - started, cpu


if __name__ == "__main__":
    sys.exit(main())
