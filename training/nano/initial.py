"""Weights to start from that can already look things up.

A dispatch model mostly looks up: it copies a name from the conversation, finds the date that stands before "Friday",
the tool whose description has the request's words. Heads that do this ("what came after the last occurrence of this
token", "an earlier occurrence of this word") arise in training by themselves, but in a model this small, on this few
tokens, they hardly did. So some are put in place: a constant direction of the embeddings lets two heads of the first
block look exactly one and two positions back; in every later block one head compares the present token with each
token's predecessor, and one with each token. Embeddings start alike where two tokens are the same word but for case
and a leading space. Training is free to change all of it.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from training.nano.network import Network, rotary_frequencies

# How the residual stream of 192 dimensions is divided at the start.
_TOKEN = slice(0, 96)  # what the token is
_BEFORE = slice(96, 160)  # what the token before it is
_TWO_BEFORE = slice(160, 191)
_CONSTANT = 191
_CONSTANT_SIZE = 3.0

_WORD_PART, _OWN_PART = 0.85, 0.53  # squares sum to one
_FINAL_NORM = 0.06  # tied embeddings of unit size would otherwise make logits of a hundred
_SHARPNESS = 1.5  # of queries and keys: a full match stands 8 * 1.5**2 = 18 nats above none
_NOISE = 0.2  # what is left of the random weights in a head that is put in place
_STEP_PAIRS = 4  # the fastest rotary pairs tell neighbouring positions apart
_SLOW_RADIANS = 2e-3  # pairs slower than this compare contents alike at any distance
_COPY_SIZE, _MATCH_SIZE = 1.0, 0.3
_MATCH_BLOCK = 2  # its second head writes what stood before the earlier occurrence


def initialise(network: Network, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Overwrite all weights, reproducibly by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, network.config.initializer_range, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(_SHARPNESS)
        network.model.norm.weight.fill_(_FINAL_NORM)
        _embeddings(network.model.embed_tokens.weight, tokenizer, generator)
        reading = _look_back(network, generator)
        for index in range(1, network.config.num_hidden_layers):
            _copy_head(network, index, reading, generator)
            _match_head(network, index, reading, generator)


def _embeddings(weight_VD: torch.Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> None:
    width = _TOKEN.stop - _TOKEN.start
    words: dict[str, torch.Tensor] = {}
    weight_VD.zero_()
    for token_id in range(len(weight_VD)):
        text = tokenizer.decode([token_id])
        word = text.strip().lower() or text
        if word not in words:
            words[word] = torch.randn(width, generator=generator)
        own = torch.randn(width, generator=generator)
        weight_VD[token_id, _TOKEN] = _WORD_PART * words[word] + _OWN_PART * own
    weight_VD[:, _CONSTANT] = _CONSTANT_SIZE


class _Head:
    """Views of one head's rows and columns, quietened so that what is put in place stands out."""

    def __init__(self, network: Network, block: int, head: int, *, keeps_values: bool = False) -> None:
        attention = network.get_submodule(f"model.layers.{block}.self_attn")
        size = network.config.head_dim
        rows = slice(head * size, (head + 1) * size)
        self.q, self.k, self.v = (attention.get_parameter(f"{name}_proj.weight")[rows] for name in "qkv")
        self.o = attention.get_parameter("o_proj.weight")[:, rows]
        for part in (self.q, self.k) if keeps_values else (self.q, self.k, self.v, self.o):
            part.mul_(_NOISE)


def _look_back(network: Network, generator: torch.Generator) -> torch.Tensor:
    """Two heads of the first block copy what the tokens one and two back are; returns how the first reads them."""
    frequencies = rotary_frequencies(network.config)[:_STEP_PAIRS]
    half = network.config.head_dim // 2
    readings = []
    for head, target in ((0, _BEFORE), (1, _TWO_BEFORE)):
        placed = _Head(network, 0, head)
        angles = frequencies * (head + 1)
        placed.q[:_STEP_PAIRS, _CONSTANT] += 1.0
        placed.k[:_STEP_PAIRS, _CONSTANT] += angles.cos()
        placed.k[half : half + _STEP_PAIRS, _CONSTANT] += angles.sin()
        size = target.stop - target.start
        reading = _orthogonal(_TOKEN.stop - _TOKEN.start, generator)[:size]
        placed.v[:size, _TOKEN] += reading
        placed.o[target, :size] += torch.eye(size)
        readings.append(reading)
    return readings[0]


def _copy_head(network: Network, block: int, reading: torch.Tensor, generator: torch.Generator) -> None:
    """Find where this token stood last, and foretell what came after it."""
    placed = _Head(network, block, 0, keeps_values=True)
    slow = _slow_rows(network)
    mixing = _orthogonal(len(reading), generator)[: len(slow)]
    placed.q[slow, _TOKEN] += mixing @ reading
    placed.k[slow, _BEFORE] += mixing
    values = _orthogonal(_TOKEN.stop - _TOKEN.start, generator)[: network.config.head_dim]
    placed.v[:, _TOKEN] += values
    placed.o[_TOKEN] += _COPY_SIZE * values.T


def _match_head(network: Network, block: int, reading: torch.Tensor, generator: torch.Generator) -> None:
    """Find this very word where it stood before, and read what came before it."""
    placed = _Head(network, block, 1, keeps_values=True)
    slow = _slow_rows(network)
    mixing = _orthogonal(_TOKEN.stop - _TOKEN.start, generator)[: len(slow)]
    placed.q[slow, _TOKEN] += mixing
    placed.k[slow, _TOKEN] += mixing
    size = _BEFORE.stop - _BEFORE.start
    placed.v[:size, _BEFORE] += torch.eye(size)
    if block == _MATCH_BLOCK:
        placed.o[_TOKEN, :size] += _MATCH_SIZE * reading.T


def _slow_rows(network: Network) -> torch.Tensor:
    pairs = (rotary_frequencies(network.config) < _SLOW_RADIANS).nonzero().flatten()
    return torch.cat([pairs, pairs + network.config.head_dim // 2])


def _orthogonal(size: int, generator: torch.Generator) -> torch.Tensor:
    result: torch.Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    return result
