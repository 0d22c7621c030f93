"""A model file's vocabulary as llguidance's token table."""

from __future__ import annotations

from collections.abc import Sequence

import llguidance

from tinydispatch.formats import CALL_END, CALL_START
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.runtime import Runtime

_PROBE = '{"name": "probe", "arguments": {"key": "a"}}'


class _Wrapper:
    """What `llguidance.LLTokenizer` asks of a tokenizer; ids with no bytes are never allowed."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, runtime: Runtime, tokens: Sequence[bytes]) -> None:
        self._runtime, self.tokens = runtime, tokens
        # Where the call markers are tokens of their own, the grammar still spells them: their bytes force the token.
        control = {text.encode() for text in runtime.control_tokens - {CALL_START, CALL_END}}
        self.special_token_ids = [token for token, text in enumerate(tokens) if text in control]
        self.eos_token_id = min(runtime.eog_ids, default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        # With special parsing, so that a forced marker becomes its own token.
        return self._runtime.tokenize(text.decode() if isinstance(text, bytes) else text, parse_special=True)


def token_texts(runtime: Runtime) -> list[bytes]:
    """What each id spells."""
    if isinstance(runtime, GgufModel):
        return runtime.token_texts()
    return [runtime.token_bytes(token) for token in range(runtime.n_vocab)]


def token_table(runtime: Runtime, texts: Sequence[bytes]) -> llguidance.LLTokenizer:
    """The vocabulary, as `token_texts` spells it, with its end tokens; made once per model.

    Without llguidance's "slices", which take 0.1 seconds to prepare for 49,152 tokens: our strings exclude the call
    markers, so that no slice ever fits one, and a reply's masks take as long with them.
    """
    ends = sorted(runtime.eog_ids) or None
    return llguidance.LLTokenizer(_Wrapper(runtime, texts), eos_token=ends, slices=[])  # type: ignore[arg-type]


def can_force(runtime: Runtime) -> bool:
    """Whether a text's ids spell exactly that text; tokenizers that put a space in front of it do not."""
    return runtime.detokenize(runtime.tokenize(_PROBE, parse_special=True)) == _PROBE
