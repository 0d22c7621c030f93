"""What the machine at hand computes natively."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from training.config import Dtype, Method, Precision, TrainingConfig
from training.errors import ConfigError


@contextmanager
def all_threads() -> Iterator[None]:
    """Inside, PyTorch computes on every core that this process may use.

    accelerate's launcher sets OMP_NUM_THREADS=1 where several processes share a machine. Stages that only the first
    one runs, such as merging, would stay on one core.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def autocast_format(precision: Precision, method: Method) -> torch.dtype | None:
    """What PyTorch's autocast turns products, and much around them, into; None where it stays out.

    LoRA on a CPU has products in bf16 of its own (`training.adapters`), with whole precision between them.

    Args:
        precision: what `resolve_precision` gives.
    """
    if precision is Precision.BF16 and (method is not Method.LORA or has_accelerator()):
        return torch.bfloat16
    return torch.float16 if precision is Precision.FP16 else None


@dataclass(frozen=True)
class NumberFormats:
    """What each part of a run is held in.

    `weights`: the model as it is loaded; `compute`: what 4-bit weights become in a product; `adapters`: what is
    trained beside frozen weights.
    """

    weights: Dtype
    compute: Dtype
    adapters: Dtype


def number_formats(method: Method, weights: Dtype, precision: Precision) -> NumberFormats:
    """The formats that a precision leaves to a run.

    Under fp16 the loss is scaled and gradients are scaled back, which PyTorch does for fp32 alone: what is trained is
    kept in fp32, and frozen weights in fp16, because such cards (T4, V100) only emulate bf16. Elsewhere adapters
    beside 4-bit weights are kept in bf16, others in fp32.

    Args:
        weights: what the run asks for.
        precision: what `resolve_precision` gives.
    """
    if precision is Precision.FP16:
        frozen = Dtype.FLOAT16 if weights is Dtype.BFLOAT16 else weights
        return NumberFormats(
            Dtype.FLOAT32 if method is Method.FULL else frozen, compute=Dtype.FLOAT16, adapters=Dtype.FLOAT32
        )
    return NumberFormats(weights, Dtype.BFLOAT16, adapters=Dtype.BFLOAT16 if method is Method.QLORA else Dtype.FLOAT32)


def precision_of_gpu(capability: tuple[int, int]) -> Precision:
    """bf16 from CUDA's compute capability 8.0 on (A100, L4, 3090 and later), fp16 before (T4: 7.5, V100: 7.0)."""
    return Precision.BF16 if capability >= (8, 0) else Precision.FP16


def multiplies_bf16() -> bool:
    """Whether the device that trains multiplies bf16 itself, and does not emulate it."""
    if torch.cuda.is_available() and torch.version.hip is None:
        return precision_of_gpu(torch.cuda.get_device_capability()) is Precision.BF16
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if has_accelerator():
        return False
    # Emulated on other CPUs: right, but slower than fp32. With it, OPT-350M made 43 tokens a second where fp32 made 24.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
