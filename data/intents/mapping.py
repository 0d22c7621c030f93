"""Mapping files: which intent calls which tool, which slot is which argument, and how a value is normalized.

docs/intents.md has the format. A file is checked as a whole when it is loaded, and against the data before the first
row is mapped: an intent, slot, tool or argument that does not exist is one error that names file, line and key.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from data.catalogue.reader import read_yaml
from data.intents.forms import FORMS, Utterance
from data.intents.normalize import LANGUAGES
from data.sources.files import DataFileError
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Tool, ToolError

MAPPINGS = Path(__file__).resolve().parents[2] / "configs" / "intents"


class As(StrEnum):
    """How words become a value. What each of them gives is in `_GIVES`."""

    TEXT = "text"
    TEXTS = "texts"
    PHRASE = "phrase"
    UTTERANCE = "utterance"
    NUMBER = "number"
    INTEGER = "integer"
    SECONDS = "seconds"
    MINUTES = "minutes"
    DATE = "date"
    FIRST_DAY = "first_day"
    LAST_DAY = "last_day"
    TIME = "time"
    DATE_TIME = "date_time"
    REPETITION = "repetition"
    CURRENCY = "currency"
    AMOUNT = "amount"
    CURRENCY_FROM = "currency_from"
    CURRENCY_TO = "currency_to"
    TIME_ZONE = "time_zone"
    EMAIL = "email"
    EMAILS = "emails"
    CHOICE = "choice"


_GIVES: Mapping[As, frozenset[str]] = {
    As.TEXTS: frozenset({"array"}),
    As.EMAILS: frozenset({"array"}),
    As.NUMBER: frozenset({"number"}),
    As.INTEGER: frozenset({"integer", "number"}),
    As.SECONDS: frozenset({"integer", "number"}),
    As.MINUTES: frozenset({"integer", "number"}),
    As.AMOUNT: frozenset({"number"}),
    As.CHOICE: frozenset({"string", "integer", "number", "boolean"}),
}
_TEXT = frozenset({"string"})

# A pattern, for every language or by language.
Pattern = Mapping[str, re.Pattern[str]]


@dataclass(frozen=True)
class ArgumentRule:
    """Where one argument comes from. `slots` in the order of preference; `pattern` finds words that no label marks."""

    name: str
    slots: tuple[str, ...] = ()
    how: As = As.TEXT
    pattern: Pattern = field(default_factory=dict)
    after: Pattern = field(default_factory=dict)
    unless: Pattern = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    value: Any = None
    day: tuple[str, ...] = ()
    part: tuple[str, ...] = ()
    default_day: str = ""
    half_day: str = ""
    default: Any = None


@dataclass(frozen=True)
class CallRule:
    """One way in which an intent becomes a call; the first whose conditions hold is taken."""

    line: int
    tool: Tool
    arguments: tuple[ArgumentRule, ...]
    says: Pattern
    says_not: Pattern
    has: frozenset[str]
    lacks: frozenset[str]
    ignore: frozenset[str]
    needs_one_of: frozenset[str]


@dataclass(frozen=True)
class IntentRule:
    """What becomes of an intent: calls, a reply (of `replies`, or that no tool serves), or nothing (`skip`: why)."""

    line: int
    calls: tuple[CallRule, ...] = ()
    is_reply: bool = False
    replies: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    says: Pattern = field(default_factory=dict)
    skip: str = ""


@dataclass(frozen=True)
class ToolGroup:
    """Tools that belong together and are offered together."""

    name: str
    about: str
    tools: tuple[Tool, ...]


@dataclass(frozen=True)
class IntentMapping:
    """A mapping file, checked."""

    path: Path
    form: str
    language: str
    parts: tuple[str, ...]
    licence: str | None
    groups: tuple[ToolGroup, ...]
    intents: Mapping[str, IntentRule]
    no_call_share: float
    placeholders: Mapping[str, tuple[tuple[str, Any], ...]]
    tools_file: str

    def group_of(self, tool: str) -> ToolGroup:
        """The group that a tool is in."""
        return next(group for group in self.groups if any(each.name == tool for each in group.tools))


def mapping_path(name: str | Path) -> Path:
    """A mapping file by its path, or by its name in `configs/intents/`.

    Raises:
        DataFileError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = MAPPINGS / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent == Path() and shipped.is_file():
        return shipped
    known = sorted(file.stem for file in MAPPINGS.glob("*.yaml"))
    raise DataFileError(f"{name}: no such mapping file; shipped are {', '.join(known)}")


def mapping_files(name: str | Path) -> list[Path]:
    """The mapping file and the one that it is based on.

    Raises:
        DataFileError: there is no such file.
    """
    path = mapping_path(name)
    _, tree = _read(path)
    return [path, mapping_path(path.parent / f"{tree['based_on']}.yaml")] if "based_on" in tree else [path]


def licence_of(name: str | Path) -> str | None:
    """What a mapping file says of the licence of the data that it is for."""
    licences = [_read(path)[1].get("licence") for path in mapping_files(name)]
    return next((str(licence) for licence in licences if licence), None)


class _Place:
    """Where one is in a mapping file: path, YAML node and key, for messages."""

    def __init__(self, path: Path, node: yaml.Node | None, key: str = "", line: int = 1) -> None:
        self.path, self.node, self.key, self.line = path, node, key, line

    def at(self, *keys: str | int) -> _Place:
        """Further in; a key that is not there stays at its parent's line."""
        place = self
        for key in keys:
            node, line = place.node, place.line
            if isinstance(node, yaml.MappingNode):
                for name, value in node.value:
                    if name.value == str(key):
                        node, line = value, name.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                node = node.value[key]
                line = node.start_mark.line + 1
            place = _Place(self.path, node, f"{place.key}.{key}" if place.key else str(key), line)
        return place

    def error(self, message: str) -> DataFileError:
        return DataFileError(
            f"{self.path}:{self.line}: key '{self.key}': {message}"
            if self.key
            else f"{self.path}:{self.line}: {message}"
        )

    def check_keys(self, value: Any, known: Collection[str]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.error(f"expected a mapping with {', '.join(sorted(known))}, not {value!r:.60}")
        for key in value:
            if key not in known:
                raise self.at(str(key)).error(f"unknown key; {_guess(str(key), known)}")
        return value

    def text(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self.error(f"expected text, not {value!r:.60}")
        return value

    def names(self, value: Any) -> tuple[str, ...]:
        """A name, or a list of them."""
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed or not all(isinstance(each, str) for each in listed):
            raise self.error(f"expected a name or a list of names, not {value!r:.60}")
        return tuple(listed)


def _guess(name: str, known: Iterable[str]) -> str:
    known = sorted(map(str, known))
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known) or 'none'}"


_KEYS = frozenset(
    {
        "form",
        "based_on",
        "language",
        "parts",
        "licence",
        "tools",
        "groups",
        "intents",
        "no_call_share",
        "omit",
        "placeholders",
        "tools_file",
    }
)


def load_mapping(name: str | Path, *, default_tools: Sequence[Tool] | None = None) -> IntentMapping:
    """Read a mapping file, by path or by its name in `configs/intents/`.

    Args:
        default_tools: what `tools: bundled` stands for; a run's own tools (`data.tools`) where it has some.

    Raises:
        DataFileError: names file, line and key, and what would be right.
    """
    path = mapping_path(name)
    place, tree = _read(path)
    intents_places = [(place, tree)]
    if "based_on" in tree:
        # The file adds intents and replaces them; everything else that it leaves out is the other one's.
        base_place, base = _read(mapping_path(path.parent / f"{tree['based_on']}.yaml"))
        if "based_on" in base:
            raise base_place.at("based_on").error(
                f"{path} is based on this file, so this one may not be based on a third"
            )
        intents_places.insert(0, (base_place, base))
        tree = {**base, **{key: value for key, value in tree.items() if key != "based_on"}}
    form = tree.get("form")
    if form not in FORMS:
        raise place.at("form").error(f"{form!r} is no form of data; one of {', '.join(FORMS)}")
    language = tree.get("language", "en")
    if language not in LANGUAGES:
        raise place.at("language").error(f"{language!r} is not understood; one of {', '.join(LANGUAGES)}")
    share = tree.get("no_call_share", 0.15)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise place.at("no_call_share").error(f"expected a share of the calls between 0 and 1, not {share!r}")
    groups_place = next((each for each, content in reversed(intents_places) if "groups" in content), place)
    groups = _groups(groups_place, tree, default_tools)
    tools = {tool.name: tool for group in groups for tool in group.tools}
    intents: dict[str, IntentRule] = {}
    for each_place, each in intents_places:
        listed = each.get("intents", {})
        if not isinstance(listed, Mapping):
            raise each_place.at("intents").error("expected intents with their rules")
        for intent, rule in listed.items():
            if intent not in tree.get("omit", ()):
                intents[intent] = _intent(each_place.at("intents", intent), rule, tools, groups)
    if not intents and form != "thingpedia":
        raise place.error("no 'intents'")
    return IntentMapping(
        path=path,
        form=str(form),
        language=language,
        parts=place.at("parts").names(tree.get("parts", ["train"])),
        licence=tree.get("licence"),
        groups=groups,
        intents=intents,
        no_call_share=float(share),
        placeholders=_placeholders(place.at("placeholders"), tree.get("placeholders", {})),
        tools_file=str(tree.get("tools_file", "")),
    )


def _read(path: Path) -> tuple[_Place, Mapping[str, Any]]:
    try:
        tree, root = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataFileError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    place = _Place(path, root)
    return place, place.check_keys(tree, _KEYS)


def _groups(place: _Place, tree: Mapping[str, Any], default_tools: Sequence[Tool] | None) -> tuple[ToolGroup, ...]:
    if tree.get("tools") == "bundled":
        return (ToolGroup("bundled", "calendar, mail and the web", tuple(default_tools or bundled_tools())),)
    if "tools" in tree:
        raise place.at("tools").error("only 'bundled' is known here; write tools of your own under 'groups'")
    groups, seen = [], dict[str, str]()
    for name, value in (tree.get("groups") or {}).items():
        here = place.at("groups", name)
        here.check_keys(value, {"about", "tools"})
        tools = tuple(_tool(here.at("tools", index), tool) for index, tool in enumerate(value.get("tools") or []))
        if not tools:
            raise here.error("holds no 'tools'")
        for tool in tools:
            if tool.name in seen:
                raise here.error(f"tool '{tool.name}' stands in '{seen[tool.name]}' as well")
            seen[tool.name] = name
        groups.append(ToolGroup(name, str(value.get("about", "")), tools))
    if not groups and tree.get("form") != "thingpedia":
        raise place.error("give 'tools: bundled', or tools of your own under 'groups'")
    return tuple(groups)


def _tool(place: _Place, value: Any) -> Tool:
    """A tool as in the catalogue, or with `parameters` in short: {name: schema or type, …}, `*` marks required ones."""
    place.check_keys(value, {"name", "description", "parameters"})
    properties: dict[str, Any] = {}
    required = []
    for key, schema in (value.get("parameters") or {}).items():
        name = key.removesuffix("*")
        required += [name] if key.endswith("*") else []
        properties[name] = {"type": schema} if isinstance(schema, str) else schema
        if not isinstance(properties[name], Mapping):
            raise place.at("parameters", key).error(f"expected a JSON schema or a type's name, not {schema!r:.60}")
    try:
        return Tool(
            str(value.get("name")),
            str(value.get("description", "")),
            {"type": "object", "properties": properties, "required": required},
        )
    except ToolError as error:
        raise place.error(str(error)) from error


# --- intents ----------------------------------------------------------------------------------------------------------

_RULE_KEYS = frozenset({"tool", "arguments", "says", "says_not", "has", "lacks", "ignore", "needs_one_of"})


def _intent(place: _Place, value: Any, tools: Mapping[str, Tool], groups: Sequence[ToolGroup]) -> IntentRule:
    if isinstance(value, Mapping) and "skip" in value:
        place.check_keys(value, {"skip"})
        return IntentRule(place.line, skip=place.at("skip").text(value["skip"]))
    if isinstance(value, Mapping) and "reply" in value:
        place.check_keys(value, {"reply", "beside", "says"})
        replies = () if value["reply"] == "none" else place.at("reply").names(value["reply"])
        beside = place.at("beside").names(value["beside"]) if "beside" in value else ()
        for name in beside:
            if name not in (known := [group.name for group in groups]):
                raise place.at("beside").error(f"'{name}' is no group of tools; {_guess(name, known)}")
        says = _pattern(place.at("says"), value.get("says"))
        return IntentRule(place.line, is_reply=True, replies=replies, beside=beside, says=says)
    if isinstance(value, list):
        return IntentRule(place.line, tuple(_call_rule(place.at(i), rule, tools) for i, rule in enumerate(value)))
    return IntentRule(place.line, (_call_rule(place, value, tools),))


def _call_rule(place: _Place, value: Any, tools: Mapping[str, Tool]) -> CallRule:
    place.check_keys(value, _RULE_KEYS)
    name = place.at("tool").text(value.get("tool"))
    if name not in tools:
        raise place.at("tool").error(f"'{name}' is no tool; {_guess(name, tools)}")
    tool = tools[name]
    properties = tool.parameters.get("properties", {})
    given = value.get("arguments") or {}
    if not isinstance(given, Mapping):
        raise place.at("arguments").error(f"expected arguments of '{name}', not {given!r:.60}")
    for key in given:
        if key not in properties:
            raise place.at("arguments", key).error(f"'{name}' has no such argument; {_guess(key, properties)}")
    for key in tool.parameters.get("required", []):
        if key not in given:
            raise place.at("arguments").error(f"'{name}' requires '{key}', which no slot gives")
    # In the schema's order, in which a model under a grammar writes them.
    arguments = tuple(
        _argument(place.at("arguments", key), key, given[key], properties[key]) for key in properties if key in given
    )

    def slots(key: str) -> frozenset[str]:
        return frozenset(place.at(key).names(value[key])) if key in value else frozenset()

    needed = slots("needs_one_of")
    if wrong := sorted(needed - given.keys()):
        raise place.at("needs_one_of").error(f"'{wrong[0]}' is not among the arguments; {_guess(wrong[0], given)}")
    return CallRule(
        place.line,
        tool,
        arguments,
        _pattern(place.at("says"), value.get("says")),
        _pattern(place.at("says_not"), value.get("says_not")),
        slots("has"),
        slots("lacks"),
        slots("ignore"),
        needed,
    )


_ARGUMENT_KEYS = frozenset(
    {"slot", "as", "pattern", "after", "unless", "values", "value", "day", "part", "default_day", "half_day", "default"}
)


def _argument(place: _Place, name: str, value: Any, schema: Mapping[str, Any]) -> ArgumentRule:
    if isinstance(value, str | list):
        value = {"slot": value}
    place.check_keys(value, _ARGUMENT_KEYS)
    if "value" in value:
        if len(value) > 1:
            raise place.error("'value' is the argument itself, and needs no other key")
        return ArgumentRule(name, value=value["value"])
    how = value.get("as", "choice" if "values" in value else "text")
    if how not in set(As):
        raise place.at("as").error(f"'{how}' is no way to read a value; {_guess(str(how), As)}")
    gives = _GIVES.get(As(how), _TEXT)
    wanted = schema.get("type", "string")
    if isinstance(wanted, str) and wanted not in gives:
        right = sorted(str(each) for each in As if wanted in _GIVES.get(each, _TEXT))
        raise place.at("as").error(
            f"'{how}' gives {' or '.join(sorted(gives))}, and the argument is of type '{wanted}'; "
            f"right would be {', '.join(right) if right else 'value'}"
        )
    if ("slot" in value) == ("pattern" in value) and how != As.UTTERANCE:
        raise place.error("give either 'slot' (a label) or 'pattern' (words that no label marks)")
    for key, choices in (("default_day", ("today", "tomorrow")), ("half_day", ("morning", "afternoon"))):
        if value.get(key, choices[0]) not in choices:
            raise place.at(key).error(f"{value[key]!r}; one of {', '.join(choices)}")
    return ArgumentRule(
        name=name,
        slots=place.at("slot").names(value["slot"]) if "slot" in value else (),
        how=As(how),
        pattern=_pattern(place.at("pattern"), value.get("pattern"), groups=1),
        after=_pattern(place.at("after"), value.get("after")),
        unless=_pattern(place.at("unless"), value.get("unless")),
        values=_values(place.at("values"), value.get("values"), schema),
        day=place.at("day").names(value["day"]) if "day" in value else (),
        part=place.at("part").names(value["part"]) if "part" in value else (),
        default_day=value.get("default_day", ""),
        half_day=value.get("half_day", ""),
        default=value.get("default"),
    )


def _values(place: _Place, value: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """{value: [what people say, …]} → said → value."""
    said: dict[str, Any] = {}
    if value is None:
        return {str(each).casefold(): each for each in schema.get("enum", [])}
    if not isinstance(value, Mapping):
        raise place.error(f"expected the values with what people say for them, not {value!r:.60}")
    for target, words in value.items():
        if "enum" in schema and target not in schema["enum"]:
            raise place.at(str(target)).error(
                f"is none of the argument's values; {_guess(str(target), schema['enum'])}"
            )
        for word in place.at(str(target)).names(words):
            said[word.casefold()] = target
    return said


def _pattern(place: _Place, value: Any, groups: int | None = None) -> Pattern:
    """A regular expression for all languages, or by language ("en": …), compiled."""
    if value is None:
        return {}
    by_language = value if isinstance(value, Mapping) else dict.fromkeys(LANGUAGES, value)
    found = {}
    for language, text in by_language.items():
        here = place.at(language) if isinstance(value, Mapping) else place
        if language not in LANGUAGES:
            raise here.error(f"'{language}' is no language here; one of {', '.join(LANGUAGES)}")
        try:
            # Slots are written {slot}, as the text shows them.
            found[language] = re.compile(
                re.sub(r"\{([A-Za-z][\w.|-]*)\}", r"\\{(?:\1)\\}", here.text(text)), re.IGNORECASE
            )
        except re.error as error:
            raise here.error(f"{text!r} is no regular expression: {error}") from error
        if groups is not None and found[language].groups != groups:
            raise here.error(f"{text!r} needs {groups} group in round brackets: the words that are the value")
    return found


def _placeholders(place: _Place, value: Any) -> Mapping[str, tuple[tuple[str, Any], ...]]:
    """What stands for placeholders: text and argument alike, or [what is said, the argument]."""
    found: dict[str, tuple[tuple[str, Any], ...]] = {}
    for name, entries in (value or {}).items():
        if not isinstance(entries, list) or not entries:
            raise place.at(name).error("expected a list of values")
        found[name] = tuple(
            (str(each[0]), each[1]) if isinstance(each, list) and len(each) == 2 else (str(each), each)
            for each in entries
        )
    return found


# --- against the data -------------------------------------------------------------------------------------------------


def check_against(mapping: IntentMapping, utterances: Iterable[Utterance], data: Path) -> None:
    """Every intent and slot that the file names has to be in the data.

    Raises:
        DataFileError: names file, line and key, and what the data hold.
    """
    if mapping.form == "thingpedia":
        return
    intents: set[str] = set()
    slots: set[str] = set()
    for utterance in utterances:
        intents.add(utterance.intent)
        slots.update(span.slot for span in utterance.spans)
    for intent, rule in mapping.intents.items():
        where = f"{mapping.path}:{rule.line}: key 'intents.{intent}'"
        if intent not in intents:
            raise DataFileError(f"{where}: {data} has no such intent; {_guess(intent, intents)}")
        for call in rule.calls:
            named = {slot for each in call.arguments for slot in (*each.slots, *each.day, *each.part)}
            for slot in sorted(named | call.has | call.lacks | call.ignore):
                if slot not in slots:
                    place = f"{mapping.path}:{call.line}: key 'intents.{intent}'"
                    raise DataFileError(f"{place}: {data} labels no slot '{slot}'; {_guess(slot, slots)}")


def load_thingpedia_tools(path: Path) -> tuple[ToolGroup, ...]:
    """Thingpedia's tools.jsonl, grouped by service, small services together, a dozen tools or so each.

    Raises:
        DataFileError: it cannot be read, or holds no tools.
    """
    tools: dict[str, Tool] = {}
    line = ""
    try:
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            tools[row["name"]] = Tool(row["name"], row["description"] or "", _tidy(row["parameters"]))
    except OSError as error:
        raise DataFileError(
            f"{path}: cannot be read: {error.strerror}; it holds the schemas, beside the rows"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"{path}: no tool with name, description and parameters: {line:.80}: {error}") from error
    groups: list[list[Tool]] = [[]]
    for name in sorted(tools):
        if len(groups[-1]) >= 12 and name.rsplit(".", 1)[0] != groups[-1][-1].name.rsplit(".", 1)[0]:
            groups.append([])
        groups[-1].append(tools[name])
    return tuple(
        ToolGroup(f"services_{i}", "services of many kinds", tuple(group)) for i, group in enumerate(groups) if group
    )


# Thingpedia's own type names, as a reader would say them.
_TYPES = {
    "tt:path_name": "path of a file", "tt:picture": "URL of a picture", "tt:username": "user name",
    "tt:hashtag": "hashtag or channel", "tt:email_address": "e-mail address", "tt:country": "country",
    "tt:iso_lang_code": "two-letter language code", "tt:stock_id": "ticker symbol", "tt:url": "URL",
    "tt:cryptocurrency_code": "code of a cryptocurrency",
}  # fmt: skip


def _tidy(parameters: Mapping[str, Any]) -> dict[str, Any]:
    properties = {}
    for name, schema in parameters["properties"].items():
        schema = dict(schema)
        kind, _, question = str(schema.get("description", "")).partition(";")
        if re.fullmatch(r"[\w.]+:\w+", kind):
            kind = _TYPES.get(kind, kind.partition(":")[2].replace("_", " "))
        if text := "; ".join(part for part in (kind.strip(), question.strip()) if part):
            schema["description"] = text
        properties[name] = schema
    return {**parameters, "properties": properties}
