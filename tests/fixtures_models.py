"""Tiny models made on the spot, so that tests need neither a network nor files in the repository."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tinydispatch import formats

# More threads than one only wait for each other on matrices this small, for seconds when the machine is busy.
torch.set_num_threads(1)

QWEN2_EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = (formats.TURN_START, formats.TURN_END, formats.DOCUMENT_END)
CORPUS = (
    'What is the weather in Oslo tomorrow? {"name": "get_weather", "arguments": {"location": "Oslo"}}',
    "Remind me to call Zoë at 18:30, I'm sure she'll pick up.",
    "Today is Thursday 2026-03-19. Friday 2026-03-20, Saturday 2026-03-21.",
    "convert_currency(amount: number, from_currency: currency, to_currency: currency)",
    "system user assistant tool name arguments send an e-mail to jo@example.org",
)


def make_tiny_tokenizer(
    vocab_size: int = 400, *, is_smollm: bool = False, has_markers: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with qwen2's or SmolLM2's splitting, our special tokens and our chat template.

    Without markers only the control tokens are there, and what surrounds a call is spelled like any text.
    """
    tokenizer = Tokenizer(models.BPE())
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if is_smollm
        else pre_tokenizers.Split(Regex(QWEN2_EXPRESSION), behavior="isolated")
    )
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_smollm)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(formats.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token in _CONTROL, normalized=False)
            for token in formats.SPECIAL_TOKENS
            if has_markers or token in _CONTROL
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=formats.TURN_END, pad_token=formats.DOCUMENT_END
    )
    fast.chat_template = formats.default_chat_template()
    return fast


def make_tiny_qwen3(directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Write a random Qwen3 checkpoint (64 wide, 2 layers, 400 tokens) with its tokenizer; returns `directory`.

    `changes` are to its config.
    """
    tokenizer = make_tiny_tokenizer()
    settings: dict[str, object] = {
        "vocab_size": 408,  # more rows than tokens, as real models have
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,  # not hidden_size / heads, as in the real Qwen3
        "max_position_embeddings": 1024,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,  # wide enough for logits that spread like a trained model's
    }
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**(settings | changes))).to(dtype)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tiny_llama(directory: Path, tokenizer: PreTrainedTokenizerFast | None = None, **changes: object) -> Path:
    """Write a random Llama of SmolLM2's layout: three heads of 32 for one of keys, 96 wide; returns `directory`."""
    settings: dict[str, object] = {
        "vocab_size": 408,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
    }
    return _save_random(LlamaForCausalLM(LlamaConfig(**(settings | changes))), directory, tokenizer)


def make_tiny_qwen2(directory: Path, **changes: object) -> Path:
    """Write a random Qwen2 of Qwen2.5's layout, biases on queries, keys and values; returns `directory`."""
    settings: dict[str, object] = {
        "vocab_size": 408,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
    }
    return _save_random(Qwen2ForCausalLM(Qwen2Config(**(settings | changes))), directory)


def _save_random(model: PreTrainedModel, directory: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Weights drawn anew by a fixed seed: biases and norms too, which begin as zeros and ones and would hide a swap."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and "norm" in name
            scale = 0.2 if parameter.dim() == 1 else float(model.config.initializer_range)
            parameter.copy_(parameter + scale * noise if is_norm else scale * noise)
    model.save_pretrained(directory)
    (tokenizer or make_tiny_tokenizer()).save_pretrained(directory)
    return directory


def make_tiny_qwen35(directory: Path, n_value_heads: int) -> Path:
    """Write a random Qwen3.5 (linear attention in three of four layers) with a tokenizer; returns `directory`."""
    config = Qwen3_5TextConfig(
        vocab_size=408,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=n_value_heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "A_log" not in name:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


def teach_reply(directory: Path, prompt: str, reply: str, *, max_steps: int = 300) -> None:
    """Overfit a checkpoint until greedy decoding answers `prompt` with `reply` and the end of turn."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply_ids = tokenizer(reply + formats.TURN_END, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt_ids + reply_ids])
    targets = torch.tensor(reply_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(max_steps):
        logits = model(ids).logits[0, len(prompt_ids) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        if loss.item() < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.save_pretrained(directory)
