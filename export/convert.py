"""Writes a checkpoint as one GGUF file; weights are read, converted and written one at a time."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np

from export.checkpoint import Checkpoint, describe, tensor_names
from export.config import Quantization
from export.errors import ExportError
from export.quantize import encode, tensor_type
from export.vocabulary import Vocabulary
from tinydispatch import formats
from tinydispatch.ggml.header import TENSOR_BLOCKS
from tinydispatch.ggml.llama import NORMALIZER_KEY

TEMPLATE_HASH_KEY = "tinydispatch.template_hash"

_ARCHITECTURE = gguf.MODEL_ARCH.QWEN3
_FILE_TYPES = {Quantization.F16: gguf.LlamaFileType.MOSTLY_F16, Quantization.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0}


def write_gguf(
    checkpoint: Checkpoint, vocabulary: Vocabulary, path: Path, name: str, quantization: Quantization
) -> None:
    """Write `path`; the same input gives the same bytes.

    Raises:
        ExportError: a weight cannot be held in the format, or the disk is full.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_ARCHITECTURE])
    try:
        _add_metadata(writer, checkpoint, name, quantization)
        _add_vocabulary(writer, vocabulary)
        _write_tensors(writer, checkpoint, quantization)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error}") from error
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, name: str, quantization: Quantization) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in describe(checkpoint.config).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{writer.arch}.{key}", value)


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


def _write_tensors(writer: gguf.GGUFWriter, checkpoint: Checkpoint, quantization: Quantization) -> None:
    names = gguf.get_tensor_name_map(_ARCHITECTURE, checkpoint.config.num_hidden_layers)
    plan = []
    for hf_name in tensor_names(checkpoint.config):
        gguf_name = names.get_name(hf_name, try_suffixes=(".weight",))
        assert gguf_name is not None, f"gguf knows no name for {hf_name}"
        shape = checkpoint.shape(hf_name)
        type_id = tensor_type(shape, quantization)
        block, block_bytes = TENSOR_BLOCKS[type_id]
        n_bytes = math.prod(shape) // block * block_bytes
        # The numpy type is only looked at where no ggml type is given.
        writer.add_tensor_info(gguf_name, shape, np.dtype(np.float32), n_bytes, gguf.GGMLQuantizationType(type_id))
        plan.append((hf_name, type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for hf_name, type_id in plan:
        writer.write_tensor_data(encode(hf_name, checkpoint.tensor(hf_name), type_id))
