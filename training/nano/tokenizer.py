"""Nano's tokenizer: a byte-level BPE of about a thousand tokens; spaces stand alone, digits stand in pairs.

Small on purpose: rare tokens are never learned well enough to be copied (1,024 beats 3,072 by far), and with separate
spaces a name is the same tokens after a space, a quote or a bracket, so copying it is one skill and not three. Pairs of
digits make a day, a month, an hour or a minute one token each: a date is looked up in one step instead of two.
At run time it is plain byte-level BPE under the pre-tokenizer that llama.cpp calls dbrx; only the training of the
merges keeps spaces apart, so no merge ever holds one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinydispatch.formats import DOCUMENT_END, SPECIAL_TOKENS, TURN_END, default_chat_template

# Words with a leading space, up to three digits, runs of punctuation. Copied from llama.cpp's vocabulary "dbrx", which
# the exported file names.
DBRX_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Finer, for training the merges only: spaces, digits and punctuation marks apart, so that `":` and `_` stay legible.
_TRAINING_SPLIT = r"\p{L}+|\p{N}|[\"{}\[\]:,<>()|?=.@/_\-]+|[^\s\p{L}\p{N}]|\s"
_DIGIT_PAIRS = [f"{number:02d}" for number in range(100)]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_positions: int, whole_words: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Learn merges from `texts` and wrap them as a chat tokenizer with the seven special tokens.

    Args:
        vocab_size: tokens in all; the 256 bytes, the 100 pairs of digits and the special tokens are among them.
        max_positions: longest sequence that the model will take.
        whole_words: words that become one token each, however often they occur.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split(_TRAINING_SPLIT)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(_DIGIT_PAIRS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    often = itertools.repeat(" ".join(whole_words), 1_000)
    tokenizer.train_from_iterator(itertools.chain(texts, often), trainer)
    tokenizer = _with_digit_pairs(tokenizer)
    tokenizer.pre_tokenizer = _split(DBRX_SPLIT)
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


def _with_digit_pairs(tokenizer: Tokenizer) -> Tokenizer:
    learned = json.loads(tokenizer.to_str())
    model = learned["model"]
    model["vocab"] |= {pair: len(model["vocab"]) + index for index, pair in enumerate(_DIGIT_PAIRS)}
    model["merges"] = [[*pair] for pair in _DIGIT_PAIRS] + model["merges"]
    return Tokenizer.from_str(json.dumps(learned))


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
