"""What a recipe's steps cost on the machine at hand, at a model's full size with random weights.

    python -m scripts.bench_recipe                          # one GPU: OPT-350M full, Qwen3-4B LoRA, each against TRL
    python -m scripts.bench_recipe --config opt350m.yaml --architecture opt-350m --steps 2 --only ours \\
        training.precision=bf16                             # that recipe as it stands; also on a CPU

Prints tokens per second, the share of the matrix rate that the device itself was measured to have, the projected time
of ToolBench's 187,542 rows, peak memory beside its estimate, and the ratio to SFTTrainer with its defaults on the same
conversations. Each measurement is a process of its own, so that memory is its own and one that does not fit ends alone;
this one imports nothing large.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

EPOCH_ROWS = 187_542  # toolllama_G123_dfs_train.json
_ROWS = ("training.packing=rows", "data.max_length_tokens=2048")
_HEADER = (
    "| recipe, shape | trainer | tokens/s | trained tokens/s | share of matrix rate | epoch, minutes | peak GB | "
    "estimate GB | ratio |"
)


def _batch(rows: int) -> tuple[str, str]:
    return f"training.global_batch_size={rows}", f"training.per_device_batch_size={rows}"


@dataclass(frozen=True)
class Run:
    """What is measured: a recipe's own trainer, or SFTTrainer's defaults on the conversations of that recipe."""

    config: str
    architecture: str
    overrides: Sequence[str]
    is_ours: bool
    steps: int
    trained_share: float
    length_scale: float
    is_full_length: bool


@dataclass(frozen=True)
class Measured:
    """Of the steps after the first. `model_flops` is what the model asks for: nothing that is computed twice or padded.

    `mean_length` is that of ToolBench's conversations, whatever the length of those that were trained on.
    `peak_bytes` is of the whole process: allocated on the GPU, or resident where there is none.
    """

    device: str
    versions: str
    matrix_flops: float
    seconds: float
    tokens: int
    trained_tokens: int
    model_flops: float
    mean_length: float
    peak_bytes: int
    estimated_bytes: int | None


@dataclass(frozen=True)
class Case:
    """A recipe at a shape, with the settings that suit one large GPU."""

    config: str
    architecture: str
    overrides: tuple[str, ...]


CASES = (
    Case(
        "opt350m.yaml",
        "opt-350m",
        (*_ROWS, *_batch(8), "training.gradient_checkpointing=false"),
    ),
    Case("qwen3-4b-lora.yaml", "qwen3-4b", (*_ROWS, *_batch(4))),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when a measurement failed; the others are printed."""
    options = _arguments(argv)
    cases = list(CASES)
    if options.config is not None:
        cases = [Case(options.config, options.architecture, ())]
    results = [(case, _compared(case, options)) for case in cases]
    lines = [_line(case, name, both) for case, both in results for name in both]
    print("\n".join([_machine(results), "", _HEADER, "|" + " --- |" * 9, *lines]))
    if options.out is not None:
        kept = [
            asdict(case) | {name: asdict(one) if one else None for name, one in both.items()} for case, both in results
        ]
        options.out.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return 0 if all(found for _, both in results for found in both.values()) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a recipe; without it the two for one large GPU")
    parser.add_argument("--architecture", help="shape of the random weights: opt-350m, qwen3-4b, …")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps; the first is not timed")
    parser.add_argument("--only", choices=["ours", "defaults"], help="instead of both")
    parser.add_argument("--trained-share", type=float, default=0.12, help="of a conversation, from its end")
    parser.add_argument("--length-scale", type=float, default=1.0, help="of ToolBench's lengths")
    parser.add_argument("--full-length", action="store_true", help="every conversation as long as the recipe allows")
    parser.add_argument("--out", type=Path, help="also as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe")
    options = parser.parse_intermixed_args(argv)
    if (options.config is None) != (options.architecture is None):
        parser.error("--config and --architecture go together")
    return options


def _compared(case: Case, options: argparse.Namespace) -> dict[str, Measured | None]:
    found: dict[str, Measured | None] = {}
    for name in ("ours", "defaults"):
        if options.only in (None, name):
            run = Run(
                config=case.config,
                architecture=case.architecture,
                overrides=(*case.overrides, *options.overrides),
                is_ours=name == "ours",
                steps=options.steps,
                trained_share=options.trained_share,
                length_scale=options.length_scale,
                is_full_length=options.full_length,
            )
            found[name] = _in_own_process(run)
    return found


def _in_own_process(run: Run) -> Measured | None:
    """None when it failed; it has said why."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "scripts.recipe_run", json.dumps(asdict(run)), str(out)]
        done = subprocess.run(command, check=False, cwd=Path(__file__).parents[1])
        if done.returncode != 0:
            print(f"{run.config} at {run.architecture}: ended with {done.returncode}", file=sys.stderr)
            return None
        return Measured(**json.loads(out.read_text("utf-8")))


def _machine(results: Sequence[tuple[Case, dict[str, Measured | None]]]) -> str:
    found = [one for _, both in results for one in both.values() if one is not None]
    if not found:
        return "nothing was measured"
    rate = max(one.matrix_flops for one in found) / 1e12
    return f"{found[0].device}: {rate:.3g} TFLOP/s in bf16 matrix products; {found[0].versions}"


def _line(case: Case, name: str, both: dict[str, Measured | None]) -> str:
    found, baseline = both[name], both.get("defaults")
    trainer = {"ours": "tinydispatch", "defaults": "SFTTrainer's defaults"}[name]
    if found is None:
        return f"| {case.config}, {case.architecture} | {trainer} | failed |" + " |" * 6
    rate = found.tokens / found.seconds
    values = [
        f"{case.config}, {case.architecture}",
        trainer,
        f"{rate:,.0f}",
        f"{found.trained_tokens / found.seconds:,.0f}",
        f"{found.model_flops / found.seconds / found.matrix_flops:.1%}",
        f"{EPOCH_ROWS * found.mean_length / rate / 60:,.1f}",
        f"{found.peak_bytes / 1e9:.1f}",
        "" if found.estimated_bytes is None else f"{found.estimated_bytes / 1e9:.1f}",
        "" if baseline is None else f"{rate / (baseline.tokens / baseline.seconds):.2f}",
    ]
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    sys.exit(main())
