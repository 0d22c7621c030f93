"""`python -m scripts.serve model.gguf`: the same as `python -m tinydispatch serve`, beside the other stages."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tinydispatch.__main__ import main as tinydispatch


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; 2: bad input."""
    return tinydispatch(["serve", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
