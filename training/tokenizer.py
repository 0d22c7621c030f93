"""The tokenizer that a run trains with: chat template, end token and padding made sure of before training."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from tinydispatch import formats
from training.errors import TokenizerError

# Turn marks are control tokens, call marks are text that a reader wants to see: Qwen's tokenizers mark them so too,
# and llama.cpp prints the second kind only.
_CONTROL_TOKENS = (formats.TURN_START, formats.TURN_END, formats.DOCUMENT_END)

_SENTINEL = "Sentinel"


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model directory, ready for chats.

    A model's own chat template is kept if it renders tools, with thinking switched off where it has that switch. Any
    other model gets ours; where its vocabulary knows ChatML's turns (SmolLM2) nothing is added and calls are marked in
    ordinary text, elsewhere our special tokens are added. The end token is what the template writes after an
    assistant's reply, and padding is another token than that.

    Raises:
        TokenizerError: no tokenizer there, or a template that ends replies without a token of its own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"{directory}: no tokenizer can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise TokenizerError(f"{directory}: the tokenizer has no tokenizer.json, which the loss mask needs")
    if tokenizer.chat_template is not None and not isinstance(tokenizer.chat_template, str):
        # Several named templates: the one for tools is the one that servers take here.
        tokenizer.chat_template = tokenizer.get_chat_template(tools=[{}])
    if tokenizer.chat_template is None or not _renders_tools(str(tokenizer.chat_template)):
        _take_default_template(tokenizer)
    tokenizer.chat_template = formats.without_thinking(str(tokenizer.chat_template))
    tokenizer.eos_token = _end_token(tokenizer, directory)
    _ensure_pad_token(tokenizer)
    return tokenizer


def _renders_tools(template: str) -> bool:
    return re.search(r"\btools\b", template) is not None


def _take_default_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not {formats.TURN_START, formats.TURN_END} <= tokenizer.get_vocab().keys():
        tokenizer.add_tokens(
            [AddedToken(token, special=token in _CONTROL_TOKENS, normalized=False) for token in formats.SPECIAL_TOKENS]
        )
    tokenizer.chat_template = formats.default_chat_template()
    # The template writes everything that the model reads; OPT's tokenizer would put </s> before it in other programs.
    if getattr(tokenizer, "add_bos_token", False):
        tokenizer.add_bos_token = False


def _end_token(tokenizer: PreTrainedTokenizerBase, directory: Path) -> str:
    """The token that the template writes right after an assistant's words, which is where a server stops.

    Base models often declare another (Qwen2.5 base: <|endoftext|>), and then never stop once tuned.
    """
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _SENTINEL}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    after = text.rpartition(_SENTINEL)[2].lstrip()
    for content in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        if content and after.startswith(content):
            return str(content)
    raise TokenizerError(
        f"{directory}: its chat template ends an assistant's reply with {after[:20]!r}, which begins with no token of "
        "its own, so a model could not learn to stop"
    )


def _ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Padding is out of the loss; were it the end token too, some trainers would take the end token out with it."""
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    known = tokenizer.get_vocab()
    choices = (formats.DOCUMENT_END, "<pad>", "[PAD]", tokenizer.unk_token, tokenizer.bos_token)
    for token in choices:
        if token is not None and token in known and token != tokenizer.eos_token:
            tokenizer.pad_token = token
            return
    tokenizer.add_special_tokens({"pad_token": "<pad>"})


def added_tokens(directory: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens of `tokenizer` that the model in the directory has not had before."""
    before = AutoTokenizer.from_pretrained(directory, local_files_only=True).get_vocab()
    return [token for token in formats.SPECIAL_TOKENS if token in tokenizer.get_vocab() and token not in before]


def has_generation_tags(template: str) -> bool:
    """Whether the template itself marks what the assistant generates."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
