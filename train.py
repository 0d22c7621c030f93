"""One command from examples to a GGUF file that dispatches: `accelerate launch train.py --config nano.yaml`.

prepare → train → evaluate → export → evaluate the GGUF files → dispatch three sentences. Running it again goes on
from the first stage that is not complete; `--force STAGE` redoes that stage and everything after it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from scripts.pipeline import run_pipeline
from scripts.stages import Stage


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 2: the user has to change something; 130 or 143: stopped by a signal, the same command continues."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--force", type=Stage, choices=list(Stage), help="redo this stage and everything after it")
    parser.add_argument("--until", type=Stage, choices=list(Stage), help="stop when this stage is complete")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. training.max_steps=2")
    arguments = parser.parse_intermixed_args(argv)
    return run_pipeline(arguments.config, arguments.overrides, arguments.force, arguments.until)


if __name__ == "__main__":
    sys.exit(main())
