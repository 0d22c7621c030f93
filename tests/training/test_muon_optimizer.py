"""One optimizer of two kinds: who gets what, and that its state survives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training import optimizer as optimizers
from training.optimizer import MuonWithAdamW, split_parameters


class Model(nn.Module):
    """An embedding, two matrices, a norm and a head that shares the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.head(self.norm(self.down(torch.tanh(self.up(self.embed(ids))))))
        return hidden


def make_optimizer(model: Model) -> MuonWithAdamW:
    return MuonWithAdamW(model, learning_rate=1e-2, muon_learning_rate=2e-2, weight_decay=0.01)


def steps(
    model: Model, optimizer: MuonWithAdamW, scheduler: torch.optim.lr_scheduler.LRScheduler, count: int
) -> list[float]:
    losses = []
    for _ in range(count):
        ids = torch.arange(7)
        loss = nn.functional.cross_entropy(model(ids), (ids + 1) % 7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def linear(optimizer: MuonWithAdamW) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = Model()
    matrices, decayed, plain = split_parameters(model)
    assert {id(matrix) for matrix in matrices} == {id(model.up.weight), id(model.down.weight)}
    assert [id(table) for table in decayed] == [id(model.embed.weight)]
    assert len(plain) == 3  # a bias, and the norm's two


def test_frozen_parameters_are_left_out() -> None:
    model = Model()
    model.up.weight.requires_grad_(False)
    assert len(split_parameters(model)[0]) == 1


def test_a_schedule_reaches_both_kinds() -> None:
    model = Model()
    optimizer = make_optimizer(model)
    scheduler = linear(optimizer)
    steps(model, optimizer, scheduler, 50)
    rates = {group["kind"]: group["lr"] for group in optimizer.param_groups}
    assert rates["adamw"] == 0.5e-2
    assert rates["muon"] == 1e-2


def test_at_a_rate_of_zero_nothing_moves() -> None:
    model = Model()
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model)
    steps(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0), 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_both_kinds_of_parameters_move_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    model = Model()
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model)
    losses = steps(model, optimizer, linear(optimizer), 60)
    assert losses[-1] < 0.5 * losses[0]
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_a_resumed_optimizer_continues_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = make_optimizer(model)
    scheduler = linear(optimizer)
    steps(model, optimizer, scheduler, 5)
    resumed = copy.deepcopy(model)
    fresh = make_optimizer(resumed)
    fresh_scheduler = linear(fresh)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh_scheduler.load_state_dict(scheduler.state_dict())
    assert steps(model, optimizer, scheduler, 5) == steps(resumed, fresh, fresh_scheduler, 5)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48)])
def test_without_bf16_the_same_update_is_made_in_fp32(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what bf16 rounds away of `torch.optim.Muon`'s; momentum and decay included."""
    moved = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(optimizers, "multiplies_bf16", lambda has_bf16=has_bf16: has_bf16)
        torch.manual_seed(0)
        layer = nn.Linear(*shape, bias=False)
        before = layer.weight.detach().clone()
        optimizer = MuonWithAdamW(layer, learning_rate=0.1, muon_learning_rate=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(20, shape[0])).square().sum().backward()
            kept = layer.weight.grad.clone()
            optimizer.step()
            assert torch.equal(layer.weight.grad, kept)
        moved.append(layer.weight.detach() - before)
    assert torch.allclose(moved[0], moved[1], atol=0.05 * float(moved[0].abs().max()))
    assert not torch.equal(moved[0], moved[1])


def test_without_bf16_no_product_is_made_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda _: pytest.fail("converted to bf16"))
    model = Model()
    optimizer = make_optimizer(model)
    steps(model, optimizer, linear(optimizer), 1)
