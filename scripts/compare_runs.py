"""Paired comparison of two result files, A and B, on the same suite.

python -m scripts.compare_runs runs/old/eval/core-checkpoint.json runs/new/eval/core-checkpoint.json
python -m scripts.evaluate compare a.json b.json --fail-if-worse        the same
python -m scripts.evaluate compare a.json b.json --replies              two ways of running one model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eval.comparison import ComparisonError, comparison_report, pair_runs, reply_lines
from eval.results import ResultError, load_result

_EXIT_OK, _EXIT_WORSE, _EXIT_BAD_INPUT = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """0: compared; 1: with --fail-if-worse, B is worse by more than chance explains; 2: the two cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=Path, metavar="A.json", help="a result file, <suite>-<model>.json")
    parser.add_argument("second", type=Path, metavar="B.json", help="another one on the same suite")
    parser.add_argument("--fail-if-worse", action="store_true", help="exit status 1 when B is significantly worse")
    parser.add_argument("--replies", action="store_true", help="list each case whose two replies differ")
    arguments = parser.parse_args(argv)
    try:
        runs = pair_runs(load_result(arguments.first), load_result(arguments.second))
    except (ResultError, ComparisonError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    console = Console()
    console.print(comparison_report(runs))
    lines = reply_lines(runs.first, runs.second)
    for line in lines if arguments.replies else lines[:1]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return _EXIT_WORSE if arguments.fail_if_worse and runs.is_worse else _EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
