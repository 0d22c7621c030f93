from __future__ import annotations

import pytest

from tinydispatch.ggml.bindings import (
    GGML_TYPE_F16,
    GGML_TYPE_F32,
    GGML_TYPE_Q4_K,
    GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1,
    GGML_TYPE_Q5_K,
    GGML_TYPE_Q6_K,
    GGML_TYPE_Q8_0,
)
from tinydispatch.ggml.mixtures import Quantization, tensor_types


@pytest.mark.parametrize(
    ("shape", "quantization", "expected"),
    [
        ((64,), Quantization.Q8_0, GGML_TYPE_F32),
        ((64,), Quantization.F16, GGML_TYPE_F32),
        ((8, 64), Quantization.F32, GGML_TYPE_F32),
        ((8, 64), Quantization.F16, GGML_TYPE_F16),
        ((8, 64), Quantization.Q8_0, GGML_TYPE_Q8_0),
        ((8, 48), Quantization.Q8_0, GGML_TYPE_F16),
        ((8, 256), Quantization.Q4_K_M, GGML_TYPE_Q4_K),
        ((8, 256), Quantization.Q5_K_M, GGML_TYPE_Q5_K),
        ((8, 96), Quantization.Q4_K_M, GGML_TYPE_Q5_0),
        ((8, 96), Quantization.Q5_K_M, GGML_TYPE_Q5_1),
        ((8, 48), Quantization.Q4_K_M, GGML_TYPE_F16),
    ],
)
def test_a_weight_gets_the_type_that_its_rows_divide_into(
    shape: tuple[int, ...], quantization: Quantization, expected: int
) -> None:
    assert tensor_types({"blk.0.attn_q.weight": shape}, quantization, 1)["blk.0.attn_q.weight"] == expected


def test_norms_positions_and_vectors_stay_in_32_bits() -> None:
    names = ("position_embd.weight", "blk.0.attn_q_norm.weight", "blk.0.ssm_conv1d.weight")
    types = tensor_types(dict.fromkeys(names, (8, 256)), Quantization.Q4_K_M, 1)
    assert set(types.values()) == {GGML_TYPE_F32}


def _model(n_layers: int, *extra: str, width: int = 256) -> dict[str, tuple[int, ...]]:
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    layers = [f"blk.{layer}.{part}.weight" for layer in range(n_layers) for part in parts]
    return dict.fromkeys(["token_embd.weight", *layers, *extra], (width, width))


@pytest.mark.parametrize(
    ("quantization", "base"), [(Quantization.Q4_K_M, GGML_TYPE_Q4_K), (Quantization.Q5_K_M, GGML_TYPE_Q5_K)]
)
def test_first_last_and_every_third_layer_keep_more_bits(quantization: Quantization, base: int) -> None:
    types = tensor_types(_model(24), quantization, 24)
    rich = {0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23}
    for part in ("attn_v", "ffn_down"):
        assert {layer for layer in range(24) if types[f"blk.{layer}.{part}.weight"] == GGML_TYPE_Q6_K} == rich
    assert {types[f"blk.{layer}.attn_q.weight"] for layer in range(24)} == {base}


def test_the_embedding_is_treated_as_the_head_only_where_it_is_the_head() -> None:
    tied = tensor_types(_model(2), Quantization.Q4_K_M, 2)
    assert tied["token_embd.weight"] == GGML_TYPE_Q6_K
    untied = tensor_types(_model(2, "output.weight"), Quantization.Q4_K_M, 2)
    assert (untied["token_embd.weight"], untied["output.weight"]) == (GGML_TYPE_Q4_K, GGML_TYPE_Q6_K)
    assert tensor_types(_model(2, width=96), Quantization.Q4_K_M, 2)["token_embd.weight"] == GGML_TYPE_Q8_0


def test_joined_queries_keys_and_values_count_as_values() -> None:
    shapes = {f"blk.{layer}.attn_qkv.weight": (768, 256) for layer in range(8)}
    types = tensor_types(shapes, Quantization.Q4_K_M, 8)
    assert [layer for layer in range(8) if types[f"blk.{layer}.attn_qkv.weight"] == GGML_TYPE_Q6_K] == [0, 3, 6, 7]
