"""Saved results as one page: models side by side, what went wrong, and every case that was not passed.

python -m scripts.evaluate page runs/nano/eval/*.json --out report.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.page import PAGE_NAME, write_page
from eval.results import ResultError, load_result

_EXIT_OK, _EXIT_BAD_INPUT = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 2: a file is no result."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json", help="the first model is compared with")
    parser.add_argument("--out", type=Path, default=Path(PAGE_NAME), help=f"default: {PAGE_NAME} here")
    arguments = parser.parse_args(argv)
    try:
        results = [load_result(path) for path in arguments.results]
    except ResultError as error:
        print(f"page: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    print(write_page(results, arguments.out))
    return _EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
