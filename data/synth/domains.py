"""Domains: families of confusable tools with the many ways of asking for them, read from YAML.

The format: each tool has `names`, `descriptions`, `params` (names, slot, required), `heads` by clause kind,
`adjuncts` by slot, `ask`, `result` and `replies`; docs/generator.md describes it for those who add their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from data.synth import grammar
from data.synth.lexicon import WordLoader
from data.synth.values import SlotError, SlotSpec
from tinydispatch.bundled import bundled_tools

_HERE = Path(__file__).parent
_CONDITION = re.compile(r"\b(if|unless|provided|long as|assuming|in case|should it|depending|decide)\b", re.IGNORECASE)


class DomainError(ValueError):
    """A domain file that cannot be used; the message names the file, the tool and the key."""


class Clause(StrEnum):
    """The grammatical kind of a request's core."""

    IMPERATIVE = "imperative"
    QUESTION = "question"
    STATEMENT = "statement"
    NOUN = "noun"


@dataclass(frozen=True)
class ParamSpec:
    """A parameter: its internal key, the names that a schema may give it, and its slot."""

    key: str
    names: tuple[str, ...]
    slot: SlotSpec
    is_required: bool


@dataclass(frozen=True)
class ToolSpec:
    """One tool of a domain with its wordings; the first of `names` is the canonical one."""

    domain: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    params: Mapping[str, ParamSpec]
    heads: Mapping[Clause, tuple[str, ...]]
    adjuncts: Mapping[str, tuple[str, ...]]
    ask: Mapping[str, tuple[str, ...]]
    result: Mapping[str, Any]
    replies: tuple[str, ...]

    def covers(self, ref: str) -> tuple[str, ...]:
        """The parameters that a reference such as `start+end` or `range` fills."""
        if ref == "range" and "range" not in self.params:
            return tuple(key for key, param in self.params.items() if param.slot.kind == "date")[:2]
        return tuple(ref.split("+"))

    def merged(self, other: ToolSpec) -> ToolSpec:
        """The same tool with another file's wordings added."""
        heads = {clause: (*self.heads.get(clause, ()), *other.heads.get(clause, ())) for clause in Clause}
        return ToolSpec(
            self.domain,
            tuple(dict.fromkeys((*self.names, *other.names))),
            tuple(dict.fromkeys((*self.descriptions, *other.descriptions))),
            {key: _merge_param(param, other.params.get(key)) for key, param in self.params.items()},
            heads,
            _merge_lists(self.adjuncts, other.adjuncts),
            _merge_lists(self.ask, other.ask),
            self.result,
            (*self.replies, *other.replies),
        )


def _merge_lists(
    first: Mapping[str, tuple[str, ...]], second: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    return {key: (*first.get(key, ()), *second.get(key, ())) for key in dict.fromkeys((*first, *second))}


def _merge_param(first: ParamSpec, second: ParamSpec | None) -> ParamSpec:
    if second is None:
        return first
    slot = first.slot
    if slot.kind == "enum" and second.slot.kind == "enum":
        slot = SlotSpec("enum", _merge_lists(slot.argument, second.slot.argument))
    return ParamSpec(first.key, tuple(dict.fromkeys((*first.names, *second.names))), slot, first.is_required)


def load_file(path: Path) -> list[ToolSpec]:
    """The tools of one domain file.

    Raises:
        DomainError: a key is missing, a phrase does not parse, or a phrase uses a slot that is no parameter.
    """
    try:
        value = yaml.load(path.read_text("utf-8"), WordLoader)
    except yaml.YAMLError as error:
        raise DomainError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("tools"), list):
        raise DomainError(f"{path}: expected 'domain' and a list 'tools'")
    return [_tool(entry, str(value.get("domain", path.stem)), path) for entry in value["tools"]]


def _tool(entry: Mapping[str, Any], domain: str, path: Path) -> ToolSpec:
    if not isinstance(entry, Mapping) or not entry.get("names"):
        raise DomainError(f"{path}: every tool needs a list 'names', but one is {entry!r:.80}")
    where = f"{path}: tool {entry['names'][0]!r}"
    for key in ("descriptions", "heads"):
        if not entry.get(key):
            raise DomainError(f"{where}: missing key {key!r}")
    kinds = [str(clause) for clause in Clause]
    if strange := sorted(set(entry["heads"]) - set(kinds)):
        raise DomainError(f"{where}: heads of unknown kind {strange[0]!r}; expected {', '.join(kinds)}")
    spec = ToolSpec(
        domain,
        tuple(entry["names"]),
        tuple(entry["descriptions"]),
        {key: _param(key, raw, where) for key, raw in (entry.get("params") or {}).items()},
        {Clause(clause): tuple(phrases or ()) for clause, phrases in entry["heads"].items()},
        {key: tuple(phrases) for key, phrases in (entry.get("adjuncts") or {}).items()},
        {key: tuple(phrases) for key, phrases in (entry.get("ask") or {}).items()},
        entry.get("result") or {},
        tuple(entry.get("replies") or ("Done.",)),
    )
    _check_phrases(spec, where)
    return spec


def _param(key: str, raw: object, where: str) -> ParamSpec:
    if not isinstance(raw, Mapping) or "slot" not in raw:
        raise DomainError(f"{where}: parameter {key!r} needs a 'slot'")
    try:
        slot = SlotSpec.parse(raw["slot"])
    except SlotError as error:
        raise DomainError(f"{where}: parameter {key!r}: {error}") from error
    return ParamSpec(key, tuple(raw.get("names") or [key]), slot, bool(raw.get("required")))


def _check_phrases(spec: ToolSpec, where: str) -> None:
    spoken = [
        *(p for phrases in spec.heads.values() for p in phrases),
        *(p for ps in spec.adjuncts.values() for p in ps),
    ]
    for phrase in spoken:
        try:
            refs = grammar.slot_refs(grammar.parse(phrase))
        except grammar.PhraseError as error:
            raise DomainError(f"{where}: {error}") from error
        if strange := {key for ref in refs for key in spec.covers(ref.name)} - set(spec.params):
            raise DomainError(f"{where}: phrase {phrase!r} uses {sorted(strange)}, no parameter")
    said = {key for adjunct in spec.adjuncts for key in spec.covers(adjunct)}
    for phrase in (phrase for phrases in spec.heads.values() for phrase in phrases):
        in_head = {key for ref in grammar.slot_refs(grammar.parse(phrase)) for key in spec.covers(ref.name)}
        if silent := {p.key for p in spec.params.values() if p.is_required} - said - in_head:
            raise DomainError(f"{where}: head {phrase!r} cannot say required {sorted(silent)}")


@lru_cache(maxsize=1)
def invented_domains() -> tuple[ToolSpec, ...]:
    """Every tool of domains/, in the order of file names."""
    return tuple(tool for path in sorted((_HERE / "domains").glob("*.yaml")) for tool in load_file(path))


@lru_cache(maxsize=1)
def bundled_specs() -> tuple[ToolSpec, ...]:
    """The eight bundled tools with the wordings of all voices merged, in the order of bundled_tools.json."""
    merged: dict[str, ToolSpec] = {}
    for path in sorted((_HERE / "bundled").glob("*.voice*.yaml")):
        if path.name.startswith("chitchat"):
            continue
        for spec in load_file(path):
            name = spec.names[0]
            merged[name] = merged[name].merged(spec) if name in merged else spec
    return tuple(merged[tool.name] for tool in bundled_tools() if tool.name in merged)


@dataclass(frozen=True)
class SmallTalk:
    """What people say when no tool applies, and the replies: kind "chat" or "cannot"."""

    utterances: tuple[tuple[str, str], ...]
    replies: Mapping[str, tuple[str, ...]]


@lru_cache(maxsize=1)
def small_talk() -> SmallTalk:
    """Every chitchat file, merged."""
    utterances: list[tuple[str, str]] = []
    replies: dict[str, tuple[str, ...]] = {}
    for path in sorted((_HERE / "bundled").glob("chitchat*.yaml")):
        value = yaml.load(path.read_text("utf-8"), WordLoader)
        utterances += [(entry["say"], entry["reply"]) for entry in value["no_tool"]]
        replies = _merge_lists(replies, {kind: tuple(phrases) for kind, phrases in value["replies"].items()})
    return SmallTalk(tuple(utterances), replies)


@dataclass(frozen=True)
class Link:
    """A way to join requests: `phrase` holds {A}, {B} and perhaps {C}.

    `needs_imperative` when they must be bare verb phrases; `first` names the tools that {A} may be (empty: any).
    """

    phrase: str
    needs_imperative: bool
    first: tuple[str, ...] = ()

    @property
    def is_conditional(self) -> bool:
        """Whether {B} happens at all is open until {A} has answered."""
        return _CONDITION.search(self.phrase) is not None


@lru_cache(maxsize=1)
def links() -> Mapping[str, tuple[Link, ...]]:
    """Links by kind: "parallel", "dependent", "three"."""
    value = yaml.load((_HERE / "bundled" / "links.yaml").read_text("utf-8"), WordLoader)
    return {
        kind: tuple(
            Link(entry["say"], entry.get("form") == "imperative", tuple(entry.get("first", ()))) for entry in entries
        )
        for kind, entries in value.items()
    }
