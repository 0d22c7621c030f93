"""What is looked at after the data are encoded and before the weights are loaded: one table, in seconds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedTokenizerBase

from training.config import Method, Packing, RunConfig
from training.dataset import EncodedData
from training.errors import PreflightError
from training.hardware import n_processes
from training.memory import MemoryEstimate, device_memory, estimate_memory
from training.packing import choose_packing
from training.tree import Sharing, measure_sharing

# Where published recipes lie. Outside is allowed, and more often a slip of the exponent than a plan.
_USUAL_RATES = {Method.FULL: (1e-6, 2e-4), Method.LORA: (2e-5, 2e-3), Method.QLORA: (2e-5, 2e-3)}
_SMALL_MODEL = 50_000_000  # weights; models below take higher rates


class Verdict(StrEnum):
    """`fail` refuses the run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    verdict: Verdict
    finding: str


def preflight(
    run: RunConfig,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedData,
    heldout: EncodedData | None,
    answered: Sequence[Check],
) -> tuple[RunConfig, list[Check]]:
    """The run with `gradient_checkpointing` decided, and every check, in the table's order.

    Args:
        directory: the model to start from.
        answered: checks that another part of the program has made, such as whether the model can be exported.
    """
    lengths, last_labels = _lengths_and_last_labels(data.dataset)
    share = data.trained_tokens / data.tokens
    packing, sharing = _packing(run, data.dataset)
    row_tokens = run.data.max_length_tokens if run.training.packing is Packing.ROWS else int(lengths.max())
    if sharing is not None:  # a batch has as many tokens as its tree, and as many trained ones as its conversations
        row_tokens = math.ceil(sharing.largest / run.training.per_device_batch_size)
        share = min(1.0, share / (1 - sharing.saved))
    memory = estimate_memory(run, directory, row_tokens, share)
    weights = AutoConfig.from_pretrained(directory, local_files_only=True)
    changed = {"gradient_checkpointing": memory.is_recomputed}
    decided = run.model_copy(update={"training": run.training.model_copy(update=changed)})
    return decided, [
        *answered,
        *_tokens(tokenizer, last_labels),
        _length(weights, lengths),
        _share(data.trained_tokens, data.tokens),
        packing,
        _memory(memory, run),
        _disk(memory, run),
        _learning_rate(run, memory),
        _schedule(run, data),
        _heldout(run, heldout),
    ]


def report(checks: Sequence[Check], console: Console) -> None:
    """Print the table, and refuse what cannot work.

    Raises:
        PreflightError: a check failed; all that did are in the message.
    """
    table = Table("check", "", "finding", title="preflight", title_justify="left")
    colours = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}
    for check in checks:
        table.add_row(check.name, f"[{colours[check.verdict]}]{check.verdict}[/]", check.finding)
    console.print(table)
    failed = [f"{check.name}: {check.finding}" for check in checks if check.verdict is Verdict.FAIL]
    if failed:
        raise PreflightError("this run cannot work. " + "; ".join(failed))


def _lengths_and_last_labels(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of every sequence, read in place: as Python lists 187,542 rows would take minutes."""
    lengths, last = [], []
    for chunk in dataset.data.column("labels").chunks:
        offsets = chunk.offsets.to_numpy()
        lengths.append(np.diff(offsets))
        last.append(chunk.values.to_numpy()[offsets[1:] - 1])
    return np.concatenate(lengths), np.concatenate(last)


def _tokens(tokenizer: PreTrainedTokenizerBase, last_labels: np.ndarray) -> list[Check]:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    silent = int((last_labels != end).sum())
    if silent == 0:
        found = Check("end token", Verdict.OK, f"{tokenizer.eos_token} carries loss at the end of every sequence")
    else:
        text = f"{tokenizer.eos_token} carries no loss at the end of {silent} of {len(last_labels)} sequences"
        found = Check("end token", Verdict.FAIL, f"{text}: the model would not learn to stop")
    if pad is None or pad == end:
        return [found, Check("padding", Verdict.FAIL, f"the padding token {tokenizer.pad_token!r} is the end token")]
    return [found, Check("padding", Verdict.OK, f"{tokenizer.pad_token}, which is not the end token")]


def _length(config: object, lengths: np.ndarray) -> Check:
    text_config = config.get_text_config()  # type: ignore[attr-defined]
    positions = getattr(text_config, "max_position_embeddings", None)
    longest, median = int(lengths.max()), int(np.median(lengths))
    text = f"longest {longest} tokens, median {median}; the model has {positions or 'no fixed number of'} positions"
    return Check("length", Verdict.FAIL if positions and longest > positions else Verdict.OK, text)


def _share(trained: int, tokens: int) -> Check:
    share = trained / tokens
    text = f"{trained} of {tokens} carry loss ({share:.1%})"
    if trained == 0:
        return Check("trained tokens", Verdict.FAIL, text)
    if share > 0.9:
        return Check("trained tokens", Verdict.WARN, f"{text}: hardly any prompt, is the mask what you want?")
    return Check("trained tokens", Verdict.WARN if share < 0.005 else Verdict.OK, text)


def _packing(run: RunConfig, dataset: Dataset) -> tuple[Check, Sharing | None]:
    """How batches will lie in memory, and what trees share where they do."""
    chosen = choose_packing(run, dataset)
    if chosen is not Packing.TREE:
        return Check("packing", Verdict.OK, str(chosen)), None
    sharing = measure_sharing(dataset, run.training.per_device_batch_size, run.seed)
    text = f"tree: {1 - sharing.saved:.0%} of the tokens are computed, the others are shared"
    found = Check("packing", Verdict.OK, f"{text} ({sharing.computed} of {sharing.tokens} looked at)")
    return found, sharing


def _memory(memory: MemoryEstimate, run: RunConfig) -> Check:
    total, free = device_memory()
    gradients = _gb(memory.gradients + memory.buckets)
    parts = f"weights {_gb(memory.weights)}, gradients {gradients}, optimizer {_gb(memory.optimizer)}"
    step = "a step not estimated" if memory.activations is None else f"a step about {_gb(memory.activations)}"
    text = f"{parts}, {step}, loss up to {_gb(memory.loss)}: about {_gb(memory.total)} of {_gb(free)} free"
    if run.training.gradient_checkpointing == "auto":
        text += (
            f"; activations are {'computed twice' if memory.is_recomputed else 'kept'} (gradient_checkpointing: auto)"
        )
    if memory.counted > total:
        advice = "take method lora or qlora, a smaller model, or spread it (configs/accelerate/fsdp2.yaml)"
        return Check("memory", Verdict.FAIL, f"{text}. Without any batch it exceeds all {_gb(total)}: {advice}")
    if memory.total > free:
        advice = "training.per_device_batch_size down"
        advice += "" if memory.is_recomputed else ", training.gradient_checkpointing=true"
        return Check("memory", Verdict.WARN, f"{text}. It may not fit: {advice}")
    return Check("memory", Verdict.WARN if memory.activations is None else Verdict.OK, text)


def _disk(memory: MemoryEstimate, run: RunConfig) -> Check:
    folder = run.run_dir
    while not folder.exists():
        folder = folder.absolute().parent
    free = shutil.disk_usage(folder).free
    kept = run.training.keep_last_n + 1  # a new one is whole before an old one goes
    text = f"{kept} checkpoints of {_gb(memory.checkpoint)} at once, {_gb(free)} free"
    if memory.checkpoint > free:
        return Check("disk", Verdict.FAIL, f"{text}: not even one fits")
    return Check("disk", Verdict.WARN if memory.checkpoint * kept > free else Verdict.OK, text)


def _learning_rate(run: RunConfig, memory: MemoryEstimate) -> Check:
    training = run.training
    low, high = _USUAL_RATES[training.method]
    if training.method is Method.FULL and memory.gradients < 4 * _SMALL_MODEL:
        high = 1e-2
    text = f"{training.learning_rate:g} for method {training.method}"
    if low <= training.learning_rate <= high:
        return Check("learning rate", Verdict.OK, text)
    return Check("learning rate", Verdict.WARN, f"{text}; {low:g} to {high:g} is usual")


def _schedule(run: RunConfig, data: EncodedData) -> Check:
    training = run.training
    per_row = run.data.max_length_tokens / (data.tokens / len(data.dataset)) if training.packing is Packing.ROWS else 1
    processes, batch = n_processes(), training.global_batch_size
    accumulated = training.accumulation_steps(processes)
    steps = max(1, math.ceil(math.ceil(len(data.dataset) / max(per_row, 1) / batch) * training.epochs))
    steps = min(steps, training.max_steps or steps)
    warmup = training.warmup(steps)
    about = "about " if training.packing is Packing.ROWS else ""
    made = f"{processes} × {training.per_device_batch_size} at once × {accumulated}"
    text = f"{about}{steps} steps of {batch} ({made}), {warmup} of them warm-up"
    return Check("schedule", Verdict.WARN if warmup >= steps else Verdict.OK, text)


def _heldout(run: RunConfig, heldout: EncodedData | None) -> Check:
    if heldout is None:
        return Check("held out", Verdict.OK, "no loss on held-out conversations: there are none, or none is asked for")
    asked = run.training.heldout
    found = len(heldout.dataset)
    text = f"the loss of {min(found, asked.max_conversations)} of {found} sequences, every {asked.every_steps} steps"
    return Check("held out", Verdict.OK, text)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2g} GB" if n_bytes < 1e10 else f"{n_bytes / 1e9:.0f} GB"
