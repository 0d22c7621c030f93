"""Supervised fine-tuning with TRL's SFTTrainer; the only file that spells TRL's and PEFT's option names."""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from data.store import read_conversations
from tinydispatch import formats
from training.callbacks import LossLog, ProgressBar, StopOnSignal
from training.checkpoints import mark_finished, prepare_resume, training_inputs
from training.config import Method, OptimizerName, Precision, RunConfig, Scheduler
from training.dataset import EncodedData, build_dataset
from training.errors import ConfigError, TrainingDivergedError, TrainingInterrupted
from training.hardware import has_accelerator, resolve_precision
from training.hub import resolve_model
from training.model import check_length, load_model
from training.optimizer import MuonWithAdamW
from training.tokenizer import added_tokens, load_tokenizer
from training.tracking import tracking

logger = logging.getLogger(__name__)

_SCHEDULERS = {Scheduler.LINEAR: "linear", Scheduler.COSINE: "cosine", Scheduler.CONSTANT: "constant_with_warmup"}


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


def to_sft_config(run: RunConfig, output_dir: Path, report_to: Sequence[str] = ()) -> SFTConfig:
    """The run's settings in TRL's words.

    Raises:
        ConfigError: a precision that the machine cannot train in.
    """
    precision = resolve_precision(run.training.precision)
    with warnings.catch_warnings():
        # TRL itself sets an option that transformers has renamed; nothing that a user could change.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
        return _sft_config(run, output_dir, report_to, precision)


def _sft_config(run: RunConfig, output_dir: Path, report_to: Sequence[str], precision: Precision) -> SFTConfig:
    training = run.training
    return SFTConfig(
        output_dir=str(output_dir),
        run_name=run.name,
        seed=run.seed,
        data_seed=run.seed,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps if training.max_steps is not None else -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULERS[training.scheduler],
        warmup_steps=training.warmup_steps,
        per_device_train_batch_size=training.per_device_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        bf16=precision is Precision.BF16,
        fp16=precision is Precision.FP16,
        use_cpu=not has_accelerator(),
        dataloader_pin_memory=has_accelerator(),
        gradient_checkpointing=training.gradient_checkpointing,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=training.keep_last_n,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        ddp_find_unused_parameters=False,  # a look for them in each step, and every weight here is used
        logging_nan_inf_filter=False,  # it replaces NaN by the mean so far, and a dead run looks alive
        report_to=list(report_to) or "none",
        disable_tqdm=True,  # ours shows the loss in the same line
        # The data come as ids and labels of our own making: nothing is to be rendered, cut, packed or masked again.
        # Packing would also let OPT attend across conversations, because its positions come from the mask.
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def to_lora_config(run: RunConfig) -> peft.LoraConfig:
    """The run's adapter settings in PEFT's words."""
    lora = run.training.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
    )


def train(run: RunConfig, train_path: Path, run_dir: Path, *, restart: bool = False) -> TrainResult:
    """Fine-tune on the conversations in `train_path`, continuing from the newest whole checkpoint of this run.

    Writes to `run_dir`: `checkpoints/`, `train_log.jsonl`, and at the end `checkpoint/` (full) or `adapter/` (LoRA).

    Args:
        restart: begin anew even where checkpoints of this run exist.

    Raises:
        ModelNotFoundError, TokenizerError, TrainingDataError, ConfigError, ResumeError: before the first step.
        TrainingDivergedError: the loss is not a number.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint has been saved.
    """
    started_s = time.monotonic()
    directory = resolve_model(run.model)
    check_length(directory, run.data.max_length_tokens)
    tokenizer = load_tokenizer(directory)
    if run.training.method is Method.LORA:
        _check_tokens_known(directory, tokenizer)
    rows = tqdm(read_conversations(train_path), desc="encode", unit="row", disable=None)
    data = build_dataset(rows, tokenizer, run.data.max_length_tokens)
    if data.rejected:
        logger.warning("%s: not trained on: %s", train_path, dict(data.rejected))
    checkpoints = run_dir / "checkpoints"
    inputs = training_inputs(run, train_path, formats.template_hash(str(tokenizer.chat_template)))
    with tracking(run.tracking, run_dir) as report_to:
        config = to_sft_config(run, checkpoints, report_to)
        trainer = _trainer(run, directory, tokenizer, data, config)
        trainer.add_callback(LossLog(run_dir / "train_log.jsonl"))
        outcome = _run_steps(trainer, checkpoints, inputs, restart=restart)
        final = _save_final(trainer, run, run_dir)
    if trainer.is_world_process_zero():
        mark_finished(checkpoints, inputs)
    return TrainResult(
        checkpoint_dir=run_dir / "checkpoint",
        adapter_dir=final if run.training.method is Method.LORA else None,
        metrics=_metrics(data, outcome, time.monotonic() - started_s),
        rejected=dict(data.rejected),
    )


def _run_steps(trainer: _Trainer, checkpoints: Path, inputs: dict[str, Any], *, restart: bool) -> Any:
    """All steps from the newest whole checkpoint on; returns the Trainer's own summary."""
    resume = _agree_on_resume(trainer, checkpoints, inputs, restart=restart)
    stopper, progress = StopOnSignal(), ProgressBar()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.add_callback(stopper)
    transformers_logging.disable_progress_bar()  # one for each saved checkpoint would tear ours
    try:
        with stopper.installed():
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
            f"training.method is 'lora', but the model in {directory} has no chat template, and the embedding of the "
            f"new tokens ({' '.join(missing)}) would not be trained; set training.method=full, or take a chat model"
        )


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that stops on a loss that is no number, and takes the run's optimizer."""

    def __init__(self, run: RunConfig, **arguments: Any) -> None:
        self._run = run
        super().__init__(**arguments)

    def create_optimizer(self, model: Any = None) -> Any:
        """Muon where the run asks for it; the Trainer's own AdamW otherwise."""
        training = self._run.training
        if training.optimizer is OptimizerName.MUON and self.optimizer is None:
            self.optimizer: Any = MuonWithAdamW(
                self.model if model is None else model,
                learning_rate=training.learning_rate,
                muon_learning_rate=training.muon_learning_rate,
                weight_decay=training.weight_decay,
            )
        return super().create_optimizer(model)

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **keywords)
        if not math.isfinite(loss.item()):
            step = self.state.global_step + 1
            training = self._run.training
            raise TrainingDivergedError(
                f"the loss is {loss.item()} at step {step}; lower training.learning_rate ({training.learning_rate}), "
                f"lengthen training.warmup_steps ({training.warmup_steps}) or set training.precision=fp32"
            )
        return loss

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """None: TRL's card for each checkpoint describes neither the data nor the results; the run's manifest does."""


def _trainer(
    run: RunConfig, directory: Path, tokenizer: PreTrainedTokenizerBase, data: EncodedData, config: SFTConfig
) -> _Trainer:
    model: PreTrainedModel = load_model(directory, tokenizer, run.model.dtype)
    lora = to_lora_config(run) if run.training.method is Method.LORA else None
    return _Trainer(
        run,
        model=model,
        args=config,
        train_dataset=data.dataset,
        processing_class=tokenizer,
        peft_config=lora,
    )


def _agree_on_resume(trainer: _Trainer, checkpoints: Path, inputs: dict[str, Any], *, restart: bool) -> Path | None:
    """Every process continues from the checkpoint that the first one chose; only the first one writes."""
    choice: list[Path | None] = [None]
    if trainer.is_world_process_zero():
        choice = [prepare_resume(checkpoints, inputs, restart=restart)]
    if trainer.args.world_size > 1:
        torch.distributed.broadcast_object_list(choice)
    if choice[0] is not None and trainer.is_world_process_zero():
        logger.warning("continuing from %s", choice[0])
    return choice[0]


def _save_final(trainer: _Trainer, run: RunConfig, run_dir: Path) -> Path:
    """Write model and tokenizer beside the target and rename, so that a kill leaves no half model under its name."""
    final = run_dir / ("adapter" if run.training.method is Method.LORA else "checkpoint")
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


def _stopped(trainer: _Trainer, checkpoints: Path) -> str:
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
