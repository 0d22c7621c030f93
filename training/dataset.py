"""Conversations as token ids with a loss mask: exactly the assistant's tokens and their end token are trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tinydispatch import formats
from tinydispatch.tools import Conversation, Message, Role
from training.errors import PromptMismatchError, TokenizerError, TrainingDataError
from training.tokenizer import has_generation_tags

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


@dataclass(frozen=True)
class Example:
    """One training sequence: `input_ids` and, of the same length, whether each token carries loss."""

    input_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]

    @property
    def labels(self) -> list[int]:
        """The token where it is trained, -100 elsewhere; not shifted, the model does that."""
        return [token if trained else IGNORED for token, trained in zip(self.input_ids, self.is_trained, strict=True)]


@dataclass(frozen=True)
class EncodedData:
    """What the trainer reads, with what was left out and why.

    `dataset` has the columns input_ids and labels. `rejected` counts conversations by reason: too_long,
    nothing_trained, prompt_mismatch, and unwritable_call: a trained call that the template writes as elements, with a
    text that would end one of them.
    """

    dataset: Dataset
    rejected: Counter[str]
    tokens: int
    trained_tokens: int


def encode_conversation(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The training sequences of one conversation; empty when no turn is trained.

    One sequence, as a rule, up to the last trained turn. Some templates render a turn differently once later turns
    follow (Qwen3 drops the thinking block); then each trained turn is a sequence of its own, rendered as it is when
    the model writes it. In both cases what comes before a trained turn is, token for token, the prompt that a server
    renders for that turn.

    Raises:
        PromptMismatchError: the prompt of a trained turn is not, token for token, the beginning of that turn.
        TokenizerError: the template cannot render the conversation, or leaves out the end token.
    """
    messages = formats.with_reference_date(conversation.messages, conversation.reference_date)
    renderer = _Renderer(conversation, tokenizer)
    replies = [renderer.reply(messages, index) for index in _trained_turns(messages)]
    if not replies:
        return []
    whole = replies[-1]
    if all(whole.input_ids[: len(reply.input_ids)] == reply.input_ids for reply in replies):
        return [_merged(replies)]
    return replies


def count_tokens(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens up to the end of the last trained turn; the data stage's measure of "too long".

    At most one line break more than the training sequence. Without a trained turn the whole conversation counts.
    """
    messages = formats.with_reference_date(conversation.messages, conversation.reference_date)
    trained = _trained_turns(messages)
    return len(_Renderer(conversation, tokenizer).ids(messages[: trained[-1] + 1] if trained else messages))


@dataclass
class EncodeCounts:
    """What became of the conversations that were looked at; those of several parts add up."""

    seen: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    mismatch: PromptMismatchError | None = None  # the last one

    def add(self, other: EncodeCounts) -> None:
        """Count a further part."""
        self.seen += other.seen
        self.tokens += other.tokens
        self.trained_tokens += other.trained_tokens
        self.rejected += other.rejected
        self.mismatch = other.mismatch or self.mismatch

    def check(self, max_length_tokens: int, *, may_be_empty: bool = False) -> None:
        """After the last part.

        Raises:
            TrainingDataError: nothing is left, and that matters.
            TokenizerError: the template renders more than one conversation in a hundred otherwise than a server would.
        """
        if self.mismatch is not None and self.rejected["prompt_mismatch"] * 100 > self.seen:
            raise self.mismatch
        if not self.tokens and not may_be_empty:
            raise TrainingDataError(_nothing_left(self.rejected, max_length_tokens))


def encode_part(
    conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase, max_length_tokens: int
) -> tuple[pa.RecordBatch, EncodeCounts]:
    """Some conversations in the columns of `EncodedData.dataset`; what is too long is left out, and never cut."""
    counts = EncodeCounts()
    has_elements = formats.PARAMETER_START in str(tokenizer.chat_template)
    sequences: list[np.ndarray] = []  # int32, because a Python int takes nine times the room: 200k rows would not fit
    labels: list[np.ndarray] = []
    for conversation in conversations:
        counts.seen += 1
        if has_elements and not _is_writable(conversation):
            counts.rejected["unwritable_call"] += 1
            continue
        try:
            examples = encode_conversation(conversation, tokenizer)
        except PromptMismatchError as error:
            counts.mismatch = error
            counts.rejected["prompt_mismatch"] += 1
            continue
        if not examples:
            counts.rejected["nothing_trained"] += 1
        elif max(len(example.input_ids) for example in examples) > max_length_tokens:
            counts.rejected["too_long"] += 1
        else:
            sequences += [np.array(example.input_ids, dtype=np.int32) for example in examples]
            labels += [np.array(example.labels, dtype=np.int32) for example in examples]
            counts.tokens += sum(len(example.input_ids) for example in examples)
            counts.trained_tokens += sum(sum(example.is_trained) for example in examples)
    return pa.record_batch([_lists(sequences), _lists(labels)], schema=FEATURES.arrow_schema), counts


def _is_writable(conversation: Conversation) -> bool:
    """Whether elements can hold every trained call: the form has no escape, so a text must not end one."""
    try:
        for message in conversation.messages:
            if message.is_trained:
                formats.render_xml_calls(message.tool_calls)
    except ValueError:
        return False
    return True


def _lists(rows: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, dtype=np.int32), *rows]))


def build_dataset(
    conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase, max_length_tokens: int
) -> EncodedData:
    """Encode everything that fits, here and in memory; `training.encoding` does the same to a file.

    Raises:
        TrainingDataError, TokenizerError: as `EncodeCounts.check`.
    """
    batch, counts = encode_part(conversations, tokenizer, max_length_tokens)
    counts.check(max_length_tokens)
    dataset = Dataset(pa.Table.from_batches([batch]))
    return EncodedData(dataset, counts.rejected, counts.tokens, counts.trained_tokens)


def _nothing_left(rejected: Counter[str], max_length_tokens: int) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items())) or "there are no rows"
    return f"no conversation is left to train on: {reasons} (data.max_length_tokens is {max_length_tokens})"


def _trained_turns(messages: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message.role is Role.ASSISTANT and message.is_trained]


def _merged(replies: Sequence[Example]) -> Example:
    """One sequence for replies that are prefixes of the last one, with the trained tokens of all."""
    is_trained = list(replies[-1].is_trained)
    for reply in replies:
        for position, trained in enumerate(reply.is_trained):
            is_trained[position] = is_trained[position] or trained
    return Example(replies[-1].input_ids, tuple(is_trained))


class _Renderer:
    """Renders beginnings of one conversation through its tokenizer's template."""

    def __init__(self, conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tools = [tool.to_openai() for tool in conversation.tools] or None
        self._name = conversation.dialogue_id or conversation.source
        self._has_tags = has_generation_tags(str(tokenizer.chat_template))

    def reply(self, messages: Sequence[Message], index: int) -> Example:
        """The sequence that ends in assistant turn `index`, with that turn's tokens and end token trained.

        What the template writes after the end token (a line break) is left off: no model is asked to write it.
        """
        prompt = self.ids(messages[:index], add_generation_prompt=True)
        ids, tagged = self._tagged_ids(messages[: index + 1])
        if ids[: len(prompt)] != prompt:
            raise PromptMismatchError(
                f"conversation {self._name}: the chat template does not write the prompt of turn {index} as the "
                f"beginning of that turn (it differs at {self._difference(prompt, ids)!r}); training on it would not "
                "match what a server renders"
            )
        end = self._end_of_reply(ids, len(prompt), index)
        is_trained = [len(prompt) <= position and tagged[position] for position in range(end)]
        if not is_trained[-1]:
            raise TokenizerError(
                f"conversation {self._name}: the chat template leaves the end token out of {{% generation %}}, so a "
                "model could not learn to stop"
            )
        return Example(tuple(ids[:end]), tuple(is_trained))

    def _end_of_reply(self, ids: Sequence[int], start: int, index: int) -> int:
        """Position after the last end token; the first one could be quoted text."""
        for position in range(len(ids) - 1, start - 1, -1):
            if ids[position] == self._tokenizer.eos_token_id:
                return position + 1
        raise TokenizerError(
            f"conversation {self._name}: turn {index} is rendered without the end token {self._tokenizer.eos_token}"
        )

    def _tagged_ids(self, messages: Sequence[Message]) -> tuple[list[int], Sequence[bool]]:
        """Ids, and whether each lies in the template's `{% generation %}` parts; all do in templates without them."""
        if not self._has_tags:
            ids = self.ids(messages)
            return ids, [True] * len(ids)
        try:
            encoded = self._tokenizer.apply_chat_template(
                [message.to_openai() for message in messages],
                tools=self._tools,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
        except TemplateError as error:
            raise self._unrenderable(error) from error
        return list(encoded["input_ids"]), [bool(bit) for bit in encoded["assistant_masks"]]

    def ids(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """Token ids of the messages, and of the beginning of the assistant's next turn where asked for."""
        try:
            encoded = self._tokenizer.apply_chat_template(
                [message.to_openai() for message in messages],
                tools=self._tools,
                add_generation_prompt=add_generation_prompt,
                return_dict=True,
            )
        except TemplateError as error:
            raise self._unrenderable(error) from error
        return list(encoded["input_ids"])

    def _unrenderable(self, error: TemplateError) -> TokenizerError:
        return TokenizerError(f"conversation {self._name}: the chat template cannot render it: {error}")

    def _difference(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        pairs = zip(prompt, ids, strict=False)
        at = next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(prompt), len(ids)))
        return str(self._tokenizer.decode(list(prompt[at : at + 8])))
