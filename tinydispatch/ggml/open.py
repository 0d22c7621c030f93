"""Opens a model file with what computes it best here: the one place that chooses."""

from __future__ import annotations

from pathlib import Path

from tinydispatch.ggml.architectures import ARCHITECTURES
from tinydispatch.ggml.header import GgufHeader, read_header
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.opt import OptModel
from tinydispatch.native.library import find_native
from tinydispatch.native.model import NativeModel, read_native_shape


def open_model(
    path: Path, n_ctx: int | None = None, threads: int | None = None, *, is_native: bool = True
) -> GgufModel:
    """A GGUF file, ready to decode; it implements `Runtime`.

    Args:
        n_ctx: positions in the cache, at most as many as the model was made for; None as `GgufModel` says.
        threads: None takes as many as suit the model's size.
        is_native: False leaves to ggml what the native decoder computes otherwise.

    Raises:
        GgufError: the file is damaged, foreign, or cannot be run.
        LlamaLibraryError: there is no usable llama.cpp.
    """
    header = read_header(Path(path))
    return _kind(header, is_native=is_native)(path, n_ctx, threads, header=header)


def _kind(header: GgufHeader, *, is_native: bool) -> type[GgufModel]:
    if is_native and find_native() is not None and read_native_shape(header) is not None:
        return NativeModel
    architecture = ARCHITECTURES.get(header.architecture)
    return LlamaModel if architecture is None or architecture.is_stock else OptModel
