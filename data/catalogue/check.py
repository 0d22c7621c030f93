"""What is wrong with a catalogue: calls against their schemas, values that rest on nothing, requests written twice."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.catalogue.reader import DateRuleError, Domain, Kind, Request
from data.text import normalized_words
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Role, Tool, check_calls

# A leap day, the end of a year, a month's end and an ordinary day.
_PROBE_DAYS = (dt.date(2028, 2, 29), dt.date(2026, 12, 31), dt.date(2027, 4, 30), dt.date(2025, 6, 11))
_NUMBER_WORDS = re.compile(
    r"\b(zero|one|once|two|twice|both|double|three|thrice|triple|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty"
    r"|sixty|seventy|eighty|ninety|hundred|thousand|grand|million|half|quarter|third|dozen|couple|pair|fortnight|week|day|hour|minute|month|year|an?"
    r"|single|first|second|fourth|fifth|score|full|max|maximum|minimum|all"
    r"|eine?[nmrs]?|ein|zwei\w*|drei\w*|vier\w*|fünf\w*|sechs\w*|sieben\w*|acht\w*|neun\w*|zehn\w*|elf|zwölf|zwanzig|\w+zig|hundert\w*|tausend\w*|halbe?[nrs]?|woche\w*|tag\w*|stunde\w*|monat\w*|dutzend"
    r"|une?|deux|trois|quatre|cinq|sept|huit|neuf|dix|onze|douze|quinze|vingt|trente|quarante|cinquante|soixante|cent|mille|demi\w*|semaine|jour|heure|mois|quinzaine|douzaine"
    r"|un[oa]?|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|once|doce|quince|veinte|treinta|cuarenta|cincuenta|cien\w*|mil|medi[oa]|semana|día|hora|mes|docena"
    r"|due|tre|quattro|cinque|sei|sette|otto|nove|dieci|venti|trenta|cento|mezz[oa]|dois|duas|três|quatro|sete|oito|dez|vinte|meia"
    r"|twee|drie|vijf|zes|zeven|negen|tien|twintig|half|dwa|dwie|trzy|cztery|pięć|sześć|osiem|dziesięć|två|fyra|fem|sex|sju|åtta|nio|tio|iki|üç|dört|beş|altı|yedi|sekiz|dokuz|on)\b",
    re.IGNORECASE,
)


def problems(domain: Domain) -> Iterator[str]:
    """Everything in a file that a reader of `load_domain` could not see, each with file and line."""
    bundled = {tool.name for tool in bundled_tools()}
    for tool in domain.tools:
        if tool.name in bundled and tool not in bundled_tools():
            yield f"{domain.name}: tool '{tool.name}' has a bundled tool's name, which the default must not have seen"
    by_name = {tool.name: tool for tool in domain.tools}
    seen: dict[str, str] = {}
    for request in domain.requests:
        key = " ".join(normalized_words(request.said))
        if key in seen:
            yield f"{request.where}: the same request as {seen[key]}"
        seen[key] = request.where
        for problem in _problems_of(request, by_name):
            yield f"{request.where}: {problem}"


def _problems_of(request: Request, tools: Mapping[str, Tool]) -> Iterator[str]:
    yield from _kind_problems(request)
    for turn in request.turns:
        for call in turn.tool_calls:
            if call.name not in tools:
                yield f"an earlier turn calls '{call.name}', which is no tool of this file"
    try:
        for today in _PROBE_DAYS:
            *before, answer = request.messages(today)
            for violation in check_calls(answer.tool_calls, list(tools.values())):
                details = "; ".join(f"{one.path or 'arguments'}: {one.message}" for one in violation.details)
                yield f"call '{violation.call.name}': {details or violation.reason}"
                return
            for turn in before:
                for violation in check_calls(turn.tool_calls, list(tools.values())):
                    details = "; ".join(f"{one.path or 'arguments'}: {one.message}" for one in violation.details)
                    yield f"earlier call '{violation.call.name}': {details or violation.reason}"
                    return
    except DateRuleError as error:
        yield f"{error}; README.md lists the rules"
        return
    if request.turns[-1].role is Role.ASSISTANT:
        yield "the last turn before the answer is the assistant's own"
    grounds = _Grounds(request)
    for call in request.calls:
        schema = tools[call.name].parameters
        for path, value, own in _leaves(dict(call.arguments), schema, ()):
            if (problem := grounds.problem(path, value, own)) is not None:
                yield f"call '{call.name}': {problem}"


def _kind_problems(request: Request) -> Iterator[str]:
    in_words = request.kind in (Kind.MISSING, Kind.NONE, Kind.NEAR_MISS)
    if in_words and request.calls:
        yield f"kind '{request.kind}' is answered in words, and here stands a call"
    if not in_words and not request.calls and request.kind not in (Kind.FOLLOW_UP, Kind.ERROR):
        yield f"kind '{request.kind}' is answered by a call, and here stands a reply"
    if request.kind is Kind.MISSING and request.about is None:
        yield "kind 'missing' needs 'about': the tool whose parameter is missing"
    if request.kind is Kind.ONE and len(request.calls) > 1:
        yield "kind 'one' has one call"
    if request.kind in (Kind.SAME, Kind.SEVERAL) and len(request.calls) < 2:
        yield f"kind '{request.kind}' has several calls"
    if request.kind is Kind.SAME and len({call.name for call in request.calls}) > 1:
        yield "kind 'same' calls one tool several times"


def _leaves(value: Any, schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    schema = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (schema.get("properties") or {}).get(key), (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, schema.get("items"), path)
    else:
        yield path, value, schema


class _Grounds:
    """What the values of one request's calls may rest on."""

    def __init__(self, request: Request) -> None:
        self._sources = request.sources
        texts = [turn.content for turn in request.turns]
        texts += [str(dict(call.arguments)) for turn in request.turns for call in turn.tool_calls]
        self._text = _plain("\n".join(texts))
        self._said = "\n".join(texts)

    def problem(self, path: Sequence[str], value: Any, schema: Mapping[str, Any]) -> str | None:
        """Why a value has no ground; None where it has one."""
        if any(part in self._sources for part in (*path, ".".join(path))):
            return None
        where = ".".join(path)
        if value is None or isinstance(value, bool) or "enum" in schema or "const" in schema:
            return None
        if isinstance(value, int | float):
            if re.search(r"\d", self._said) or _NUMBER_WORDS.search(self._said):
                return None
            return f"'{where}' is {value}, and the request holds no number; give the ground in 'from'"
        if value.startswith("=") or _plain(value) in self._text:
            return None
        if date := re.fullmatch(r"(\d{4})-\d\d-0?(\d+).*", value):
            if all(re.search(rf"(?<!\d)0?{part}(?!\d)", self._said) for part in date.groups()):
                return None
            return f"'{where}' is the date {value!r}, which the request does not hold; write a rule ('=friday')"
        if re.fullmatch(r"\d\d:\d\d(:\d\d)?", value):
            return None
        return f"'{where}' is {value!r}, which the request does not hold; copy its words, or give the ground in 'from'"


def _plain(text: str) -> str:
    text = re.sub(r"[\"'“”„«»‘’`´]", "", text.casefold())
    return re.sub(r"[\s,]+", " ", text).strip()
