"""Model directories of a real architecture with random weights: everything but the answers, without a download."""

from __future__ import annotations

import json
import pydoc_data.topics
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# As many merges as half a megabyte of text supports; the rest of the vocabulary is filler that no text produces.
_LEARNED_TOKENS, _TEXT_CHARS = 8_000, 500_000
_TINY_LEARNED_TOKENS, _TINY_TEXT_CHARS = 1_500, 50_000

_IMAGES: dict[str, Any] = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
_TINY_IMAGES: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
}

_OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

# Qwen3's added tokens in their order; True marks control tokens, which a reader does not see.
_QWEN_ADDED = (
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end")),
    *((f"<|{name}|>", True) for name in ("box_start", "box_end", "quad_start", "quad_end")),
    *((f"<|{name}|>", True) for name in ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")),
    *((token, False) for token in ("<tool_call>", "</tool_call>")),
    *(
        (f"<|{name}|>", False)
        for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
    ),
    *((token, False) for token in ("<tool_response>", "</tool_response>", "<think>", "</think>")),
)
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen3.5's keeps combining marks with their letters.
_QWEN3_5_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# By family: how words are split, and the file of the chat template that TRL carries to recognise it.
_QWEN_FAMILIES = {
    "qwen3": (_QWEN_WORDS, "qwen3.jinja"),
    "qwen3-2507": (_QWEN_WORDS, "qwen3_instruct_2507.jinja"),
    "qwen3.5": (_QWEN3_5_WORDS, "qwen3_5_nothink.jinja"),
    "qwen3.5-images": (_QWEN3_5_WORDS, "qwen3_5_think.jinja"),
}


@dataclass(frozen=True)
class Architecture:
    """A named shape: `tokens` are the tokenizer's ids, of which the embedding may have more rows.

    A tiny one also has its tokenizer trained on little text, for tests. The layout on disk is that of the family's
    repositories: OPT-350M's has `pytorch_model.bin`, Qwen3.5's holds a model of images around the one of text, weights
    for guessing ahead (`mtp.*`), and several files with an index.
    """

    family: str
    tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    is_tiny: bool = False
    is_pickled: bool = False


_OPT_350M = {
    "hidden_size": 1024,
    "ffn_dim": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
}
_TINY_OPT = _OPT_350M | {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_OPT_1_3B = {"hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32, "word_embed_proj_dim": 2048}
_QWEN3_0_6B = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
_QWEN3_4B = _QWEN3_0_6B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
_TINY_QWEN3 = _QWEN3_0_6B | {
    "vocab_size": 2_304,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
_QWEN3_5_4B = {
    "vocab_size": 248_320,
    "hidden_size": 2560,
    "intermediate_size": 9216,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "max_position_embeddings": 262_144,
    "tie_word_embeddings": True,
}
# Wide enough for formats with blocks of 256.
_TINY_QWEN3_5 = {
    "vocab_size": 2_304,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "max_position_embeddings": 4_096,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}

ARCHITECTURES = {
    "opt-125m": Architecture("opt", 50_265),
    "opt-350m": Architecture("opt", 50_265, _OPT_350M),
    "opt-1.3b": Architecture("opt", 50_265, _OPT_1_3B | {"num_hidden_layers": 24}),
    "qwen3-0.6b": Architecture("qwen3", 151_669, _QWEN3_0_6B),
    "qwen3-4b": Architecture("qwen3-2507", 151_669, _QWEN3_4B),
    "qwen3.5-4b": Architecture("qwen3.5-images", 248_077, _QWEN3_5_4B),
    "tiny-opt": Architecture("opt", 50_265, _TINY_OPT | {"word_embed_proj_dim": 16}, is_tiny=True),
    "tiny-qwen3": Architecture("qwen3", 2_200, _TINY_QWEN3, is_tiny=True),
    "tiny-qwen3.5": Architecture("qwen3.5", 2_200, _TINY_QWEN3_5, is_tiny=True),
    "tiny-opt-350m": Architecture(
        "opt", 50_265, _TINY_OPT | {"word_embed_proj_dim": 16}, is_tiny=True, is_pickled=True
    ),
    "tiny-qwen3-4b": Architecture("qwen3-2507", 2_200, _TINY_QWEN3, is_tiny=True),
    "tiny-qwen3.5-4b": Architecture("qwen3.5-images", 2_200, _TINY_QWEN3_5, is_tiny=True),
}


def make_checkpoint(name: str, directory: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
    """Write config, random weights, tokenizer and a README to `directory`.

    Raises:
        ValueError: no such architecture, or the directory exists and is not empty.
    """
    config_of(name)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; name a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = (_opt(architecture) if architecture.family == "opt" else _qwen3(architecture)).to(dtype)
    if architecture.is_pickled:
        model.config.architectures, model.config.dtype = [type(model).__name__], dtype
        model.config.save_pretrained(directory)
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    else:
        # The largest matrix decides into how many files a tiny model falls.
        shards = {"max_shard_size": "1MB"} if architecture.family == "qwen3.5-images" and architecture.is_tiny else {}
        model.save_pretrained(directory, **shards)
    if architecture.family == "qwen3.5-images":
        _write_guessing_ahead(directory, model)
    if architecture.family == "opt":
        _write_opt_tokenizer(directory, architecture)
    else:
        _write_qwen_tokenizer(directory, architecture)
    weights = sum(parameter.numel() for parameter in model.parameters())
    (directory / "README.md").write_text(_readme(name, weights, seed), "utf-8")


def config_of(name: str) -> PreTrainedConfig:
    """The configuration of an architecture, without weights.

    Raises:
        ValueError: no such architecture.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture '{name}'; there are: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    return _opt_config(architecture) if architecture.family == "opt" else _qwen3_config(architecture)


def _opt_config(architecture: Architecture) -> PreTrainedConfig:
    config: PreTrainedConfig = OPTConfig(**architecture.settings)
    return config


def _opt(architecture: Architecture) -> PreTrainedModel:
    return OPTForCausalLM(_opt_config(architecture))


def _qwen3_config(architecture: Architecture) -> PreTrainedConfig:
    is_qwen3_5, has_images = architecture.family.startswith("qwen3.5"), architecture.family == "qwen3.5-images"
    kind = Qwen3_5TextConfig if is_qwen3_5 else Qwen3Config
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1_000_000.0}
    if has_images:
        # Time, height and width share the pairs of a quarter of each head: 11, 11 and 10 of 32.
        pairs = int(architecture.settings["head_dim"]) // 8
        sections = [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3]
        rope |= {"mrope_interleaved": True, "mrope_section": sections, "partial_rotary_factor": 0.25}
    config: PreTrainedConfig = kind(
        **architecture.settings,
        bos_token_id=_qwen_id(architecture, "<|endoftext|>"),
        eos_token_id=_qwen_id(architecture, "<|im_end|>"),
        rope_parameters=rope,
    )
    if not has_images:
        return config
    images = _TINY_IMAGES if architecture.is_tiny else _IMAGES
    ids = {
        f"{name}_token_id": _qwen_id(architecture, f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"))
    }
    marks = {f"vision_{end}_token_id": _qwen_id(architecture, f"<|vision_{end}|>") for end in ("start", "end")}
    whole: PreTrainedConfig = Qwen3_5Config(
        text_config=config.to_dict(),
        vision_config=images | {"out_hidden_size": config.hidden_size},
        tie_word_embeddings=config.tie_word_embeddings,
        **ids,
        **marks,
    )
    return whole


def _qwen3(architecture: Architecture) -> PreTrainedModel:
    config = _qwen3_config(architecture)
    text = config.get_text_config()
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id}
    kinds = {"qwen3.5": Qwen3_5ForCausalLM, "qwen3.5-images": Qwen3_5ForConditionalGeneration}
    model: PreTrainedModel = kinds.get(architecture.family, Qwen3ForCausalLM)(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos_token_id"],
        pad_token_id=ids["bos_token_id"],
        eos_token_id=[ids["eos_token_id"], ids["bos_token_id"]],
    )
    return model


def _write_guessing_ahead(directory: Path, model: PreTrainedModel) -> None:
    """Some of the weights with which Qwen3.5 guesses the token after the next; nothing here reads them."""
    width = model.config.get_text_config().hidden_size
    name = "model-mtp.safetensors"
    weights = {"mtp.fc.weight": torch.zeros(width, 2 * width), "mtp.norm.weight": torch.zeros(width)}
    save_file({key: value.to(model.dtype) for key, value in weights.items()}, directory / name, {"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        value = json.loads(index.read_text("utf-8"))
        value["weight_map"] |= dict.fromkeys(weights, name)
        index.write_text(json.dumps(value, indent=2), "utf-8")


def _qwen_id(architecture: Architecture, token: str) -> int:
    first = architecture.tokens - len(_QWEN_ADDED)
    return first + [name for name, _ in _QWEN_ADDED].index(token)


def _text() -> str:
    """JSON and English that every installation has: the bundled tools and Python's manual."""
    tools = resources.files("tinydispatch").joinpath("bundled_tools.json").read_text("utf-8")
    manual = [str(text) for _, text in sorted(pydoc_data.topics.topics.items())]
    return "\n\n".join([tools, json.dumps(json.loads(tools)), *manual])


def _learned_bpe(
    pre_tokenizer: pre_tokenizers.PreTokenizer, first: tuple[str, ...], tokens: int, *, is_tiny: bool
) -> dict[str, Any]:
    """A byte-level BPE of `tokens` tokens, as tokenizer.json spells it: `vocab` and `merges`."""
    learned, chars = (_TINY_LEARNED_TOKENS, _TINY_TEXT_CHARS) if is_tiny else (_LEARNED_TOKENS, _TEXT_CHARS)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=min(tokens, learned),
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_text()[:chars]], trainer)
    bpe: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    for identifier in range(len(bpe["vocab"]), tokens):
        bpe["vocab"][f"madeupword{identifier:06d}"] = identifier
    return bpe


def _write_opt_tokenizer(directory: Path, architecture: Architecture) -> None:
    """The files of OPT's repositories: GPT-2's two, and one that names the special tokens."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe = _learned_bpe(splitter, _OPT_SPECIAL, architecture.tokens, is_tiny=architecture.is_tiny)
    _write_gpt2_files(directory, bpe)
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False, "errors": "replace"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | names, indent=2), "utf-8")


def _write_gpt2_files(directory: Path, bpe: dict[str, Any]) -> None:
    (directory / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in bpe["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")


def _write_qwen_tokenizer(directory: Path, architecture: Architecture) -> None:
    expression, template = _QWEN_FAMILIES[architecture.family]
    words = pre_tokenizers.Split(Regex(expression), "isolated")
    splitter = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe = _learned_bpe(splitter, (), architecture.tokens - len(_QWEN_ADDED), is_tiny=architecture.is_tiny)
    tokenizer = Tokenizer(models.BPE(vocab=bpe["vocab"], merges=[tuple(pair) for pair in bpe["merges"]]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=control, normalized=False) for token, control in _QWEN_ADDED])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = resources.files("trl").joinpath(f"chat_templates/{template}").read_text("utf-8")
    wrapped.save_pretrained(directory)
    _write_gpt2_files(directory, bpe)
    settings = directory / "tokenizer_config.json"
    names = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "errors": "replace",
    }
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | names, indent=2), "utf-8")


def _readme(name: str, weights: int, seed: int) -> str:
    return (
        f"# {name} with random weights\n\n"
        f"The architecture of {name} ({weights:,} weights) with **random weights** (seed {seed}) and a byte-level BPE\n"
        "tokenizer trained on Python's manual, filled up to the real vocabulary size. It has learned nothing: use it\n"
        "to try the pipeline, its memory and its speed, never its answers.\n"
    )
