"""Shared by the training benchmarks: conversations of ToolBench's lengths, and a clock that skips the first step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from training.random_checkpoint import make_checkpoint
from training.tokenizer import load_tokenizer

# Measured on 187,542 prompts: median 1,248 tokens, 95th percentile 2,838.
_MEDIAN, _P95 = 1248, 2838
POSITIONS = 2048

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """What the steps after the first one took, and how many tokens they held (padding not counted)."""

    seconds: float
    tokens: int
    trained_tokens: int
    steps: int


def conversations(
    count: int,
    trained_share: float,
    *,
    scale: float = 1.0,
    longest: int = POSITIONS,
    shortest: int = 0,
    seed: int = 0,
) -> Dataset:
    """Random ids with ToolBench's lengths, log-normal through its median and 95th percentile.

    What exceeds `longest` is left out, as the data stage does, and what is shorter than `shortest` is lengthened. The
    last part of each conversation is trained.
    """
    generator = np.random.default_rng(seed)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for length in toolbench_lengths(count, longest=longest, seed=seed):
        ids = generator.integers(4, 2_000, max(8, shortest, round(length * scale))).tolist()
        prompt = len(ids) - max(1, round(len(ids) * trained_share))
        rows["input_ids"].append(ids)
        rows["labels"].append([-100] * prompt + ids[prompt:])
    return Dataset.from_dict(rows)


def toolbench_lengths(count: int, *, longest: int = POSITIONS, seed: int = 0) -> list[int]:
    """Tokens of as many conversations, none of them beyond `longest`."""
    generator = np.random.default_rng(seed)
    lengths: list[int] = []
    while len(lengths) < count:
        length = round(_MEDIAN * math.exp(generator.normal() * math.log(_P95 / _MEDIAN) / 1.645))
        if 32 <= length <= longest:
            lengths.append(length)
    return lengths


def any_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A trainer wants one; of the conversations here, which are ids, it only learns which id pads."""
    directory = folder / "tokenizer"
    make_checkpoint("tiny-opt", directory)
    return load_tokenizer(directory)


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Times a training from the end of its first step, which compiles kernels and takes memory, to the end of its last.

    With a single step there is nothing else, and that one is timed.
    """

    def __init__(self, clock: str = "wall") -> None:
        self._now = CLOCKS[clock]
        self._started = 0.0
        self._counts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.timing: Timing | None = None

    def watch(self, model: torch.nn.Module) -> None:
        """Count the tokens that reach the model."""
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: Any, _arguments: Any, inputs: dict[str, Any]) -> None:
        labels, mask = inputs.get("labels"), inputs.get("attention_mask")
        if labels is None:  # the check of packing, before training
            return
        tokens = torch.tensor(labels.numel()) if mask is None else mask.sum()
        self._counts.append((tokens, (labels != -100).sum()))

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 1 and state.max_steps > 1:
            self._start()

    def on_train_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        _wait()
        seconds = self._now() - self._started
        tokens, trained = (int(sum(int(count) for count in counts)) for counts in zip(*self._counts, strict=True))
        self.timing = Timing(seconds, tokens, trained, max(state.max_steps - 1, 1))

    def _start(self) -> None:
        _wait()
        self._counts.clear()
        self._started = self._now()


def _wait() -> None:
    """Until the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
