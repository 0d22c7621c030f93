"""The run's settings in TRL's, PEFT's and bitsandbytes' words; the only file that spells their option names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from transformers import BitsAndBytesConfig
from trl import SFTConfig

from training.config import Packing, Precision, RunConfig, Scheduler
from training.hardware import autocast_format, has_accelerator, n_processes, resolve_precision

_SCHEDULERS = {Scheduler.LINEAR: "linear", Scheduler.COSINE: "cosine", Scheduler.CONSTANT: "constant_with_warmup"}


def to_sft_config(run: RunConfig, output_dir: Path, report_to: Sequence[str] = ()) -> SFTConfig:
    """The run's settings in TRL's words.

    Raises:
        ConfigError: a precision that the machine cannot train in, or processes that do not divide a step.
    """
    precision = resolve_precision(run.training.precision)
    with warnings.catch_warnings():
        # TRL itself sets an option that transformers has renamed; nothing that a user could change.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
        return _sft_config(run, output_dir, report_to, precision)


def _sft_config(run: RunConfig, output_dir: Path, report_to: Sequence[str], precision: Precision) -> SFTConfig:
    training = run.training
    config = SFTConfig(
        output_dir=str(output_dir),
        run_name=run.name,
        seed=run.seed,
        data_seed=run.seed,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps if training.max_steps is not None else -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULERS[training.scheduler],
        warmup_steps=training.warmup_ratio or training.warmup_steps,  # TRL takes a share under 1, too
        per_device_train_batch_size=training.per_device_batch_size,
        gradient_accumulation_steps=training.accumulation_steps(n_processes()),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",  # without the copies of all weights that the step over lists of tensors makes
        bf16=autocast_format(precision, training.method) is torch.bfloat16,
        fp16=precision is Precision.FP16,
        use_cpu=not has_accelerator(),
        dataloader_pin_memory=has_accelerator(),
        gradient_checkpointing=training.gradient_checkpointing,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=None,  # the trainer drops older checkpoints itself, once a new one is whole
        logging_steps=training.logging_steps,
        logging_first_step=True,
        ddp_find_unused_parameters=False,  # a look for them in each step, and every weight here is used
        logging_nan_inf_filter=False,  # it replaces NaN by the mean so far, and a dead run looks alive
        report_to=list(report_to) or "none",
        disable_tqdm=True,  # ours shows the loss in the same line
        # The data come as ids and labels of our own making: nothing is to be rendered, cut, packed or masked again.
        max_length=None,
        padding_free=training.packing is Packing.BATCH and training.per_device_batch_size > 1,
        packing=training.packing is Packing.ROWS,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if config.n_gpu > 1:  # one process would spread its batches over all GPUs that it sees, and a step would grow
        config._n_gpu = 1
    return config


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


def quantization_config(compute: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """QLoRA's format (arXiv 2305.14314): NF4 with quantized scales, products in `compute`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,  # one number format for all weights, which FSDP needs to shard them
    )
