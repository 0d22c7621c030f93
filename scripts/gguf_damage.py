"""Damage to GGUF files by kind: lies about sizes, and files that are well formed and say something wrong.

Random bytes mostly end at the first check. What reaches the code behind it are files whose every length and offset is
right, so most kinds change a field and put the file together again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

from scripts.gguf_parts import ARRAY, STRING, Entry, Parts, items_of, number_of, u64
from tinydispatch.ggml.header import SCALARS

_U32 = 4
_EXTREMES = (0, 1, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXTS = (
    b"",
    b"x",
    b"\0",
    b"\xff\xfe",
    b"A" * 5000,
    b"{{ messages",
    b"gpt2",
    b"llama",
    b"opt",
    b"qwen35",
    b"bert",
    b"NFC",
)
_ALIGNMENTS = (0, 1, 3, 8, 16, 64, 4096, 1 << 20, 1 << 31)


class Kind(StrEnum):
    """What is wrong with a file."""

    BYTES = "bytes"  # a few bytes anywhere in the header
    CUT = "cut"  # it ends at, or within, one of its sections
    COUNT = "count"  # numbers of keys, tensors or values that are not so many
    LENGTH = "length"  # a text longer or shorter than it is said to be
    TYPE = "type"  # a value or a tensor read as another type
    NUMBER = "number"  # a number that makes no sense, well formed
    TEXT = "text"  # a text that makes no sense, well formed
    ARRAY = "array"  # an array with other values, more or fewer, well formed
    KEY = "key"  # a key left out, doubled, renamed or moved
    TENSOR = "tensor"  # a tensor left out, doubled, renamed or moved
    SHAPE = "shape"  # other dimensions
    OFFSET = "offset"  # a tensor elsewhere: outside the file, on another, unaligned
    ALIGNMENT = "alignment"  # another alignment than the data's
    WEIGHTS = "weights"  # NaN, infinities and noise as weights


def damage(parts: Parts, seed: int) -> tuple[Kind, bytes]:
    """A damaged file and what was done to it first; the same seed does the same."""
    draw = random.Random(seed)
    copy = replace(parts, entries=list(parts.entries), tensors=list(parts.tensors))
    kinds = [draw.choice(list(Kind)) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    for kind in kinds:
        if kind in _CHANGES:
            _CHANGES[kind](copy, draw)
    content = bytearray(copy.to_bytes())
    if Kind.BYTES in kinds:
        _change_bytes(content, max(len(content) - len(parts.data), 1), draw)
    return kinds[0], bytes(content)


def _other(number: int, draw: random.Random) -> int:
    """Another number: a near one, or one that nobody expects."""
    near = (number - 1, number + 1, number * 2, number // 2, -number, number + 32)
    return draw.choice((*near, *_EXTREMES, draw.getrandbits(64))) % (1 << 64)


def _pick(parts: Parts, draw: random.Random, type_ids: Sequence[int]) -> int:
    found = [index for index, entry in enumerate(parts.entries) if entry.type_id in type_ids]
    return draw.choice(found or range(len(parts.entries)))


def _cut(parts: Parts, draw: random.Random) -> None:
    pieces = parts.header_pieces()
    n_header = sum(map(len, pieces))
    if draw.random() < 0.3:
        parts.tail = n_header + draw.randrange(len(parts.data) + parts.alignment)
        return
    index = draw.randrange(len(pieces))
    parts.tail = sum(map(len, pieces[:index])) + draw.choice((0, draw.randrange(len(pieces[index]))))


def _count(parts: Parts, draw: random.Random) -> None:
    which = draw.randrange(3)
    if which == 0:
        parts.n_tensors = _other(parts.n_tensors, draw)
    elif which == 1:
        parts.n_keys = _other(parts.n_keys, draw)
    else:
        index = _pick(parts, draw, (ARRAY,))
        entry = parts.entries[index]
        count = u64(_other(number_of(entry.payload[4:12]), draw))
        parts.entries[index] = replace(entry, payload=entry.payload[:4] + count + entry.payload[12:])


def _length(parts: Parts, draw: random.Random) -> None:
    which = draw.randrange(4)
    index = _pick(parts, draw, (STRING,) if which < 2 else (ARRAY,))
    entry = parts.entries[index]
    if which == 0:
        parts.entries[index] = replace(entry, key_length=_other(entry.key_length, draw))
    elif which == 1:
        length = u64(_other(number_of(entry.payload[:8]), draw))
        parts.entries[index] = replace(entry, payload=length + entry.payload[8:])
    elif which == 2:
        at = draw.randrange(12, max(len(entry.payload) - 8, 13))
        changed = entry.payload[:at] + u64(draw.choice(_EXTREMES)) + entry.payload[at + 8 :]
        parts.entries[index] = replace(entry, payload=changed)
    else:
        index = draw.randrange(len(parts.tensors))
        tensor = parts.tensors[index]
        parts.tensors[index] = replace(tensor, name_length=_other(tensor.name_length, draw))


def _type(parts: Parts, draw: random.Random) -> None:
    which = draw.randrange(3)
    if which == 0:
        index = draw.randrange(len(parts.entries))
        parts.entries[index] = replace(parts.entries[index], type_id=draw.choice((*range(14), 1 << 31)))
    elif which == 1:
        index = _pick(parts, draw, (ARRAY,))
        item = struct.pack("<I", draw.choice((*range(14), 1 << 31)))
        parts.entries[index] = replace(parts.entries[index], payload=item + parts.entries[index].payload[4:])
    else:
        index = draw.randrange(len(parts.tensors))
        parts.tensors[index] = replace(parts.tensors[index], type_id=draw.choice((*range(44), 1 << 31)))


def _change_number(parts: Parts, draw: random.Random) -> None:
    index = _pick(parts, draw, tuple(SCALARS))
    entry = parts.entries[index]
    size = len(entry.payload)
    payload = u64(_other(number_of(entry.payload), draw))[:size].ljust(size, b"\0")
    if draw.random() < 0.3:  # of another type, and read as such
        type_id = draw.choice(tuple(SCALARS))
        size = struct.calcsize(SCALARS[type_id])
        entry, payload = replace(entry, type_id=type_id), payload[:size].ljust(size, b"\0")
    parts.entries[index] = replace(entry, payload=payload)


def _change_text(parts: Parts, draw: random.Random) -> None:
    # A text may also stand where a number is expected.
    index = _pick(parts, draw, (STRING,)) if draw.random() < 0.8 else draw.randrange(len(parts.entries))
    text = draw.choice((*_TEXTS, draw.randbytes(draw.randrange(40))))
    parts.entries[index] = replace(parts.entries[index], type_id=STRING, payload=u64(len(text)) + text)


def _change_array(parts: Parts, draw: random.Random) -> None:
    index = _pick(parts, draw, (ARRAY,))
    entry = parts.entries[index]
    if entry.type_id != ARRAY:
        return
    item, items = items_of(entry)
    which = draw.randrange(5)
    if which == 0:
        items = items[: draw.choice((0, 1, len(items) // 2, max(len(items) - 1, 0)))]
    elif which == 1:
        items = items + items[: draw.choice((1, len(items)))]
    elif which == 2 and items:
        items[draw.randrange(len(items))] = _other_item(item, items, draw)
    elif which == 3:
        draw.shuffle(items)
    elif item != STRING:  # as many values, of another width
        item = draw.choice(tuple(SCALARS))
        size = struct.calcsize(SCALARS[item])
        items = [value[:size].ljust(size, b"\0") for value in items]
    payload = struct.pack("<IQ", item, len(items)) + b"".join(items)
    parts.entries[index] = replace(entry, payload=payload)


def _other_item(item: int, items: Sequence[bytes], draw: random.Random) -> bytes:
    if item == STRING:
        text = draw.choice((*_TEXTS, draw.choice(items)[8:], draw.randbytes(6)))
        return u64(len(text)) + text
    size = len(items[0])
    return u64(draw.choice((*_EXTREMES, draw.getrandbits(64))))[:size].ljust(size, b"\0")


def _change_key(parts: Parts, draw: random.Random) -> None:
    index, other = (draw.randrange(len(parts.entries)) for _ in range(2))
    which = draw.randrange(5)
    if which == 0:
        del parts.entries[index]
    elif which == 1:
        parts.entries.insert(other, parts.entries[index])
    elif which == 2:
        key = parts.entries[index].key[:-1]
        parts.entries[index] = replace(parts.entries[index], key=key, key_length=len(key))
    elif which == 3:  # the value of another key
        value = parts.entries[other]
        parts.entries[index] = replace(parts.entries[index], type_id=value.type_id, payload=value.payload)
    else:
        draw.shuffle(parts.entries)
    parts.n_keys = len(parts.entries)


def _change_tensor(parts: Parts, draw: random.Random) -> None:
    index, other = (draw.randrange(len(parts.tensors)) for _ in range(2))
    which = draw.randrange(5)
    one, two = parts.tensors[index], parts.tensors[other]
    if which == 0:
        del parts.tensors[index]
    elif which == 1:
        parts.tensors.insert(other, one)
    elif which == 2:
        name = draw.choice((one.name[:-1], b"", b"x" * 63, b"output.weight", b"rope_freqs.weight"))
        parts.tensors[index] = replace(one, name=name, name_length=len(name))
    elif which == 3:  # two change places
        parts.tensors[index] = replace(one, name=two.name, name_length=two.name_length)
        parts.tensors[other] = replace(two, name=one.name, name_length=one.name_length)
    else:
        draw.shuffle(parts.tensors)
    parts.n_tensors = len(parts.tensors)


def _change_shape(parts: Parts, draw: random.Random) -> None:
    index = draw.randrange(len(parts.tensors))
    tensor = parts.tensors[index]
    shape = list(tensor.shape)
    which, at = draw.randrange(5), draw.randrange(len(shape))
    if which == 0:
        shape.reverse()
    elif which == 1:
        shape[at] = _other(shape[at], draw)
    elif which == 2:
        shape[at] = max(shape[at] // draw.choice((2, 4, 32)), 1)  # stays inside the file
    elif which == 3:
        shape.append(draw.choice((1, 2)))
    n_dimensions = len(shape) if which < 4 else draw.choice((0, 1, 3, 4, 5, 1 << 31))
    parts.tensors[index] = replace(tensor, shape=tuple(shape), n_dimensions=n_dimensions)


def _change_offset(parts: Parts, draw: random.Random) -> None:
    index = draw.randrange(len(parts.tensors))
    tensor = parts.tensors[index]
    near = (tensor.offset + parts.alignment, tensor.offset - parts.alignment, tensor.offset + 1)
    values = (*near, draw.choice(parts.tensors).offset, len(parts.data), len(parts.data) - 32, *_EXTREMES)
    parts.tensors[index] = replace(tensor, offset=draw.choice(values) % (1 << 64))


def _change_alignment(parts: Parts, draw: random.Random) -> None:
    key, value = b"general.alignment", draw.choice(_ALIGNMENTS)
    parts.entries = [entry for entry in parts.entries if entry.key != key]
    parts.entries.insert(draw.randrange(len(parts.entries) + 1), Entry(key, len(key), _U32, struct.pack("<I", value)))
    parts.n_keys = len(parts.entries)
    if 0 < value <= 4096 and draw.random() < 0.5:
        parts.alignment = value  # the data moves there too


def _change_weights(parts: Parts, draw: random.Random) -> None:
    data = bytearray(parts.data)
    tensor = draw.choice(parts.tensors)
    at = min(tensor.offset, len(data) - 1)
    n_bytes = draw.choice((4, 64, 4096))
    noise = draw.choice((b"\xff", b"\x7f", b"\0", b"\x00\x00\xc0\x7f", b"\x00\x7e", draw.randbytes(64)))
    data[at : at + n_bytes] = (noise * n_bytes)[: len(data[at : at + n_bytes])]
    parts.data = bytes(data)


def _change_bytes(content: bytearray, n_header: int, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8))):
        if len(content) < 2:
            return
        # Most of a header is the vocabulary; keys and the tensor table at its ends decide more.
        low, high = draw.choice(((0, 400), (0, n_header), (n_header - 4000, n_header)))
        high = min(high, len(content))
        at = draw.randrange(min(max(low, 0), high - 1), high)
        if draw.random() < 0.3:
            number = draw.choice((*_EXTREMES, len(content), len(content) - at, draw.getrandbits(64)))
            content[at : at + 8] = u64(number)[: len(content) - at]
        else:
            content[at] = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256), content[at] ^ (1 << draw.randrange(8))))


_CHANGES: dict[Kind, Callable[[Parts, random.Random], None]] = {
    Kind.CUT: _cut,
    Kind.COUNT: _count,
    Kind.LENGTH: _length,
    Kind.TYPE: _type,
    Kind.NUMBER: _change_number,
    Kind.TEXT: _change_text,
    Kind.ARRAY: _change_array,
    Kind.KEY: _change_key,
    Kind.TENSOR: _change_tensor,
    Kind.SHAPE: _change_shape,
    Kind.OFFSET: _change_offset,
    Kind.ALIGNMENT: _change_alignment,
    Kind.WEIGHTS: _change_weights,
}
