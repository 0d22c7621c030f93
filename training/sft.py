"""Supervised fine-tuning: one run from its settings to a checkpoint on disk."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import pack_dataset

from tinydispatch import formats
from training.callbacks import LOSS_LOG, HeldoutLoss, LossLog, ProgressBar, StopOnSignal
from training.checkpoints import is_unfinished, mark_finished, prepare_resume, training_inputs
from training.config import Method, Packing, RunConfig
from training.dataset import EncodedData
from training.encoding import encoded_data
from training.errors import ConfigError, PackingError, TrainingDivergedError, TrainingInterrupted
from training.hardware import NumberFormats, autocast_format, number_formats, resolve_precision
from training.head import trained_tokens_only
from training.hub import resolve_model
from training.model import TORCH_DTYPES, check_length, load_model
from training.options import quantization_config, to_lora_config, to_sft_config
from training.packing import choose_packing, make_packable, make_tree_packable
from training.pass_rate import PassRate
from training.plot import plot_run
from training.preflight import Check, preflight, report
from training.sharding import check_sharding, is_sharded, shard_on_cpus_too
from training.tokenizer import added_tokens, load_tokenizer
from training.tracking import RecordSettings, tracking
from training.trainer import DispatchTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    `checkpoint_dir` holds the whole model after full training. After LoRA it is where the merged model goes, which
    the export stage makes from `adapter_dir`. `metrics`: loss, steps, seconds, tokens; `rejected`: conversations
    that were not trained on, by reason.
    """

    checkpoint_dir: Path
    adapter_dir: Path | None
    metrics: dict[str, float]
    rejected: dict[str, int]


def train(
    run: RunConfig,
    train_path: Path,
    run_dir: Path,
    *,
    heldout_path: Path | None = None,
    restart: bool = False,
    answered: Sequence[Check] = (),
) -> TrainResult:
    """Fine-tune on the conversations in `train_path`, continuing from the newest whole checkpoint of this run.

    Writes to `run_dir`: `encoded/`, `checkpoints/`, `train_log.jsonl`, `training.svg`, with `training.pass_rate` also
    `pass_rate_log.jsonl`, and at the end `checkpoint/` (full) or `adapter/` (LoRA).

    Args:
        heldout_path: conversations that are not trained on; some of them are scored on the way (`training.heldout`).
        restart: begin anew even where checkpoints of this run exist.
        answered: checks from elsewhere that belong into the preflight's table.

    Raises:
        ModelNotFoundError, TokenizerError, TrainingDataError, ConfigError, ResumeError: before the first step.
        TrainingDivergedError: the loss or the gradient is not a number; no update was made from it.
        CheckpointWriteError: the disk is full; the last whole checkpoint stays.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint has been saved.
    """
    started_s = time.monotonic()
    check_sharding(run.training)
    directory = resolve_model(run.model)
    check_length(directory, run.data.max_length_tokens)
    tokenizer = load_tokenizer(directory)
    if run.training.method.has_adapter:
        _check_tokens_known(directory, tokenizer)
    data = _encoded(train_path, tokenizer, run, run_dir)
    heldout = _heldout(heldout_path, tokenizer, run, run_dir)
    is_main = int(os.environ.get("RANK", "0")) == 0
    report(preflight(run, directory, tokenizer, data, heldout, answered), Console(stderr=True, quiet=not is_main))
    checkpoints = run_dir / "checkpoints"
    inputs = training_inputs(run, train_path, formats.template_hash(str(tokenizer.chat_template)))
    is_continued = not restart and is_unfinished(checkpoints, inputs)
    with tracking(run.tracking, run_dir, is_continued=is_continued) as report_to:
        trainer = _trainer(run, directory, tokenizer, data, checkpoints, report_to)
        for callback in _watchers(run, tokenizer, run_dir, is_recorded=bool(report_to)):
            trainer.add_callback(callback)
        watched = HeldoutLoss(run, trainer.loss_of, heldout, run_dir / LOSS_LOG)
        trainer.add_callback(watched)
        try:
            outcome = _run_steps(trainer, checkpoints, inputs, restart=restart)
        finally:
            if is_main:
                plot_run(run_dir)  # of what there is, also after a stop
        final = _save_final(trainer, run, run_dir)
    if trainer.is_world_process_zero():
        mark_finished(checkpoints, inputs)
    return TrainResult(
        checkpoint_dir=run_dir / "checkpoint",
        adapter_dir=final if run.training.method.has_adapter else None,
        metrics=_metrics(data, outcome, time.monotonic() - started_s) | watched.metrics,
        rejected=dict(data.rejected),
    )


def _watchers(
    run: RunConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path, *, is_recorded: bool
) -> list[TrainerCallback]:
    watchers = [LossLog(run_dir / LOSS_LOG)]
    if is_recorded:
        watchers.append(RecordSettings(run))
    if run.training.pass_rate.every_steps is not None:
        watchers.append(PassRate(run.training.pass_rate, tokenizer, run_dir))
    return watchers


def _encoded(
    path: Path, tokenizer: PreTrainedTokenizerBase, run: RunConfig, run_dir: Path, *, may_be_empty: bool = False
) -> EncodedData:
    longest, folder = run.data.max_length_tokens, run_dir / "encoded"
    data = encoded_data(path, tokenizer, longest, folder, workers=run.data.workers, may_be_empty=may_be_empty)
    if data.rejected:
        logger.warning("%s: left out: %s", path, dict(data.rejected))
    return data


def _heldout(
    path: Path | None, tokenizer: PreTrainedTokenizerBase, run: RunConfig, run_dir: Path
) -> EncodedData | None:
    """What the loss on conversations that are not trained on is computed from; None where there are none."""
    if path is None or not path.is_file() or run.training.heldout.every_steps is None:
        return None
    data = _encoded(path, tokenizer, run, run_dir, may_be_empty=True)
    return data if len(data.dataset) else None


def _run_steps(trainer: DispatchTrainer, checkpoints: Path, inputs: dict[str, Any], *, restart: bool) -> Any:
    """All steps from the newest whole checkpoint on; returns the Trainer's own summary."""
    resume = _agree_on_resume(trainer, checkpoints, inputs, restart=restart)
    stopper, progress = StopOnSignal(), ProgressBar()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.add_callback(stopper)
    transformers_logging.disable_progress_bar()  # one for each saved checkpoint would tear ours
    try:
        with stopper.installed(), trained_tokens_only():
            outcome = trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    except TrainingDivergedError:
        mark_finished(checkpoints, inputs)  # the advice is to change the settings, so nothing may stand against it
        raise
    finally:
        progress.close()
    if stopper.signal_number is not None:
        raise TrainingInterrupted(stopper.signal_number, _stopped(trainer, checkpoints))
    return outcome


def _check_tokens_known(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adapters leave the embedding as it is, so tokens that the model has never seen would stay random.

    PEFT could train single rows beside an adapter, but not where the output head shares them (OPT): TRL computes the
    loss from the head's plain weight.

    Raises:
        ConfigError: our template had to be added to the model.
    """
    if missing := added_tokens(directory, tokenizer):
        raise ConfigError(
            f"training.method trains an adapter, but the model in {directory} has no chat template, and the embedding "
            f"of the new tokens ({' '.join(missing)}) would not be trained; set training.method=full, or take a chat "
            "model"
        )


def _trainer(
    run: RunConfig,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedData,
    checkpoints: Path,
    report_to: Sequence[str],
) -> DispatchTrainer:
    held = _formats(run)
    is_quantized = run.training.method is Method.QLORA
    quantization = quantization_config(TORCH_DTYPES[held.compute]) if is_quantized else None
    model = load_model(directory, tokenizer, held.weights, quantization)
    return make_trainer(run, model, tokenizer, data.dataset, checkpoints, report_to)


def make_trainer(
    run: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    checkpoints: Path,
    report_to: Sequence[str] = (),
) -> DispatchTrainer:
    """The trainer of a run for a model in memory and encoded conversations, packed where the model can be.

    Raises:
        PackingError: rows of several conversations were asked for, and the model lets one see the other.
    """
    run = _packed_or_padded(run, model, dataset)
    if run.training.packing is Packing.ROWS:
        dataset = pack_dataset(dataset, run.data.max_length_tokens, map_kwargs={"keep_in_memory": True})
    arguments = to_sft_config(run, checkpoints, report_to)
    shard_on_cpus_too()
    trainer = DispatchTrainer(
        run,
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=to_lora_config(run) if run.training.method.has_adapter else None,
    )
    if run.training.method.has_adapter and arguments.fp16:
        hold_adapters_in(trainer.model, TORCH_DTYPES[_formats(run).adapters])
    if run.training.method.has_adapter and run.training.lora.start_from is not None:
        _load_adapter(trainer.model, run.training.lora.start_from)
    return trainer


def _formats(run: RunConfig) -> NumberFormats:
    return number_formats(run.training.method, run.model.dtype, resolve_precision(run.training.precision))


def hold_adapters_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Keep what is trained in that format, whatever TRL took: beside 4-bit weights it always takes bf16."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def _load_adapter(model: Any, folder: Path) -> None:
    """Put an earlier adapter's weights in place of fresh ones.

    Raises:
        ConfigError: the folder holds no adapter, or one of another shape.
    """
    key = "training.lora.start_from"
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ConfigError(f"'{key}' is {folder}, which holds no adapter_model.safetensors")
    weights = load_file(file)
    fresh = get_peft_model_state_dict(model)
    wrong = [name for name, weight in fresh.items() if name not in weights or weights[name].shape != weight.shape]
    if wrong or len(weights) != len(fresh):
        example = wrong[0] if wrong else sorted(weights.keys() - fresh.keys())[0]
        raise ConfigError(f"'{key}': the adapter in {folder} has another rank or base than this run (at {example})")
    set_peft_model_state_dict(model, {name: weight.float() for name, weight in weights.items()})


def _packed_or_padded(run: RunConfig, model: PreTrainedModel, dataset: Dataset) -> RunConfig:
    """The run with its packing decided: what was asked for, where it gains something and the model can do it.

    Raises:
        PackingError: a tree or rows of several conversations were asked for, which would make other batches than
            padding does, and the model cannot keep conversations apart in them.
    """
    packing = choose_packing(run, dataset)
    if packing is Packing.OFF:
        if run.training.packing is Packing.TREE:
            logger.warning(
                "training.packing is 'tree', but a batch is one conversation, which shares nothing; set "
                "training.per_device_batch_size to 16 or more"
            )
        return _with_packing(run, packing)
    # Sharded models get their device later; here they are on the CPU, where the kernel is another one.
    if torch.cuda.is_available() and not is_sharded():
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    autocast = autocast_format(resolve_precision(run.training.precision), run.training.method)
    try:
        if packing is Packing.TREE:
            make_tree_packable(model, autocast)
        else:
            make_packable(model, autocast)
        return _with_packing(run, packing)
    except PackingError as error:
        if run.training.packing in (Packing.ROWS, Packing.TREE):
            asked = run.training.packing
            raise PackingError(f"training.packing is '{asked}', but {error}; set training.packing=off") from error
        if packing is Packing.TREE:
            logger.warning("%s: they are laid end to end instead; training.packing=batch says so", error)
            return _packed_or_padded(_with_packing(run, Packing.BATCH), model, dataset)
        logger.warning("%s: batches are padded instead, which is slower; training.packing=off says so", error)
    return _with_packing(run, Packing.OFF)


def _with_packing(run: RunConfig, packing: Packing) -> RunConfig:
    return run.model_copy(update={"training": run.training.model_copy(update={"packing": packing})})


def _agree_on_resume(
    trainer: DispatchTrainer, checkpoints: Path, inputs: dict[str, Any], *, restart: bool
) -> Path | None:
    """Every process continues from the checkpoint that the first one chose; only the first one writes."""
    choice: list[Path | None] = [None]
    if trainer.is_world_process_zero():
        choice = [prepare_resume(checkpoints, inputs, restart=restart)]
    if trainer.args.world_size > 1:
        torch.distributed.broadcast_object_list(choice)
    if choice[0] is not None and trainer.is_world_process_zero():
        logger.warning("continuing from %s", choice[0])
    return choice[0]


def _save_final(trainer: DispatchTrainer, run: RunConfig, run_dir: Path) -> Path:
    """Write model and tokenizer beside the target and rename, so that a kill leaves no half model under its name."""
    final = run_dir / ("adapter" if run.training.method.has_adapter else "checkpoint")
    fresh = final.with_name(f"{final.name}.partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(fresh, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(fresh))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        (fresh / "training_args.bin").unlink(missing_ok=True)  # a pickle of TRL's settings; ours are in config.yaml
        shutil.rmtree(final, ignore_errors=True)
        fresh.rename(final)
    trainer.accelerator.wait_for_everyone()
    return final


def _stopped(trainer: DispatchTrainer, checkpoints: Path) -> str:
    message = (
        f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; "
        f"saved in {checkpoints}, the same command continues"
    )
    if trainer.is_world_process_zero():
        print(message)
    return message


def _metrics(data: EncodedData, outcome: Any, elapsed_s: float) -> dict[str, float]:
    """`train_loss` is the mean over the steps of this process's part, `seconds` of everything including loading."""
    return {
        "train_loss": float(outcome.training_loss),
        "steps": float(outcome.global_step),
        "seconds": elapsed_s,
        "step_seconds": float(outcome.metrics["train_runtime"]),
        "sequences": float(len(data.dataset)),
        "tokens_per_epoch": float(data.tokens),
        "trained_tokens_per_epoch": float(data.trained_tokens),
    }
