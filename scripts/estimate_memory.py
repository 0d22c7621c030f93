"""What a run will need of the device's memory: `python -m scripts.estimate_memory --config opt350m.yaml`.

Without the model at hand, `--architecture opt-350m` takes a shape of that name; no weights are read either way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from training.config import load_run_config
from training.hub import resolve_model
from training.memory import estimate_memory
from training.random_checkpoint import ARCHITECTURES, config_of


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when settings or model cannot be used; the reason is printed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.estimate_memory", description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="instead of the config's model")
    parser.add_argument("--row-tokens", type=int, help="longest row of a batch; default data.max_length_tokens")
    parser.add_argument("--trained-share", type=float, default=0.15, help="of all tokens, those that carry loss")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.per_device_batch_size=1")
    options = parser.parse_intermixed_args(argv)
    try:
        run = load_run_config(options.config, options.overrides)
        row_tokens = options.row_tokens or run.data.max_length_tokens
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            if options.architecture is None:
                directory = resolve_model(run.model)
            else:
                config_of(options.architecture).save_pretrained(directory)
            estimate = estimate_memory(run, directory, row_tokens, options.trained_share)
    except ValueError as error:
        print(f"estimate_memory: {error}", file=sys.stderr)
        return 2
    rows = run.training.per_device_batch_size
    for field in fields(estimate):
        value = getattr(estimate, field.name)
        print(f"{field.name:<12}{'not known' if value is None else f'{value / 1e9:8.1f} GB'}")
    print(f"{'together':<12}{estimate.total / 1e9:8.1f} GB, with {rows} x {row_tokens} tokens at once (an estimate)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
