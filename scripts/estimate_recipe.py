"""What a recipe will need of memory, and of time at a rate that you name; nothing is measured and no weights are read.

    python -m scripts.estimate_recipe --config opt350m.yaml --architecture opt-350m --conversations 47922 --tflops 300

`--architecture` takes a shape of that name where the model is not at hand. An epoch's operations are counted for
conversations of ToolBench's lengths; how many of them a device makes in a second is for `scripts.bench_recipe` to say.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from scripts.training_workload import toolbench_lengths
from training.config import RunConfig, load_run_config
from training.flops import flops_per_token, mean_context
from training.hub import resolve_model
from training.memory import estimate_memory, meta_model
from training.random_checkpoint import ARCHITECTURES, config_of


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when settings or model cannot be used; the reason is printed."""
    options = _arguments(argv)
    try:
        run = load_run_config(options.config, options.overrides)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            if options.architecture is None:
                directory = resolve_model(run.model)
            else:
                config_of(options.architecture).save_pretrained(directory)
            lines = _memory(run, directory, options.row_tokens or run.data.max_length_tokens, options.trained_share)
            if options.conversations is not None:
                lines += _time(run, directory, options)
    except ValueError as error:
        print(f"estimate_recipe: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.estimate_recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="instead of the config's model")
    parser.add_argument("--row-tokens", type=int, help="longest row of a batch; default data.max_length_tokens")
    parser.add_argument("--trained-share", type=float, default=0.15, help="of all tokens, those that carry loss")
    parser.add_argument("--conversations", type=int, help="of an epoch, to estimate its time")
    parser.add_argument("--tflops", type=float, default=300, help="what the device makes of it in a second, in 1e12")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.per_device_batch_size=1")
    return parser.parse_intermixed_args(argv)


def _memory(run: RunConfig, directory: Path, row_tokens: int, trained_share: float) -> list[str]:
    estimate = estimate_memory(run, directory, row_tokens, trained_share)
    lines = []
    for field in fields(estimate):
        value = getattr(estimate, field.name)
        lines.append(f"{field.name:<12}{'not known' if value is None else f'{value / 1e9:8.1f} GB'}")
    rows = run.training.per_device_batch_size
    total = f"{'together':<12}{estimate.total / 1e9:8.1f} GB, with {rows} x {row_tokens} tokens at once (an estimate)"
    return [*lines, total]


def _time(run: RunConfig, directory: Path, options: argparse.Namespace) -> list[str]:
    lengths = toolbench_lengths(10_000, longest=run.data.max_length_tokens)
    mean = sum(lengths) / len(lengths)
    each = flops_per_token(
        meta_model(directory),
        run.training.method,
        trained_share=options.trained_share,
        context=mean_context(lengths),
        is_recomputed=run.training.gradient_checkpointing,
    )
    total = each * mean * options.conversations * run.training.epochs
    minutes = total / options.tflops / 1e12 / 60
    count = f"{options.conversations:,} conversations of {mean:,.0f} tokens"
    return [
        f"{'operations':<12}{total / 1e15:8.1f} PFLOP, for {count} on average",
        f"{'time':<12}{minutes:8.1f} minutes, if {options.tflops:g} TFLOP/s are made of it (an assumption)",
    ]


if __name__ == "__main__":
    sys.exit(main())
