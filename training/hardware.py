"""What the machine at hand computes natively."""

from __future__ import annotations

import os

import torch

from training.config import Precision, TrainingConfig
from training.errors import ConfigError


def has_accelerator() -> bool:
    """Whether there is a GPU of any kind."""
    return torch.accelerator.is_available()


def n_processes() -> int:
    """Processes that train together, as accelerate's launcher states it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_machine(training: TrainingConfig) -> None:
    """Refuse settings that this machine, or so many processes, cannot train with, before any data are prepared.

    Raises:
        ConfigError: names the setting and what to set instead.
    """
    resolve_precision(training.precision)
    training.accumulation_steps(n_processes())


def resolve_precision(asked: Precision) -> Precision:
    """`auto` as bf16 where the hardware multiplies it, else fp16 on CUDA, else fp32; anything else as asked.

    Raises:
        ConfigError: fp16 without a GPU, which PyTorch cannot train with.
    """
    if asked is Precision.FP16 and not has_accelerator():
        raise ConfigError("training.precision is 'fp16', which needs a GPU; use 'auto', 'bf16' or 'fp32' on a CPU")
    if asked is not Precision.AUTO:
        return asked
    if multiplies_bf16():
        return Precision.BF16
    return Precision.FP16 if torch.cuda.is_available() else Precision.FP32


def multiplies_bf16() -> bool:
    """Whether the device that trains multiplies bf16 itself, and does not emulate it."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if has_accelerator():
        return False
    # Emulated on other CPUs: right, but slower than fp32. With it, OPT-350M made 43 tokens a second where fp32 made 24.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
