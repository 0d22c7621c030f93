"""`python -m export.llama_cpp.compare MODEL.gguf --library libllama.so`: the patched llama.cpp against our graph.

Two llama libraries in one process crash, so each computes in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinydispatch.ggml.library import LIBRARY_VARIABLE
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Logits

# llama.cpp keeps keys and values in 16 bits, ours in 32 beside 32-bit weights.
_TOLERANCE = 2e-2


def main(argv: Sequence[str] | None = None) -> int:
    """0: the logits agree, 1: they do not, 2: a file that cannot be run."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.write is not None:
            np.save(arguments.write, _patched_logits(arguments.model, arguments.tokens))
            return 0
        with open_model(arguments.model, arguments.tokens) as model:
            expected = model.decode_all(_ids(arguments.tokens))
        found = _in_own_process(arguments)
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    difference = np.abs(expected - found)
    agreement = float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())
    print(f"{arguments.tokens} positions: max |Δlogit| {difference.max():.2g}, best token equal {agreement:.1%}")
    return 0 if difference.max() < _TOLERANCE else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.llama_cpp.compare", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--library", type=Path, required=True, help="the libllama.so that export.llama_cpp.build made")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    return parser


def _ids(count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(5, 1000, count).tolist()
    return ids


def _patched_logits(model: Path, count: int) -> Logits:
    with LlamaModel(model, count) as opened:
        return opened.decode_all(_ids(count))


def _in_own_process(arguments: argparse.Namespace) -> Logits:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npy"
        options = ["--library", str(arguments.library), "--tokens", str(arguments.tokens), "--write", str(path)]
        command = [sys.executable, "-m", "export.llama_cpp.compare", str(arguments.model), *options]
        environment = os.environ | {LIBRARY_VARIABLE: str(arguments.library.resolve())}
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"the patched llama.cpp: {done.stderr.strip()[-500:]}")
        logits: Logits = np.load(path)
        return logits


if __name__ == "__main__":
    sys.exit(main())
