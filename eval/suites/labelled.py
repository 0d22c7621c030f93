"""A suite of labelled utterances: cases in a folder, drawn evenly over languages and tools.

What a careful person would also accept is accepted: a place in capitals, a title with or without who comes, the whole
of this week or what is left of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.catalogue.reader import Request, resolve
from data.intents.forms import Utterance
from data.intents.mapping import ArgumentRule, As
from eval.cases import SuiteError
from eval.suites import load_suite
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Tool, ToolCall

_EARLIEST, _DAYS = dt.date(2026, 1, 1), 365
_NAMES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish"}


@dataclass(frozen=True)
class SuiteRequest:
    """A mapped utterance: the request, the rule of each argument, and where it came from."""

    request: Request
    rules: Mapping[str, ArgumentRule]
    utterance: Utterance

    @property
    def tool(self) -> str:
        """What it calls; "" where no tool serves."""
        return self.request.calls[0].name if self.request.calls else ""


def write_suite(
    requests: Sequence[SuiteRequest], tools: Sequence[Tool], *, count: int, seed: int, out: Path
) -> Counter[str]:
    """`suite.json` and `cases.jsonl` in `out`, read back before this returns; how many cases each language has.

    No sentence is asked in two languages. Requests for a tool are as many as for any other, as far as there are such.

    Raises:
        SuiteError: too few requests, or `out` holds something else.
    """
    if out.exists() and any(file.name not in ("suite.json", "cases.jsonl", "tools.json") for file in out.iterdir()):
        raise SuiteError(f"{out}: holds other files; give a folder that is empty or not there")
    chosen = _drawn(requests, count, random.Random(f"suite-{seed}"))
    is_bundled = tuple(tools) == bundled_tools()
    languages = [name for code, name in _NAMES.items() if any(each.request.language == code for each in chosen)]
    head = {
        "name": "intents",
        "description": "Labelled utterances under a mapping file, of a part that no training reads",
        "tools": "bundled" if is_bundled else "tools.json",
        "categories": languages,
    }
    lines = [json.dumps(_case(each, number), ensure_ascii=False) for number, each in enumerate(chosen, 1)]
    out.mkdir(parents=True, exist_ok=True)
    if not is_bundled:
        (out / "tools.json").write_text(json.dumps([tool.to_openai() for tool in tools], ensure_ascii=False), "utf-8")
    (out / "cases.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    (out / "suite.json").write_text(json.dumps(head, ensure_ascii=False) + "\n", "utf-8")
    load_suite(out)
    return Counter(_NAMES[each.request.language] for each in chosen)


def _drawn(requests: Sequence[SuiteRequest], count: int, rng: random.Random) -> list[SuiteRequest]:
    by_cell: dict[tuple[str, str], list[SuiteRequest]] = defaultdict(list)
    for each in requests:
        by_cell[each.request.language, each.tool].append(each)
    for cell in by_cell.values():
        rng.shuffle(cell)
    languages = sorted({language for language, _ in by_cell})
    chosen: list[SuiteRequest] = []
    asked: set[str] = set()
    taken: Counter[str] = Counter()
    while len(chosen) < count:
        before = len(chosen)
        for tool in sorted({tool for _, tool in by_cell}):
            # The language that has fewest so far comes first, so that all end up with as many.
            for language in sorted(languages, key=lambda language: taken[language]):
                cell = by_cell.get((language, tool), [])
                while cell and (cell[-1].request.dialogue_id in asked or not _is_determined(cell[-1])):
                    cell.pop()
                if cell and len(chosen) < count and taken[language] < -(-count // len(languages)):
                    chosen.append(cell.pop())
                    asked.add(chosen[-1].request.dialogue_id)
                    taken[language] += 1
                    break
        if len(chosen) == before:
            raise SuiteError(f"only {len(chosen)} of {count} cases can be made; give more files or a smaller --count")
    return sorted(chosen, key=lambda each: (each.request.language, each.tool, each.request.dialogue_id))


def _is_determined(each: SuiteRequest) -> bool:
    """Whether a rule could tell a right answer: of a search in free words it needs a label that has to be in it."""
    is_free = any(rule.how is As.UTTERANCE for rule in each.rules.values())
    return not is_free or bool(each.utterance.spans)


def _case(each: SuiteRequest, number: int) -> dict[str, Any]:
    request = each.request
    digest = hashlib.sha256(request.dialogue_id.encode()).digest()
    today = _EARLIEST + dt.timedelta(days=int.from_bytes(digest[:4]) % _DAYS)
    calls = [_expected(call, each, today) for call in request.calls]
    return {
        "id": f"{request.language}-{number:03d}",
        "category": _NAMES[request.language],
        "reference_date": today.isoformat(),
        "messages": [{"role": "user", "content": each.utterance.text}],
        "expected": {"calls": calls},
        "note": f"{each.utterance.row_id} {each.utterance.intent}",
    }


def _expected(call: ToolCall, each: SuiteRequest, today: dt.date) -> dict[str, Any]:
    arguments = {name: _matcher(value, each.rules.get(name), each, today) for name, value in call.arguments.items()}
    # "the weather in Oslo" is the weather of today, said or not; without "every", nothing is repeated.
    if call.name == "get_weather" and "date" not in arguments:
        arguments["date"] = {"$match": "optional", "value": today.isoformat()}
    if call.name == "set_reminder" and "repeat" not in arguments:
        arguments["repeat"] = {"$match": "optional", "value": "none"}
    return {"name": call.name, "arguments": arguments}


def _matcher(value: Any, rule: ArgumentRule | None, each: SuiteRequest, today: dt.date) -> Any:
    resolved = resolve(value, today)
    if rule is None or not isinstance(resolved, str):
        return resolved
    if rule.how is As.UTTERANCE:
        return {"$match": "contains", "values": _key_words(each.utterance)}
    if rule.how is As.FIRST_DAY and value == "=today" and "=week_end" in str(each.request.calls[0].arguments):
        return {"$match": "one_of", "values": [resolved, (today - dt.timedelta(days=today.weekday())).isoformat()]}
    if rule.how is As.FIRST_DAY and value == "=today" and "=month_end" in str(each.request.calls[0].arguments):
        return {"$match": "one_of", "values": [resolved, today.replace(day=1).isoformat()]}
    if rule.how in (As.TEXT, As.PHRASE):
        return {"$match": "text", "values": _spellings(resolved, each.utterance)}
    return resolved


def _key_words(utterance: Utterance) -> list[str]:
    """The labelled words, each by itself: a search has to hold them, in whatever order."""
    words = [word for span in utterance.spans for word in utterance.said(span).split()]
    return [word for word in words if len(word) > 3] or words


_ARTICLE = re.compile(
    r"^(?:the|my|an?|das|die|der|dem|den|mein\w*|le|la|les|ma|mon|mes|el|los|las|mi|mis|un|una|une)\s+|^l'",
    re.IGNORECASE,
)


def _spellings(value: str, utterance: Utterance) -> list[str]:
    """Ways to write free text that mean the same: without its article, with capitals, a title without who comes."""
    found = [value, value.title(), value.capitalize()]
    if bare := _ARTICLE.sub("", value):
        found += [bare, bare.title()]
    inside = [utterance.said(span) for span in utterance.spans if span.slot in ("event_name", "meal_type")]
    found += [words for words in inside if words in value]
    # What stands right before the value is often its article, and copied with it.
    at = utterance.text.find(value)
    if at > 0 and (
        article := re.search(
            r"(?:^|\s)((?:the|my|a|an|das|die|der|dem|den|meine?[nmrs]?|le|la|les|l'|ma|mon|mes|el|mi|mis|un|una|une|to|de|d')\s*)$",
            utterance.text[:at],
            re.IGNORECASE,
        )
    ):
        found.append(article[1] + value)
    return list(dict.fromkeys(found))
