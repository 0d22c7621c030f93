"""What the gate asks: written suites, cases made anew for each run, and dialogues of production that nobody trained on.

Production's cases are whole dialogues, the latest of those that a person or a larger model labelled. They are kept out
of training while they are in use and become training data after some gates, since cases that decide again and again are
slowly learned by heart, by way of the choices that they led to. `intake/held.jsonl` of a run holds all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.config import DataConfig, PhrasesSource, SynthSource
from data.overlap import OverlapIndex
from data.rejected import Rejected
from data.sources import read_source
from data.sources.dispatch_log import Trust
from data.sources.openai_chat import conversation_from_openai
from data.store import read_conversations
from eval.cases import Suite
from eval.metrics import wanted
from eval.suites.heldout import turn_suite
from retraining.errors import RetrainError
from retraining.records import PoolRow, Record, pool_row
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.tools import Conversation, Role, Tool

HELD = "held.jsonl"
GENERATED, PRODUCTION = "generated", "production"
# Sources that make other requests of another seed; a catalogue or a file of intents says the same ones again.
_MADE_ANEW = (SynthSource, PhrasesSource)


@dataclass(frozen=True)
class HeldRow:
    """A record of production that is a case; `gates` counts those that it was asked in, this run's among them."""

    row: PoolRow
    gates: int

    def line(self) -> str:
        """A line of `held.jsonl`."""
        value = json.loads(self.row.line)
        value["retraining"]["gates"] = self.gates
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    @property
    def texts(self) -> list[str]:
        """What the user said."""
        return user_texts(self.row)


def held_row(line: str, where: str) -> HeldRow:
    """Read a line of `held.jsonl`; `where` names it.

    Raises:
        RetrainError: it is something else.
    """
    row = pool_row(line, where)
    gates = json.loads(line)["retraining"].get("gates")
    if not isinstance(gates, int):
        raise RetrainError(f"{where}: no case of production: key 'retraining.gates' is missing")
    return HeldRow(row, gates)


def user_texts(row: PoolRow) -> list[str]:
    """What the user says in a record of an earlier run."""
    messages = json.loads(row.line)["messages"]
    return [str(message["content"]) for message in messages if message["role"] == "user"]


@dataclass(frozen=True)
class Split:
    """New records: the `held` ones are cases, the rest is trained on."""

    held: tuple[Record, ...]
    trained: tuple[Record, ...]


def hold_out(new: Sequence[Record], pool: Sequence[PoolRow], share: float) -> Split:
    """Hold out the latest dialogues, up to that share of the records of production whose answer is trusted.

    A dialogue is held or trained as a whole. One that shares its words with a record that is trained is no case.
    """
    labelled = [record for record in new if record.time and record.trust in (Trust.PERSON, Trust.LARGER_MODEL)]
    dialogues: dict[str, list[Record]] = {}
    for record in labelled:
        dialogues.setdefault(record.session or record.key, []).append(record)
    latest = sorted(dialogues.items(), key=lambda item: (max(record.time for record in item[1]), item[0]), reverse=True)
    left = int(share * len(labelled))
    chosen: dict[str, list[Record]] = {}
    for name, records in latest:
        left -= len(records)
        if left < 0:
            break
        chosen[name] = records
    if not chosen:
        return Split((), tuple(new))
    held = {record.key for records in chosen.values() for record in records}
    trained = [_said(record) for record in new if record.key not in held] + [user_texts(row) for row in pool]
    index = _index_of(chosen)
    while trained:
        turns = tuple(trained.pop())
        while (found := index.match_texts(turns)) is not None:
            sharing = [name for name, records in chosen.items() if any(found[0] in _said(record) for record in records)]
            # What is no case is trained, and may share its words with further cases.
            trained += [_said(record) for name in sharing for record in chosen.pop(name)]
            index = _index_of(chosen)
    held = {record.key for records in chosen.values() for record in records}
    return Split(
        tuple(record for record in new if record.key in held), tuple(record for record in new if record.key not in held)
    )


def _index_of(dialogues: Mapping[str, Sequence[Record]]) -> OverlapIndex:
    return OverlapIndex([text for records in dialogues.values() for record in records for text in _said(record)])


def production_suite(path: Path, gates: int) -> Suite | None:
    """The cases of a run's `held.jsonl` that are asked in no more than `gates` gates; None where there are none."""
    conversations = []
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.is_file() else (), 1):
        if held_row(line, f"{path}:{number}").gates > gates:
            continue
        found = conversation_from_openai(json.loads(line), f"{path}:{number}", ())
        if isinstance(found, Rejected):
            raise RetrainError(f"{path}:{number}: no conversation: {found.detail}")
        conversations.append(found)
    if not conversations:
        return None
    return turn_suite(
        PRODUCTION, "requests to the model in service, with the answers that were given instead", conversations
    )


def generated_suite(data: DataConfig, seed: str, count: int, suites: Sequence[Suite], train: Path) -> Suite | None:
    """Cases made anew, so many that every kind of request comes up equally often in all suites together.

    Args:
        data: whose generated sources make them; None comes back where it has none that make new requests.
        seed: of this run and this round.
        suites: what is asked besides.
        train: the training data; what stands in it is not asked.
    """
    sources = [source for source in data.sources if isinstance(source, _MADE_ANEW)]
    if not sources or not count:
        return None
    tools = load_tools(data.tools) if data.tools is not None else bundled_tools()
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    streams = [_endless(source.model_copy(update={"count": 1 << 30}), number, tools) for source in sources]
    taking_turns = (found for each in zip(*streams, strict=False) for found in each)
    beside = Counter(wanted(len(case.expected)) for suite in suites for case in suite.cases if not case.parent)
    seen = {text for suite in suites for case in suite.cases for text in case.user_texts}
    seen |= {m.content for row in read_conversations(train) for m in row.messages if m.role is Role.USER}
    before = sum(suite.name == GENERATED or suite.name.startswith(f"{GENERATED}-") for suite in suites)
    name = f"{GENERATED}-{before + 1}" if before else GENERATED
    return turn_suite(name, "requests made for this run alone", taking_turns, count=count, beside=beside, seen=seen)


def _endless(source: SynthSource | PhrasesSource, seed: int, tools: Sequence[Tool]) -> Iterator[Conversation]:
    for found in read_source(source, seed=seed, default_tools=tools):
        if not isinstance(found, Rejected):
            yield found


def _said(record: Record) -> list[str]:
    return [message.content for message in record.conversation.messages if message.role is Role.USER]
