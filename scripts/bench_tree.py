"""`python -m scripts.bench_tree`: an epoch under `training.packing=tree` against `batch`, tokens and wall time.

Two kinds of data: requests for one tool list, whose beginning is the larger part of each conversation, and, with
`--toolbench FILE`, rows of ToolBench, which share little. The model is a scaled-down OPT with random weights, trained
in full as `train.py` trains it. Both packings see the same conversations, each once, in turns; seconds are those of all
steps, after a step of warm-up. `--steps` measures a part of the epoch and says what the whole would take.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging as transformers_logging

from data.config import DataConfig
from data.prepare import prepare
from data.store import read_conversations
from scripts.bench_training import small_opt
from scripts.training_workload import CLOCKS, POSITIONS, any_tokenizer
from training.config import Packing, load_run_config
from training.dataset import build_dataset
from training.head import trained_tokens_only
from training.sft import make_trainer


@dataclass(frozen=True)
class Epoch:
    """What the measured steps of one packing took; `computed` counts the tokens that reached the model."""

    seconds: float
    computed: int
    steps: int
    steps_of_epoch: int


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0."""
    options = _arguments(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    print("| data | packing | conversations | tokens | computed | seconds of an epoch | times as fast |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = any_tokenizer(Path(folder))
        _report("one tool list", requests(options.requests, options.shared, options.own), 24, tokenizer, options)
        if options.toolbench is not None:
            _report("ToolBench", toolbench_rows(options.toolbench, tokenizer, Path(folder)), 4, tokenizer, options)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--shared", type=int, default=450, help="tokens that all requests begin with")
    parser.add_argument("--own", type=int, default=80, help="tokens of each request and its reply, on average")
    parser.add_argument("--toolbench", type=Path, help="a file of ToolBench rows (toolllama_G123_dfs_train.json)")
    parser.add_argument("--rounds", type=int, default=1, help="each packing once a round")
    parser.add_argument("--steps", type=int, help="measure so many steps of each epoch")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    return parser.parse_args(argv)


def requests(count: int, n_shared: int, n_own: int) -> Dataset:
    """Random ids: one beginning, then half to one and a half times `n_own` tokens, two fifths of them trained."""
    generator = np.random.default_rng(0)
    beginning = generator.integers(4, 2_000, n_shared).tolist()
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for length in generator.integers(n_own // 2, n_own + n_own // 2 + 1, count).tolist():
        ids = beginning + generator.integers(4, 2_000, length).tolist()
        prompt = len(ids) - max(1, 2 * length // 5)
        rows["input_ids"].append(ids)
        rows["labels"].append([-100] * prompt + ids[prompt:])
    return Dataset.from_dict(rows)


def toolbench_rows(path: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Dataset:
    """All conversations of a file that the data stage keeps and that fit the model."""
    config = DataConfig.model_validate({"sources": [{"kind": "toolbench", "path": str(path)}]}, strict=False)
    prepared = prepare(config, seed=0, out_dir=folder / "toolbench", case_texts={}, count_tokens=None)
    paths = (prepared.train_path, prepared.heldout_path)
    found = [
        build_dataset(read_conversations(part), tokenizer, POSITIONS).dataset for part in paths if part.stat().st_size
    ]
    return concatenate_datasets(found)


class _EpochClock(TrainerCallback):  # type: ignore[misc]
    def __init__(self, clock: str) -> None:
        self._now, self.seconds = CLOCKS[clock], 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._started = self._now()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = self._now() - self._started


def _report(
    name: str, rows: Dataset, batch: int, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace
) -> None:
    found: dict[Packing, list[Epoch]] = {Packing.BATCH: [], Packing.TREE: []}
    for packing in found:
        _epoch(packing, rows, batch, tokenizer, options, max_steps=1)
    for _ in range(options.rounds):
        for packing, epochs in found.items():
            epochs.append(_epoch(packing, rows, batch, tokenizer, options, options.steps))
    tokens = sum(len(ids) for ids in rows["input_ids"])
    ratios = [slow.seconds / fast.seconds for slow, fast in zip(*found.values(), strict=True)]
    for packing, epochs in found.items():
        share = epochs[0].steps_of_epoch / epochs[0].steps
        seconds = statistics.median(epoch.seconds for epoch in epochs) * share
        about = "about " if share != 1 else ""
        ratio = f"**{statistics.median(ratios):.2f}**" if packing is Packing.TREE else ""
        counts = f"{len(rows):,} | {tokens:,} | {about}{round(epochs[0].computed * share):,}"
        print(f"| {name} | {packing} | {counts} | {about}{seconds:,.0f} | {ratio} |", flush=True)


def _epoch(
    packing: Packing,
    rows: Dataset,
    batch: int,
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
    max_steps: int | None,
) -> Epoch:
    settings = {
        "packing": packing,
        "per_device_batch_size": batch,
        "global_batch_size": batch,
        "gradient_checkpointing": "false",
        "precision": options.precision,
        "warmup_steps": 0,
        "max_steps": max_steps or "null",
        "logging_steps": 1000,
        "save_steps": 1000000,
        "pass_rate.every_steps": "null",
    }
    run = load_run_config("opt350m", [f"training.{key}={value}" for key, value in settings.items()])
    torch.manual_seed(0)
    model = small_opt(options.width, options.layers)
    clock, counted = _EpochClock(options.clock), []
    with tempfile.TemporaryDirectory() as folder, trained_tokens_only():
        trainer = make_trainer(run, model, tokenizer, rows, Path(folder))
        trainer.args.save_strategy = "no"
        model.register_forward_pre_hook(
            lambda _module, _arguments, inputs: counted.append(inputs["input_ids"].numel()), with_kwargs=True
        )
        trainer.add_callback(clock)
        with contextlib.redirect_stdout(None):
            trainer.train()
    return Epoch(clock.seconds, sum(counted), trainer.state.global_step, -(-len(rows) // batch))


if __name__ == "__main__":
    sys.exit(main())
