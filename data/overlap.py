"""Keeps evaluation cases out of the training data: a model that has seen the question proves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data.text import normalized_words
from tinydispatch.tools import Conversation, Role

Words = tuple[str, ...]

# Eight words in a row are hardly shared by chance; with fewer, one text as a whole must stand inside the other.
GRAM_WORDS = 8
# Below five words ("what time is it") half of all requests contain each other; only equality counts there.
MIN_CONTAINED_WORDS = 5
# "Thanks" or "yes please" as a later turn does not tell where it comes from; as a first turn it is the request.
MIN_REPLY_WORDS = 3


@dataclass(frozen=True)
class Overlap:
    """The conversation at `index` shares `shared` with the evaluation case `case_text`."""

    index: int
    case_text: str
    shared: str


class OverlapIndex:
    """The cases, cut into word runs once, to check any number of conversations against."""

    def __init__(self, case_texts: Sequence[str]) -> None:
        self._whole: dict[Words, str] = {}
        self._runs: dict[Words, str] = {}
        for text in case_texts:
            words = normalized_words(text)
            if not words:
                continue
            self._whole.setdefault(words, text)
            for length in range(MIN_CONTAINED_WORDS, GRAM_WORDS + 1):
                for run in _runs(words, length):
                    self._runs.setdefault(run, text)

    def match(self, conversation: Conversation) -> tuple[str, str] | None:
        """`(case_text, shared words)` of the first user turn that overlaps; None where none does."""
        return self.match_texts(tuple(m.content for m in conversation.messages if m.role is Role.USER))

    def match_texts(self, turns: tuple[str, ...]) -> tuple[str, str] | None:
        """The same for the user's turns alone."""
        for position, text in enumerate(turns):
            words = normalized_words(text)
            if words in self._whole and (position == 0 or len(words) >= MIN_REPLY_WORDS):
                return self._whole[words], " ".join(words)
            for run, cases in self._suspects(words):
                if run in cases:
                    return cases[run], " ".join(run)
        return None

    def _suspects(self, words: Words) -> Iterator[tuple[Words, dict[Words, str]]]:
        if MIN_CONTAINED_WORDS <= len(words) < GRAM_WORDS:
            yield words, self._runs  # the whole turn inside a case
        for length in range(MIN_CONTAINED_WORDS, GRAM_WORDS):
            for run in _runs(words, length):
                yield run, self._whole  # a whole case inside the turn
        for run in _runs(words, GRAM_WORDS):
            yield run, self._runs


def find_overlap(conversations: Iterable[Conversation], case_texts: Sequence[str]) -> list[Overlap]:
    """Every conversation with a user turn that equals, contains or shares eight words in a row with a case."""
    index = OverlapIndex(case_texts)
    return [
        Overlap(position, *found)
        for position, conversation in enumerate(conversations)
        if (found := index.match(conversation)) is not None
    ]


def _runs(words: Words, length: int) -> Iterator[Words]:
    for start in range(len(words) - length + 1):
        yield words[start : start + length]
