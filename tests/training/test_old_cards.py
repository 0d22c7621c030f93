"""Cards that compute no bf16 (T4, V100) train in fp16, where gradients are scaled: what is trained stays in fp32."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from training.config import Dtype, Method, Precision
from training.hardware import number_formats, precision_of_gpu
from training.options import quantization_config
from training.sft import hold_adapters_in


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), Precision.FP16), ((7, 5), Precision.FP16), ((8, 0), Precision.BF16), ((8, 9), Precision.BF16),
     ((9, 0), Precision.BF16)],
)  # fmt: skip
def test_the_precision_follows_the_card(capability: tuple[int, int], precision: Precision) -> None:
    assert precision_of_gpu(capability) is precision


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("weights", Dtype)
def test_under_fp16_nothing_that_is_trained_is_half_and_nothing_is_bf16(method: Method, weights: Dtype) -> None:
    held = number_formats(method, weights, Precision.FP16)
    trained = held.weights if method is Method.FULL else held.adapters
    assert trained is Dtype.FLOAT32
    assert Dtype.BFLOAT16 not in (held.weights, held.compute, held.adapters)


def test_on_newer_cards_a_run_is_held_as_it_asks() -> None:
    for method in Method:
        assert number_formats(method, Dtype.BFLOAT16, Precision.BF16).weights is Dtype.BFLOAT16
    assert number_formats(Method.QLORA, Dtype.BFLOAT16, Precision.BF16).adapters is Dtype.BFLOAT16
    assert number_formats(Method.LORA, Dtype.BFLOAT16, Precision.BF16).adapters is Dtype.FLOAT32


def test_four_bit_weights_are_multiplied_in_the_format_of_the_card() -> None:
    settings = quantization_config(torch.float16)
    assert settings.bnb_4bit_compute_dtype is torch.float16
    assert settings.bnb_4bit_quant_storage is torch.float16


def test_adapters_that_were_made_in_bf16_are_kept_in_fp32(qwen_dir: object) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float16)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]), autocast_adapter_dtype=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    hold_adapters_in(adapted, torch.float32)
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in adapted.parameters() if not parameter.requires_grad} == {torch.float16}
