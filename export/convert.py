"""Writes a checkpoint as one GGUF file; weights are read, converted and written one at a time."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import torch

from export.checkpoint import Checkpoint
from export.config import ExportConfig, Quantization
from export.errors import ExportError
from export.graph import GraphPlan, PlannedTensor
from export.quantize import encode
from export.vocabulary import Vocabulary
from tinydispatch import formats
from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import TENSOR_BLOCKS
from tinydispatch.ggml.mixtures import tensor_types
from tinydispatch.ggml.vocabulary import NORMALIZER_KEY

TEMPLATE_HASH_KEY = "tinydispatch.template_hash"


def write_gguf(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    path: Path,
    name: str,
    quantization: Quantization,
    config: ExportConfig,
) -> None:
    """Write `path`; the same input gives the same bytes.

    Raises:
        UnsupportedArchitectureError: the graph that `config` asks for cannot compute this model.
        ExportError: a weight cannot be held in the format, or the disk is full.
    """
    plan = checkpoint.family.plan_graph(checkpoint.config, config, quantization)
    writer = gguf.GGUFWriter(path, plan.architecture)
    try:
        _add_metadata(writer, plan, name, quantization)
        _add_vocabulary(writer, vocabulary)
        _write_tensors(writer, checkpoint, plan, quantization)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error}") from error
    finally:
        writer.close()


def half_weights(checkpoint: Checkpoint, config: ExportConfig) -> dict[str, float]:
    """The checkpoint's weights that an F16 file holds in 16 bits, each with the factor under which it does."""
    plan = checkpoint.family.plan_graph(checkpoint.config, config, Quantization.F16)
    shapes = {tensor.name: _shape(tensor, checkpoint) for tensor in plan.tensors}
    types = tensor_types(shapes, Quantization.F16, plan.n_layers)
    halves = [tensor for tensor in plan.tensors if types[tensor.name] == bindings.GGML_TYPE_F16]
    return {source: tensor.factor for tensor in halves for source in tensor.sources}


def _add_metadata(writer: gguf.GGUFWriter, plan: GraphPlan, name: str, quantization: Quantization) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(quantization.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string, tuple: writer.add_array}
    for key, value in plan.metadata.items():
        add[type(value)](f"{writer.arch}.{key}", value)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_eot_token_id(vocabulary.eos_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.chat_template)
    writer.add_string(TEMPLATE_HASH_KEY, formats.template_hash(vocabulary.chat_template))
    if vocabulary.normalizer is not None:
        writer.add_string(NORMALIZER_KEY, vocabulary.normalizer)


def _write_tensors(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, plan: GraphPlan, quantization: Quantization
) -> None:
    shapes = {tensor.name: _shape(tensor, checkpoint) for tensor in plan.tensors}
    types = tensor_types(shapes, quantization, plan.n_layers)
    for name, shape in shapes.items():
        block, block_bytes = TENSOR_BLOCKS[types[name]]
        n_bytes = math.prod(shape) // block * block_bytes
        # The numpy type is only looked at where no ggml type is given.
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, gguf.GGMLQuantizationType(types[name]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan.tensors:
        source = tensor.sources[0] if tensor.sources else tensor.name
        writer.write_tensor_data(encode(source, _values(tensor, checkpoint), types[tensor.name]))


def _shape(tensor: PlannedTensor, checkpoint: Checkpoint) -> tuple[int, ...]:
    """A planned weight's shape, without reading it; the row length is last."""
    if tensor.shape:
        return tensor.shape
    shapes = [checkpoint.shape(source) for source in tensor.sources]
    return (sum(shape[0] - tensor.first_row for shape in shapes), *shapes[0][1:])


def _values(tensor: PlannedTensor, checkpoint: Checkpoint) -> torch.Tensor:
    """A planned weight's values; scaled ones in 32 bits, the others in the checkpoint's own format."""
    if not tensor.sources:
        return torch.full(tensor.shape, tensor.fill)
    parts = [checkpoint.tensor(source)[tensor.first_row :] for source in tensor.sources]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    if tensor.transform is not None:
        return tensor.transform(joined.to(torch.float32))
    return joined if tensor.factor == 1.0 else joined.to(torch.float32) * tensor.factor
