"""Tiny OPT checkpoints of every layout, and their exports, made once per test run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from export.config import ExportConfig, OptGraph, Quantization
from export.export import ExportReport, export_gguf
from tests.fixtures_gguf import scratch
from tests.fixtures_models import CORPUS
from tinydispatch import formats

_CONTROL = (formats.TURN_START, formats.TURN_END, formats.DOCUMENT_END)
_OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_ROWS = 320


def make_opt_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's splitting under OPT's first four ids, with our tokens in the rows that the embedding has to spare."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_ROWS - len(formats.SPECIAL_TOKENS),
        special_tokens=list(_OPT_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens(
        [AddedToken(token, special=token in _CONTROL, normalized=False) for token in formats.SPECIAL_TOKENS]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=formats.TURN_END, pad_token="<pad>")
    fast.chat_template = formats.default_chat_template()
    return fast


def make_tiny_opt(directory: Path, **changes: object) -> Path:
    """Write a random OPT of 350m's layout (post-layer-norm, projections), or with `changes` to its config."""
    settings: dict[str, object] = {
        "vocab_size": _ROWS,
        "hidden_size": 64,
        "word_embed_proj_dim": 32,
        "ffn_dim": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "do_layer_norm_before": False,
        "init_std": 0.15,
    }
    tokenizer = make_opt_tokenizer()
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**(settings | changes)))
    with torch.no_grad():
        # Biases begin as zeros and norms as ones, which would hide a swapped or forgotten one.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@lru_cache(maxsize=1)
def post_norm_export() -> ExportReport:
    """350m's layout in 32, 16 and 8 bits."""
    return _export({}, OptGraph.AUTO, (Quantization.F32, Quantization.F16, Quantization.Q8_0))


@lru_cache(maxsize=2)
def pre_norm_export(graph: OptGraph) -> ExportReport:
    """125m's layout in 32, 16 and 8 bits, under either architecture."""
    changes = {"do_layer_norm_before": True, "word_embed_proj_dim": 64}
    return _export(changes, graph, (Quantization.F32, Quantization.F16, Quantization.Q8_0))


def _export(changes: dict[str, object], graph: OptGraph, quantizations: tuple[Quantization, ...]) -> ExportReport:
    folder = scratch()
    config = ExportConfig(quantizations=quantizations, opt_graph=graph, max_verification_tokens=400)
    return export_gguf(make_tiny_opt(folder / "checkpoint", **changes), folder / "gguf", "tiny", config)
