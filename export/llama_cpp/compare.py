"""`python -m export.llama_cpp.compare MODEL.gguf … --library libllama.so`: the patched llama.cpp against our graph.

Both compute on that library: on two, the numbers of quantized files differ by what their processors' code rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinydispatch.ggml.library import LIBRARY_VARIABLE
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.open import open_model

# Both keep the same numbers of keys and values and take plain attention; batches of other sizes sum in another order.
_TOLERANCE = 2e-2


def main(argv: Sequence[str] | None = None) -> int:
    """0: the logits agree, 1: they do not, 2: a file that cannot be run."""
    arguments = _parser().parse_args(argv)
    os.environ[LIBRARY_VARIABLE] = str(arguments.library)
    ids = np.random.default_rng(0).integers(5, 1000, arguments.tokens).tolist()
    is_equal = True
    try:
        for path in arguments.models:
            with open_model(path, len(ids)) as ours:
                expected = ours.decode_all(ids)
            with LlamaModel(path, len(ids)) as patched:
                found = patched.decode_all(ids)
            difference = float(np.abs(expected - found).max())
            agreement = float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())
            is_equal &= difference < _TOLERANCE
            print(
                f"{path.name}: {len(ids)} positions, max |Δlogit| {difference:.2g} (spread {expected.std():.2g}), "
                f"best token equal {agreement:.1%}",
                flush=True,
            )
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return 0 if is_equal else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.llama_cpp.compare", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--library", type=Path, required=True, help="the libllama.so that export.llama_cpp.build made")
    parser.add_argument("--tokens", type=int, default=300)
    return parser


if __name__ == "__main__":
    sys.exit(main())
