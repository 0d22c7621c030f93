"""`python -m scripts.make_widened_model nano-q8_0.gguf OUT.gguf`: a model of Qwen3-0.6B's size that answers like nano.

Its latency is that of its size, its skill is nano's: a file for measuring, of no other use. The small model's weights
lie in the corner of each large matrix, and the rest is zero: residual width, heads, layers and vocabulary rows are
there and are computed, but add nothing. Blocks of quantized numbers stay the same blocks, so that the logits are
nano's but for rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from eval.suites import load_suite
from scripts.bench_dispatch import single_replies
from tinydispatch.engine import Engine
from tinydispatch.ggml import bindings
from tinydispatch.ggml.architectures import Shape, read_shape
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.mixtures import quantize_rows
from tinydispatch.ggml.open import open_model

Array = npt.NDArray[np.float32]

# The last layer writes a positive number into a free dimension, and the unused rows are turned against it: their
# logits are far below zero, whatever the prompt. Small beside the residual stream, so that its norm stays.
_N_GUARDS, _GUARD, _GUARD_NORM = 64, 2.0**-6, 4000.0


@dataclass(frozen=True)
class Target:
    """What to grow to; the defaults are Qwen3-0.6B's."""

    n_layers: int = 28
    width: int = 1024
    feed_forward_width: int = 3072
    n_heads: int = 16
    n_key_heads: int = 8
    head_width: int = 128
    n_vocab: int = 151_936


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; 0: done, 2: bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.make_widened_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a small Qwen3 file in Q8_0")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="answer N cases of suite core with both")
    arguments = parser.parse_args(argv)
    try:
        widen(arguments.model, arguments.out, Target())
        n_same = n_same_replies(arguments.model, arguments.out, arguments.check)
    except ValueError as error:
        print(f"make_widened_model: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.0f} MB")
    print(f"{n_same} of {arguments.check} replies to suite core are those of {arguments.model}")
    return 0


def widen(path: Path, out: Path, target: Target) -> None:
    """Write a file of the target's size that answers like `path`.

    Raises:
        ValueError: the file is no plain Qwen3 in Q8_0, or does not fit into the target.
    """
    shape = read_shape(read_header(path))
    if shape.architecture.name != "qwen3" or not _fits(shape, target):
        raise ValueError(f"{path}: not a plain Qwen3 file with room for it in {target}")
    reader = gguf.GGUFReader(path)
    small = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    writer = gguf.GGUFWriter(out, "qwen3")
    _write_metadata(writer, reader, shape, target)
    for name, values in _tensors(small, shape, target):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            encoded = quantize_rows(values, bindings.GGML_TYPE_Q8_0)
            writer.add_tensor(name, encoded, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    partial = out.with_suffix(".gguf.partial")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()
    partial.replace(out)


def n_same_replies(small: Path, large: Path, n_cases: int) -> int:
    """How many of a suite's first cases both files answer with the very same text."""
    questions = single_replies(load_suite("core"), n_cases, own_dates=False) if n_cases else []
    replies = []
    for path in (small, large) if questions else ():
        with open_model(path) as runtime:
            engine = Engine(runtime)
            replies.append([engine.complete(question.messages, question.tools, 256).text for question in questions])
    return sum(one == other for one, other in zip(*replies, strict=True)) if replies else 0


def _fits(shape: Shape, target: Target) -> bool:
    # Rotation's frequencies agree when the head is as wide, or twice.
    is_rotated_alike = target.head_width in (shape.head_width, 2 * shape.head_width)
    is_whole = not any(
        width % 32
        for width in (shape.width, shape.feed_forward_width, shape.head_width, target.width, target.feed_forward_width)
    )
    return (
        is_rotated_alike
        and is_whole
        and shape.n_heads // shape.n_key_heads <= target.n_heads // target.n_key_heads
        and shape.n_layers < target.n_layers
        and shape.width < target.width
        and shape.feed_forward_width <= target.feed_forward_width
        and shape.n_key_heads <= target.n_key_heads
        and target.n_heads % target.n_key_heads == 0
        and shape.n_vocab <= target.n_vocab
    )


def _write_metadata(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, shape: Shape, target: Target) -> None:
    tokens = list(reader.fields["tokenizer.ggml.tokens"].contents())
    types = list(reader.fields["tokenizer.ggml.token_type"].contents())
    changed: dict[str, Any] = {
        "general.name": f"{reader.fields['general.name'].contents()}-widened",
        "qwen3.block_count": target.n_layers,
        "qwen3.embedding_length": target.width,
        "qwen3.feed_forward_length": target.feed_forward_width,
        "qwen3.attention.head_count": target.n_heads,
        "qwen3.attention.head_count_kv": target.n_key_heads,
        "qwen3.attention.key_length": target.head_width,
        "qwen3.attention.value_length": target.head_width,
        "tokenizer.ggml.tokens": [*tokens, *_unused_tokens(tokens, types, target.n_vocab - shape.n_vocab)],
        "tokenizer.ggml.token_type": [*types, *[int(gguf.TokenType.NORMAL)] * (target.n_vocab - shape.n_vocab)],
    }
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind, *items = entry.types
        writer.add_key_value(name, changed.get(name, entry.contents()), kind, items[-1] if items else None)


def _unused_tokens(tokens: Sequence[str], types: Sequence[int], count: int) -> list[str]:
    """Texts that the tokenizer never makes, for want of a merge: several of its tokens in a row, as real ones look."""
    words = [text for text, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.NORMAL and len(text) > 1]
    found = dict.fromkeys(tokens)
    draw = np.random.default_rng(0)
    while len(found) < len(tokens) + count:
        found["".join(words[index] for index in draw.integers(0, len(words), draw.integers(2, 4)))] = None
    return list(found)[len(tokens) :]


def _tensors(small: dict[str, Array], shape: Shape, target: Target) -> Iterator[tuple[str, Array]]:
    guard = shape.width  # the first dimension of the residual stream that the small model leaves free
    large = replace(shape, **vars(target), embedding_width=target.width)
    for rule in large.rules():
        if rule.is_optional:
            continue
        assert rule.shape is not None
        name = rule.name
        values = np.zeros(rule.shape[::-1], dtype=np.float32)
        kind = name.split(".")[-2]
        last = name.startswith(f"blk.{target.n_layers - 1}.")
        if name in small:
            _embed(values, small[name], kind, shape, target)
        elif last and kind in ("ffn_gate", "ffn_up"):
            # Gate and input are the same, x silu(x), which is never negative.
            draw = np.random.default_rng(0).standard_normal((_N_GUARDS, shape.width), dtype=np.float32)
            values[:_N_GUARDS, : shape.width] = draw / np.sqrt(shape.width)
        elif last and kind == "ffn_down":
            values[guard, :_N_GUARDS] = _GUARD
        elif kind in ("attn_norm", "ffn_norm"):
            values[: shape.width] = np.sqrt(shape.width / target.width)
        if name == "token_embd.weight":
            values[shape.n_vocab :, guard] = -1
        elif name == "output_norm.weight":
            values[guard] = _GUARD_NORM
        yield name, values


def _embed(values: Array, small: Array, kind: str, shape: Shape, target: Target) -> None:
    """Lay the small model's numbers into the large one's zeros."""
    if kind in ("attn_q_norm", "attn_k_norm"):
        # The mean is taken over more dimensions; attention's scale is that of the wider head.
        factor = 1.0 if kind == "attn_q_norm" else np.sqrt(shape.head_width / target.head_width)
        values[_rotated_dimensions(shape, target)] = small * factor
    elif small.ndim == 1:
        values[: len(small)] = small * np.sqrt(shape.width / target.width)
    elif kind in ("attn_q", "attn_k", "attn_v"):
        dimensions = np.arange(shape.head_width) if kind == "attn_v" else _rotated_dimensions(shape, target)
        for head, start in _heads(shape, target, is_query=kind == "attn_q"):
            rows = small[head * shape.head_width : (head + 1) * shape.head_width]
            values[start + dimensions, : shape.width] = rows
    elif kind == "attn_output":
        for head, start in _heads(shape, target, is_query=True):
            columns = small[:, head * shape.head_width : (head + 1) * shape.head_width]
            values[: shape.width, start : start + shape.head_width] = columns
    else:
        values[: small.shape[0], : small.shape[1]] = small


def _heads(shape: Shape, target: Target, *, is_query: bool) -> Iterator[tuple[int, int]]:
    """Each small head, and where the large one begins that stands for it: queries stay with their keys."""
    group, wide = (shape.n_heads // shape.n_key_heads, target.n_heads // target.n_key_heads) if is_query else (1, 1)
    for head in range(shape.n_key_heads * group):
        key_head, member = divmod(head, group)
        yield head, (key_head * wide + member) * target.head_width


def _rotated_dimensions(shape: Shape, target: Target) -> npt.NDArray[np.int64]:
    """Where each dimension of a small head lies in a wide one, so that it is turned as fast as before."""
    step, half = target.head_width // shape.head_width, shape.head_width // 2
    first = np.arange(half) * step
    return np.concatenate([first, first + target.head_width // 2])


if __name__ == "__main__":
    sys.exit(main())
