"""PEFT's adapters on a CPU without the passes over memory between its small products."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class AdaptedProduct(torch.autograd.Function):
    """x·Wᵀ + scale·x'·Aᵀ·Bᵀ with W frozen; x' is x, or x after dropout.

    PEFT multiplies, scales and adds in passes of their own, each over all outputs and again in the backward pass. Here
    the products add to what is there, and the scale goes to the smallest matrix.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = (x if dropped is None else dropped).reshape(-1, x.shape[-1])
        narrow = rows @ a.t()
        output = F.linear(x, weight, bias)
        output.view(-1, output.shape[-1]).addmm_(narrow, b.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, narrow)
        ctx.scale, ctx.shape, ctx.is_dropped = scale, x.shape, dropped is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, narrow = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_narrow = (grad @ b).mul_(ctx.scale)
        grad_a = grad_narrow.t() @ rows
        grad_b = (grad.t() @ narrow).mul_(ctx.scale)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if not ctx.is_dropped:
                grad_x.addmm_(grad_narrow, a)
            grad_x = grad_x.view(ctx.shape)
        if ctx.is_dropped and ctx.needs_input_grad[1]:
            grad_dropped = (grad_narrow @ a).view(ctx.shape)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None


class AdaptedHalfProduct(torch.autograd.Function):
    """The same with products in bf16 and everything between them in fp32: what a CPU with bf16 units is fast at.

    Under autocast the passes between the products are in bf16 too, for which PyTorch has slow kernels on CPUs.
    `half_weight` is the frozen weight in bf16, rounded once and not in each step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        half_weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        half_x = x.reshape(-1, x.shape[-1]).bfloat16()
        rows = half_x if dropped is None else dropped.reshape(-1, x.shape[-1]).bfloat16()
        half_a, half_b = a.bfloat16(), (b * scale).bfloat16()
        narrow = rows @ half_a.t()
        output = torch.addmm(half_x @ half_weight.t(), narrow, half_b.t()).float()
        if bias is not None:
            output += bias
        ctx.save_for_backward(rows, half_weight, half_a, half_b, narrow)
        ctx.scale, ctx.shape, ctx.is_dropped = scale, x.shape, dropped is not None
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, half_weight, half_a, half_b, narrow = ctx.saved_tensors
        half_grad = grad.reshape(-1, grad.shape[-1]).bfloat16()
        grad_narrow = half_grad @ half_b
        grad_a = (grad_narrow.t() @ rows).float()
        grad_b = (half_grad.t() @ narrow).float().mul_(ctx.scale)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = half_grad @ half_weight
            if not ctx.is_dropped:
                grad_x = torch.addmm(grad_x, grad_narrow, half_a)
            grad_x = grad_x.float().view(ctx.shape)
        if ctx.is_dropped and ctx.needs_input_grad[1]:
            grad_dropped = (grad_narrow @ half_a).float().view(ctx.shape)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None


def speed_up_adapters(model: nn.Module, *, in_bf16: bool = False) -> int:
    """Give PEFT's plain LoRA layers on a CPU, in whole precision, the products above; returns how many there were.

    Names, weights and what is saved stay PEFT's.

    Args:
        in_bf16: multiply in bf16; each layer keeps a copy of its frozen weight in it.
    """
    found: list[Any] = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    every: list[Any] = list(model.modules())
    for module in every:
        module.multiplies_in_bf16 = in_bf16
    for module in found:
        half_weight = module.base_layer.weight.detach().bfloat16() if in_bf16 else None
        module.forward = types.MethodType(partial(_forward, half_weight=half_weight), module)
    return len(found)


def _is_plain(module: Any) -> bool:
    if len(module.active_adapters) != 1 or module.lora_variant or type(module.base_layer) is not nn.Linear:
        return False
    name = module.active_adapters[0]
    weights = [module.base_layer.weight, module.lora_A[name].weight, module.lora_B[name].weight]
    is_whole = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    has_biases = module.lora_A[name].bias is not None or module.lora_B[name].bias is not None
    return is_whole and not has_biases and not module.base_layer.weight.requires_grad


def _forward(
    self: Any, x: torch.Tensor, *arguments: Any, half_weight: torch.Tensor | None, **keywords: Any
) -> torch.Tensor:
    """PEFT's forward pass; where anything is out of the ordinary (merged, disabled, autocast), by PEFT itself."""
    is_plain = not (arguments or keywords or self.disable_adapters or self.merged)
    is_whole = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (is_plain and is_whole):
        theirs: torch.Tensor = Linear.forward(self, x, *arguments, **keywords)
        return theirs
    name, base = self.active_adapters[0], self.base_layer
    dropout = self.lora_dropout[name]
    dropped = dropout(x) if isinstance(dropout, nn.Dropout) and self.training else None
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    product, weight = (AdaptedProduct, base.weight) if half_weight is None else (AdaptedHalfProduct, half_weight)
    output: torch.Tensor = product.apply(x, dropped, weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
    return output
