"""What happens around training steps: a progress bar, a log of losses, and a clean stop on a signal."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.config import RunConfig
from training.dataset import EncodedData

# The trainer's hooks all have these parameters, used or not.
# ruff: noqa: ARG002

LOSS_LOG = "train_log.jsonl"
HELDOUT_LOSS = "heldout_loss"
_LOGGED = {"loss", "learning_rate", "grad_norm", "epoch", "mean_token_accuracy", "num_tokens"}


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """One line: steps done, time left, current loss."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            # In a log file each refresh is a line of its own, so there it is one every half minute.
            interval_s = 0.2 if sys.stderr.isatty() else 30.0
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=interval_s
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if self._bar is not None and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the line, also where training ended in an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LossLog(TrainerCallback):  # type: ignore[misc]
    """Appends one JSON object per logged step to a file; a resumed run first drops what it will compute again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= state.global_step] if state.global_step else []
        self._path.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if state.is_world_process_zero and "loss" in logs:
            row = {"step": state.global_step} | {key: value for key, value in logs.items() if key in _LOGGED}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> float:
    """The step of a log line; a line that a kill cut short counts as later than any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class HeldoutLoss(TrainerCallback):  # type: ignore[misc]
    """Scores the same few conversations before training, every so many steps and at the end; appends to the loss log.

    Nothing is drawn at random and the model stays as it is, so the training is the same with it or without.
    """

    def __init__(
        self, run: RunConfig, loss_of: Callable[[Dataset], float], data: EncodedData | None, log: Path
    ) -> None:
        """Args:
        loss_of: of the model in training; every process calls it.
        """
        self._every, self._loss_of, self._log = run.training.heldout.every_steps, loss_of, log
        self._rows = None if data is None else some_of(data.dataset, run.training.heldout.max_conversations)
        self._last: tuple[int, float] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The last loss, where there is one."""
        return {} if self._last is None else {HELDOUT_LOSS: self._last[1]}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 0:
            self._score(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._every is not None and state.global_step % self._every == 0:
            self._score(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # not after a stop, which is not to wait
            self._score(state)

    def _score(self, state: TrainerState) -> None:
        if self._rows is None or (self._last is not None and self._last[0] == state.global_step):
            return
        loss = self._loss_of(self._rows)
        self._last = state.global_step, loss
        if not state.is_world_process_zero:
            return
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, HELDOUT_LOSS: loss}) + "\n")
        _to_wandb(state.global_step, loss)


def some_of(dataset: Dataset, most: int) -> Dataset:
    """At most so many rows, spread evenly."""
    places = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int)
    return dataset.select(sorted(set(places.tolist())))


def _to_wandb(step: int, loss: float) -> None:
    import wandb  # here, because importing it takes two seconds that runs without tracking need not wait

    if wandb.run is not None:
        wandb.log({f"eval/{HELDOUT_LOSS}": loss, "train/global_step": step})


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGINT or SIGTERM: finish the step, save a checkpoint, stop. A second signal stops at once.

    `accelerate launch` dies of a SIGTERM without passing it on, so losing the launcher counts as one.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handlers are ours inside; outside the main thread, where Python allows none, nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._before = before
        for number in before:
            signal.signal(number, self._remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        for each, handler in self._before.items():
            signal.signal(each, handler)
        name = signal.Signals(number).name
        print(f"\n{name}: saving a checkpoint after this step; once more stops without saving", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._agreed(args) is not None:
            control.should_save = True
            control.should_training_stop = True

    def _agreed(self, args: TrainingArguments) -> int | None:
        """The signal that any process got: all must stop after the same step, or the others wait for it forever."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self.signal_number = signal.SIGTERM
        if args.world_size > 1:
            number = torch.tensor(self.signal_number or 0, device=args.device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.signal_number = int(number.item()) or None
        return self.signal_number
