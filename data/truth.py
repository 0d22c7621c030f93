"""Whether data say what is true: personal data in them, addresses and values that nobody said, different answers.

A first training and every retraining look by the same rules: the first writes what it finds into its data card, the
second puts records aside.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from data.near_duplicates import answer_key, request_text
from data.sources.categories import behaviour_of
from data.store import tools_text
from tinydispatch.redaction import NOBODYS, Redactor
from tinydispatch.tools import Conversation, Role, Tool, ToolCall

_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}|https?://[^\s\"'<>]+")
_SCHEME, _LETTERS = re.compile(r"\Ahttps?://(?:www\.)?"), re.compile(r"[^\W\d_]+")
_TIME = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}:\d\d")
_PLACES, _THIN, _MOST_CONVERSATIONS, _SCRIPT_CHARS, _MOST_TOOLS = 5, 20, 2000, 200, 40


@dataclass(frozen=True)
class Cleared:
    """A record without personal data, and how many values of each class were replaced in it."""

    conversation: Conversation
    found: Mapping[str, int]

    @property
    def is_changed(self) -> bool:
        """Whether something was replaced."""
        return bool(self.found)


def clear(conversation: Conversation, redactor: Redactor) -> Cleared:
    """The record with made-up values in place of personal ones, the same throughout.

    What is copied from the request into a call is still copied then.
    """
    said = [
        [message.content, [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]]
        for message in conversation.messages
    ]
    public = [[tool.to_openai() for tool in conversation.tools], NOBODYS.findall(str(said))]
    redacted = redactor.redacted({"said": said}, public)
    if redacted.record["said"] == said:
        return Cleared(conversation, {})
    messages = tuple(
        replace(message, content=content, tool_calls=tuple(ToolCall(call["name"], call["arguments"]) for call in calls))
        for message, (content, calls) in zip(conversation.messages, redacted.record["said"], strict=True)
    )
    return Cleared(replace(conversation, messages=messages), redacted.found)


def addresses(conversation: Conversation) -> set[str]:
    """E-mail addresses and links in trained calls."""
    texts = (str(leaf) for _, call in _trained_calls(conversation) for _, leaf in _leaves(call.arguments))
    return {found for text in texts for found in _ADDRESS.findall(text)}


def strange_addresses(conversation: Conversation) -> set[str]:
    """Those that stand nowhere in what was said or returned, nor in the tools.

    An address may be spelled out ("j dot doe at acme dot com"): all of its words but the last have to be said.
    """
    found = addresses(conversation)
    if not found:
        return found
    said = " ".join(message.content for message in conversation.messages if message.role is not Role.ASSISTANT)
    said = f"{said} {tools_text(conversation.tools)}".lower()
    run_together = re.sub(r"[\W_]+", "", said)

    def is_said(address: str) -> bool:
        words = _LETTERS.findall(_SCHEME.sub("", address.lower()))
        return address.lower() in said or all(word in run_together for word in words[: max(1, len(words) - 1)])

    return {address for address in found if not is_said(address)}


def own_addresses(conversation: Conversation) -> set[str]:
    """Those that only the sender says, and that are not set aside for examples: no result and no system message."""
    found = addresses(conversation)
    if not found:
        return found
    other = " ".join(m.content for m in conversation.messages if m.role in (Role.SYSTEM, Role.TOOL))
    other = f"{other} {tools_text(conversation.tools)}".lower()
    return {each for each in found if each.lower() not in other and NOBODYS.fullmatch(each) is None}


def _trained_calls(conversation: Conversation) -> Iterator[tuple[int, ToolCall]]:
    for index, message in enumerate(conversation.messages):
        if message.role is Role.ASSISTANT and message.is_trained:
            yield from ((index, call) for call in message.tool_calls)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path)
    else:
        yield path, value


@dataclass
class _Argument:
    """Values of one argument, over all calls of its tool."""

    n_values: int = 0
    said: int = 0
    derivable: int = 0
    values: set[str] = field(default_factory=set)
    present: int = 0


@dataclass
class Shape:
    """How many rows there are, training conversations or cases, and of each behaviour, writing system, called tool."""

    behaviour: Counter[str] = field(default_factory=Counter)
    script: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)

    def add(self, behaviour: str, text: str, tools: Iterable[str]) -> None:
        """Count a row; of `text`, which the user said, the writing system alone is kept."""
        self.behaviour[behaviour] += 1
        letters = Counter(_script(letter) for letter in text[:_SCRIPT_CHARS] if letter.isalpha())
        self.script[letters.most_common(1)[0][0] if letters else "none"] += 1
        self.tools.update(tools)

    def to_json(self) -> dict[str, Any]:
        """As the data card has it."""
        counts = {name: dict(getattr(self, name).most_common()) for name in ("behaviour", "script", "tools")}
        return {"rows": self.behaviour.total(), **counts}


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "none").split()[0].lower()


def truth_of(
    conversations: Iterable[Conversation], total: int, suites: Mapping[str, Shape] | None = None
) -> dict[str, Any]:
    """What the data card says about calls, by tool and argument; `total` conversations are read, every n-th looked at.

    Args:
        suites: the shape of each evaluation suite; it stands beside that of the conversations.

    A value is found where the user said it, and derivable where a result or system message holds it, the schema lists
    it, it is a date, a time, true or false, or half of its words were said. Any other was said by nobody.
    """
    step = max(1, -(-total // _MOST_CONVERSATIONS))
    redactor = Redactor()
    calls: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    arguments: dict[tuple[str, str], _Argument] = defaultdict(_Argument)
    answers: dict[tuple[str, str], dict[bytes, str]] = defaultdict(dict)
    unsaid: list[dict[str, str]] = []
    personal: dict[str, dict[str, Any]] = {}
    shape = Shape()
    n_looked = n_strange = n_unsaid = 0
    for position, conversation in enumerate(conversations):
        row = str(conversation.metadata.get("row_id", conversation.dialogue_id))
        categories[str(conversation.category)] += 1
        offered.update(tool.name for tool in conversation.tools)
        called = [call.name for _, call in _trained_calls(conversation)]
        calls.update(called)
        said = " ".join(m.content for m in conversation.messages if m.role is Role.USER)[:_SCRIPT_CHARS]
        shape.add(str(behaviour_of(conversation.messages)), said, called)
        if position % step:
            continue
        n_looked += 1
        asked = (request_text(conversation), f"{conversation.reference_date}{tools_text(conversation.tools)}")
        answers[asked].setdefault(answer_key(conversation), row)
        n_strange += bool(strange_addresses(conversation))
        for name, value in _look_at_calls(conversation, arguments):
            n_unsaid += 1
            if len(unsaid) < _PLACES:
                unsaid.append({"row": row, "argument": name, "value": value[:80]})
        for kind, count in clear(conversation, redactor).found.items():
            entry = personal.setdefault(kind, {"values": 0, "rows": 0, "places": []})
            entry["values"] += count
            entry["rows"] += 1
            if len(entry["places"]) < _PLACES:
                entry["places"].append(row)
    different = [list(each.values()) for each in answers.values() if len(each) > 1]
    return {
        "looked_at": n_looked,
        "of": total,
        "calls": dict(calls.most_common()),
        "arguments": [_row(tool, name, each, arguments) for (tool, name), each in sorted(arguments.items()) if name],
        "never_called": sorted(set(offered) - set(calls)),
        "different_answers": {"requests": len(different), "places": [rows[:3] for rows in different[:_PLACES]]},
        "said_by_nobody": {"values": n_unsaid, "places": unsaid},
        "addresses_of_nobody": n_strange,
        "personal": {kind: personal[kind] for kind in sorted(personal)},
        "balance": {name: each.to_json() for name, each in {"training": shape, **(suites or {})}.items()},
        "thin": {name: count for name, count in sorted(categories.items()) if count < _THIN},
    }


def _row(tool: str, name: str, each: _Argument, arguments: Mapping[tuple[str, str], _Argument]) -> dict[str, Any]:
    n_calls = arguments[tool, ""].present
    return {
        "tool": tool,
        "argument": name,
        "calls": n_calls,
        "present": round(each.present / n_calls, 3),
        "distinct": len(each.values),
        "found": round(each.said / each.n_values, 3) if each.n_values else None,
        "derivable": round(each.derivable / each.n_values, 3) if each.n_values else None,
    }


def _look_at_calls(
    conversation: Conversation, arguments: dict[tuple[str, str], _Argument]
) -> Iterator[tuple[str, str]]:
    """Count each value of the trained calls; yields those that nobody said."""
    listed: dict[str, str] = {}
    for index, call in _trained_calls(conversation):
        before = conversation.messages[:index]
        said = " ".join(m.content for m in before if m.role is Role.USER).casefold()
        other = " ".join(m.content for m in before if m.role is not Role.USER).casefold()
        arguments[call.name, ""].present += 1
        if call.name not in listed:
            tool = conversation.tool(call.name)
            listed[call.name] = _listed(tool) if tool is not None else ""
        for key, value in call.arguments.items():
            arguments[call.name, key].present += 1
            for path, leaf in _leaves(value, key):
                found = arguments[call.name, key]
                found.n_values += 1
                text = str(leaf).casefold()
                found.values.add(text)
                if not isinstance(leaf, bool) and text and text in said:
                    found.said += 1
                elif _is_derivable(leaf, text, said, f"{other} {listed[call.name]}"):
                    found.derivable += 1
                else:
                    yield f"{call.name}.{path}", text


def _is_derivable(leaf: Any, text: str, said: str, other: str) -> bool:
    if leaf is None or isinstance(leaf, bool) or not text or text in other or _TIME.match(text):
        return True
    words = re.findall(r"\w+", text)
    return bool(words) and 2 * sum(word in said for word in words) >= len(words) and len(words) > 1


def _listed(tool: Tool) -> str:
    """The values that a schema lists."""

    def values(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key in ("enum", "const", "default"):
                    yield str(item)
                yield from values(item)
        elif isinstance(value, list):
            for item in value:
                yield from values(item)

    return " ".join(values(tool.parameters)).casefold()


def rows_of(truth: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """The tables of a card about calls: title, head, rows."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.0f} %"

    checks = [
        ("requests with different answers", truth["different_answers"]["requests"],
         "; ".join(" / ".join(rows) for rows in truth["different_answers"]["places"])),
        ("values that nobody said", truth["said_by_nobody"]["values"],
         "; ".join(f"{p['row']}: {p['argument']}" for p in truth["said_by_nobody"]["places"])),
        ("rows that send to an address of nobody's", truth["addresses_of_nobody"], ""),
        ("tools never called", len(truth["never_called"]), ", ".join(truth["never_called"][:20])),
        (f"categories of fewer than {_THIN} rows", len(truth["thin"]),
         ", ".join(f"{name} {count}" for name, count in truth["thin"].items())),
    ]  # fmt: skip
    return [
        *_balance(truth.get("balance", {})),
        (
            f"Checks of {truth['looked_at']:,} of {truth['of']:,} conversations",
            ("check", "count", "places"),
            [(name, str(count), places) for name, count, places in checks],
        ),
        (
            "Personal data and secrets",
            ("class", "values", "rows", "places"),
            [
                (kind, str(each["values"]), str(each["rows"]), ", ".join(each["places"]))
                for kind, each in truth["personal"].items()
            ],
        ),
        (
            "Arguments",
            ("tool", "argument", "calls", "present", "distinct values", "found in the request", "derivable"),
            [
                (each["tool"], each["argument"], str(each["calls"]), share(each["present"]), str(each["distinct"]),
                 share(each["found"]), share(each["derivable"]))
                for each in truth["arguments"]
            ],
        ),
    ]  # fmt: skip


def _balance(balance: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Shares of the training conversations beside those of each suite's cases; of tools those that a suite asks for."""
    if len(balance) < 2:
        return
    shapes = list(balance.values())
    rows = [["", "rows", *(f"{shape['rows']:,}" for shape in shapes)]]
    for kind in ("behaviour", "script", "tools"):
        wanted: Counter[str] = Counter()
        for shape in shapes[1:] if kind == "tools" else shapes:
            wanted.update({name: count / (sum(shape[kind].values()) or 1) for name, count in shape[kind].items()})
        for name, _ in wanted.most_common(_MOST_TOOLS):
            shares = [shape[kind].get(name, 0) / (sum(shape[kind].values()) or 1) for shape in shapes]
            rows.append([kind, name, *(f"{100 * share:.1f} %" if share else "-" for share in shares)])
    yield "Balance against the suites", ("", "share of", *balance), rows
