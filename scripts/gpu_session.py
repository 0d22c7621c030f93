"""What has to be measured on a GPU, in twelve minutes of one: what the two packings' own checks say, what OPT-350M
and Qwen3-4B LoRA cost beside SFTTrainer, and peak memory beside the table's.

    python -m scripts.gpu_session --out results/                # one GPU
    python -m scripts.gpu_session --out results/ --dry-run      # tiny shapes, also on a CPU: does every part run?

Each part is a process with a limit of its own; one that fails or takes too long is said, and the others are kept. What
does not fit into `--minutes` any more is named as not run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.estimate_recipe import PLACES, RECIPES, plan
from scripts.recipe_run import device_name, random_model
from training.config import Precision, load_run_config
from training.errors import PackingError
from training.hardware import autocast_format, resolve_precision
from training.packing import check_packing, check_tree, make_packable, make_tree_packable

_MEASURED = ("opt350m", "qwen3-4b-lora")
_TINY = {"opt-350m": "tiny-opt", "qwen3-4b": "tiny-qwen3"}


@dataclass(frozen=True)
class Part:
    """A command of this repository, and the seconds that it may take."""

    name: str
    command: tuple[str, ...]
    limit_s: int


def parts(out: Path, *, is_dry: bool) -> list[Part]:
    """In the order of what is missing most: 12 minutes together."""
    found = []
    for recipe in (recipe for recipe in RECIPES if recipe.config in _MEASURED):
        shape = _TINY[recipe.architecture] if is_dry else recipe.architecture
        tiny = ("--length-scale", "0.05", "data.max_length_tokens=256", "training.precision=fp32") if is_dry else ()
        steps = "2" if is_dry else "12"
        bench = ("scripts.bench_recipe", "--config", f"{recipe.config}.yaml", "--architecture", shape)
        kept = str(out / f"{recipe.config}.json")
        whole = str(out / f"{recipe.config}-full-length.json")
        at_once = load_run_config(recipe.config).training.per_device_batch_size
        one = (f"training.global_batch_size={at_once}",)
        found += [
            Part(f"{shape}: checks", ("scripts.gpu_session", "--check", recipe.config, shape), 60),
            Part(f"{shape}: speed, beside SFTTrainer", (*bench, "--steps", steps, "--out", kept, *one, *tiny), 210),
            Part(
                f"{shape}: peak memory at full length; {_expected(recipe.config)}",
                (*bench, "--steps", "2", "--only", "ours", "--full-length", "--out", whole, *one, *tiny),
                90,
            ),
        ]
    return sorted(found, key=lambda part: part.limit_s != 60)  # the checks first: they take seconds


def _expected(config: str) -> str:
    recipe, place = next(recipe for recipe in RECIPES if recipe.config == config), PLACES[2]
    found = plan(recipe, place)
    return "not in the table" if found is None else f"the table says {found.memory_gb:.1f} GB"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when a part failed, took too long or was not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_session"), help="folder for figures and output")
    parser.add_argument("--minutes", type=float, default=12, help="of all parts; a dry run may take five times as long")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, a few steps")
    parser.add_argument("--check", nargs=2, metavar=("CONFIG", "ARCHITECTURE"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.check is not None:
        return _check(*options.check)
    options.out.mkdir(parents=True, exist_ok=True)
    patience = 5 if options.dry_run else 1  # a CPU of two cores starts Python for half a minute
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of the clean-up of what runs
    until, good = time.monotonic() + 60 * options.minutes * patience, True
    print(f"{device_name()}{': a dry run, whose figures say nothing' if options.dry_run else ''}")
    for part in parts(options.out, is_dry=options.dry_run):
        left = until - time.monotonic()
        verdict = "not run: no time left" if left < 10 else _run(part, min(part.limit_s * patience, left))
        print(f"── {part.name}: {verdict}", flush=True)
        good = good and verdict.startswith("done")
    return 0 if good else 1


def _run(part: Part, limit_s: float) -> str:
    print(f"── {part.name}", flush=True)
    started = time.monotonic()
    # A session of its own, so that what it has started ends with it: nothing may stay on the GPU.
    child = subprocess.Popen(
        [sys.executable, "-m", *part.command], cwd=Path(__file__).parents[1], start_new_session=True
    )
    try:
        code = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return f"{'done' if code == 0 else f'ended with {code}'} in {time.monotonic() - started:.0f} s"


def _check(config: str, architecture: str) -> int:
    """Both packings on random weights of the shape, in the number formats that training would use here."""
    recipe = load_run_config(config)
    model = random_model(architecture, recipe)
    precision = resolve_precision(Precision.AUTO)
    autocast = autocast_format(precision, recipe.training.method)
    try:
        attention = make_packable(model, autocast)
        print(f"{architecture}, {precision}: end to end by {attention}, {check_packing(model, autocast)}")
        make_tree_packable(model, autocast)
        print(f"{architecture}, {precision}: tree, {check_tree(model, autocast)}")
    except PackingError as error:
        print(f"{architecture}, {precision}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
