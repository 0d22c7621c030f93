"""How long a conversation is for the model, counted by the tokenizer's own rules and without the libraries around it.

A row of 3,000 tokens takes a chat template and a tokenizer several milliseconds each, and most of it are tools that
other rows offer as well. Special tokens split a text before anything else happens to it, so the parts between them can
be counted one by one and remembered. Our own template writes each tool by itself on two lines, so tools are rendered
and counted once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

from data.remembered import Remembered
from tinydispatch import formats
from tinydispatch.tools import Conversation, Message, Role, Tool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Two dialogues' worth of tools and results of a megabyte each would fit; rows of one dialogue follow each other.
_REMEMBERED_PARTS = 2048

_TOOLS_START, _TOOLS_END = f"{formats.TURN_START}system\n", f"{formats.TURN_END}\n"
_NEXT = "a"  # the first character of a name
_BEFORE_LINE_END = ("a", "1", ".", ")", "\u65e5", "a ", "a  ", "a\t", "a.\r", " ")
_NAME_STARTS = ("a", "A", "Bc", "1", "1234", "_", "__a", "_a", "-a", "-", ".", ".a", ".1")


class FastTokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    chat_template: Any
    special_tokens_map: Mapping[str, Any]

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the `tokenizers` library behind it."""


class TokenCounter:
    """Tokens up to the end of the last trained turn, equal to `training.dataset.count_tokens`.

    Small enough to be handed to another process, where it loads neither torch nor transformers.
    """

    def __init__(self, tokenizer_json: str, template: str, special_tokens: Mapping[str, str]) -> None:
        self.tokenizer_json = tokenizer_json
        self.template = template
        self.special_tokens = dict(special_tokens)

    @classmethod
    def of(cls, tokenizer: FastTokenizer) -> TokenCounter:
        """The counter of a loaded transformers tokenizer with a chat template."""
        names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return cls(tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template), names)

    def __call__(self, conversation: Conversation) -> int:
        """The number of tokens.

        Raises:
            ValueError: the chat template refuses the conversation.
        """
        messages = formats.with_reference_date(conversation.messages, conversation.reference_date)
        trained = [i for i, message in enumerate(messages) if message.role is Role.ASSISTANT and message.is_trained]
        read = messages[: trained[-1] + 1] if trained else messages
        tools = conversation.tools
        if not tools or not self._counts_tools_alone:
            return self._counted(self._rendered(read, tools))
        # All but the last tool stand between two line breaks of the template, where a token ends in any case.
        n_others = sum(map(self._tool_tokens, tools[:-1]))
        if read and read[0].role is Role.SYSTEM:
            return n_others + self._counted(self._rendered(read, tools[-1:]))
        return n_others + self._last_tool_tokens(tools[-1]) + self._message_tokens(read)

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        return formats.render_prompt(
            messages, tools, self.template, add_generation_prompt=False, special_tokens=self.special_tokens
        )

    def _counted(self, text: str) -> int:
        if not self._splits_cleanly:
            return int(self._count(text))
        n_tokens: int = sum(self._count(part) for part in self._specials.split(text) if part)
        return n_tokens

    @cached_property
    def _counts_tools_alone(self) -> bool:
        return self.template == formats.default_chat_template() and self._splits_cleanly and self._splits_at_lines

    @cached_property
    def _message_tokens(self) -> Remembered[tuple[Message, ...], int]:
        """Tokens of messages, of which the first is no system message; shortening tools leaves them as they are."""
        return Remembered(lambda messages: self._counted(self._rendered(messages, ())), limit=16)

    @cached_property
    def _last_tool_tokens(self) -> Remembered[Tool, int]:
        """Tokens of the whole system turn where this is the only tool, and nothing is said beside it."""
        return Remembered(lambda tool: self._counted(self._rendered((), (tool,))))

    @cached_property
    def _tool_tokens(self) -> Remembered[Tool, int]:
        """Tokens of a tool's lines where another tool follows, whose name begins with a character that is no space."""

        def count(tool: Tool) -> int:
            alone = self._rendered((), (tool,))
            lines = alone.removeprefix(_TOOLS_START).removesuffix(_TOOLS_END)
            return self._counted(lines + _NEXT) - self._counted(_NEXT)

        return Remembered(count)

    @cached_property
    def _splits_at_lines(self) -> bool:
        """Whether no token reaches from a line break into a tool's name, whatever stands before the one and in the
        other: as the tokenizer itself splits every kind of both.
        """
        split = self._tokenizer.pre_tokenizer
        if split is None:
            return False
        for before, name in product(_BEFORE_LINE_END, _NAME_STARTS):
            parts = [text for text, _ in split.pre_tokenize_str(f"{before}\n{name}")]
            head, tail = split.pre_tokenize_str(f"{before}\n{_NEXT}")[:-1], split.pre_tokenize_str(name)
            if parts != [text for text, _ in (*head, *tail)]:
                return False
        return True

    @property
    def fingerprint(self) -> str:
        """The same for counters that count alike."""
        parts = json.dumps([self.tokenizer_json, self.template, self.special_tokens], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokenizer_json", "template", "special_tokens")}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer_json)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """Matches a special token and keeps it as a part of its own."""
        texts = sorted((entry["content"] for entry in self._added), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")")

    @cached_property
    def _added(self) -> list[dict[str, Any]]:
        return list(json.loads(self.tokenizer_json).get("added_tokens") or [])

    @cached_property
    def _splits_cleanly(self) -> bool:
        """Whether parts can be counted alone: not where a token eats the spaces beside it, or a start is special."""
        whole = json.loads(self.tokenizer_json)
        normalizer = whole.get("normalizer")
        is_plain = not any(
            entry.get("lstrip")
            or entry.get("rstrip")
            or entry.get("single_word")
            or (entry.get("normalized") and normalizer is not None)
            for entry in self._added
        )
        kinds = json.dumps([normalizer, whole.get("pre_tokenizer")])
        return bool(self._added) and is_plain and "Metaspace" not in kinds and "Prepend" not in kinds

    @cached_property
    def _count(self) -> Any:
        tokenizer = self._tokenizer

        @lru_cache(maxsize=_REMEMBERED_PARTS)
        def count(text: str) -> int:
            return len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

        return count
