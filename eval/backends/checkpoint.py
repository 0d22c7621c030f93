"""Transformers checkpoints, in batches and greedily. Importing this module imports torch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from eval.backends.base import BackendError, ClosesOnExit, Failure, Generation, Request
from eval.backends.batched import BatchedGreedy
from eval.backends.gguf import complete
from eval.backends.torch_runtime import TorchRuntime
from eval.config import EvalConfig
from tinydispatch.engine import Engine
from tinydispatch.formats import TURN_END, default_chat_template, render_prompt, with_reference_date

logger = logging.getLogger(__name__)

# It is handed several batches' worth of requests, among which it puts those of like length together.
_BATCHES_AT_ONCE = 4
_CPU_BATCH, _MOST_AT_ONCE = 8, 256


class CheckpointBackend(ClosesOnExit):
    """A causal language model with its tokenizer; a model without a chat template is prompted with ours.

    Prompts are rendered by `formats.render_prompt`, as the engine for GGUF files does, so both read the same text.

    Args:
        batch_size: how many prompts are computed together; halved where memory does not hold them.
        is_plain: the library's own decoding, for comparison; it is also what models get that keep recurrent states.
        is_constrained: replies follow the tools' schemas, decoded one by one by the product's engine; models that keep
            recurrent states are decoded freely all the same, and a warning says so.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        batch_size: int,
        is_plain: bool = False,
        is_constrained: bool = False,
        n_ctx: int = 4096,
    ) -> None:
        self.batch_size = batch_size * _BATCHES_AT_ONCE
        self._size = batch_size
        self._model: Any = model.eval()
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._end_ids = _end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self._pad_id: int = pad if pad is not None else min(self._end_ids, default=0)
        # Our own in place of the checkpoint's: Qwen's, for one, samples, with a repetition penalty.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=sorted(self._end_ids) or None, pad_token_id=self._pad_id
        )
        if is_constrained and not BatchedGreedy.can_decode(model):
            logger.warning("a model with recurrent states is decoded without the tools' grammar")
            is_constrained = False
        self._engine: Engine | None = None
        if is_constrained:
            n_ctx = min(n_ctx, self._positions() or n_ctx)
            self._engine = Engine(TorchRuntime(self._model, tokenizer, self._end_ids, n_ctx))
        is_plain = is_plain or not BatchedGreedy.can_decode(model)
        self._batched = None if is_plain else BatchedGreedy(model, self._end_ids, self._pad_id)

    @classmethod
    def load(cls, model: str | Path, config: EvalConfig, *, is_plain: bool = False) -> Self:
        """Load a checkpoint directory (full or adapter) or a hub id.

        Raises:
            BackendError: it is neither, or what it holds cannot be loaded.
        """
        source = _resolve(model)
        device = _device(config.device)
        # A CPU computes bf16 in emulation, slowly, on most machines.
        dtype = "auto" if device.type == "cuda" else torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(device)
        except (OSError, ValueError, KeyError) as error:
            hint = "give a directory with config.json, weights and tokenizer, or a hub id that can be reached"
            raise BackendError(f"model '{model}' cannot be loaded: {error}; {hint}") from error
        return cls(
            loaded,
            tokenizer,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size or _batch_size(loaded, config.n_ctx),
            is_plain=is_plain,
            is_constrained=config.constrained and not is_plain,
            n_ctx=config.n_ctx,
        )

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """One reply per request, greedily: under the grammar one by one, else in batches of prompts of like length."""
        if self._engine is not None:
            return [complete(self._engine, request, self._max_new_tokens) for request in requests]
        replies: dict[int, Generation | Failure] = {}
        prompts: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            ids = self._encode(request)
            if isinstance(ids, Failure):
                replies[index] = ids
            else:
                prompts[index] = ids
        by_length = sorted(prompts, key=lambda index: len(prompts[index]))
        for start in range(0, len(by_length), self._size):
            batch = by_length[start : start + self._size]
            replies.update(zip(batch, self._complete([prompts[index] for index in batch]), strict=True))
        return [replies[index] for index in range(len(requests))]

    def _encode(self, request: Request) -> list[int] | Failure:
        tokenizer = self._tokenizer
        # Given tools, get_chat_template picks the right one of several named templates.
        template = tokenizer.get_chat_template(tools=[{}]) if tokenizer.chat_template else default_chat_template()
        names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        try:
            text = render_prompt(
                with_reference_date(request.messages, request.reference_date),
                request.tools,
                template,
                special_tokens={name: token for name, token in names.items() if token is not None},
            )
        except ValueError as error:
            return Failure(str(error))
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        positions = self._positions()
        if positions is not None and len(ids) >= positions:
            return Failure(
                f"the prompt has {len(ids)} tokens, which leaves no room in the model's {positions} positions"
            )
        return ids

    def _complete(self, prompts: Sequence[list[int]]) -> list[Generation | Failure]:
        """`prompts`: token ids, each shorter than the model's positions."""
        length = max(len(ids) for ids in prompts)
        positions = self._positions()
        limit = self._max_new_tokens if positions is None else min(self._max_new_tokens, positions - length)
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                found = self._batched.replies(prompts, limit) if self._batched else self._plain(prompts, limit)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                return [Failure(f"out of memory with one prompt of {length} tokens: {error}")]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            # Half at a time from here on.
            self._size = max(1, min(self._size, len(prompts)) // 2)
            logger.warning("out of memory with %d prompts at once; going on with %d", len(prompts), self._size)
            return [
                reply
                for start in range(0, len(prompts), self._size)
                for reply in self._complete(prompts[start : start + self._size])
            ]
        latency_s = (time.perf_counter() - started) / len(prompts)
        return [self._generation(ids, latency_s) for ids in found]

    def _plain(self, prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        # Left padding (B = batch, T = longest prompt), so that every reply begins at the same place.
        length = max(len(ids) for ids in prompts)
        ids_BT = torch.tensor([[self._pad_id] * (length - len(ids)) + ids for ids in prompts])
        mask_BT = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
        device = self._model.device
        output = self._model.generate(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), max_new_tokens=limit
        )
        found: list[list[int]] = output[:, length:].tolist()
        return found

    def _generation(self, ids: list[int], latency_s: float) -> Generation:
        """What comes after the end token is padding. Special tokens are kept, because call markers are such."""
        end = next((index for index, token in enumerate(ids) if token in self._end_ids), None)
        text: str = self._tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        tokens = len(ids) if end is None else end + 1
        # A model whose vocabulary lacks the end token may still spell it out.
        return Generation(text, latency_s, tokens, is_complete=end is not None or TURN_END in text)

    def _positions(self) -> int | None:
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return positions if isinstance(positions, int) else None

    def close(self) -> None:
        """Drop the model and give its GPU memory back."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    candidates = [*listed, tokenizer.eos_token_id, tokenizer.get_vocab().get(TURN_END)]
    return frozenset(token for token in candidates if token is not None)


def _batch_size(model: Any, positions: int) -> int:
    if model.device.type != "cuda":
        return _CPU_BATCH
    free, _ = torch.cuda.mem_get_info(model.device)
    found = batch_that_fits(model.config.get_text_config(), model.dtype.itemsize, positions, free)
    logger.info("%d prompts at once in %.1f GB of free memory", found, free / 1e9)
    return found


def batch_that_fits(config: Any, value_bytes: int, positions: int, free_bytes: int) -> int:
    """Prompts that are decoded at once in nine tenths of the memory, at least 1 and at most 256.

    Counted for each: keys and values of all layers, one layer's states of the prompt, its mask, and logits in fp32.
    More than that is found out by trying: a batch that does not fit is halved.

    Args:
        config: of the text model.
        value_bytes: of one number of the model's format.
        positions: of prompt and reply together, at most.
    """
    positions = min(positions, getattr(config, "max_position_embeddings", None) or positions)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * config.hidden_size
    layer = 3 * inner + 6 * config.hidden_size
    each = positions * (cached + layer) * value_bytes + positions * positions * value_bytes + 8 * config.vocab_size
    return max(1, min(_MOST_AT_ONCE, int(0.9 * free_bytes / each)))


def _resolve(model: str | Path) -> str:
    """A directory's place of weights (a run's checkpoint may hold them under merged/), or the hub id as it is."""
    folder = Path(model).expanduser()
    if not folder.exists():
        return str(model)
    for place in (folder, folder / "merged"):
        if (place / "config.json").is_file() or (place / "adapter_config.json").is_file():
            return str(place)
    raise BackendError(f"{folder}: holds neither config.json nor adapter_config.json, so it is no checkpoint")


def _device(name: str) -> torch.device:
    if name == "auto":
        # Of several processes, as many as the launcher started, each takes the GPU of its number.
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise BackendError(f"eval.device={name!r}: {error}; use 'auto', 'cpu' or 'cuda'") from error
