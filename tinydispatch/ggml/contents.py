"""Checks that a file for llama.cpp holds a whole model: its vocabulary fits its weights, and no weight is missing.

llama.cpp would notice too, in its own words and after reading the file; of ids that no token has it only warns.
"""

from __future__ import annotations

from typing import Any

from tinydispatch.ggml.architectures import ARCHITECTURES, TensorRule, read_numbers
from tinydispatch.ggml.bindings import GGML_TYPE_F32, GGML_TYPE_I32, GGML_TYPE_I64
from tinydispatch.ggml.header import GgufError, GgufHeader

# llama.cpp's names of byte-level BPE and of SentencePiece.
_BPE, _SENTENCEPIECE = "gpt2", "llama"

_WHOLE_NUMBERS = (24, 25, GGML_TYPE_I32, GGML_TYPE_I64)


def check_contents(header: GgufHeader) -> None:
    """Refuse a file whose vocabulary, numbers and weights do not belong together, or that lacks some.

    Raises:
        GgufError: the message names the tensor or key.
    """
    rules = _rules(header)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for rule in rules:
        if rule.name not in tensors and not rule.is_optional:
            raise GgufError(header.path, f"the tensor {rule.name!r} is missing")
    _check_types(header)
    check_vocabulary(header)
    for rule in rules:
        tensor = tensors.get(rule.name)
        # Without tokens the vocabulary's size is not known; llama.cpp says that there are none.
        if tensor is not None and rule.shape is not None and 0 not in rule.shape and tensor.shape != rule.shape:
            raise GgufError(header.path, f"tensor {rule.name!r} has the shape {tensor.shape} instead of {rule.shape}")


def _rules(header: GgufHeader) -> tuple[TensorRule, ...]:
    """The weights of the architectures in our table; of others, and of mixtures of experts, llama.cpp knows."""
    architecture = ARCHITECTURES.get(header.architecture)
    if architecture is None or header.metadata.get(f"{header.architecture}.expert_count"):
        return ()
    return tuple(read_numbers(header, architecture).rules())


def check_vocabulary(header: GgufHeader) -> None:
    """Refuse a tokenizer that does not belong to the weights, or on which llama.cpp would end the process.

    Raises:
        GgufError: the message names the key.
    """
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, tuple):  # llama.cpp says that there is none
        _check_tokens(header, len(tokens))
        _check_tokenizer(header, frozenset(tokens))


def _check_types(header: GgufHeader) -> None:
    """Vectors are added and multiplied as 32-bit floats, and no matrix is made of whole numbers."""
    for tensor in header.tensors:
        is_vector = len(tensor.shape) == 1 or "ssm_conv1d" in tensor.name
        if (is_vector and tensor.type_id != GGML_TYPE_F32) or tensor.type_id in _WHOLE_NUMBERS:
            raise GgufError(
                header.path, f"tensor {tensor.name!r} has the ggml type {tensor.type_id}, not supported here"
            )


def _check_tokens(header: GgufHeader, n_tokens: int) -> None:
    for tensor in header.tensors:
        is_table = tensor.name in ("token_embd.weight", "output.weight") and len(tensor.shape) == 2
        if is_table and tensor.shape[1] != n_tokens:
            problem = f"'tokenizer.ggml.tokens' has {n_tokens} tokens, {tensor.name!r} {tensor.shape[1]} rows"
            raise GgufError(header.path, problem)
    types = header.metadata.get("tokenizer.ggml.token_type", range(n_tokens))
    if not isinstance(types, tuple | range) or len(types) != n_tokens:
        raise GgufError(header.path, f"'tokenizer.ggml.token_type' does not give each of {n_tokens} tokens a type")
    for role in ("eos", "eot"):
        key = f"tokenizer.ggml.{role}_token_id"
        token: Any = header.metadata.get(key, 0)
        if type(token) is not int or not 0 <= token < n_tokens:
            raise GgufError(header.path, f"{key!r} is {token!r}, and there are {n_tokens} tokens")


def _check_tokenizer(header: GgufHeader, tokens: frozenset[Any]) -> None:
    model = header.metadata.get("tokenizer.ggml.model")
    if model not in (_BPE, _SENTENCEPIECE, None):  # llama.cpp says that it is missing
        problem = f"'tokenizer.ggml.model' is {str(model)[:40]!r}; supported are {_BPE} and {_SENTENCEPIECE}"
        raise GgufError(header.path, problem)
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in tokens]
    if model == _SENTENCEPIECE and missing:  # a character that is no token is spelled in these, or ends the process
        raise GgufError(header.path, f"'tokenizer.ggml.tokens' lacks the token of a byte, '<0x{missing[0]:02X}>'")
