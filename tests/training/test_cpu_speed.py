"""What is computed otherwise on a CPU for speed has the values and gradients of what it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from trl.kernels import ChunkedLogProbFunction

from training import head
from training.adapters import AdaptedProduct, speed_up_adapters
from training.head import TokenLogProbs

TOKENS, VOCABULARY, WIDTH = 300, 211, 16


@pytest.mark.parametrize("kept_bytes", [2**29, 150 * VOCABULARY * 4, 0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_log_probs_are_trls_and_so_are_their_gradients(
    kept_bytes: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all probabilities kept, with half of them, and with none; each token weighs otherwise."""
    monkeypatch.setattr(head, "_MAX_KEPT_BYTES", kept_bytes)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, WIDTH, generator=generator) for n in (TOKENS, VOCABULARY))
    targets, weights = (
        torch.randint(VOCABULARY, (TOKENS,), generator=generator),
        torch.rand(TOKENS, generator=generator),
    )
    bias = torch.randn(VOCABULARY, generator=generator) if has_bias else None
    found = []
    for function, more in (
        (ChunkedLogProbFunction, (1.0, 64, None, 1.0, ("entropy", "is_top1"))),
        (TokenLogProbs, ()),
    ):
        inputs = [None if value is None else value.clone().requires_grad_() for value in (hidden, weight, bias)]
        outputs = [value for value in function.apply(*inputs, targets, *more) if value is not None]
        (outputs[0] * weights).sum().backward()
        found.append([*outputs, *(value.grad for value in inputs if value is not None)])
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs.float(), ours.float(), atol=1e-5)
    assert 0 < found[0][2].sum() < TOKENS


def test_a_very_unlikely_token_has_a_finite_log_probability() -> None:
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [200.0]])
    log_probs, _, _ = TokenLogProbs.apply(hidden, weight, None, torch.tensor([0]))
    assert log_probs.item() == pytest.approx(-200)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).tanh()) + x


def adapted(dropout: float) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["up", "down"])
    model = inject_adapter_in_model(config, nn.Sequential(Block(), Block())).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def outcomes(model: Any, autocast: torch.dtype | None = None) -> list[torch.Tensor]:
    """Output, and gradients by the input and by what is trained."""
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(2)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        output = model(x)
    output.float().square().sum().backward()
    trained = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 8
    return [output, x.grad, *trained]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_adapters_compute_and_learn_what_pefts_do(dropout: float) -> None:
    fast = adapted(dropout)
    assert speed_up_adapters(fast) == 4
    for theirs, ours in zip(outcomes(adapted(dropout)), outcomes(fast), strict=True):
        assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_adapters_with_products_in_bf16_are_as_near_to_whole_precision_as_autocast(dropout: float) -> None:
    fast = adapted(dropout)
    assert speed_up_adapters(fast, in_bf16=True) == 4
    whole = outcomes(adapted(dropout))

    def error(found: list[torch.Tensor]) -> float:
        return sum(float((value - exact).norm() / exact.norm()) for exact, value in zip(whole, found, strict=True))

    assert 0 < error(outcomes(fast)) < 2 * error(outcomes(adapted(dropout), torch.bfloat16))


def test_an_adapter_that_is_out_of_the_ordinary_is_left_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = adapted(0.0).eval(), torch.ones(1, 3, 12)
    expected = model(x)
    speed_up_adapters(model)
    assert torch.allclose(model(x), expected, atol=1e-5)
    monkeypatch.setattr(AdaptedProduct, "apply", lambda *_: pytest.fail("computed by our product"))
    for module in model.modules():
        if hasattr(module, "merge"):
            module.merge()
    assert torch.allclose(model(x), expected, atol=1e-5)
    half = adapted(0.0).bfloat16()
    assert speed_up_adapters(half) == 0
