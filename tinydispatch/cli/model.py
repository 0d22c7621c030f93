"""Which model a command uses: the file that was named, or the default model."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinydispatch.default.model import DEFAULT_QUANTIZATION, default_model
from tinydispatch.ggml.mixtures import Quantization

DEFAULT_NAME = "tinydispatch"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `[MODEL.gguf]` and `--quantization`."""
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL.gguf", help="a model file (default: the default model)"
    )
    add_quantization(parser)


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """Add `--quantization` alone."""
    parser.add_argument(
        "--quantization",
        type=Quantization,
        choices=(Quantization.Q8_0, Quantization.Q4_K_M),
        metavar="{q8_0,q4_k_m}",
        help=f"of the default model (default: {DEFAULT_QUANTIZATION}); q4_k_m is smaller, faster and less exact",
    )


def add_context(parser: argparse.ArgumentParser) -> None:
    """Add `--context`."""
    parser.add_argument(
        "--context",
        type=int,
        help="most tokens of prompt and reply (default: the model's own limit up to 8192, in memory taken as needed)",
    )


def model_file(named: Path | None, quantization: Quantization | None) -> Path:
    """The file that was named; without one the default model, which the first use makes.

    Raises:
        ValueError: the default model cannot be had, or a file and a quantization are named together.
    """
    if named is None:
        return default_model(quantization or DEFAULT_QUANTIZATION)
    if quantization is not None:
        raise ValueError(f"--quantization {quantization} is the default model's, and {named} is named")
    return named
