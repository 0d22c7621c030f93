"""Catalogue files: tools, and requests written one by one with the calls that answer them.

A date in a call is a rule ("=friday", "=today+2T18:00"), resolved against the day on which the request is made, so that
one request serves on any day. README.md describes the format for those who add to it.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from data.config import CATALOGUE
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Message, Role, Tool, ToolCall, ToolError

# In the place of a file's tools: its requests are to the eight bundled ones.
BUNDLED = "bundled"


class CatalogueError(ValueError):
    """A catalogue file that cannot be used; the message names file, line and key."""


class Kind(StrEnum):
    """What a request asks of a dispatcher."""

    ONE = "one"
    NORMALIZED = "normalized"
    SAME = "same"
    SEVERAL = "several"
    DEPENDENT = "dependent"
    MISSING = "missing"
    NONE = "none"
    NEAR_MISS = "near_miss"
    LONG = "long"
    FOLLOW_UP = "follow_up"
    ERROR = "error"


class Voice(StrEnum):
    """How a request is worded."""

    CURT = "curt"
    CHATTY = "chatty"
    FORMAL = "formal"
    ELLIPTIC = "elliptic"
    DICTATED = "dictated"
    TYPOS = "typos"
    SECOND_LANGUAGE = "second_language"
    TECHNICAL = "technical"


class Source(StrEnum):
    """Named grounds (`from`) for a value that neither stands in the request nor follows from its schema."""

    SYNONYM = "synonym"
    UNIT = "unit"
    TRANSLATION = "translation"
    CODE = "code"
    ID = "id"
    CONTEXT = "context"
    ARITHMETIC = "arithmetic"
    SPELLED = "spelled"
    CLEANED = "cleaned"
    TITLE = "title"


@dataclass(frozen=True)
class Request:
    """One request: the turns before the answer, and the answer (calls, or words) as it stands in the file."""

    domain: str
    path: Path
    line: int
    turns: tuple[Message, ...]
    calls: tuple[ToolCall, ...]
    reply: str
    kind: Kind
    voice: Voice | None = None
    language: str = "en"
    about: str | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    dialogue_id: str = ""  # what stays on one side of a split; "" for this request alone
    shuns: frozenset[str] = frozenset()  # tools that would serve it after all, and may not stand beside it

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path.name}:{self.line}"

    @property
    def said(self) -> str:
        """What the user says in all turns."""
        return "\n".join(turn.content for turn in self.turns if turn.role is Role.USER)

    @property
    def tools_used(self) -> frozenset[str]:
        """Tools that the answer or an earlier turn calls, or that a question is about."""
        earlier = {call.name for turn in self.turns for call in turn.tool_calls}
        return frozenset({*(call.name for call in self.calls), *earlier, *filter(None, [self.about])})

    def messages(self, today: dt.date) -> tuple[Message, ...]:
        """The whole conversation on that day; only the answer is trained."""
        before = (_resolved(turn, today) for turn in self.turns)
        answer = Message(Role.ASSISTANT, self.reply, tuple(_resolved_call(call, today) for call in self.calls))
        return (*before, answer)


@dataclass(frozen=True)
class Domain:
    """One file: tools that belong together, and requests to them."""

    name: str
    about: str
    tools: tuple[Tool, ...]
    requests: tuple[Request, ...]


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans, and dates and times of day are text."""


_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:float"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
# Without the sexagesimal numbers of YAML 1.1, in which 12:30.5 is a float.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789")
)
for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    _Loader.yaml_implicit_resolvers[_first] = [
        (tag, pattern) for tag, pattern in _resolvers if not (tag.endswith(":float") and pattern.match("12:30.5"))
    ]


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """A file's content, and its nodes, which know their lines. Dates, times of day, "yes" and "no" are text.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    loader = _Loader(path.read_text("utf-8"))
    try:
        root = loader.get_single_node()
        return (loader.construct_document(root) if root is not None else None), root
    finally:
        loader.dispose()


def load_catalogue(folder: Path = CATALOGUE) -> tuple[Domain, ...]:
    """Every domain of a folder, by name.

    Raises:
        CatalogueError: the folder holds no YAML file, or a file cannot be used.
    """
    files = sorted(folder.glob("*.yaml")) if folder.is_dir() else [folder]
    if not files:
        raise CatalogueError(f"{folder}: holds no catalogue file (*.yaml)")
    return tuple(map(load_domain, files))


def load_domain(path: Path) -> Domain:
    """Read one file.

    Raises:
        CatalogueError: names the file, the line, the key and what would be right.
    """
    try:
        tree, root = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    is_bundled = isinstance(tree, dict) and tree.get("tools") == BUNDLED
    if (
        not isinstance(tree, dict)
        or not (is_bundled or isinstance(tree.get("tools"), list))
        or not isinstance(tree.get("requests"), list)
    ):
        raise CatalogueError(f"{path}: expected 'domain', 'about', 'tools' and 'requests'")
    if unknown := sorted(map(str, tree.keys() - {"domain", "about", "tools", "requests"})):
        raise CatalogueError(f"{path}: unknown key '{unknown[0]}'; a file has domain, about, tools and requests")
    tools = bundled_tools() if is_bundled else tuple(_tool(path, value) for value in tree["tools"])
    by_name = {tool.name: tool for tool in tools}
    if len(by_name) != len(tools):
        raise CatalogueError(f"{path}: two tools have the same name")
    assert root is not None, "a document that is a mapping has a root"
    lines = _item_lines(root, "requests")
    name = str(tree.get("domain", path.stem))
    requests = tuple(
        _request(path, line, name, value, by_name) for line, value in zip(lines, tree["requests"], strict=True)
    )
    return Domain(name, str(tree.get("about", "")), tools, requests)


def _item_lines(root: yaml.Node | None, key: str) -> list[int]:
    for name, value in root.value if root is not None else ():
        if name.value == key:
            return [item.start_mark.line + 1 for item in value.value]
    return []


def _tool(path: Path, value: Any) -> Tool:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise CatalogueError(f"{path}: a tool needs a 'name': {value!r:.80}")
    if unknown := sorted(map(str, value.keys() - {"name", "description", "parameters"})):
        raise CatalogueError(f"{path}: tool '{value['name']}': unknown key '{unknown[0]}'")
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise CatalogueError(f"{path}: tool '{value['name']}': 'parameters' must be a JSON schema")
    parameters = {"type": "object", "properties": {}, **parameters}
    listed = parameters["properties"] or {}
    parameters["properties"] = listed
    if unlisted := [key for key in parameters.get("required", []) if key not in listed]:
        raise CatalogueError(f"{path}: tool '{value['name']}': required parameter '{unlisted[0]}' is not listed")
    try:
        return Tool(value["name"], str(value.get("description") or ""), parameters)
    except ToolError as error:
        raise CatalogueError(f"{path}: {error}") from error


_REQUEST_KEYS = frozenset({"say", "turns", "system", "call", "reply", "kind", "voice", "lang", "about", "from"})


def _request(path: Path, line: int, domain: str, value: Any, tools: Mapping[str, Tool]) -> Request:
    place = f"{path.name}:{line}"
    if not isinstance(value, Mapping):
        raise CatalogueError(f"{place}: a request is a mapping, not {value!r:.60}")
    if unknown := sorted(map(str, value.keys() - _REQUEST_KEYS)):
        raise CatalogueError(f"{place}: unknown key '{unknown[0]}'; known are {', '.join(sorted(_REQUEST_KEYS))}")
    if ("say" in value) == ("turns" in value):
        raise CatalogueError(f"{place}: give either 'say' or 'turns'")
    if ("call" in value) == ("reply" in value):
        raise CatalogueError(f"{place}: give either 'call' or 'reply'")
    turns = [Message(Role.SYSTEM, _text(place, "system", value["system"]))] if "system" in value else []
    if "say" in value:
        turns.append(Message(Role.USER, _text(place, "say", value["say"])))
    else:
        turns += _turns(place, value["turns"])
    about = value.get("about")
    if about is not None and about not in tools:
        raise CatalogueError(f"{place}: 'about' names no tool of this file: {about!r}")
    grounds = value.get("from") or {}
    if not isinstance(grounds, Mapping):
        raise CatalogueError(f"{place}: 'from' maps parameters to grounds, it is {grounds!r:.60}")
    return Request(
        domain=domain,
        path=path,
        line=line,
        turns=tuple(turns),
        calls=_calls(place, value["call"], tools) if "call" in value else (),
        reply=_text(place, "reply", value["reply"]) if "reply" in value else "",
        kind=_member(Kind, place, "kind", value.get("kind")),
        voice=_member(Voice, place, "voice", value.get("voice")),
        language=str(value.get("lang", "en")),
        about=about,
        sources={str(key): _member(Source, place, f"from.{key}", ground) for key, ground in grounds.items()},
    )


def _member(kind: type[StrEnum], place: str, key: str, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise CatalogueError(f"{place}: '{key}' is {value!r}; one of {', '.join(kind)}") from None


def _text(place: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise CatalogueError(f"{place}: '{key}' must be text, it is {value!r:.60}")
    return value


def _calls(place: str, value: Any, tools: Mapping[str, Tool]) -> tuple[ToolCall, ...]:
    entries = value if isinstance(value, list) else [value]
    calls = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not entry:
            raise CatalogueError(f"{place}: 'call' maps a tool's name to its arguments, it is {entry!r:.60}")
        for name, arguments in entry.items():
            if name not in tools:
                raise CatalogueError(f"{place}: 'call' names no tool of this file: {name!r}")
            if arguments is not None and not isinstance(arguments, Mapping):
                raise CatalogueError(f"{place}: call.{name}: arguments are a mapping, not {arguments!r:.60}")
            order = list(tools[name].parameters["properties"])
            given = dict(arguments or {})
            # In the schema's order, in which a model under a grammar writes them.
            arranged = {key: given[key] for key in order if key in given} | given
            calls.append(ToolCall(name, arranged))
    return tuple(calls)


def _turns(place: str, value: Any) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise CatalogueError(f"{place}: 'turns' is a list of user, call, result and say")
    last_called = None
    for entry in value:
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise CatalogueError(f"{place}: a turn is one of user, call, result and say, not {entry!r:.60}")
        ((key, content),) = entry.items()
        match key:
            case "user":
                yield Message(Role.USER, _text(place, "turns.user", content))
            case "say":
                yield Message(Role.ASSISTANT, _text(place, "turns.say", content), is_trained=False)
            case "call":
                calls = [
                    ToolCall(name, arguments or {})
                    for pair in (content if isinstance(content, list) else [content])
                    for name, arguments in pair.items()
                ]
                last_called = calls[-1].name
                yield Message(Role.ASSISTANT, "", tuple(calls), is_trained=False)
            case "result":
                if last_called is None:
                    raise CatalogueError(f"{place}: a result stands before any call")
                text = content if isinstance(content, str) else _as_json(content)
                yield Message(Role.TOOL, text, tool_name=last_called)
            case _:
                raise CatalogueError(f"{place}: a turn is one of user, call, result and say, not '{key}'")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- dates ------------------------------------------------------------------------------------------------------------

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_RULE = re.compile(
    r"=(?P<base>today|(?:last )?(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)|(?:last )?\d\d-\d\d"
    r"|(?:last )?day \d{1,2}|(?:next_|last_)?(?:week|month|year)(?:_start|_end)?)"
    r"(?P<offset>[+-]\d+)?(?P<time>T\d\d:\d\d(?::\d\d(?:Z|[+-]\d\d:\d\d)?)?)?"
)


class DateRuleError(ValueError):
    """A value that begins with "=" and is no rule."""


def resolve_rule(rule: str, today: dt.date) -> str:
    """What a date rule stands for on a day.

    Raises:
        DateRuleError: it is none; README.md lists them.
    """
    match = _RULE.fullmatch(rule)
    if match is None:
        raise DateRuleError(f"{rule!r} is no date rule")
    base, offset = match["base"], dt.timedelta(days=int(match["offset"] or 0))
    if base.endswith("month"):
        return _span(base, today)[0].strftime("%Y-%m")
    if base.endswith("year"):
        return _span(base, today)[0].strftime("%Y")
    return (_day(base, today) + offset).isoformat() + (match["time"] or "")


def _day(base: str, today: dt.date) -> dt.date:
    is_last, name = base.startswith("last "), base.removeprefix("last ")
    if base == "today":
        return today
    if name in _WEEKDAYS:
        ahead = (_WEEKDAYS.index(name) - today.weekday() - 1) % 7 + 1
        return today + dt.timedelta(days=ahead if not is_last else ahead - 7 if ahead < 7 else -7)
    if name.startswith("day "):
        return _such_day(today, int(name[4:]), is_last=is_last)
    if re.fullmatch(r"\d\d-\d\d", name):
        return _anniversary(today, name, is_last=is_last)
    span, _, edge = base.rpartition("_")
    if edge not in ("start", "end"):
        raise DateRuleError(f"'={base}' needs _start or _end")
    return _span(span, today)[edge == "end"]


def _span(name: str, today: dt.date) -> tuple[dt.date, dt.date]:
    """First and last day of this, the last or the next week (from Monday), month or year."""
    shift = -1 if name.startswith("last_") else 1 if name.startswith("next_") else 0
    if name.endswith("week"):
        first = today + dt.timedelta(days=7 * shift - today.weekday())
        return first, first + dt.timedelta(days=6)
    if name.endswith("month"):
        first = _first_of_month(today, shift)
        return first, _first_of_month(first, 1) - dt.timedelta(days=1)
    return dt.date(today.year + shift, 1, 1), dt.date(today.year + shift, 12, 31)


def _first_of_month(day: dt.date, months: int) -> dt.date:
    index = day.year * 12 + day.month - 1 + months
    return dt.date(index // 12, index % 12 + 1, 1)


def _such_day(today: dt.date, number: int, *, is_last: bool) -> dt.date:
    if not 1 <= number <= 31:
        raise DateRuleError(f"no month has a day {number}")
    for months in range(0, -4, -1) if is_last else range(4):
        first = _first_of_month(today, months)
        day = first + dt.timedelta(days=number - 1)
        if day.month == first.month and (day < today if is_last else day >= today):
            return day
    raise AssertionError("one of four months has that day")


def _anniversary(today: dt.date, month_day: str, *, is_last: bool) -> dt.date:
    years = range(today.year, today.year - 9, -1) if is_last else range(today.year, today.year + 9)
    for year in years:
        try:
            day = dt.date.fromisoformat(f"{year}-{month_day}")
        except ValueError:
            continue
        if day < today if is_last else day >= today:
            return day
    raise DateRuleError(f"there is no day {month_day}")


def resolve(value: Any, today: dt.date) -> Any:
    """A value with every date rule in it resolved."""
    if isinstance(value, str):
        return resolve_rule(value, today) if value.startswith("=") else value
    if isinstance(value, Mapping):
        return {key: resolve(item, today) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [resolve(item, today) for item in value]
    return value


def _resolved_call(call: ToolCall, today: dt.date) -> ToolCall:
    return ToolCall(call.name, resolve(call.arguments, today))


def _resolved(turn: Message, today: dt.date) -> Message:
    if not turn.tool_calls:
        return turn
    calls = tuple(_resolved_call(call, today) for call in turn.tool_calls)
    return Message(turn.role, turn.content, calls, turn.tool_name, is_trained=turn.is_trained)
