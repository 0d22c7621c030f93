"""nano's decoder, written for training on a CPU: fixed shapes, few operations, the same weights as transformers' Qwen3.

transformers' own model serves everything after this stage. Here queries, keys and values are one product, the residual
stream's casts are explicit instead of autocast's, and nothing depends on the data, so that the whole step compiles
into a handful of kernels: about twice as fast as the eager model on two cores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM


class Outputs(NamedTuple):
    """`logits` (B, T, V) in float32, and the `residual` stream (B, T, D) after the block asked for."""

    logits: torch.Tensor
    residual: torch.Tensor


class Network(nn.Module):
    """A Qwen3 decoder over whole documents, one a row; parameters are named as in `Qwen3ForCausalLM`.

    Args:
        read_after: number of blocks after which the residual stream is handed out as well.
        dtype: of the matrix products and the attention; parameters and residual stream stay in float32.
    """

    def __init__(self, config: Qwen3Config, read_after: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.config, self.read_after, self.dtype = config, read_after, dtype
        self.model = _Decoder(config)

    def forward(self, ids_BT: torch.Tensor) -> Outputs:
        """Every row is one document from its start, with padding, if any, at its end."""
        rotation = rotary_table(self.config, ids_BT.shape[1], ids_BT.device, self.dtype)
        stream: torch.Tensor = self.model.embed_tokens(ids_BT)
        read = stream
        for index, block in enumerate(self.model.layers):
            stream = block(stream, rotation, self.dtype)
            read = stream if index + 1 == self.read_after else read
        return Outputs(self.head(stream), read)

    def head(self, stream: torch.Tensor) -> torch.Tensor:
        """Logits in float32 through the tied embeddings, for any leading dimensions."""
        normed = self.model.norm(stream).to(self.dtype)
        return F.linear(normed, self.model.embed_tokens.weight.to(self.dtype)).float()


class _Norm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        normed: torch.Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return normed


class _Attention(nn.Module):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        assert config.num_key_value_heads == config.num_attention_heads, "grouped keys are not needed at this size"
        self.heads, self.head_dim, width = config.num_attention_heads, config.head_dim, config.hidden_size
        inner = self.heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.q_norm, self.k_norm = (_Norm(self.head_dim, config.rms_norm_eps) for _ in range(2))

    def forward(self, x_BTD: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x_BTD.shape
        dtype = x_BTD.dtype
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]).to(dtype)
        projected = F.linear(x_BTD, weight).view(batch, length, 3, self.heads, self.head_dim)
        q, k, v = projected.unbind(2)
        q = _rotate(self.q_norm(q).to(dtype), rotation).transpose(1, 2)
        k = _rotate(self.k_norm(k).to(dtype), rotation).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        return F.linear(mixed.transpose(1, 2).flatten(2), self.o_proj.weight.to(dtype))


class _Mlp(nn.Module):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        dtype = x_BTD.dtype
        both = F.linear(x_BTD, torch.cat([self.gate_proj.weight, self.up_proj.weight]).to(dtype))
        gate, up = both.chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(dtype))


class _Block(nn.Module):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(config), _Mlp(config)
        self.input_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, stream: torch.Tensor, rotation: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        stream = stream + self.self_attn(self.input_layernorm(stream).to(dtype), rotation)
        result: torch.Tensor = stream + self.mlp(self.post_attention_layernorm(stream).to(dtype))
        return result


class _Decoder(nn.Module):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size, config.rms_norm_eps)


def rotary_frequencies(config: Qwen3Config) -> torch.Tensor:
    """Radians per position of each pair of a head's dimensions, fastest first: (head_dim / 2,)."""
    base = config.rope_parameters["rope_theta"]
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    return torch.exp(-pairs / config.head_dim * math.log(base))


def rotary_table(config: Qwen3Config, length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Cosines and sines for positions from 0: (2, 1, T, 1, head_dim / 2)."""
    angles = torch.arange(length, device=device)[:, None] * rotary_frequencies(config).to(device)
    return torch.stack([angles.cos(), angles.sin()])[:, None, :, None].to(dtype)


def _rotate(x_BTHD: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    cos, sin = rotation.unbind(0)
    first, second = x_BTHD.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def as_transformers(network: Network) -> Qwen3ForCausalLM:
    """The same weights in transformers' class, which saves, converts and serves them."""
    model = Qwen3ForCausalLM(network.config)
    missing, unexpected = model.load_state_dict(network.state_dict(), strict=False)
    assert missing in ([], ["lm_head.weight"]), f"{missing=}"
    assert not unexpected, f"{unexpected=}"
    model.tie_weights()
    return model.eval()
