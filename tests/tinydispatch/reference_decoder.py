"""The forward pass of Llama, Qwen and OPT in numpy and 64 bits, on a GGUF file's numbers: what native code computes."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.architectures import Activation, Rotation, Shape, read_shape
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.model import GgufModel

Array = npt.NDArray[np.float64]


def least_difference(model: GgufModel, ids: list[int]) -> float:
    """The largest difference in a position's logits, over their spread, in whichever of prompts of three it is least.

    A number that lies nearly halfway between two of 8 bits may go the other way, and everything after it differs: the
    wider a model, the fewer prompts are spared. What is computed wrongly differs in all of them.
    """
    reference, differences = ReferenceDecoder(model.path), []
    for start in range(0, len(ids), 3):
        prompt = ids[start : start + 3]
        expected = reference(prompt)
        model.truncate(0)
        differences.append(np.abs(model.decode_all(prompt) - expected).max(axis=1) / expected.std())
    return float(np.min(differences, axis=0).max())


class ReferenceDecoder:
    """All logits of a prompt at once, (ids, vocabulary).

    `rounds` False leaves activations unrounded: what is then computed is exact, and what an 8-bit product is an
    approximation of.
    """

    def __init__(self, path: Path, *, rounds: bool = True) -> None:
        self.shape: Shape = read_shape(read_header(path))
        self.rounds = rounds
        self.tensors: dict[str, Array] = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in gguf.GGUFReader(path).tensors
        }

    def __call__(self, ids: list[int]) -> Array:
        shape, x = self.shape, self.tensors["token_embd.weight"][ids]
        if "project_in.weight" in self.tensors:
            x = self.linear("project_in", x)
        if "position_embd.weight" in self.tensors:
            x = x + self.tensors["position_embd.weight"][: len(ids)]
        for index in range(shape.n_layers):
            prefix = f"blk.{index}."
            first, second = (prefix + name for name in shape.norms)
            if shape.is_pre_norm:
                x = x + self.attention(prefix, self.norm(first, x))
                x = x + self.feed_forward(prefix, self.norm(second, x))
            else:
                x = self.norm(first, x + self.attention(prefix, x))
                x = self.norm(second, x + self.feed_forward(prefix, x))
        x = self.norm("output_norm", x)
        if "project_out.weight" in self.tensors:
            x = self.linear("project_out", x)
        return self.linear("output" if "output.weight" in self.tensors else "token_embd", x)

    def attention(self, prefix: str, x: Array) -> Array:
        shape, n = self.shape, len(x)
        query, key, value = (self.linear(f"{prefix}attn_{name}", x).reshape(n, -1, shape.head_width) for name in "qkv")
        query = self.turn(self.norm(f"{prefix}attn_q_norm", query))
        key = self.turn(self.norm(f"{prefix}attn_k_norm", key))
        if self.rounds:
            key, value = (array.astype(np.float16).astype(np.float64) for array in (key, value))
        group = shape.n_heads // shape.n_key_heads
        key, value = key.repeat(group, axis=1), value.repeat(group, axis=1)
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(shape.head_width)
        scores[:, np.triu(np.ones((n, n), dtype=bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self.linear(f"{prefix}attn_output", np.einsum("hqk,khd->qhd", weights, value).reshape(n, -1))

    def feed_forward(self, prefix: str, x: Array) -> Array:
        hidden = self.linear(f"{prefix}ffn_up", x)
        if self.shape.activation is Activation.SILU_GATED:
            gate = self.linear(f"{prefix}ffn_gate", x)
            hidden = hidden * gate / (1 + np.exp(-gate))
        elif self.shape.activation is Activation.RELU:
            hidden = np.maximum(hidden, 0)
        else:
            hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
        return self.linear(f"{prefix}ffn_down", hidden)

    def linear(self, name: str, x: Array) -> Array:
        if self.rounds:
            blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
            scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
            factor = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
            x = (np.rint(blocks * factor).astype(np.float64) * scale).reshape(x.shape)
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Array) -> Array:
        weight = self.tensors.get(f"{name}.weight")
        if weight is None:
            return x
        if not self.shape.architecture.is_rms:
            x = x - x.mean(axis=-1, keepdims=True)
        squares = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(squares + self.shape.epsilon) * weight + self.tensors.get(f"{name}.bias", 0.0)

    def turn(self, heads: Array) -> Array:
        base, width, rotation = self.shape.rope_base, self.shape.head_width, self.shape.architecture.rotation
        if rotation is Rotation.NONE:
            return heads
        angles = np.arange(len(heads))[:, np.newaxis, np.newaxis] * base ** (-np.arange(0, width, 2) / width)
        cosines, sines = np.cos(angles), np.sin(angles)
        if rotation is Rotation.NEIGHBOURS:
            first, second = heads[..., 0::2], heads[..., 1::2]
            pairs = [first * cosines - second * sines, first * sines + second * cosines]
            return np.stack(pairs, axis=-1).reshape(heads.shape)
        first, second = np.split(heads, 2, axis=-1)
        return np.concatenate([first * cosines - second * sines, first * sines + second * cosines], axis=-1)
