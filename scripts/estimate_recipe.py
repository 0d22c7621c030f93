"""What a recipe will need of memory, and of time at a rate that you name; nothing is measured and no weights are read.

    python -m scripts.estimate_recipe --table                # every recipe for GPUs on every kind of machine
    python -m scripts.estimate_recipe --config opt350m.yaml --architecture opt-350m --conversations 47922 --tflops 300

The table chooses the conversations that a device computes at once so that a step keeps its global batch size and nine
tenths of the memory do. Rates are what makers state for half precision, and the share of it that is assumed. Sending
gradients between devices is not counted.

`--architecture` takes a shape of that name where the model is not at hand. An epoch's operations are counted for
conversations of ToolBench's lengths; how many of them a device makes in a second is for `scripts.bench_recipe` to say.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from scripts.training_workload import toolbench_lengths
from training.config import RunConfig, load_run_config
from training.flops import flops_per_token, mean_context
from training.hub import resolve_model
from training.memory import MemoryEstimate, estimate_memory, meta_model
from training.random_checkpoint import ARCHITECTURES, config_of

# What is assumed to be made of a card's stated rate. Nothing of it has been measured.
SHARE = 0.3
TRAINED = 0.15  # of all tokens, those that carry loss


@dataclass(frozen=True)
class Place:
    """Where a recipe may run. `rate`: a card's operations a second in half precision, dense, as its maker states it."""

    name: str
    card: str
    gb: int
    rate: float
    processes: int = 1
    launch: str = "one_gpu"
    extra: str = ""


PLACES = (
    Place("16 GB", "T4", 16, 65e12),
    Place("24 GB", "L4", 24, 121e12),
    Place("80 GB", "H100", 80, 989e12),
    Place("8 × 80 GB", "H100", 80, 989e12, 8, "ddp"),
    Place("2 nodes", "H100", 80, 989e12, 16, "two_nodes", "--machine_rank RANK --main_process_ip HEAD_IP"),
)


@dataclass(frozen=True)
class Recipe:
    """A config with the shape of its model and the conversations that its sources are expected to give."""

    config: str
    architecture: str
    conversations: int


# ToolBench's 187,542 rows are joined to 47,922 conversations; of 20,000 rows to 5,110, beside 5,000 generated ones.
RECIPES = (
    Recipe("opt125m", "opt-125m", 47_922),
    Recipe("opt350m", "opt-350m", 47_922),
    Recipe("opt1.3b", "opt-1.3b", 47_922),
    Recipe("qwen3-0.6b", "qwen3-0.6b", 10_110),
    Recipe("qwen3-4b-lora", "qwen3-4b", 10_110),
    Recipe("qwen3-4b-qlora", "qwen3-4b", 10_110),
    Recipe("qwen3.5-4b-lora", "qwen3.5-4b", 10_110),
)


@dataclass(frozen=True)
class Plan:
    """How a recipe runs in a place. `at_once`: conversations on a device; `accumulated`: such batches to a step."""

    recipe: Recipe
    place: Place
    at_once: int
    accumulated: int
    memory_gb: float
    is_recomputed: bool
    steps: int
    minutes: float
    overrides: tuple[str, ...]

    @property
    def batch(self) -> str:
        """The arithmetic of a step."""
        whole = self.place.processes * self.at_once * self.accumulated
        return f"{self.place.processes} × {self.at_once} × {self.accumulated} = {whole}"

    @property
    def command(self) -> str:
        """To be pasted, but for the words in capitals."""
        parts = ["accelerate launch --config_file", f"configs/accelerate/{self.place.launch}.yaml", self.place.extra]
        parts += ["train.py --config", f"{self.recipe.config}.yaml", *self.overrides]
        if self.place.launch == "two_nodes":
            parts.append("runs_dir=/shared/runs")
        return " ".join(part for part in parts if part)


def plan(recipe: Recipe, place: Place) -> Plan | None:
    """The recipe as it stands where it fits, else with fewer conversations at once.

    Activations are kept where there is room, and computed again elsewhere, as `gradient_checkpointing: auto` decides.

    None where the model does not fit however small the batch.
    """
    run = load_run_config(recipe.config)
    training, wanted = run.training, run.training.global_batch_size
    sizes = [n for n in range(training.per_device_batch_size, 0, -1) if wanted % (place.processes * n) == 0]
    for size in sizes:
        needed = _needed(recipe.config, recipe.architecture, size, min(place.processes, 2), place.gb)
        if needed.total > 0.9 * place.gb * 1e9:
            continue
        changed = {"per_device_batch_size": size}
        each = _operations(recipe.config, recipe.architecture, needed.is_recomputed)
        seconds = each * recipe.conversations / (place.processes * place.rate * SHARE)
        return Plan(
            recipe,
            place,
            size,
            training.model_copy(update=changed).accumulation_steps(place.processes),
            needed.total / 1e9,
            needed.is_recomputed,
            math.ceil(math.ceil(recipe.conversations / wanted) * training.epochs),
            seconds * training.epochs / 60,
            () if size == training.per_device_batch_size else (f"training.per_device_batch_size={size}",),
        )
    return None


@lru_cache
def _needed(config: str, architecture: str, at_once: int, processes: int, gb: int) -> MemoryEstimate:
    run = _in_half(config, f"per_device_batch_size={at_once}")
    with tempfile.TemporaryDirectory() as folder:
        config_of(architecture).save_pretrained(folder)
        length = run.data.max_length_tokens
        return estimate_memory(run, Path(folder), length, TRAINED, processes, room=gb * 10**9)


@lru_cache
def _operations(config: str, architecture: str, checkpointing: bool) -> float:
    """Of one conversation of ToolBench's mean length."""
    with tempfile.TemporaryDirectory() as folder:
        config_of(architecture).save_pretrained(folder)
        run = _in_half(config, f"gradient_checkpointing={str(checkpointing).lower()}")
        return _each(run, Path(folder), TRAINED, is_recomputed=checkpointing)[0]


def _in_half(config: str, setting: str) -> RunConfig:
    """The recipe in bf16, which takes the room that fp16 does, and needs no GPU to be asked for."""
    return load_run_config(config, [f"training.{setting}", "training.precision=bf16"])


def time_text(minutes: float) -> str:
    """Two digits: it is an estimate."""
    if minutes < 60:
        return f"{minutes:.2g} min" if minutes < 10 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 1200 else f"{minutes / 60:.0f} h"


def table() -> list[str]:
    """Every recipe in every place, and the commands below."""
    rates = dict.fromkeys(f"{place.card} {place.rate / 1e12:.0f}" for place in PLACES)
    head = ["recipe", "on", "processes × at once × accumulated", "GB a card", "activations", "steps", "an epoch"]
    lines = [
        f"Estimated, not measured. TFLOP/s in half precision as stated by the maker: {', '.join(rates)}; "
        f"{SHARE:.0%} of it assumed.",
        "",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    plans = [plan(recipe, place) for recipe in RECIPES for place in PLACES]
    commands = [f"# {one.recipe.config}, {one.place.name}\n{one.command}" for one in plans if one is not None]
    return [*lines, *(row for recipe in RECIPES for row in rows(recipe)), "", *commands]


def rows(recipe: Recipe) -> list[str]:
    """The recipe's lines of the table."""
    lines = []
    for place in PLACES:
        found, on = plan(recipe, place), f"{place.name} ({place.card})"
        cells = ["does not fit", "", "", "", ""]
        if found is not None:
            activations = "computed twice" if found.is_recomputed else "kept"
            cells = [found.batch, f"{found.memory_gb:.1f}", activations, f"{found.steps:,}", time_text(found.minutes)]
        lines.append(" ".join(f"| {cell}".rstrip() for cell in (recipe.config, on, *cells)) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when settings or model cannot be used; the reason is printed."""
    options = _arguments(argv)
    if options.table:
        print("\n".join(table()))
        return 0
    try:
        run = load_run_config(options.config, options.overrides)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            if options.architecture is None:
                directory = resolve_model(run.model)
            else:
                config_of(options.architecture).save_pretrained(directory)
            row_tokens = options.row_tokens or run.data.max_length_tokens
            estimate = estimate_memory(run, directory, row_tokens, options.trained_share)
            lines = _memory(run, estimate, row_tokens)
            if options.conversations is not None:
                lines += _time(run, directory, options, estimate.is_recomputed)
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
    parser.add_argument("--table", action="store_true", help="every recipe for GPUs on every kind of machine")
    parser.add_argument("--config", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="instead of the config's model")
    parser.add_argument("--row-tokens", type=int, help="longest row of a batch; default data.max_length_tokens")
    parser.add_argument("--trained-share", type=float, default=TRAINED, help="of all tokens, those that carry loss")
    parser.add_argument("--conversations", type=int, help="of an epoch, to estimate its time")
    parser.add_argument("--tflops", type=float, default=300, help="what the device makes of it in a second, in 1e12")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.per_device_batch_size=1")
    options = parser.parse_intermixed_args(argv)
    if (options.config is None) != options.table:
        parser.error("give --config or --table")
    return options


def _memory(run: RunConfig, estimate: MemoryEstimate, row_tokens: int) -> list[str]:
    lines = []
    for field in fields(estimate)[:-1]:
        value = getattr(estimate, field.name)
        lines.append(f"{field.name:<12}{'not known' if value is None else f'{value / 1e9:8.1f} GB'}")
    rows = run.training.per_device_batch_size
    total = f"{'together':<12}{estimate.total / 1e9:8.1f} GB, with {rows} x {row_tokens} tokens at once (an estimate)"
    if estimate.is_recomputed:
        total += ", activations computed twice"
    return [*lines, total]


def _each(run: RunConfig, directory: Path, trained_share: float, *, is_recomputed: bool) -> tuple[float, float]:
    """Operations and tokens of a conversation, on average over ToolBench's lengths."""
    lengths = toolbench_lengths(10_000, longest=run.data.max_length_tokens)
    mean = sum(lengths) / len(lengths)
    each = flops_per_token(
        meta_model(directory),
        run.training.method,
        trained_share=trained_share,
        context=mean_context(lengths),
        is_recomputed=is_recomputed,
    )
    return each * mean, mean


def _time(run: RunConfig, directory: Path, options: argparse.Namespace, is_recomputed: bool) -> list[str]:
    each, mean = _each(run, directory, options.trained_share, is_recomputed=is_recomputed)
    total = each * options.conversations * run.training.epochs
    minutes = total / options.tflops / 1e12 / 60
    count = f"{options.conversations:,} conversations of {mean:,.0f} tokens"
    return [
        f"{'operations':<12}{total / 1e15:8.1f} PFLOP, for {count} on average",
        f"{'time':<12}{minutes:8.1f} minutes, if {options.tflops:g} TFLOP/s are made of it (an assumption)",
    ]


if __name__ == "__main__":
    sys.exit(main())
