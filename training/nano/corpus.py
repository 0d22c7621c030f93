"""What nano reads: conversations over invented tools, drills, and exercises in copying, packed into rows."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

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
_BUFFER = 48  # documents from which rows are packed; 48 leave about 3 % of a row empty
_LENGTH_STEP = 32


@dataclass(frozen=True)
class Document:
    """Token ids with a loss weight for each (the weight of a token as a *target*).

    `lookups` holds (position, token id): what the hidden state at that position should know.
    """

    ids: list[int]
    weights: list[float]
    lookups: tuple[tuple[int, int], ...] = ()


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
        weights.append(1.0 if is_trained else PROMPT_WEIGHT)
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
    """What the rows hold, as shares of documents (the rest are conversations over tools of every kind).

    `exercise_rows` at the start hold nothing but random tokens to be copied; `exercise_share` later are such copies or
    tables to look things up in. `disguised_share` of the conversations offer the bundled tools under other names,
    `plain_share` of these under sensible ones without ornament. `drill_share` of documents are many short requests
    whose one value has to be worked out.
    """

    exercise_rows: int
    exercise_share: float
    disguised_share: float
    drill_share: float
    plain_share: float = 0.0


class Row(TypedDict):
    """One step of one process: ids (T,) int64, loss weights (T,) float32, the documents' lengths, which sum to T.

    `lookups` (N, 2) int64 are positions in the row and the token ids to be known there.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    lengths: list[int]
    lookups: torch.Tensor


class PackedRows(IterableDataset[Row]):
    """An endless, reproducible stream of rows of exactly `length` tokens; only a document longer than that is cut.

    Documents are padded to multiples of 32 tokens: kernels for matrix shapes that have not occurred yet are compiled on
    the spot, and with free lengths nearly every step meets some.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int | str, length: int, mixture: Mixture) -> None:
        assert length % _LENGTH_STEP == 0, f"{length=} is no multiple of {_LENGTH_STEP}"
        self.tokenizer, self.seed, self.length, self.mixture = tokenizer, seed, length, mixture
        self.padding: int = tokenizer.convert_tokens_to_ids(DOCUMENT_END)

    def __iter__(self) -> Iterator[Row]:
        rng = random.Random(f"pack-{self.seed}")
        for _ in range(self.mixture.exercise_rows):
            yield self._row([copy_document(rng, len(self.tokenizer)) for _ in range(self.length // 64)])
        documents = self._documents(rng)
        buffer = [next(documents) for _ in range(_BUFFER)]
        while True:
            row: list[Document] = []
            room = self.length
            while (fitting := [d for d in buffer if _padded(len(d.ids)) <= room]) or not row:
                # The first of a row is the oldest, so that a long one does not wait for ever.
                chosen = max(fitting, key=lambda d: len(d.ids)) if row else buffer[0]
                buffer.remove(chosen)
                row.append(chosen)
                room -= _padded(len(chosen.ids))
                buffer.append(next(documents))
            yield self._row(row)

    def _exercise(self, rng: random.Random) -> Document:
        make = recall_document if rng.random() < 0.5 else copy_document
        return make(rng, len(self.tokenizer))

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

    def _row(self, documents: list[Document]) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        lengths: list[int] = []
        known: list[tuple[int, int]] = []
        for document in documents:
            kept = min(len(document.ids), self.length - len(ids))
            padding = _padded(kept) - kept
            known += [(len(ids) + at, day_id) for at, day_id in document.lookups if at < kept]
            # A document's first token would be foretold from the one before it, which belongs to another.
            ids += [*document.ids[:kept], *[self.padding] * padding]
            weights += [0.0, *document.weights[1:kept], *[0.0] * padding][: kept + padding]
            lengths += [kept + padding] if kept else []
        if rest := self.length - len(ids):
            ids += [self.padding] * rest
            weights += [0.0] * rest
            lengths.append(rest)
        lookups_N2 = torch.tensor(known, dtype=torch.long).reshape(-1, 2)
        return Row(ids=torch.tensor(ids), weights=torch.tensor(weights), lengths=lengths, lookups=lookups_N2)


def _padded(n_tokens: int) -> int:
    return -(-n_tokens // _LENGTH_STEP) * _LENGTH_STEP
