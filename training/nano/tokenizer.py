"""Nano's tokenizer: a byte-level BPE of about a thousand tokens, in which a space is always a token of its own.

Small on purpose: rare tokens are never learned well enough to be copied (1,024 beats 3,072 by far), and with separate
spaces a name is the same tokens after a space, a quote or a bracket, so copying it is one skill and not three.
At run time it is plain byte-level BPE under the qwen2 pre-tokenizer, which llama.cpp knows; only the training of the
merges keeps spaces apart, so no merge ever holds one.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinydispatch.formats import DOCUMENT_END, SPECIAL_TOKENS, TURN_END, default_chat_template

# The qwen2 split: words with a leading space, single digits, runs of punctuation. Copied from llama.cpp's vocabulary
# "qwen2", which the exported file names.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Finer, for training the merges only: spaces, digits and punctuation marks apart, so that `":` and `_` stay legible.
_TRAINING_SPLIT = r"\p{L}+|\p{N}|[\"{}\[\]:,<>()|?=.@/_\-]+|[^\s\p{L}\p{N}]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """Learn merges from `texts` and wrap them as a chat tokenizer with the seven special tokens.

    Args:
        vocab_size: tokens in all, the 256 bytes and the special tokens included.
        max_positions: longest sequence that the model will take.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split(_TRAINING_SPLIT)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _split(QWEN2_SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=DOCUMENT_END,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = default_chat_template()
    return wrapped


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
