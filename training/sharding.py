"""Weights spread over processes (FSDP, DeepSpeed), as accelerate's launcher asks for it."""

from __future__ import annotations

import os

import torch
from accelerate.state import DistributedType, PartialState

from training.config import OptimizerName, TrainingConfig
from training.errors import ConfigError
from training.hardware import has_accelerator


def is_sharded() -> bool:
    """Whether accelerate was told to spread weights over processes."""
    return any(_asked_for(name) for name in ("FSDP", "DEEPSPEED"))


def check_sharding(training: TrainingConfig) -> None:
    """Refuse what would be ignored, or computed otherwise than on one device.

    Raises:
        ConfigError: DeepSpeed without a GPU, where accelerate passes it over; Muon over spread weights, whose updates
            were off by a sixth from those of one process.
    """
    if _asked_for("DEEPSPEED") and not has_accelerator():
        raise ConfigError("DeepSpeed needs GPUs here; configs/accelerate/fsdp2_cpu.yaml spreads weights without them")
    if training.optimizer is OptimizerName.MUON and is_sharded():
        raise ConfigError(
            "training.optimizer is 'muon', which takes each matrix as a whole, but weights are to be spread over "
            "processes; set training.optimizer=adamw, or launch with configs/accelerate/ddp.yaml"
        )


def shard_on_cpus_too() -> None:
    """Let accelerate spread weights over processes that have no GPU; called once the process group is there.

    It enters FSDP from the kinds of distribution that it knows GPUs by. From that of CPUs it would go on with a whole
    replica in each process, and say nothing.
    """
    if _asked_for("FSDP") and not has_accelerator() and torch.distributed.is_initialized():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _asked_for(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"
