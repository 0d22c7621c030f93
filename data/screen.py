"""Conversation → what is known about it without looking at any other: the pass that runs in every process at once."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec

from data.augment import Augmenter
from data.clean import check_conversation, reject
from data.config import GENERATED, DataConfig, DispatchLogSource, PersonalData, SourceConfig
from data.fit import CountTokens, Fitted, fit
from data.groups import Categories, GroupAssigner, level_of_folder
from data.guards import claim_of, states_of
from data.near_duplicates import answer_key, bands_of, request_text
from data.overlap import OverlapIndex
from data.rejected import Rejected, RejectReason, Repair
from data.shards import Record
from data.split import Split, split_of
from data.store import StoreError, encode
from data.truth import clear
from tinydispatch.redaction import Redactor
from tinydispatch.tools import Conversation, Role, Tool


@dataclass(frozen=True)
class Screened:
    """A record, and the line to write where the row is kept ("" otherwise)."""

    record: Record
    line: str = ""


class Screen:
    """Every check, repair and change that needs one conversation alone. The same conversation gives the same result,
    whichever process asks and whatever it saw before.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        case_texts: Sequence[str],
        count_tokens: CountTokens | None,
        tool_pool: Sequence[Tool] = (),
        categories: Sequence[Categories | None] = (),
    ) -> None:
        self._config = config
        self._overlap = OverlapIndex(case_texts)
        self._count_tokens = count_tokens
        self._augmenter = Augmenter(config.augment, seed, tool_pool)
        self._groups = {
            index: GroupAssigner(groups, known)
            for index, (source, known) in enumerate(zip(config.sources, categories, strict=False))
            if known is not None and (groups := getattr(source, "groups", None)) is not None
        }
        self._personal = [_personal(config, source) for source in config.sources]
        self._redactors = [Redactor().only(each) for each in self._personal]
        # The rows of one dialogue share their request.
        self._match = lru_cache(maxsize=256)(self._overlap.match_texts)

    def screen(self, rows: Sequence[Conversation | Rejected], source_index: int) -> list[Screened]:
        """What becomes of rows that an adapter read from the source with this index, in their order.

        A row that another of them begins with gets no line: its turn is trained there.
        """
        found: list[Screened] = []
        begun: set[int] = set()
        # From the last one, because the longest row of a dialogue tends to come last and spares work on the others.
        for row in reversed(rows):
            try:
                result = row if isinstance(row, Rejected) else self._examine(row, source_index, begun)
            except RecursionError:
                assert isinstance(row, Conversation)
                result = reject(row, RejectReason.UNSTORABLE, "nested too deeply")
            result = Screened(Record.of_rejected(result)) if isinstance(result, Rejected) else result
            begun.update(state for _, state in result.record.turns)
            found.append(result)
        return found[::-1]

    def _examine(self, conversation: Conversation, source_index: int, begun: Container[int]) -> Screened | Rejected:
        if (rejected := check_conversation(conversation)) is not None:
            return rejected
        if personal := self._personal[source_index]:
            cleared = clear(conversation, self._redactors[source_index])
            if dropped := [kind for kind in cleared.found if personal[kind] is PersonalData.DROP]:
                # Not shown: a sample of it would stand in the data card.
                row_id = str(conversation.metadata.get("row_id", conversation.dialogue_id))
                return Rejected(RejectReason.PERSONAL_DATA, ", ".join(sorted(dropped)), row_id)
            if cleared.is_changed:
                repairs = sorted({*conversation.metadata.get("repairs", ()), str(Repair.PERSONAL_DATA_MASKED)})
                metadata = {**conversation.metadata, "repairs": repairs}
                conversation = replace(cleared.conversation, metadata=metadata)
        if found := self._match(tuple(m.content for m in conversation.messages if m.role is Role.USER)):
            detail = f"shares '{found[1]}' with '{found[0]}'"
            return replace(reject(conversation, RejectReason.EVALUATION_OVERLAP, detail), about=found[0])
        side = self._side(conversation, source_index)
        if side is None:
            detail = "a tool or category that is held out, in a dialogue of another group"
            return reject(conversation, RejectReason.HELDOUT_TOOL, detail)
        augmented: tuple[str, ...] = ()
        if side == Split.TRAIN:
            conversation, augmented = self._augmenter.augment(conversation)
        source = self._config.sources[source_index]
        try:
            # With max_rows, a longer row may not be among those that are taken; with a weight, be left out.
            is_taken_whole = source.max_rows is None and source.weight >= 1
            if is_taken_whole and (covered := self._covered(conversation, side, augmented, begun)):
                return self._grouped(covered, conversation, source_index)
            fitted = self._fitted(conversation, source)
            if isinstance(fitted, Rejected):
                return fitted
            return self._grouped(self._kept(fitted, side, augmented), conversation, source_index)
        except (StoreError, UnicodeEncodeError) as error:
            return reject(conversation, RejectReason.UNSTORABLE, str(error))

    def _grouped(self, screened: Screened, conversation: Conversation, source_index: int) -> Screened:
        """With the level of a ToolBench dialogue: by what it offered before anything was taken off or added."""
        groups = self._groups.get(source_index)
        known = level_of_folder(str(conversation.metadata.get("group", ""))) if groups is None else None
        level = known if groups is None else groups.level(conversation)
        if level is None:
            return screened
        return Screened(msgspec.structs.replace(screened.record, group=f"G{level}"), screened.line)

    def _covered(
        self, conversation: Conversation, side: str, augmented: tuple[str, ...], begun: Container[int]
    ) -> Screened | None:
        """The record of a row that a longer one begins with; as that one fits, so does this."""
        if not self._config.join_prefixes or not _ends_in_its_only_trained_turn(conversation):
            return None
        record = self._record(Fitted(conversation, 0), side, augmented)
        return Screened(record) if record.own in begun else None

    def _side(self, conversation: Conversation, source_index: int) -> str | None:
        if (groups := self._groups.get(source_index)) is None:
            return str(split_of(conversation.dialogue_id, self._config.eval_fraction))
        return groups.side(conversation)

    def _fitted(self, conversation: Conversation, source: SourceConfig) -> Fitted | Rejected:
        if self._count_tokens is None:
            return Fitted(conversation, 0)
        limit = self._config.max_length_tokens
        steps = () if isinstance(source, GENERATED) else self._config.fit
        try:
            fitted = fit(conversation, limit, self._count_tokens, steps)
        except ValueError as error:
            return reject(conversation, RejectReason.UNRENDERABLE, str(error))
        if fitted.length > limit:
            return reject(fitted.conversation, RejectReason.TOO_LONG, f"{fitted.length} tokens; at most {limit} fit")
        return fitted

    def _kept(self, fitted: Fitted, side: str, augmented: tuple[str, ...]) -> Screened:
        line = encode(_with_notes(fitted, side, augmented))
        record = self._record(fitted, side, augmented)
        text, bands = "", tuple[bytes, ...]()
        if self._config.near_duplicate_threshold is not None:
            text = request_text(fitted.conversation)
            bands = bands_of(text, answer_key(fitted.conversation))
        length = fitted.length if self._count_tokens else len(line)
        return Screened(msgspec.structs.replace(record, length=length, text=text, bands=bands, has_line=True), line)

    def _record(self, fitted: Fitted, side: str, augmented: tuple[str, ...]) -> Record:
        conversation = fitted.conversation
        states = states_of(conversation)
        turns = [(i, m) for i, m in enumerate(conversation.messages) if m.role is Role.ASSISTANT]
        is_joined = self._config.join_prefixes
        return Record(
            row_id=str(conversation.metadata.get("row_id", conversation.dialogue_id)),
            side=side,
            category=str(conversation.category),
            calls=sum(len(message.tool_calls) for _, message in turns if message.is_trained),
            tools=len(conversation.tools),
            dialogue_id=conversation.dialogue_id,
            repairs=tuple(conversation.metadata.get("repairs", ())),
            steps=tuple(map(str, fitted.steps)),
            augmented=augmented,
            claim=claim_of(conversation, states=states),
            key=_key(conversation, states[-1]),
            own=states[-1] if is_joined and _ends_in_its_only_trained_turn(conversation) else 0,
            turns=tuple((i, states[i]) for i, message in turns if is_joined and not message.is_trained),
        )


def _personal(config: DataConfig, source: SourceConfig) -> dict[str, PersonalData]:
    """What becomes of each class of personal data in a source's rows, where they are not kept."""
    policy = config.personal_data
    if policy is None:
        policy = PersonalData.MASK if isinstance(source, DispatchLogSource) else PersonalData.KEEP
    by_class = policy if isinstance(policy, dict) else dict.fromkeys(Redactor().classes, policy)
    return {kind: each for kind, each in by_class.items() if each is not PersonalData.KEEP}


def _with_notes(fitted: Fitted, side: str, augmented: tuple[str, ...]) -> Conversation:
    """The conversation with what was done to it in its metadata."""
    notes: dict[str, Any] = {}
    if side not in tuple(Split):
        notes["heldout_group"] = side
    if fitted.steps:
        notes["shortened"] = [str(step) for step in fitted.steps]
    if augmented:
        notes["augmented"] = list(augmented)
    conversation = fitted.conversation
    return replace(conversation, metadata={**conversation.metadata, **notes}) if notes else conversation


def _ends_in_its_only_trained_turn(conversation: Conversation) -> bool:
    last = conversation.messages[-1]
    trained = [m for m in conversation.messages if m.role is Role.ASSISTANT and m.is_trained]
    return len(trained) == 1 and trained[0] is last


def _key(conversation: Conversation, last_state: int) -> bytes:
    """Where a row came from does not make it another example; what is trained does."""
    flags = bytes(message.is_trained for message in conversation.messages)
    return hashlib.blake2b(last_state.to_bytes(8) + flags, digest_size=16).digest()
