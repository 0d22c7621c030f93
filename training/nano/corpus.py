"""What nano reads: conversations over invented tools and a share of pure copying, packed into rows of one length."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from data.synth.generate import drill_conversation, generate_invented
from tinydispatch.formats import DOCUMENT_END, render_prompt, with_reference_date
from tinydispatch.tools import Conversation

# A light loss on the prompt besides the full one on the answer: it teaches the language of requests for free.
PROMPT_WEIGHT = 0.1
_TRAINED = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)
_BUFFER = 48  # documents from which rows are packed; 48 leave about 3 % of a row empty


@dataclass(frozen=True)
class Document:
    """Token ids with a loss weight for each (the weight of a token as a *target*)."""

    ids: list[int]
    weights: list[float]


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
    return Document([*encoded.ids, end_id], [*weights, PROMPT_WEIGHT])


def copy_document(rng: random.Random, vocab_size: int, length: int) -> Document:
    """Random tokens said twice: the second time every one can be copied, and nothing else can be known."""
    ids = [rng.randrange(vocab_size) for _ in range(length)]
    return Document([*ids, *ids], [0.0] * length + [1.0] * length)


class PackedRows(IterableDataset[dict[str, torch.Tensor]]):
    """An endless, reproducible stream of rows {"ids": (T,) int64, "weights": (T,) float32}.

    Args:
        length: tokens in a row.
        copy_only_rows: how many rows at the start hold nothing but copying.
        copy_share: share of documents after them that are pure copying.
        disguised: (first row after the copying, share) of conversations over the bundled tools under other names.
        drilled: (first row after the copying, share) of documents that are drills of values.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        length: int,
        copy_only_rows: int,
        copy_share: float,
        disguised: tuple[int, float],
        drilled: tuple[int, float] = (0, 0.0),
    ) -> None:
        self.tokenizer, self.seed, self.length = tokenizer, seed, length
        self.copy_only_rows, self.copy_share = copy_only_rows, copy_share
        self.disguised, self.drilled = disguised, drilled
        self.rows_made = 0
        self.vocab_size = len(tokenizer)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(f"pack-{self.seed}")
        self.rows_made = 0
        for _ in range(self.copy_only_rows):
            yield self._row([copy_document(rng, self.vocab_size, rng.randint(4, 60)) for _ in range(self.length // 16)])
        documents = self._documents(rng)
        buffer = [next(documents) for _ in range(_BUFFER)]
        while True:
            row: list[Document] = []
            room = self.length
            while (fitting := [d for d in buffer if len(d.ids) <= room]) or not row:
                # The first of a row is the oldest, so that a long one does not wait for ever; it may be cut.
                chosen = max(fitting, key=lambda d: len(d.ids)) if row else buffer[0]
                buffer.remove(chosen)
                row.append(chosen)
                room -= len(chosen.ids)
                buffer.append(next(documents))
            rng.shuffle(row)
            self.rows_made += 1
            yield self._row(row)

    def _documents(self, rng: random.Random) -> Iterator[Document]:
        for index, conversation in enumerate(
            generate_invented(self.seed, disguised_share=lambda: self._share(self.disguised))
        ):
            if rng.random() < self.copy_share:
                yield copy_document(rng, self.vocab_size, rng.randint(4, 60))
            drills = random.Random(f"drill-{self.seed}-{index}")
            if drills.random() < self._share(self.drilled):
                conversation = drill_conversation(drills, f"drill-{self.seed}-{index}")
            yield to_document(conversation_text(conversation), self.tokenizer)

    def _share(self, phase: tuple[int, float]) -> float:
        first_row, share = phase
        return share if self.rows_made >= first_row else 0.0

    def _row(self, documents: list[Document]) -> dict[str, torch.Tensor]:
        ids = np.zeros(self.length, np.int64)
        weights = np.zeros(self.length, np.float32)
        flat_ids = [token for document in documents for token in document.ids][: self.length]
        flat_weights = [weight for document in documents for weight in document.weights][: self.length]
        ids[: len(flat_ids)] = flat_ids
        weights[: len(flat_weights)] = flat_weights
        return {"ids": torch.from_numpy(ids), "weights": torch.from_numpy(weights)}
