"""Greedy decoding of several prompts at once by a transformers model: common beginnings once, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tinydispatch.prefix_cache import shared_prefix

# Below this many ids, the bookkeeping costs more than computing them for each prompt.
_WORTH_SHARING = 32
# A finished row computes at most so many tokens more; a GPU that is waited for at each token idles longer than that.
_LOOK_EVERY = 8


class BatchedGreedy:
    """Replies of one model whose every layer keeps all keys and values (see `can_decode`).

    The state of what the last batch's prompts had in common is kept: it serves the next batch as far as that begins the
    same way. The library's `generate` computes each prompt whole, copies every layer's keys and values for each token,
    and goes on with finished rows until the longest reply ends; for a small model, whose time goes into memory, that is
    most of it.

    Args:
        end_ids: any of these ends a reply.
        pad_id: stands where nothing is to be read.
        look_every: tokens between two looks at what the device has chosen, each of which waits for it; None looks at
            every one on a CPU, where nothing is waited for, and rarely on a GPU.
    """

    def __init__(self, model: Any, end_ids: frozenset[int], pad_id: int, look_every: int | None = None) -> None:
        self._model, self._pad_id = model, pad_id
        self._look_every = look_every or (1 if model.device.type == "cpu" else _LOOK_EVERY)
        self._ends = end_ids
        self._held_ids: list[int] = []
        self._held = DynamicCache(config=model.config)

    @staticmethod
    def can_decode(model: Any) -> bool:
        """False for recurrent states and sliding windows: they can be neither cut nor followed by padding."""
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)

    def replies(self, prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        """Per prompt at most `limit` ids, the last of them an end unless the limit came first."""
        length = max(map(len, prompts))
        n_shared, cache = self._begin(prompts, length + limit)
        # Padding (B = batch, T = longest prompt) stands before what a prompt has for itself, so that all replies begin
        # at the same place.
        rest_BT = torch.tensor([[self._pad_id] * (length - len(ids)) + ids[n_shared:] for ids in prompts])
        mask_BT = torch.tensor(
            [[1] * n_shared + [0] * (length - len(ids)) + [1] * (len(ids) - n_shared) + [1] * limit for ids in prompts]
        )
        ids, mask_BT = rest_BT.to(self._model.device), mask_BT.to(self._model.device)
        replies: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
        unseen: list[torch.Tensor] = []
        for end in range(length, length + limit):
            chosen_B = self._step(ids, mask_BT[:, :end], cache)
            ids = chosen_B[:, None]
            unseen.append(chosen_B)
            if len(unseen) < self._look_every and end + 1 < length + limit:
                continue
            # What was chosen says on the host whether a reply is over; what a finished row went on to say is left out.
            for chosen in torch.stack(unseen).tolist():
                for row, token in zip(rows, chosen, strict=True):
                    if not self._is_over(replies[row]):
                        replies[row].append(token)
            unseen.clear()
            for row in [row for row in reversed(range(len(rows))) if self._is_over(replies[rows[row]])]:
                # The last row takes the place of the finished one.
                rows[row], mask_BT[row], chosen_B[row] = rows[-1], mask_BT[len(rows) - 1], chosen_B[len(rows) - 1]
                for layer in cache.layers:
                    layer.drop_row(row)
                rows.pop()
            if not rows:
                break
            ids, mask_BT = chosen_B[: len(rows), None], mask_BT[: len(rows)]
        return replies

    def _is_over(self, reply: Sequence[int]) -> bool:
        return bool(reply) and reply[-1] in self._ends

    def _step(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The most likely id after each row of `ids_BT`, which `cache` has not seen yet."""
        positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        output = self._model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen_B: torch.Tensor = output.logits[:, -1].argmax(dim=-1)
        return chosen_B

    def _begin(self, prompts: Sequence[list[int]], capacity: int) -> tuple[int, DynamicCache]:
        """How many ids all prompts begin with, and a cache that holds these for each of them.

        The last id of each prompt is never among them: it is from its logits that the reply begins.
        """
        cache = DynamicCache(config=self._model.config)
        cache.layers = [InPlaceLayer(capacity) for _ in cache.layers]
        n_shared = min(shared_prefix(prompts[0][:-1], ids[:-1]) for ids in prompts)
        if n_shared < _WORTH_SHARING:
            return 0, cache
        self._hold(prompts[0][:n_shared])
        for index, layer in enumerate(self._held.layers):
            assert isinstance(layer, DynamicLayer), "can_decode has looked at the layers"
            keys, values = (
                states[:, :, :n_shared].expand(len(prompts), -1, -1, -1) for states in (layer.keys, layer.values)
            )
            cache.update(keys, values, index)
        return n_shared, cache

    def _hold(self, ids: list[int]) -> None:
        common = shared_prefix(self._held_ids, ids)
        if common == len(ids):
            return
        # Not kept while it is in the making: memory may run out halfway.
        held, self._held = self._held, DynamicCache(config=self._model.config)
        n_held, self._held_ids = len(self._held_ids), []
        if common < n_held:
            held.crop(common - n_held)
        rest = torch.tensor([ids[common:]], device=self._model.device)
        # Not the head: a vocabulary of logits for each id is not wanted.
        self._model.base_model(input_ids=rest, past_key_values=held, use_cache=True)
        self._held, self._held_ids = held, list(ids)


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in memory that is taken once; `capacity` in positions."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return all, as views of shape (batch, heads, positions, width of a head)."""
        rows, heads, added, _width = key_states.shape
        if self._memory is None:
            self.lazy_initialization(key_states, value_states)
            self._memory = (
                key_states.new_empty(rows, heads, self._capacity, key_states.shape[-1]),
                value_states.new_empty(rows, heads, self._capacity, value_states.shape[-1]),
            )
        start = self.get_seq_length()
        end = start + added
        keys, values = self._memory
        keys[:rows, :, start:end], values[:rows, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:rows, :, :end], values[:rows, :, :end]
        return self.keys, self.values

    def drop_row(self, row: int) -> None:
        """The last row takes the place of this one."""
        for states in (self.keys, self.values):
            states[row] = states[-1]
        self.keys, self.values = self.keys[:-1], self.values[:-1]
