from __future__ import annotations

import gguf
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.quantize import encode
from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_Q8_0
from tinydispatch.ggml.mixtures import quantize_rows

_matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(64)), elements=st.floats(-1000, 1000, width=32))


@given(_matrices)
@settings(deadline=None)
def test_llama_cpp_and_the_gguf_package_quantize_to_the_same_bytes(values: np.ndarray) -> None:
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(quantize_rows(values, GGML_TYPE_Q8_0), expected)


def test_quantized_rows_come_back_within_half_a_step() -> None:
    values = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    restored = gguf.quants.dequantize(quantize_rows(values, GGML_TYPE_Q8_0), gguf.GGMLQuantizationType.Q8_0)
    steps = np.abs(values.reshape(8, 8, 32)).max(axis=2, keepdims=True) / 127
    # A step is stored in 16 bits, which adds 1 in 2048 of the value.
    assert (np.abs(restored - values).reshape(8, 8, 32) <= 0.5 * steps + 127 * steps / 2048).all()


def test_bfloat16_weights_are_encoded_by_value() -> None:
    weight = torch.tensor([[1.5, -0.25]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(encode("w", weight, GGML_TYPE_F16), np.array([[1.5, -0.25]], np.float16))
