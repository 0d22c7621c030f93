"""Opens a model file with the graph that its architecture needs: the one place that chooses."""

from __future__ import annotations

from pathlib import Path

from tinydispatch.ggml import opt_shape
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.opt import OptModel


def open_model(path: Path, n_ctx: int = 2048, threads: int | None = None) -> GgufModel:
    """A GGUF file, ready to decode; it implements `Runtime`.

    Args:
        n_ctx: positions in the cache, at most as many as the model was made for.
        threads: None takes as many as suit the model's size.

    Raises:
        GgufError: the file is damaged, foreign, or cannot be run.
        LlamaLibraryError: there is no usable llama.cpp.
    """
    header = read_header(Path(path))
    graph = OptModel if header.architecture == opt_shape.ARCHITECTURE else LlamaModel
    return graph(path, n_ctx, threads, header=header)
