"""`python -m scripts.bench_training`: trained tokens per second, ours against SFTTrainer with its defaults, in turns.

A scaled-down OPT with the real vocabulary, random weights, and random conversations with the lengths of ToolBench's
(`scripts.training_workload`). In a round every variant makes the same optimizer steps, the first of which is short and
not timed. Ratios count: seconds are those of whatever else the machine does. Where that is much, `--clock cpu` counts
processor time instead; with OMP_NUM_THREADS=1 the two are the same on an idle machine.

Rounds are added to the file that `--out` names as they come, so a long measurement may be taken in parts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from scripts.training_workload import CLOCKS, StepClock, Timing, any_tokenizer, conversations
from training.config import load_run_config
from training.hardware import has_accelerator
from training.head import trained_tokens_only
from training.packing import make_packable
from training.sft import make_trainer

_VOCABULARY = 50_272

Rounds = list[dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Variant:
    """What differs from the variant `after`; `settings` are SFTConfig's."""

    name: str
    after: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    is_packed: bool = False
    scores_trained_only: bool = False
    is_ours: bool = False


_BASELINE, _SCORED, _PACKED, _OURS = (
    "SFTTrainer's defaults",
    "+ logits at trained tokens alone",
    "+ no padding, attention per conversation",
    "+ activations kept: tinydispatch",
)
_LAST = {"padding_free": True, "gradient_checkpointing": False}

# SFTTrainer's defaults: padding, gradient checkpointing, bf16, and max_length 1024, which would cut the calls off; ours
# cut nothing, so the baseline is given the same whole sequences.
VARIANTS = (
    Variant(_BASELINE, None),
    Variant(_SCORED, _BASELINE, scores_trained_only=True),
    Variant(_PACKED, _SCORED, {"padding_free": True}, True, True),
    Variant(_OURS, _PACKED, is_ours=True),
    Variant("ours, padded", _OURS, {"gradient_checkpointing": False}, False, True),
    Variant("ours, in fp32 instead of bf16", _OURS, {**_LAST, "bf16": False}, True, True),
)
COMPILED = Variant("ours, by torch.compile", _OURS, {**_LAST, "torch_compile": True}, True, True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; `--out` also keeps every round as JSON."""
    options = _arguments(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rounds: Rounds = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else []
    variants = [*VARIANTS, *([COMPILED] if options.compile else [])]
    variants = [variant for variant in variants if options.only in variant.name or variant.name in (_BASELINE, _OURS)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = any_tokenizer(Path(folder))
        for _ in range(options.rounds):
            rows = _rows(options, len(rounds))
            rounds.append({})
            for variant in variants:
                timing, loading = timed(variant, rows, tokenizer, options, Path(folder))
                rounds[-1][variant.name] = {
                    "seconds": timing.seconds,
                    "trained": timing.trained_tokens,
                    "loading": loading,
                }
                print(f"round {len(rounds)} {variant.name}: {timing.seconds:.2f} s", file=sys.stderr, flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")
    print(table(rounds, [*VARIANTS, COMPILED]))
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="each variant once a round; 0 prints what --out holds")
    parser.add_argument("--steps", type=int, default=2, help="a round of each variant; the first is not timed")
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--trained-share", type=float, default=0.12, help="of a conversation, from its end")
    parser.add_argument("--length-scale", type=float, default=1.0, help="of the lengths, for a quick look")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a further variant (needs a compiler)")
    parser.add_argument("--only", default="", help="variants with this in their name, the first and ours")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def _rows(options: argparse.Namespace, seed: int) -> Dataset:
    """A batch of short conversations for the step that is not timed, and those of the others."""
    share, scale = options.trained_share, options.length_scale
    first = conversations(options.batch, share, scale=scale / 20, seed=seed)
    rest = conversations(options.batch * (options.steps - 1), share, scale=scale, seed=seed)
    return concatenate_datasets([first, rest])


def timed(
    variant: Variant, rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, folder: Path
) -> tuple[Timing, float]:
    """The steps of one variant over the conversations, and the seconds that reading all batches takes."""
    torch.manual_seed(0)
    model = small_opt(options.width, options.layers)
    clock = StepClock(options.clock)
    clock.watch(model)
    if variant.is_ours:
        trainer = _ours(model, rows, tokenizer, options, folder)
    else:
        trainer = _sft_trainer(variant, model, rows, tokenizer, options, folder)
    trainer.add_callback(clock)
    scoring: Callable[[], contextlib.AbstractContextManager[None]] = (
        trained_tokens_only if variant.scores_trained_only or variant.is_ours else contextlib.nullcontext
    )
    with scoring(), _quiet():
        trainer.train()
    assert clock.timing is not None
    started = CLOCKS[options.clock]()
    for _ in trainer.get_train_dataloader():
        pass
    return clock.timing, CLOCKS[options.clock]() - started


def _ours(
    model: Any, rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, folder: Path
) -> SFTTrainer:
    """The trainer that `train.py` makes of the recipe, with this benchmark's batch."""
    settings = {
        "per_device_batch_size": options.batch,
        "global_batch_size": options.batch,
        "gradient_checkpointing": "false",
        "precision": "bf16",
        "logging_steps": 1000,
        "save_steps": 1000,
    }
    run = load_run_config("opt350m", [f"training.{key}={value}" for key, value in settings.items()])
    trainer = make_trainer(run, model, tokenizer, rows, folder / "ours")
    trainer.args.save_strategy, trainer.args.train_sampling_strategy = "no", "sequential"
    return trainer


def _sft_trainer(
    variant: Variant,
    model: Any,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
    folder: Path,
) -> SFTTrainer:
    settings = {"bf16": True, **variant.settings}
    if variant.is_packed:
        make_packable(model, torch.bfloat16 if settings["bf16"] else None)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=options.batch,
        num_train_epochs=1,
        max_length=None,
        use_cpu=not has_accelerator(),
        dataloader_pin_memory=has_accelerator(),
        save_strategy="no",
        report_to="none",
        logging_steps=1000,
        disable_tqdm=True,
        seed=0,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings,
    )
    return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(None):
        yield


def small_opt(width: int, layers: int) -> Any:
    """OPT-350M's order of layer norms and its embedding of half the width."""
    config = OPTConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        word_embed_proj_dim=width // 2,
        do_layer_norm_before=False,
    )
    return OPTForCausalLM(config)


def table(rounds: Rounds, variants: Sequence[Variant]) -> str:
    """Medians over rounds; `step` is the gain over the variant before, `all` over the baseline, as rounds' ratios."""
    lines = ["| variant | trained tokens/s | compared with | step | all |", "| --- | --- | --- | --- | --- |"]
    for variant in variants:
        rates = [
            found[variant.name]["trained"] / found[variant.name]["seconds"] for found in rounds if variant.name in found
        ]
        if not rates:
            continue
        before = variant.after or variant.name
        step, whole = _ratio(rounds, before, variant.name), _ratio(rounds, _BASELINE, variant.name)
        rate = f"{statistics.median(rates):,.0f}"
        lines.append(f"| {variant.name} | {rate} | {_short(variant)} | {step} | {whole} |")
    shares = [found[_OURS].get("loading", 0.0) / found[_OURS]["seconds"] for found in rounds if _OURS in found]
    return "\n".join([*lines, "", f"Reading batches takes {statistics.median(shares):.1%} of our time."])


def _short(variant: Variant) -> str:
    return {None: "", _OURS: "ours"}.get(variant.after, "the line above")


def _ratio(rounds: Rounds, slow: str, fast: str) -> str:
    """Median of rounds' ratios of rates; empty where no round has both."""
    pairs = [(found[slow], found[fast]) for found in rounds if slow in found and fast in found]
    ratios = [(b["trained"] / b["seconds"]) / (a["trained"] / a["seconds"]) for a, b in pairs]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


if __name__ == "__main__":
    sys.exit(main())
