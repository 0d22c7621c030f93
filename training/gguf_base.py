"""A GGUF file as a place to start from: its weights dequantized into a checkpoint folder that training reads."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tinydispatch.folders import cache_folder
from tinydispatch.ggml.header import GgufError, read_header
from training.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

# What transformers reads back from GGUF and export/ can write again.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


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
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    folder = cache_folder() / "bases" / f"{file.stem}-{digest[:12]}"
    if (folder / "config.json").is_file():
        return folder
    logger.warning("%s: its weights are dequantized to float32 into %s", file.name, folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _convert(file, partial)
        partial.rename(folder)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        if (folder / "config.json").is_file():  # another process was faster
            return folder
        raise ModelNotFoundError(f"model.path '{file}': cannot be made a checkpoint in {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
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
    tokenizer.save_pretrained(folder)
