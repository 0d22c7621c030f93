"""What nano reads: conversations over invented tools, drills, and exercises in copying, in batches of fixed shape."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from data.synth.generate import drill_conversation, generate_invented
from tinydispatch.formats import DOCUMENT_END, render_prompt, with_reference_date
from tinydispatch.tools import Conversation
from training.nano.lookups import lookups

# A light loss on the prompt besides the full one on the answer: it teaches the language of requests for free.
PROMPT_WEIGHT = 0.1
_TRAINED = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)
_ANSWER = 1.0
NOT_ASKED = -100


@dataclass(frozen=True)
class Document:
    """Token ids with a loss weight for each (the weight of a token as a *target*).

    `lookups` holds (position, token id): what the hidden state at that position should know.
    """

    ids: list[int]
    weights: list[float]
    lookups: tuple[tuple[int, int], ...] = ()

    def cut(self, limit: int) -> Document | None:
        """The longest part from the start that ends with an answer and has at most `limit` tokens, if there is one."""
        if len(self.ids) <= limit:
            return self
        ends = (end for end in range(limit, 0, -1) if self.weights[end - 1] == _ANSWER > self.weights[end])
        end = next(ends, 0)
        return Document(self.ids[:end], self.weights[:end], self.lookups) if end else None


def conversation_text(conversation: Conversation) -> str:
    """The whole conversation as the chat template prints it."""
    messages = with_reference_date(conversation.messages, conversation.reference_date)
    return render_prompt(messages, conversation.tools, add_generation_prompt=False)


def to_document(text: str, tokenizer: PreTrainedTokenizerFast) -> Document:
    """Tokenize with full weight on what the assistant writes, its end token included."""
    encoded = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    spans = [match.span() for match in _TRAINED.finditer(text)]
    weights = []
    at = 0
    for start, end in encoded.offsets:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        is_trained = at < len(spans) and spans[at][0] <= start and end <= spans[at][1]
        weights.append(_ANSWER if is_trained else PROMPT_WEIGHT)
    end_id = tokenizer.convert_tokens_to_ids(DOCUMENT_END)
    ends = {end: position for position, (_, end) in enumerate(encoded.offsets)}
    known = ((ends.get(end), tokenizer.convert_tokens_to_ids(day)) for end, day in lookups(text))
    found = tuple((position, day_id) for position, day_id in known if position is not None)
    return Document([*encoded.ids, end_id], [*weights, PROMPT_WEIGHT], found)


def copy_document(rng: random.Random, vocab_size: int) -> Document:
    """Random tokens said twice: the second time every one can be copied, and nothing else can be known."""
    length = rng.randint(4, 60)
    ids = [rng.randrange(vocab_size) for _ in range(length)]
    return Document([*ids, *ids], [0.0] * length + [1.0] * length)


def recall_document(rng: random.Random, vocab_size: int) -> Document:
    """A table of random entries, then some of their keys again: what stood beside each key has to be looked up.

    The key stands before its value or after it, as a weekday stands after its date; always the same within a document.
    """
    separator, mark = rng.randrange(vocab_size), rng.randrange(vocab_size)
    key_length, value_length = rng.randint(1, 2), rng.randint(1, 4)
    entries = [
        (
            [rng.randrange(vocab_size) for _ in range(key_length)],
            [rng.randrange(vocab_size) for _ in range(value_length)],
        )
        for _ in range(rng.randint(3, 10))
    ]
    is_key_first = rng.random() < 0.5
    ids: list[int] = []
    for key, value in entries:
        ids += [*(key + value if is_key_first else value + key), separator]
    weights = [0.0] * len(ids)
    for key, value in rng.choices(entries, k=rng.randint(2, 8)):
        ids += [*key, mark, *value, separator]
        weights += [0.0] * (key_length + 1) + [1.0] * value_length + [0.0]
    return Document(ids, weights)


@dataclass(frozen=True)
class Mixture:
    """What the batches hold, as shares of documents (the rest are conversations over tools of every kind).

    `exercise_share` are random tokens to be copied or looked up. `disguised_share` of the conversations offer the
    bundled tools under other names, `plain_share` of these under sensible ones without ornament. `drill_share` of
    documents are many short requests whose one value has to be worked out. `long_share` of what does not fit into
    the shorter rows is read whole; the rest is cut after an answer.
    """

    exercise_share: float
    disguised_share: float
    drill_share: float
    plain_share: float
    long_share: float


class Shape(NamedTuple):
    """Rows of one batch, one document in each, and their length in tokens."""

    rows: int
    length: int


# As many tokens in each, so that two processes take as long for a step. Fixed, because every other shape costs a
# compilation.
SHAPES = (Shape(2, 640), Shape(1, 1280))


class Batch(TypedDict):
    """One step of one process: ids (B, T) int64, loss weights (B, T) float32, padding included with weight zero.

    `known` (B, T) int64 are the token ids that should be known at a position, and `NOT_ASKED` elsewhere.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    known: torch.Tensor


class Batches(IterableDataset[Batch]):
    """An endless, reproducible stream of batches, each of one of `SHAPES`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int | str, mixture: Mixture) -> None:
        self.tokenizer, self.seed, self.mixture = tokenizer, seed, mixture
        self.padding: int = tokenizer.convert_tokens_to_ids(DOCUMENT_END)

    def __iter__(self) -> Iterator[Batch]:
        rng = random.Random(f"batches-{self.seed}")
        waiting: dict[Shape, list[Document]] = {shape: [] for shape in SHAPES}
        for document in self._documents(rng):
            placed = self._place(document, rng)
            if placed is None:
                continue
            shape, fitting = placed
            waiting[shape].append(fitting)
            if len(waiting[shape]) == shape.rows:
                yield to_batch(waiting[shape], shape, self.padding)
                waiting[shape] = []

    def _place(self, document: Document, rng: random.Random) -> tuple[Shape, Document] | None:
        short, long = SHAPES
        is_whole = rng.random() < self.mixture.long_share
        if not is_whole and (cut := document.cut(short.length)):
            return short, cut
        cut = document.cut(long.length)
        return (short if len(cut.ids) <= short.length else long, cut) if cut else None

    def _exercise(self, rng: random.Random) -> Document:
        make = recall_document if rng.random() < 0.5 else copy_document
        parts = [make(rng, len(self.tokenizer)) for _ in range(8)]
        return Document([i for part in parts for i in part.ids], [w for part in parts for w in part.weights])

    def _documents(self, rng: random.Random) -> Iterator[Document]:
        mixture = self.mixture
        stream = generate_invented(self.seed, disguised_share=mixture.disguised_share, plain_share=mixture.plain_share)
        for index, conversation in enumerate(stream):
            if rng.random() < mixture.exercise_share:
                yield self._exercise(rng)
            drills = random.Random(f"drill-{self.seed}-{index}")
            if drills.random() < mixture.drill_share:
                conversation = drill_conversation(drills, f"drill-{self.seed}-{index}")
            yield to_document(conversation_text(conversation), self.tokenizer)


def to_batch(documents: Sequence[Document], shape: Shape, padding: int) -> Batch:
    """One document a row, padded at its end; none may be longer than a row."""
    ids_BT = torch.full(shape, padding, dtype=torch.long)
    weights_BT = torch.zeros(shape)
    known_BT = torch.full(shape, NOT_ASKED, dtype=torch.long)
    for row, document in enumerate(documents):
        count = len(document.ids)
        ids_BT[row, :count] = torch.tensor(document.ids)
        weights_BT[row, :count] = torch.tensor(document.weights)
        for at, day_id in document.lookups:
            if at < count:
                known_BT[row, at] = day_id
    return Batch(ids=ids_BT, weights=weights_BT, known=known_BT)
