"""Make a model directory with random weights: `python -m scripts.make_random_checkpoint opt-350m OUT_DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.random_checkpoint import ARCHITECTURES, make_checkpoint

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when the arguments cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=sorted(ARCHITECTURES))
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="float16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        make_checkpoint(options.architecture, options.out_dir, dtype=_DTYPES[options.dtype], seed=options.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out_dir}: {options.architecture} with random weights; use it as model.path={options.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
