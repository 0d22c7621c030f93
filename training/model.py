"""The weights that a run starts from, fitted to its tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tinydispatch import formats
from training.config import Dtype
from training.errors import ConfigError, ModelNotFoundError, TokenizerError

logger = logging.getLogger(__name__)

TORCH_DTYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
}


def load_model(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """A causal language model with a row in its embedding for every token, and the tokenizer's end token.

    Args:
        quantization: how the matrices are held; None holds them in `dtype` like everything else.

    Raises:
        ModelNotFoundError: the directory holds no causal language model that transformers can read.
        TokenizerError: an OPT model whose embedding has no free rows for the special tokens.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=TORCH_DTYPES[dtype],
            quantization_config=quantization,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFoundError(f"{directory}: no causal language model can be loaded: {error}") from error
    if quantization is not None:
        _keep_differentiable(model)
    fit_embedding(model, tokenizer)
    _set_special_ids(model, tokenizer)
    return model


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference at the first forward pass in evaluation mode.

    It does so on CPUs with AVX-512 BF16, for good, and the kernel for the repacked weights has no gradient: after the
    check of packing, or an answer in the midst of training, adapters would learn through the residual stream alone.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def fit_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embedding where it has fewer rows than the tokenizer has ids; free rows are used as they are.

    OPT has 50,272 rows for 50,265 tokens, which is why our format has seven special tokens: nothing is resized, so
    the file keeps the shape that every OPT program expects.

    Raises:
        TokenizerError: an OPT model that would have to grow.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ids = max(tokenizer.get_vocab().values()) + 1
    if ids <= rows:
        _start_from_related_words(model, tokenizer)
        return
    if model.config.model_type == "opt":
        raise TokenizerError(f"the tokenizer has ids up to {ids - 1}, the OPT embedding only {rows} rows; nothing fits")
    logger.warning("the embedding grows from %d to %d rows for new tokens", rows, ids)
    model.resize_token_embeddings(ids)


# What each of our tokens stands for, in words that every tokenizer has.
_RELATED = {
    formats.TURN_START: "user assistant system message",
    formats.TURN_END: "end. stop. done.",
    formats.CALL_START: "call function tool",
    formats.CALL_END: "end call function",
    formats.RESULT_START: "result response answer",
    formats.RESULT_END: "end result response",
    formats.DOCUMENT_END: "end of document",
}


def _start_from_related_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows of OPT's embedding that no token used until now become the mean of words with a like meaning.

    The published rows hold what initialisation and weight decay left. Tied to the head, they would be as wrong there.
    """
    if model.config.model_type != "opt":
        return
    weight = model.get_input_embeddings().weight
    known = tokenizer.get_vocab()
    first_free = model.config.vocab_size - len(formats.SPECIAL_TOKENS)
    with torch.no_grad():
        for token, words in _RELATED.items():
            row = known.get(token)
            if row is None or row < first_free or weight.device.type == "meta":
                continue
            near = tokenizer(f" {words}", add_special_tokens=False)["input_ids"]
            mean = weight[torch.tensor(near, device=weight.device)].float().mean(0)
            weight[row] = mean.to(weight.dtype)


def _set_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generation stops at the turn's end; further stops that a model already has beside it (Qwen) are kept."""
    end = tokenizer.eos_token_id
    model.config.eos_token_id = end
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = model.generation_config
    stops = generation.eos_token_id
    if not (isinstance(stops, list) and end in stops):
        generation.eos_token_id = end
    generation.pad_token_id = tokenizer.pad_token_id


def check_length(directory: Path, max_length_tokens: int) -> None:
    """Refuse lengths for which the model has no positions, before any data is read.

    Raises:
        ConfigError: `data.max_length_tokens` exceeds the model's positions.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length_tokens > positions:
        raise ConfigError(
            f"data.max_length_tokens is {max_length_tokens}, but the model in {directory} has {positions} positions; "
            f"set data.max_length_tokens={positions} or less"
        )
