"""The optimizers of a small run in several processes on one machine, and the exchange of gradients between them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Optimizers:
    """Muon on this process's share of the hidden matrices, AdamW on the rest; shares are exchanged after each step."""

    def __init__(self, model: nn.Module, muon_lr: float, adamw_lr: float, rank: int, world: int) -> None:
        named = list(model.named_parameters())
        self.matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        others = [p for name, p in named if not any(p is matrix for matrix in self.matrices)]
        self.rank, self.world = rank, world
        muon = torch.optim.Muon(self.matrices[rank::world], lr=muon_lr, momentum=0.95, weight_decay=0.01)
        adamw = torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.all = ((muon, muon_lr), (adamw, adamw_lr))

    def step(self, scale: float) -> None:
        """One update at `scale` times the base rates."""
        for optimizer, base_lr in self.all:
            for group in optimizer.param_groups:
                group["lr"] = base_lr * scale
            optimizer.step()  # type: ignore[no-untyped-call]
        if self.world > 1:
            for index, matrix in enumerate(self.matrices):
                dist.broadcast(matrix.data, src=index % self.world)

    def state(self) -> list[dict[str, Any]]:
        """What a resumed run needs."""
        return [optimizer.state_dict() for optimizer, _ in self.all]

    def load(self, states: list[dict[str, Any]]) -> None:
        """The opposite of `state`."""
        for (optimizer, _), state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def average_gradients(model: nn.Module, world: int) -> None:
    """Replace every gradient by its mean over the processes."""
    if world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.view(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
