"""Our quantized files against llama.cpp's own quantizer, byte by byte.

`python -m scripts.check_quantizer --library libllama.so NAME-f32.gguf NAME-q8_0.gguf NAME-q4_k_m.gguf`

The first file is quantized by `llama_model_quantize` of that library to the format of each other one, and every tensor
is compared by type, shape and content. The library runs in a process of its own. The wheel's does not export the
function; a build of llama.cpp does, and so does the npm package `@node-llama-cpp/linux-x64`. One that knows no
architecture `opt` is given the same tensors under the name `gpt2`, where the quantizer's rules are the same.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.gguf_parts import Entry, take_apart, u64
from tinydispatch.ggml.header import GgufError, GgufHeader, TensorInfo, read_header

_ARCHITECTURE_KEY, _FILE_TYPE_KEY = "general.architecture", "general.file_type"
_UNKNOWN_TO_STOCK, _INSTEAD = "opt", "gpt2"


class QuantizerError(ValueError):
    """The library cannot quantize the file; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """How many tensors of a file are llama.cpp's, and the names of those that are not."""

    n_tensors: int
    different: tuple[str, ...]


class _Parameters(ctypes.Structure):
    """The beginning of `struct llama_model_quantize_params`, with room for what versions add to it."""

    _fields_ = (("n_threads", ctypes.c_int32), ("file_type", ctypes.c_int32), ("rest", ctypes.c_byte * 504))


def main(argv: Sequence[str] | None = None) -> int:
    """0: all tensors equal, 1: some differ, 2: bad input."""
    arguments = _parser().parse_args(argv)
    if arguments.file_type is not None:
        return _quantize(arguments.library, arguments.source, arguments.files[0], arguments.file_type)
    n_tensors, is_equal = 0, True
    try:
        for path in arguments.files:
            found = compare_with_llama(arguments.library, arguments.source, path)
            n_tensors += found.n_tensors
            is_equal &= not found.different
            equal = found.n_tensors - len(found.different)
            print(f"{path}: {equal} of {found.n_tensors} tensors equal", flush=True)
            for name in found.different[:5]:
                print(f"  {name} differs")
    except (ValueError, OSError) as error:
        print(f"check_quantizer: {error}", file=sys.stderr)
        return 2
    print(f"{n_tensors} tensors compared")
    return 0 if is_equal else 1


def compare_with_llama(library: Path, source: Path, ours: Path) -> Comparison:
    """Quantize `source` with llama.cpp to the format of `ours`, and compare.

    Raises:
        GgufError: one of the files is damaged or says no format.
        QuantizerError: the library refuses.
    """
    header = read_header(ours)
    file_type = header.metadata.get(_FILE_TYPE_KEY)
    if not isinstance(file_type, int):
        raise GgufError(ours, f"{_FILE_TYPE_KEY!r} is {file_type!r}, so there is no format to quantize to")
    # Beside our file: a temporary folder in memory may be smaller than a model.
    with TemporaryDirectory(dir=ours.parent) as folder:
        theirs = Path(folder) / "theirs.gguf"
        try:
            _run(library, source, theirs, file_type)
        except QuantizerError:
            if read_header(source).architecture != _UNKNOWN_TO_STOCK:
                raise
            renamed = Path(folder) / "renamed.gguf"
            _rename(source, renamed)
            _run(library, renamed, theirs, file_type)
        return _compare(header, read_header(theirs))


def _compare(ours: GgufHeader, theirs: GgufHeader) -> Comparison:
    first, second = ({tensor.name: tensor for tensor in header.tensors} for header in (ours, theirs))
    different = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        one, two = first[name], second[name]
        is_alike = (one.type_id, one.shape) == (two.type_id, two.shape)
        if not is_alike or _content(ours, one) != _content(theirs, two):
            different.append(name)
    return Comparison(len(first), tuple(different))


def _content(header: GgufHeader, tensor: TensorInfo) -> bytes:
    with header.path.open("rb") as stream:
        stream.seek(header.data_offset + tensor.offset)
        return stream.read(tensor.n_bytes)


def _rename(source: Path, target: Path) -> None:
    """The same file under the other architecture's name."""
    old, new = f"{_UNKNOWN_TO_STOCK}.".encode(), f"{_INSTEAD}.".encode()
    parts = take_apart(source, with_data=False)
    for index, entry in enumerate(parts.entries):
        if entry.key == _ARCHITECTURE_KEY.encode():
            parts.entries[index] = replace(entry, payload=u64(len(_INSTEAD)) + _INSTEAD.encode())
        elif entry.key.startswith(old):
            key = new + entry.key.removeprefix(old)
            parts.entries[index] = Entry(key, len(key), entry.type_id, entry.payload)
    with source.open("rb") as original, target.open("wb") as copy:
        copy.write(parts.to_bytes())
        original.seek(read_header(source).data_offset)
        shutil.copyfileobj(original, copy, 1 << 24)


def _run(library: Path, source: Path, target: Path, file_type: int) -> None:
    command = [sys.executable, "-m", "scripts.check_quantizer", "--library", str(library)]
    command += ["--file-type", str(file_type), str(source), str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:]
        raise QuantizerError(f"{library}: cannot quantize {source} (status {done.returncode}): {reason}")


def _quantize(library: Path, source: Path, target: Path, file_type: int) -> int:
    """Runs in a process of its own; llama.cpp's status."""
    # Its ggml libraries lie beside it, under names that it asks for by itself or not at all.
    c: Any = ctypes.CDLL(str(library.resolve()), mode=ctypes.RTLD_GLOBAL)
    c.llama_model_quantize_default_params.restype = _Parameters
    c.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters))
    c.llama_model_quantize.restype = ctypes.c_uint32
    parameters = c.llama_model_quantize_default_params()
    parameters.n_threads, parameters.file_type = 1, file_type
    c.llama_backend_init()
    status = c.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    return 1 if status else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_quantizer", description=__doc__)
    parser.add_argument("--library", type=Path, required=True, help="a libllama.so that exports llama_model_quantize")
    parser.add_argument("source", type=Path, metavar="F32.gguf", help="the export in 32 bits")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf", help="exports of the same checkpoint")
    parser.add_argument("--file-type", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
