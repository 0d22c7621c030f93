"""Opens a model file with the graph that its architecture needs: the one place that chooses."""

from __future__ import annotations

from pathlib import Path

from tinydispatch.ggml import opt_shape, qwen_shape
from tinydispatch.ggml.bindings import GGML_BACKEND_DEVICE_TYPE_CPU
from tinydispatch.ggml.header import GgufHeader, read_header
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.llama import SHORT_CONTEXT, LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.opt import OptModel
from tinydispatch.ggml.qwen import QwenModel
from tinydispatch.ggml.repack import is_repacked


def open_model(path: Path, n_ctx: int = 2048, threads: int | None = None, *, keeps_graphs: bool = True) -> GgufModel:
    """A GGUF file, ready to decode; it implements `Runtime`.

    Args:
        n_ctx: positions in the cache, at most as many as the model was made for.
        threads: None takes as many as suit the model's size.
        keeps_graphs: False leaves to llama.cpp every architecture that it knows, also those whose graphs we keep.

    Raises:
        GgufError: the file is damaged, foreign, or cannot be run.
        LlamaLibraryError: there is no usable llama.cpp.
    """
    header = read_header(Path(path))
    return _graph(header, n_ctx, keeps_graphs=keeps_graphs)(path, n_ctx, threads, header=header)


def _graph(header: GgufHeader, n_ctx: int, *, keeps_graphs: bool) -> type[GgufModel]:
    if header.architecture == opt_shape.ARCHITECTURE:
        return OptModel
    shape = qwen_shape.read_shape(header) if keeps_graphs else None
    # Beyond a short context llama.cpp has flash attention, which does not keep all scores of a batch.
    if shape is None or min(n_ctx, shape.n_positions) > SHORT_CONTEXT:
        return LlamaModel
    c = load_library().c
    backend = c.ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, None)
    try:
        # Weights that are laid out for the processor are worth more than a graph that is kept.
        types = {tensor.type_id for tensor in header.tensors if len(tensor.shape) == 2}
        return LlamaModel if any(is_repacked(c, backend, type_id) for type_id in types) else QwenModel
    finally:
        c.ggml_backend_free(backend)
