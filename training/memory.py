"""What a run will need of the device's memory, and what is there: sizes are counted, activations are estimated."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.config import Dtype, Method, OptimizerName, Precision, RunConfig
from training.hardware import n_processes, number_formats, resolve_precision
from training.optimizer import split_parameters
from training.options import to_lora_config
from training.sharding import is_sharded

_BYTES = {Dtype.FLOAT32: 4, Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2}
_NF4_BYTES = 0.516  # half a byte, and 8-bit scales for blocks of 64 with scales of their own for 256 of them
_PROBE_TOKENS = 512
# TRL computes the loss in tiles of at most so many tokens and columns, with about four copies in fp32.
_USABLE = 0.9  # of the memory; fragments and kernels' own room take the rest
_TILE_TOKENS, _TILE_COLUMNS, _TILE_BYTES = 4096, 32_768, 16


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. `activations` is None where the model could not be traced without its weights.

    `buckets`: the copy of the gradients that replicas send each other. `is_recomputed`: with gradient checkpointing.
    """

    weights: int
    gradients: int
    buckets: int
    optimizer: int
    activations: int | None
    loss: int
    is_recomputed: bool = False

    @property
    def counted(self) -> int:
        """What is there from the first step to the last, whatever the batch: not an estimate."""
        return self.weights + self.gradients + self.buckets + self.optimizer

    @property
    def total(self) -> int:
        """With the estimate of what a step adds."""
        return self.counted + (self.activations or 0) + self.loss

    @property
    def checkpoint(self) -> int:
        """Bytes on disk of one checkpoint: the trained weights, as large as their gradients, and the optimizer."""
        return self.gradients + self.optimizer


def estimate_memory(
    run: RunConfig,
    directory: Path,
    row_tokens: int,
    trained_share: float,
    processes: int | None = None,
    room: int | None = None,
) -> MemoryEstimate:
    """Count and trace the model on torch's meta device, which holds shapes and no data.

    Under `gradient_checkpointing: auto` the estimate is of the choice that a run makes: activations are kept where all
    of it takes nine tenths of the device's memory at most, and are computed again otherwise, or where they are unknown.

    Args:
        row_tokens: length of the longest row of a batch.
        trained_share: of all tokens, those that carry loss.
        processes: that train together; None: as many as the launcher has started.
        room: bytes of the device; None: of the one at hand.
    """
    processes = n_processes() if processes is None else processes
    training = run.training
    model = meta_model(directory)
    if training.method.has_adapter:
        model = peft.get_peft_model(model, to_lora_config(run))
    precision = resolve_precision(training.precision)
    held = number_formats(training.method, run.model.dtype, precision)
    weight_bytes = _BYTES[held.weights]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    n_trainable = sum(parameter.numel() for parameter in trainable)
    trainable_bytes = weight_bytes if training.method is Method.FULL else _BYTES[held.adapters]
    shards = processes if is_sharded() else 1
    tokens = row_tokens * training.per_device_batch_size
    scored = min(int(tokens * trained_share) + 1, _TILE_TOKENS)
    vocabulary, width = model.get_input_embeddings().weight.shape
    # The head's gradient is summed up over the tiles in fp32; a frozen head has none.
    head = 4 * vocabulary * width if model.get_output_embeddings().weight.requires_grad else 0
    asked = training.gradient_checkpointing
    kept, recomputed = _activations(run, model, tokens, precision)
    estimate = MemoryEstimate(
        weights=(_weights(model, training.method, weight_bytes, precision)) // shards,
        gradients=n_trainable * trainable_bytes // shards,
        buckets=n_trainable * trainable_bytes if processes > 1 and not is_sharded() else 0,
        optimizer=_optimizer_values(model, training.optimizer, n_trainable) * trainable_bytes // shards,
        activations=kept,
        loss=scored * min(vocabulary, _TILE_COLUMNS) * _TILE_BYTES + head,
    )
    if asked == "auto":
        asked = kept is None or estimate.total > _USABLE * (device_memory()[0] if room is None else room)
    return replace(estimate, activations=recomputed, is_recomputed=True) if asked else estimate


def device_memory() -> tuple[int, int]:
    """Bytes for this process, all and free: of its GPU, or its share of the machine within a container's limit."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))
        return total, free
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _available() or total
    limit = _container_limit()
    if limit is not None:
        total, free = min(total, limit), min(free, limit)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return total // processes, free // processes


def _available() -> int | None:
    """What Linux would give without swapping: free pages and most of its file cache; None elsewhere."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _container_limit() -> int | None:
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            return int(path.read_text("ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def meta_model(directory: Path) -> PreTrainedModel:
    """A model of a directory's shape on torch's meta device: sizes without data."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def _weights(model: torch.nn.Module, method: Method, weight_bytes: int, precision: Precision) -> int:
    """Bytes of all weights; under autocast also of the copies that it keeps of matrices during a step."""
    base = [(name, parameter) for name, parameter in model.named_parameters() if "lora_" not in name]
    everything = sum(parameter.numel() for _, parameter in base)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
    matrices = sum(parameter.numel() for _, parameter in base if parameter.ndim == 2) - tables
    adapters = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    if method is Method.QLORA:
        return int(matrices * _NF4_BYTES) + (everything - matrices) * weight_bytes + adapters * 2
    has_copies = precision is not Precision.FP32 and weight_bytes == 4
    return everything * weight_bytes + (2 * matrices if has_copies else 0) + adapters * 4


def _optimizer_values(model: torch.nn.Module, optimizer: OptimizerName, n_trainable: int) -> int:
    """AdamW keeps two values for each weight, Muon one for each weight of a matrix."""
    if optimizer is OptimizerName.ADAMW:
        return 2 * n_trainable
    matrices, _, _ = split_parameters(model)
    return 2 * n_trainable - sum(parameter.numel() for parameter in matrices)


class _Attend(torch.autograd.Function):
    """Attention that keeps what the fused kernels keep (query, key, value, result) and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result


def _attend(
    _module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    result: torch.Tensor = _Attend.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result.transpose(1, 2).contiguous(), None


AttentionInterface.register("meta_only", _attend)


def _activations(run: RunConfig, model: Any, tokens: int, precision: Precision) -> tuple[int, int] | tuple[None, None]:
    """Bytes that autograd keeps of one forward pass over `tokens` tokens: of everything, and with recomputation.

    None where tracing fails.
    """
    config = model.config.get_text_config()
    length = min(_PROBE_TOKENS, tokens, getattr(config, "max_position_embeddings", None) or _PROBE_TOKENS)
    try:
        model.set_attn_implementation("meta_only")
        kept = _kept_bytes(model, length) * tokens // length
    except (RuntimeError, ValueError, NotImplementedError, TypeError):  # a layer that needs values, not shapes
        return None, None
    # Traced in fp32. Autocast leaves norms and the residual stream in the weights' format, about half of it all.
    is_half = precision is not Precision.FP32
    share = (0.5 if run.model.dtype is not Dtype.FLOAT32 else 0.75) if is_half else 1.0
    layers = int(config.num_hidden_layers)
    recomputed = kept // layers + layers * tokens * int(config.hidden_size) * 4  # one layer, and every layer's input
    return int(kept * share), int(recomputed * share)


def _kept_bytes(model: Any, length: int) -> int:
    storages: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    ids_BT = torch.zeros(1, length, dtype=torch.long, device="meta")
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        kept = base.base_model(input_ids=ids_BT, position_ids=ids_BT, use_cache=False)  # held until counted
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    assert kept is not None
    return sum(storage.nbytes() for key, storage in storages.items() if key not in weights)
