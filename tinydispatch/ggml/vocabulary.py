"""A model file's tokenizer, run by llama.cpp: text to ids and back, and which tokens are special."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.header import GgufError, GgufHeader
from tinydispatch.ggml.library import LlamaLibrary

# Set by our converter when the checkpoint's tokenizer normalizes; llama.cpp's own BPE tokenizers never do.
NORMALIZER_KEY = "tinydispatch.tokenizer.normalizer"

# llama.cpp's name of byte-level BPE.
_BYTE_LEVEL = "gpt2"
_TOKEN_NORMAL, _TOKEN_CONTROL, _TOKEN_USER_DEFINED = 1, 3, 4


class Vocabulary:
    """The tokenizer of a loaded llama.cpp model; valid as long as that model is.

    Raises:
        GgufError: the file holds no vocabulary.
    """

    def __init__(self, library: LlamaLibrary, model: int, header: GgufHeader) -> None:
        self._c: Any = library.c
        self._header = header
        self._handle = self._c.llama_model_get_vocab(model)
        self.n_vocab = int(self._c.llama_vocab_n_tokens(self._handle))
        if not self.n_vocab:
            raise GgufError(header.path, "holds no vocabulary")
        tokens: tuple[str, ...] = header.metadata.get("tokenizer.ggml.tokens", ())
        types: tuple[int, ...] = header.metadata.get("tokenizer.ggml.token_type", ())
        special = [token for token, kind in enumerate(types) if kind != _TOKEN_NORMAL] or range(self.n_vocab)
        named = {header.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")}
        candidates = {*special, *(token for token in named if isinstance(token, int) and token < self.n_vocab)}
        self.eog_ids = frozenset(token for token in candidates if self._c.llama_vocab_is_eog(self._handle, token))
        typed = list(zip(tokens, types, strict=False))
        self.control_tokens = frozenset(text for text, kind in typed if kind == _TOKEN_CONTROL)
        self.marker_tokens = frozenset(text for text, kind in typed if kind == _TOKEN_USER_DEFINED)

    def special_token(self, name: str) -> str | None:
        """The text of the token of that role ("bos", "eos"), None when the file names none."""
        token = self._header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        texts = self._header.metadata.get("tokenizer.ggml.tokens") or ()
        return texts[token] if isinstance(token, int) and token < len(texts) else None

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of a text, without any added at its ends; `parse_special` turns control tokens' texts into them.

        Raises:
            ValueError: the text holds lone surrogates, which UTF-8 cannot carry.
        """
        if self._header.metadata.get(NORMALIZER_KEY) == "NFC":
            text = unicodedata.normalize("NFC", text)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from error
        # No token is made of less than a byte, so this never overflows.
        ids = (ctypes.c_int32 * (len(data) + 1))()
        count = self._c.llama_tokenize(self._handle, data, len(data), ids, len(ids), False, parse_special)
        if count < 0:
            raise ValueError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """What one id spells; a character may be spread over several ids."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._c.llama_token_to_piece(self._handle, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def token_texts(self) -> list[bytes]:
        """What every id spells, as `token_bytes` says it; in byte-level vocabularies without asking for each."""
        metadata = self._header.metadata
        tokens: tuple[str, ...] = metadata.get("tokenizer.ggml.tokens", ())
        types: tuple[int, ...] = metadata.get("tokenizer.ggml.token_type", ())
        texts: list[bytes] = []
        if metadata.get("tokenizer.ggml.model") == _BYTE_LEVEL and len(tokens) == len(types) == self.n_vocab:
            normal = [token if kind == _TOKEN_NORMAL else "" for token, kind in zip(tokens, types, strict=True)]
            texts = _from_alphabet(normal)
        if not texts:
            return [self.token_bytes(token) for token in range(self.n_vocab)]
        for token in (token for token, kind in enumerate(types) if kind != _TOKEN_NORMAL):
            texts[token] = self.token_bytes(token)
        return texts


def _from_alphabet(tokens: Sequence[str]) -> list[bytes]:
    """Tokens in the alphabet of byte-level BPE as bytes; [] where one holds another character."""
    values, is_known = _byte_alphabet()
    characters = np.frombuffer("".join(tokens).encode("utf-16-le", "surrogatepass"), dtype="<u2")
    ends = np.cumsum([len(token) for token in tokens]).tolist()
    # A character beyond 16 bits would be two of them.
    if len(characters) != ends[-1] or not is_known[characters].all():
        return []
    data = values[characters].tobytes()
    return [data[first:last] for first, last in zip([0, *ends], ends, strict=False)]


@lru_cache(maxsize=1)
def _byte_alphabet() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from 256 on; byte and known, by code."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    values, is_known = np.zeros(1 << 16, dtype=np.uint8), np.zeros(1 << 16, dtype=np.bool_)
    codes = [*printable, *range(256, 256 + len(others))]
    values[codes], is_known[codes] = [*printable, *others], True
    return values, is_known
