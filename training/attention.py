"""Attention for several conversations in one row: each token sees its own conversation and nothing else.

A row is cut into nodes. A node's tokens see all tokens of its ancestors, and those before them in the node itself. For
conversations laid end to end every node is a conversation without ancestors; for a tree (`training.tree`) the
ancestors hold what several conversations begin with. `cu_seq_lens_q` says where each node begins among the row's T
tokens, `cu_seq_lens_k` where its list of keys would begin: ancestors' tokens, then its own. Nodes stand in preorder,
so the two say everything.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "per_conversation"

# Queries of a node that are computed at once: their scores stay in the cache of a core, whatever the node's length.
_BLOCK = 96


def attend_per_conversation(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_index: torch.Tensor | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each conversation of a packed row; rows that are not packed go to plain sdpa.

    Args:
        query: (1, heads, T, width); `key` and `value` may have fewer heads.
        cu_seq_lens_q: where each node begins, and T; None for rows that are not packed.
        cu_seq_lens_k: where each node's keys begin, and their number; the same as `cu_seq_lens_q` without a tree.
        key_index: for a tree, the places of each node's keys among the T tokens.
        max_length_q: length of the longest node; `max_length_k`: of the longest list of keys.

    Returns:
        (1, T, heads, width), and no attention weights.
    """
    if cu_seq_lens_q is None:
        plain: torch.Tensor
        plain, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **keywords
        )
        return plain, None
    assert query.shape[0] == 1, "a packed batch is one row"
    assert cu_seq_lens_k is not None
    # Norms of queries and keys (Qwen3) leave them in their weights' format; products are made in that of autocast.
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (tensor.to(torch.get_autocast_dtype(query.device.type)) for tensor in (query, key, value))
    if _has_varlen_kernel(query, dropout):
        assert max_length_q is not None
        assert max_length_k is not None
        longest = (max_length_q, max_length_k)
        return _in_one_call(query, key, value, (cu_seq_lens_q, cu_seq_lens_k), longest, key_index, scaling), None
    nodes = nodes_of(cu_seq_lens_q, cu_seq_lens_k)
    if _runs_in_blocks(query, dropout):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        given = query.dtype
        if getattr(module, "multiplies_in_bf16", False):
            query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
        attended: torch.Tensor = _InBlocks.apply(query, key, value, nodes, scale)  # type: ignore[no-untyped-call]
        return attended.to(given), None
    return _node_by_node(query, key, value, nodes, key_index, scaling, dropout), None


@dataclass(frozen=True)
class NodePlace:
    """A node's tokens, `first` to `end` of the row, and how many tokens its ancestors hold."""

    first: int
    end: int
    before: int


def nodes_of(cu_seq_lens_q: torch.Tensor, cu_seq_lens_k: torch.Tensor) -> list[NodePlace]:
    """The nodes of a row, in preorder."""
    key_ends = itertools.pairwise(cu_seq_lens_k.tolist())
    return [
        NodePlace(first, end, key_end - key_first - (end - first))
        for (first, end), (key_first, key_end) in zip(itertools.pairwise(cu_seq_lens_q.tolist()), key_ends, strict=True)
    ]


class _InBlocks(torch.autograd.Function):
    """Attention on a CPU by a few matrix products for each node, in the order of the row.

    Keys and values of the path from the root lie in one buffer, each token at its depth, so a node's keys are the
    first rows of that buffer: nothing is gathered, and what siblings share is copied once. In the backward pass a
    second buffer adds up the gradients of the path, and hands a node's out once its last descendant is done.
    Scores are computed again there, which takes less time than the memory for them would. A masked product of the
    whole row would compute every branch against every other; sdpa for each node needs its keys in a row for each.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, nodes: list[NodePlace], scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.nodes, ctx.scale = nodes, scale
        work = _Workspace(query, key, value, nodes, scale)
        out_1THD = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        out_KGTD = work.by_group(out_1THD.transpose(1, 2))
        for node in nodes:
            work.enter(node)
            for first, end in _blocks(node):
                weights = work.weights(node, first, end)
                product = torch.bmm(weights, work.values[:, : weights.shape[2]])
                out_KGTD[:, :, first:end] = product.view(work.groups, -1, end - first, product.shape[2])
        return out_1THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_1THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        work = _Workspace(query, key, value, ctx.nodes, ctx.scale)
        grads = [
            torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format)
            for tensor in (query, key, value)
        ]
        grad_query, grad_key, grad_value = (grad.transpose(1, 2) for grad in grads)
        d_query, d_out = work.by_group(grad_query), work.by_group(grad_1THD.transpose(1, 2))
        # Sums over all descendants are kept in fp32 at least.
        wide = torch.promote_types(query.dtype, torch.float32)
        path_key, path_value = torch.empty_like(work.keys, dtype=wide), torch.empty_like(work.values, dtype=wide)

        def add(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
            if wide == query.dtype:
                sums.baddbmm_(left, right)
            else:
                sums += torch.bmm(left, right)

        path: list[NodePlace] = []

        def leave(depth: int) -> None:
            """Nodes of the path that reach beyond `depth` have no more descendants."""
            while path and _depth(path[-1]) > depth:
                node = path.pop()
                own, place = slice(node.before, _depth(node)), slice(node.first, node.end)
                grad_key[0, :, place], grad_value[0, :, place] = path_key[:, own], path_value[:, own]

        for node in ctx.nodes:
            leave(node.before)
            path.append(node)
            work.enter(node)
            path_key[:, node.before : _depth(node)] = 0
            path_value[:, node.before : _depth(node)] = 0
            for first, end in _blocks(node):
                weights = work.weights(node, first, end)
                n_keys = weights.shape[2]
                d_product = work.rows(d_out, first, end)
                add(path_value[:, :n_keys], weights.transpose(1, 2), d_product)
                d_weights = torch.bmm(d_product, work.values[:, :n_keys].transpose(1, 2), out=work.like(weights))
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                queries = torch.bmm(d_scores, work.keys[:, :n_keys]).mul_(ctx.scale)
                d_query[:, :, first:end] = queries.view(work.groups, -1, end - first, queries.shape[2])
                add(path_key[:, :n_keys], d_scores.transpose(1, 2), work.scaled_queries)
        leave(0)
        return grad_query, grad_key, grad_value, None, None


def _depth(node: NodePlace) -> int:
    """Position after the node's last token."""
    return node.before + node.end - node.first


def _blocks(node: NodePlace) -> list[tuple[int, int]]:
    """Places of the node's queries in equal parts of at most `_BLOCK`."""
    length = node.end - node.first
    size = -(-length // -(-length // _BLOCK))
    return [(first, min(first + size, node.end)) for first in range(node.first, node.end, size)]


class _Workspace:
    """The path's keys and values, (groups, depth, width), and room for one block of scores.

    Heads that share keys (grouped-query attention) are rows of one product: (groups, heads of a group × queries, …).
    """

    def __init__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, nodes: list[NodePlace], scale: float
    ) -> None:
        self.groups = key.shape[1]
        self._query, self._key, self._value, self._scale = self.by_group(query), key[0], value[0], scale
        deepest = max(_depth(node) for node in nodes)
        self.keys = key.new_empty(self.groups, deepest, key.shape[3])
        self.values = value.new_empty(self.groups, deepest, value.shape[3])
        rows = query.shape[1] * max(end - first for node in nodes for first, end in _blocks(node))
        self._scores, self._others = query.new_empty(rows * deepest), query.new_empty(rows * deepest)
        self._future: dict[int, torch.Tensor] = {}
        self.scaled_queries = query

    def by_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """(1, heads, T, width) as (groups, heads of a group, T, width)."""
        return tensor[0].view(self.groups, -1, *tensor.shape[2:])

    def enter(self, node: NodePlace) -> None:
        """Put the node's keys and values at its depth. Nodes come in preorder, so those of its ancestors are there."""
        own = slice(node.before, _depth(node))
        self.keys[:, own] = self._key[:, node.first : node.end]
        self.values[:, own] = self._value[:, node.first : node.end]

    def rows(self, tensor: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """A block of (groups, heads of a group, T, width) as (groups, rows, width)."""
        return tensor[:, :, first:end].reshape(self.groups, -1, tensor.shape[3])

    def like(self, weights: torch.Tensor) -> torch.Tensor:
        """Room of the same shape, used again for each block."""
        return self._others[: weights.numel()].view(weights.shape)

    def weights(self, node: NodePlace, first: int, end: int) -> torch.Tensor:
        """Softmax of a block's scores, (groups, rows, keys up to the block's end); valid until the next block."""
        self.scaled_queries = self.rows(self._query, first, end) * self._scale
        n_queries, n_keys = end - first, node.before + end - node.first
        shape = (self.groups, self.scaled_queries.shape[1], n_keys)
        scores = self._scores[: shape[0] * shape[1] * shape[2]].view(shape)
        torch.bmm(self.scaled_queries, self.keys[:, :n_keys].transpose(1, 2), out=scores)
        scores.view(self.groups, -1, n_queries, n_keys)[..., n_keys - n_queries :] += self._mask(n_queries)
        return torch.softmax(scores, -1, out=scores)

    def _mask(self, length: int) -> torch.Tensor:
        if length not in self._future:
            self._future[length] = self._scores.new_full((length, length), float("-inf")).triu_(1)
        return self._future[length]


def _node_by_node(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    nodes: list[NodePlace],
    key_index: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """By PyTorch's own kernel, one call for each node: half precision on CPUs, devices without the kernel below."""
    if key_index is not None:
        key, value = key.index_select(2, key_index), value.index_select(2, key_index)
    parts = []
    first_key = 0
    for node in nodes:
        length, n_keys = node.end - node.first, _depth(node)
        sees = None
        if node.before:
            sees = torch.ones(length, n_keys, dtype=torch.bool, device=query.device).tril_(node.before)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, node.first : node.end],
                key[:, :, first_key : first_key + n_keys],
                value[:, :, first_key : first_key + n_keys],
                attn_mask=sees,
                dropout_p=dropout,
                is_causal=sees is None,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
        first_key += n_keys
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _in_one_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    key_index: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """All nodes by flash attention, which wants (T, heads, width) and aligns a node's queries with its last keys.

    One call and not two whose results are merged: the kernel's backward pass leaves out the gradient of its
    log-sum-exp, so a merged loss would be right and its gradient wrong.
    """
    is_grouped = key.shape[1] != query.shape[1]
    if key_index is not None:
        key, value = key.index_select(2, key_index), value.index_select(2, key_index)
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    output = varlen_attn(query, key, value, *ends, *longest, scale=scaling, window_size=(-1, 0), enable_gqa=is_grouped)
    assert isinstance(output, torch.Tensor)
    return output[None]


def _runs_in_blocks(query: torch.Tensor, dropout: float) -> bool:
    """On CPUs, in whole precision: half precision has kernels there that add up in fp32."""
    return query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64) and dropout == 0.0


def _has_varlen_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether flash attention takes all nodes in one call: half precision on an Ampere card or newer."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and dropout == 0.0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _mask(
    batch_size: int, q_length: int, kv_length: int, *arguments: Any, attention_mask: Any = None, **keywords: Any
) -> Any:
    """No mask where the kernel needs none (packed, or nothing padded); sdpa's for padded rows and cached decoding."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, *arguments, attention_mask=attention_mask, **keywords)


AttentionInterface.register(ATTENTION, attend_per_conversation)
AttentionMaskInterface.register(ATTENTION, _mask)
