"""`python -m scripts.bench_training`: trained tokens per second, ours against SFTTrainer with its defaults, in turns.

A scaled-down OPT with the real vocabulary, random weights, and random conversations with the lengths of ToolBench's
(median 1,248 tokens, p95 2,838; what exceeds OPT's positions is left out, as the data stage does). Every variant makes
optimizer steps on the same conversations. Ratios count: seconds are those of whatever else the machine does. Where that
is much, `--clock cpu` counts processor time instead; with OMP_NUM_THREADS=1 the two are the same on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from training.hardware import has_accelerator
from training.packing import make_packable
from training.random_checkpoint import make_checkpoint
from training.tokenizer import load_tokenizer
from training.trainer import trained_tokens_only

_POSITIONS, _VOCABULARY = 2048, 50_272
_BASELINE = "SFTTrainer's defaults"
_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Variant:
    """What differs from the line before; `settings` are SFTConfig's."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    is_packed: bool = False
    scores_trained_only: bool = False


# Each line keeps what the lines before it gained. SFTTrainer's defaults: padding, gradient checkpointing, bf16, and
# max_length 1024, which would cut the calls off; ours cut nothing, so the baseline is given the same whole sequences.
VARIANTS = (
    Variant(_BASELINE),
    Variant("+ logits at trained tokens alone", scores_trained_only=True),
    Variant("+ no padding, attention per conversation", {"padding_free": True}, True, True),
    Variant("+ activations kept", {"padding_free": True, "gradient_checkpointing": False}, True, True),
)
_EXTRA = (
    Variant(
        "the last, in fp32 instead of bf16",
        {"padding_free": True, "gradient_checkpointing": False, "bf16": False},
        True,
        True,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; `--out` also writes the seconds of every round as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="each variant once a round")
    parser.add_argument("--conversations", type=int, default=16, help="in a round of each variant")
    parser.add_argument("--batch", type=int, default=4, help="conversations a step")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--trained-share", type=float, default=0.12, help="of a conversation, from its end")
    parser.add_argument("--length-scale", type=float, default=1.0, help="of the lengths, for a quick look")
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="wall")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rows = conversations(options.conversations, options.trained_share, options.length_scale)
    trained = sum(label != -100 for row in rows for label in row["labels"])
    variants = [*VARIANTS, *_EXTRA]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint("tiny-opt", Path(folder) / "model")  # for its tokenizer
        tokenizer = load_tokenizer(Path(folder) / "model")
        for number in range(options.rounds + 1):
            for variant in variants:
                took = timed(variant, rows, tokenizer, options, Path(folder))
                if number > 0:  # the first round warms up
                    seconds[variant.name].append(took)
                print(f"round {number} {variant.name}: {took:.2f} s", file=sys.stderr, flush=True)
    print(table(seconds, trained))
    if options.out is not None:
        options.out.write_text(
            json.dumps({"clock": options.clock, "trained_tokens": trained, "seconds": seconds}, indent=1) + "\n",
            "utf-8",
        )
    return 0


def conversations(count: int, trained_share: float, scale: float = 1.0) -> list[dict[str, list[int]]]:
    """Random ids with ToolBench's lengths, log-normal through its median and 95th percentile."""
    generator = np.random.default_rng(0)
    median, p95 = 1248, 2838
    lengths: list[int] = []
    while len(lengths) < count:
        length = round(median * math.exp(generator.normal() * math.log(p95 / median) / 1.645))
        if 32 <= length <= _POSITIONS:
            lengths.append(max(8, round(length * scale)))
    rows = []
    for length in lengths:
        ids = generator.integers(4, 50_000, length).tolist()
        prompt = length - max(1, round(length * trained_share))
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def timed(
    variant: Variant,
    rows: list[dict[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
    folder: Path,
) -> float:
    """Seconds of one pass over the conversations, without loading and without the first use of anything."""
    torch.manual_seed(0)
    model = _model(options.width, options.layers)
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
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings,
    )
    clock = _Clock(_CLOCKS[options.clock])
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    scoring: Callable[[], contextlib.AbstractContextManager[None]] = (
        trained_tokens_only if variant.scores_trained_only else contextlib.nullcontext
    )
    with scoring(), _quiet():
        trainer.train()
    return clock.seconds


class _Clock(TrainerCallback):  # type: ignore[misc]
    """From the first step's begin to the last one's end."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._started = self._now()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = self._now() - self._started


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(None):
        yield


def _model(width: int, layers: int) -> Any:
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


def table(seconds: dict[str, list[float]], trained: int) -> str:
    """Medians; `step` is the gain over the line before, `all` over the baseline, both as medians of rounds' ratios."""
    lines = ["| variant | trained tokens/s | step | all |", "| --- | --- | --- | --- |"]
    names = list(seconds)
    for index, name in enumerate(names):
        before = names[max(index - 1, 0)]
        rate = trained / statistics.median(seconds[name])
        step, whole = _ratio(seconds[before], seconds[name]), _ratio(seconds[_BASELINE], seconds[name])
        lines.append(f"| {name} | {rate:,.0f} | {step:.2f} | {whole:.2f} |")
    return "\n".join(lines)


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


if __name__ == "__main__":
    sys.exit(main())
