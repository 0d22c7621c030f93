"""What records say about each other: contradictions, floods from one session, addresses out of nowhere.

The data stage of a first training rejects by these rules, and a retraining's intake quarantines by them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from data.config import GuardConfig
from data.near_duplicates import NearDuplicateFilter, answer_key, bands_of, request_text
from data.rejected import RejectReason
from data.sources.dispatch_log import SOURCE, Trust
from data.store import message_text, tools_text
from data.text import normalized_words
from data.truth import own_addresses, strange_addresses
from tinydispatch.tools import Conversation, Message, Role

_ALIKE = 0.8


class Claim(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """What the guards look at in a record.

    `asked` pairs, for each trained turn, a hash of everything before it with one of its answer, which is negative where
    the answer is words alone. Floods and senders'
    own addresses are those of a log: of a file that somebody made `session`, `client`, `own` and `text` are empty.
    """

    asked: tuple[tuple[int, int], ...]
    trust: int = int(Trust.CURATED)
    session: str = ""
    client: str = ""
    strange: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    text: str = ""  # the request of a model's answer, for likeness
    bands: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Guarded:
    """Why a record is not trained on."""

    reason: RejectReason
    detail: str


class Origin(NamedTuple):
    """Whose answer a record holds and, where it comes from a log, of which session and client."""

    trust: Trust = Trust.CURATED
    session: str = ""
    client: str = ""


def origin_of(conversation: Conversation) -> Origin:
    """What the reader of a log, or a retraining's intake, noted in the metadata."""
    log: Any = conversation.metadata.get("log")
    log = log if isinstance(log, Mapping) else {}
    trust = log.get("trust")
    known = Trust(trust) if isinstance(trust, int) and trust in tuple(Trust) else Trust.CURATED
    return Origin(known, str(log.get("session") or ""), str(log.get("client") or ""))


def claim_of(conversation: Conversation, origin: Origin | None = None, states: Sequence[int] | None = None) -> Claim:
    """The claim of a conversation as it is trained.

    Args:
        origin: where the metadata do not say it.
        states: what `states_of` gives, where that is known.
    """
    trust, session, client = origin or origin_of(conversation)
    is_logged = conversation.source == SOURCE
    is_models = is_logged and trust < Trust.CURATED
    strange = strange_addresses(conversation)
    text = request_text(conversation) if is_models else ""
    return Claim(
        asked=tuple(_asked(conversation, states or states_of(conversation))),
        trust=int(trust),
        session=session if is_logged else "",
        client=client if is_logged else "",
        strange=tuple(sorted(strange)),
        own=tuple(sorted(own_addresses(conversation) - strange)) if is_models else (),
        text=text,
        bands=bands_of(text, answer_key(conversation)) if is_models else (),
    )


def states_of(conversation: Conversation) -> list[int]:
    """One number for each message: a hash of the tools and of everything up to it, whatever of it is trained.

    Two rows with the same number are, up to there, the same text for any chat template.
    """
    digest = _before(conversation)
    states = []
    for message in conversation.messages:
        calls = message_text(Message(Role.ASSISTANT, tool_calls=message.tool_calls)) if message.tool_calls else ""
        # Lengths keep the parts apart: no text can end in the beginning of the next one.
        parts = (message.role, message.content, message.tool_name or "", calls)
        digest.update(f"{[*map(len, parts)]}{''.join(parts)}".encode("utf-8", "surrogatepass"))
        states.append(int.from_bytes(digest.digest()))
    return states


def _before(conversation: Conversation) -> Any:
    digest = hashlib.blake2b(tools_text(conversation.tools).encode("utf-8", "surrogatepass"), digest_size=8)
    digest.update(str(conversation.reference_date).encode())
    return digest


def _asked(conversation: Conversation, states: Sequence[int]) -> Iterator[tuple[int, int]]:
    """What each trained turn answers, and its answer: its calls or, where it makes none, its words."""
    for index, message in enumerate(conversation.messages):
        if message.role is not Role.ASSISTANT or not message.is_trained:
            continue
        calls = [[call.name, dict(call.arguments)] for call in message.tool_calls]
        answer = json.dumps(calls or normalized_words(message.content), sort_keys=True)
        before = states[index - 1] if index else int.from_bytes(_before(conversation).digest())
        number = int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=7).digest())
        yield before, number if calls else -number


def guard(claims: Mapping[int, Claim], config: GuardConfig) -> dict[int, Guarded]:
    """Which of the records are not trained on, and why; each rule looks at what those before it left."""
    found: dict[int, Guarded] = {}
    if config.require_grounded_addresses:
        found |= _ungrounded(claims, config.min_sessions_per_address)
    for limit, of_one, groups in (
        (config.max_per_session, "session", lambda rest: {i: claim.session for i, claim in rest.items()}),
        (config.max_per_client, "client", lambda rest: {i: claim.client for i, claim in rest.items()}),
        (config.max_similar, "kind", _alike),
    ):
        if limit is not None:
            rest = {i: claim for i, claim in claims.items() if i not in found}
            found |= _floods(groups(rest), limit, of_one)
    if config.reject_contradictions:
        found |= _contradictions({i: claim for i, claim in claims.items() if i not in found})
    return found


def _ungrounded(claims: Mapping[int, Claim], least: int) -> dict[int, Guarded]:
    """An address needs a ground: a result, a system message, a person, or several sessions that use it.

    That its sender says it is none: who wants a model to send somewhere says so. Addresses that redaction has made up
    stand for a copy of whatever was said, and pass.
    """
    sessions: dict[str, set[str | int]] = defaultdict(set)
    for place, claim in claims.items():
        for address in claim.own:
            sessions[address.lower()].add(claim.session or place)
    found = {}
    for place, claim in claims.items():
        few = [address for address in claim.own if len(sessions[address.lower()]) < least]
        if claim.strange or few:
            who = "nobody mentioned" if claim.strange else "only its sender mentions"
            detail = f"a call sends to {', '.join(claim.strange or few)}, which {who}"
            found[place] = Guarded(RejectReason.UNGROUNDED_ADDRESS, detail)
    return found


def _alike(claims: Mapping[int, Claim]) -> dict[int, str]:
    """For each record of a model's the first with the same answer to nearly the same words."""
    near = NearDuplicateFilter(_ALIKE)
    return {
        place: near.find_or_add_text(claim.text, claim.bands, str(place)) or str(place)
        for place, claim in claims.items()
        if claim.bands
    }


def _floods(groups: Mapping[int, str], limit: int, of_one: str) -> dict[int, Guarded]:
    counts = Counter(group for group in groups.values() if group)
    return {
        place: Guarded(RejectReason.FLOOD, f"one of {counts[group]} records of one {of_one}, more than {limit}")
        for place, group in groups.items()
        if counts[group] > limit
    }


def _contradictions(claims: Mapping[int, Claim]) -> dict[int, Guarded]:
    """Of different answers to one request the most trusted stays, where it is one; else none does.

    Of equal trust, two wordings of a reply do not contradict each other.
    """
    first: dict[int, int] = {}
    answers: dict[int, dict[int, int]] = {}  # request → answer → the most trust in it; only where there are several
    for claim in claims.values():
        for request, answer in claim.asked:
            if first.setdefault(request, answer) != answer:
                answers[request] = {}
    for claim in claims.values():
        for request, answer in claim.asked:
            if (known := answers.get(request)) is not None:
                known[answer] = max(claim.trust, known.get(answer, 0))
    beaten = {}
    for request, known in answers.items():
        most = max(known.values())
        believed = [answer for answer, trust in known.items() if trust == most]
        is_one = len(believed) == 1 or all(answer < 0 for answer in believed)
        beaten[request] = set(known) - set(believed if is_one else ())
    found = {}
    for place, claim in claims.items():
        for request, answer in claim.asked:
            if answer in beaten.get(request, ()):
                detail = f"{len(answers[request])} different answers to one request"
                found[place] = Guarded(RejectReason.CONTRADICTORY, detail)
    return found
