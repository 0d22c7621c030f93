"""Records on their way into the training data: read from the sources, named by their content, written as chat JSONL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.config import DispatchLogSource, SourceConfig
from data.guards import Claim, Origin, claim_of, origin_of
from data.hub import fetched
from data.rejected import Rejected
from data.sources import read_source
from data.sources.dispatch_log import Trust, conversation_from_log, marks_of
from data.sources.files import data_files, iter_rows
from data.store import message_text, tools_text
from retraining.errors import RetrainError
from tinydispatch.dispatch_log import line_id
from tinydispatch.tools import Conversation, Message, Role, Tool


@dataclass(frozen=True)
class Record:
    """A conversation with where it came from.

    `request` names what was asked with what on offer, `key` that and the answer: equal keys are the same record.
    """

    conversation: Conversation
    source: str
    trust: Trust
    session: str
    time: str = ""  # when a logged request came, ISO 8601; "" where nobody knows
    client: str = ""

    @property
    def request(self) -> str:
        """Hash of the messages before the last trained answer, of the tools on offer and of the day that was told."""
        last = max((i for i, m in enumerate(self.conversation.messages) if _is_answer(m)), default=0)
        day = self.conversation.reference_date
        dated = [] if day is None else [day.isoformat()]
        before = map(message_text, self.conversation.messages[:last])
        return _hash([*before, tools_text(self.conversation.tools), *dated])

    @property
    def key(self) -> str:
        """Hash of the messages and the tools on offer."""
        return _hash([*map(message_text, self.conversation.messages), tools_text(self.conversation.tools)])

    @property
    def claim(self) -> Claim:
        """What the guards look at."""
        return claim_of(self.conversation, Origin(self.trust, self.session, self.client))

    def to_row(self) -> dict[str, Any]:
        """As `openai_jsonl` reads it; what the intake needs of it later stands under `retraining`."""
        conversation = self.conversation
        row: dict[str, Any] = {
            "messages": [_message_row(message) for message in conversation.messages],
            "tools": [tool.to_openai() for tool in conversation.tools],
            "category": conversation.category,
            "dialogue_id": conversation.dialogue_id,
            "retraining": {"key": self.key, "request": self.request, "trust": int(self.trust), "source": self.source},
            "metadata": {"log": {"trust": int(self.trust)}},  # what the data stage goes by
        }
        if conversation.reference_date is not None:
            row["reference_date"] = conversation.reference_date.isoformat()
        return row


@dataclass(frozen=True)
class Withdrawn:
    """An answer that a person decided against; what an earlier run took in of it is trained no more.

    Unless a person said the same elsewhere: whoever accepts an answer decides for it.
    """

    record: Record


def read_records(
    source: SourceConfig, default_tools: Sequence[Tool], seed: int, decided: frozenset[str] = frozenset()
) -> Iterator[Record | Rejected | Withdrawn]:
    """Every row of a source, once; Hub data sets are fetched first, and an empty folder holds no rows.

    Args:
        decided: lines of logs in whose place others stand, in this source or another.

    Raises:
        DataFileError: a file cannot be read, or a data set cannot be fetched.
    """
    name = source_name(source)
    local = fetched(source)
    path = getattr(local, "path", None)
    if path is not None and _is_empty(path):
        return
    if isinstance(local, DispatchLogSource):
        yield from _read_log(local, name, default_tools, decided)
        return
    for found in read_source(local, seed=seed, default_tools=default_tools):
        yield found if isinstance(found, Rejected) else Record(found, name, Trust.CURATED, found.dialogue_id)


def source_name(source: SourceConfig) -> str:
    """How a source is called in counts and in the quarantine."""
    place = getattr(source, "hub", None) or getattr(source, "path", None)
    return source.kind if place is None else f"{source.kind}:{place}"


def decided_in(sources: Sequence[SourceConfig]) -> frozenset[str]:
    """The lines that a person decided about, in all logs among the sources.

    Raises:
        DataFileError: a file cannot be read.
    """
    paths = [source.path for source in sources if isinstance(source, DispatchLogSource) and source.path is not None]
    return frozenset(found for path in paths if not _is_empty(path) for found in marks_of(path).decided)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.rglob("*.json*")) and not any(path.rglob("*.parquet"))


def _read_log(
    source: DispatchLogSource, name: str, default_tools: Sequence[Tool], decided: frozenset[str]
) -> Iterator[Record | Rejected | Withdrawn]:
    assert source.path is not None
    marks = replace(marks_of(source.path), decided=decided)
    count = 0
    for file in data_files(source.path):
        for raw in iter_rows(file, max_rows=source.max_rows):
            if source.max_rows is not None and count >= source.max_rows:
                return
            count += 1
            row = raw.value
            found = conversation_from_log(
                row, raw.row_id, default_tools, only_corrected=source.only_corrected, marks=marks
            )
            if isinstance(row, Mapping) and (line_id(row) in decided or _takes_back(row)):
                whole = conversation_from_log({**row, "is_accepted": True}, raw.row_id, default_tools)
                if not isinstance(whole, Rejected) and isinstance(found, Rejected):
                    yield Withdrawn(_logged(whole, name, row))
            yield found if isinstance(found, Rejected) else _logged(found, name, row)


def _takes_back(row: Mapping[str, Any]) -> bool:
    """Whether a person said that a line's answer is wrong, without another."""
    return bool(row.get("decides")) and row.get("is_accepted") is False


def _logged(conversation: Conversation, source: str, row: Mapping[str, Any]) -> Record:
    trust, session, client = origin_of(conversation)
    return Record(conversation, source, trust, session, str(row.get("time") or ""), client)


@dataclass(frozen=True)
class PoolRow:
    """A record of an earlier run as its line, without being parsed into a conversation again."""

    line: str
    key: str
    request: str
    trust: Trust
    source: str


def pool_row(line: str, where: str) -> PoolRow:
    """Read what `Record.to_row` became as a line.

    Raises:
        RetrainError: it is something else; `where` names the file and the line.
    """
    try:
        known = json.loads(line)["retraining"]
        return PoolRow(line, known["key"], known["request"], Trust(known["trust"]), known["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise RetrainError(f"{where}: no record of an earlier run: {error!r}") from error


def to_line(record: Record) -> str:
    """One line without its newline."""
    return json.dumps(record.to_row(), ensure_ascii=False, allow_nan=False)


def _is_answer(message: Message) -> bool:
    return message.role is Role.ASSISTANT and message.is_trained


def _message_row(message: Message) -> dict[str, Any]:
    row = message.to_openai()
    return row if message.is_trained else {**row, "weight": 0}


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]
