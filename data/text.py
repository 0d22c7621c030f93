"""Text reduced to what two spellings of the same request share."""

from __future__ import annotations

import re
import unicodedata

# Chinese, Japanese and Korean write no spaces between words: there each character counts as one.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def normalized_words(text: str) -> tuple[str, ...]:
    """Words without case, punctuation, accents' encoding and width: "What’s UP?" → ("what", "s", "up")."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
