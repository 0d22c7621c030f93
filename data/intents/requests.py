"""Labelled utterances → requests with the calls that answer them, or the reason why there is none."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.catalogue.mixing import cannot
from data.catalogue.reader import DateRuleError, Domain, Kind, Request, resolve
from data.intents import normalize
from data.intents.forms import Span, Utterance
from data.intents.mapping import ArgumentRule, As, CallRule, IntentMapping, IntentRule, Pattern, ToolGroup
from data.intents.normalize import Clock, Days, NotUnderstoodError
from data.rejected import Rejected, RejectReason, sample_of
from tinydispatch.tools import Message, Role, Tool, ToolCall

# A leap day, the end of a year and an ordinary day: what fits the schema on these fits on all.
_PROBE_DAYS = (dt.date(2028, 2, 29), dt.date(2026, 12, 31), dt.date(2025, 6, 11))


@dataclass(frozen=True)
class Mapped:
    """An utterance that was kept: its request, its group of tools, and the rule that made each argument."""

    request: Request
    group: str
    rules: Mapping[str, ArgumentRule]
    utterance: Utterance


def map_all(rows: Iterable[Utterance], mapping: IntentMapping) -> list[Mapped | Rejected]:
    """What becomes of each row, in order; requests without a call beyond the mapping's share are rejected."""
    found = [map_utterance(row, mapping) for row in rows]
    calls = sum(isinstance(each, Mapped) and bool(each.request.calls) for each in found)
    room = round(calls * mapping.no_call_share)
    without = [i for i, each in enumerate(found) if isinstance(each, Mapped) and not each.request.calls]
    # By a hash of the words, so that other rows do not change the choice.
    without.sort(key=lambda i: _hash(found[i]))
    for i in without[room:]:
        each = found[i]
        assert isinstance(each, Mapped)
        found[i] = _rejected(
            each.utterance, RejectReason.NO_CALL_SURPLUS, f"more than {mapping.no_call_share:.0%} of the calls"
        )
    return found


def _hash(row: Mapped | Rejected) -> str:
    assert isinstance(row, Mapped)
    return hashlib.sha256(row.utterance.text.casefold().encode()).hexdigest()


def domains_of(mapped: Sequence[Mapped], groups: Sequence[ToolGroup]) -> list[Domain]:
    """The requests by their groups of tools, as the catalogue's mixing takes them."""
    by_group: dict[str, list[Request]] = {group.name: [] for group in groups}
    for each in mapped:
        by_group[each.group].append(each.request)
    return [
        Domain(group.name, group.about, group.tools, tuple(by_group[group.name]))
        for group in groups
        if by_group[group.name]
    ]


def map_utterance(utterance: Utterance, mapping: IntentMapping) -> Mapped | Rejected:
    """One row by its mapping."""
    if utterance.set_aside is not None:
        return _rejected(utterance, *utterance.set_aside)
    try:
        if utterance.call is not None:
            return _given_call(utterance, mapping)
        return _by_rule(utterance, mapping)
    except NotUnderstoodError as error:
        return _rejected(utterance, error.reason, error.detail)


def _rejected(utterance: Utterance, reason: RejectReason, detail: str) -> Rejected:
    return Rejected(reason, f"{utterance.intent}: {detail}", utterance.row_id, sample_of(_template(utterance)[0]))


def _by_rule(utterance: Utterance, mapping: IntentMapping) -> Mapped:
    rule = mapping.intents.get(utterance.intent)
    if rule is None:
        raise NotUnderstoodError(RejectReason.INTENT_NOT_MAPPED, f"{mapping.path.name} has no rule for it")
    if rule.skip:
        raise NotUnderstoodError(RejectReason.INTENT_LEFT_OUT, rule.skip)
    template, _ = _template(utterance)
    if rule.is_reply:
        if not _holds(rule.says, template, utterance.language, True):
            raise NotUnderstoodError(RejectReason.INTENT_LEFT_OUT, "worded as if a tool served it")
        return _without_call(utterance, mapping, rule)
    slots = {span.slot for span in utterance.spans}
    for call in rule.calls:
        is_fit = (
            _holds(call.says, template, utterance.language, True)
            and not _holds(call.says_not, template, utterance.language, False)
            and call.has <= slots
            and not call.lacks & slots
        )
        if is_fit:
            return _called(utterance, mapping, call)
    raise NotUnderstoodError(RejectReason.INTENT_LEFT_OUT, "no rule is for rows that are worded so")


def _holds(pattern: Pattern, text: str, language: str, default: bool) -> bool:
    if not pattern:
        return default
    return language in pattern and pattern[language].search(text) is not None


def _template(utterance: Utterance) -> tuple[str, list[tuple[int, int]]]:
    """The text with slots for their values ("wake me at {time}"), and each span's place in it."""
    text, places, done = "", list[tuple[int, int]](), 0
    for span in utterance.spans:
        text += utterance.text[done : span.start]
        places.append((len(text), len(text) + len(span.slot) + 2))
        text, done = f"{text}{{{span.slot}}}", span.end
    return text + utterance.text[done:], places


def _without_call(utterance: Utterance, mapping: IntentMapping, rule: IntentRule) -> Mapped:
    rng = random.Random(utterance.text)
    groups = [group for group in mapping.groups if not rule.beside or group.name in rule.beside]
    group = rng.choice(groups)
    # A tool that might serve it must not stand beside it.
    shuns = frozenset(tool.name for each in mapping.groups if each not in groups for tool in each.tools)
    reply = rng.choice(rule.replies) if rule.replies else cannot(utterance.language, rng)
    request = _request(utterance, mapping, group, (), reply, Kind.NONE)
    return Mapped(replace(request, shuns=shuns), group.name, {}, utterance)


def _request(
    utterance: Utterance, mapping: IntentMapping, group: ToolGroup, calls: tuple[ToolCall, ...], reply: str, kind: Kind
) -> Request:
    file, _, line = utterance.row_id.rpartition(":")
    return Request(
        domain=group.name,
        path=Path(file or utterance.row_id),
        line=int(line) if line.isdigit() else 0,
        turns=(Message(Role.USER, utterance.text),),
        calls=calls,
        reply=reply,
        kind=kind,
        language=utterance.language,
        dialogue_id=utterance.group or f"{mapping.form}-{utterance.text.casefold()}",
    )


def _called(utterance: Utterance, mapping: IntentMapping, call: CallRule) -> Mapped:
    reading = _Reading(utterance, has_repetition=any(rule.how is As.REPETITION for rule in call.arguments))
    arguments = {}
    for rule in call.arguments:
        value = reading.value_of(rule)
        if value is not None:
            if isinstance(value, str) and _holds(rule.unless, value, utterance.language, False):
                raise NotUnderstoodError(RejectReason.ARGUMENT_NOT_SAID, f"'{value}' names no {rule.name}")
            arguments[rule.name] = value
    for name in call.tool.parameters.get("required", []):
        if name not in arguments:
            raise NotUnderstoodError(RejectReason.ARGUMENT_NOT_SAID, f"'{name}' of {call.tool.name}")
    if call.needs_one_of and not call.needs_one_of & arguments.keys():
        raise NotUnderstoodError(RejectReason.ARGUMENT_NOT_SAID, f"one of {', '.join(sorted(call.needs_one_of))}")
    if unused := [span for span in reading.unused() if span.slot not in call.ignore]:
        span = unused[0]
        raise NotUnderstoodError(
            RejectReason.SLOT_WITHOUT_ARGUMENT, f"{span.slot} '{utterance.said(span)}' for {call.tool.name}"
        )
    if normalize.holds_number(rest := reading.rest(), utterance.language):
        raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, "a number that is not labelled")
    if normalize.holds_day(rest, utterance.language):
        raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, "a day that is not labelled")
    _require_fit(call.tool, arguments)
    kind = Kind.NORMALIZED if reading.is_normalized else Kind.ONE
    group = mapping.group_of(call.tool.name)
    request = _request(utterance, mapping, group, (ToolCall(call.tool.name, arguments),), "", kind)
    return Mapped(request, group.name, {rule.name: rule for rule in call.arguments}, utterance)


def _require_fit(tool: Tool, arguments: Mapping[str, Any]) -> None:
    for today in _PROBE_DAYS:
        try:
            violations = tool.violations(resolve(arguments, today))
        except DateRuleError as error:
            raise NotUnderstoodError(RejectReason.DAY_NOT_UNDERSTOOD, str(error)) from error
        if violations:
            first = violations[0]
            missing = re.fullmatch(r"'(\w+)' is a required property", first.message)
            reason = RejectReason.ARGUMENT_NOT_SAID if missing else RejectReason.SCHEMA_VIOLATION
            raise NotUnderstoodError(reason, f"{tool.name}: {first.path or 'arguments'}: {first.message}")


# --- values -----------------------------------------------------------------------------------------------------------

# What may stand between two labels that are one value: "Lagos, Nigeria", "the meeting with my boss".
_JOINTS = re.compile(
    r"\s*(?:,|\b(?:in|of|and|at|with|my|the|our|for|to|von|und|mit|dem|der|den|die|das|meinem|meiner|meinen|im"
    r"|et|avec|mon|ma|mes|le|la|les|de|du|des|y|con|mi|mis|el|los|las|del)\b|\bd'|\bl'|\s)*\s*",
    re.IGNORECASE,
)
_ARTICLES = re.compile(
    r"^(?:to|about|of|that|for|the|my|an?|daran|an|dass|fürs?|zu|zum|zur|den|die|das|der|dem|mein\w*"
    r"|ma|mon|mes|de|que|à|pour|du|la|le|les|mi|mis|a|el|los|las|sobre|para)\s+|^[dl]['’]\s*",
    re.IGNORECASE,
)


class _Reading:
    """One utterance while its arguments are read: which labels they used up, and whether words had to be changed."""

    def __init__(self, utterance: Utterance, *, has_repetition: bool = False) -> None:
        self._has_repetition = has_repetition
        self._utterance, self._language = utterance, utterance.language
        self._template, self._places = _template(utterance)
        self._used: list[tuple[int, int]] = []
        self.is_normalized = False

    def unused(self) -> list[Span]:
        """Labels that no argument took."""
        return [s for s in self._utterance.spans if not any(a <= s.start and s.end <= b for a, b in self._used)]

    def rest(self) -> str:
        """The text without what arguments took, and without labels."""
        text = self._utterance.text
        for start, end in sorted(
            [*self._used, *((span.start, span.end) for span in self._utterance.spans)], reverse=True
        ):
            text = f"{text[:start]} {text[end:]}"
        return text

    def value_of(self, rule: ArgumentRule) -> Any:
        """The argument; None where the utterance does not say it."""
        if rule.value is not None:
            return rule.value
        if rule.how is As.UTTERANCE:
            self._used.append((0, len(self._utterance.text)))
            words = _ADDRESSED.sub("", self._utterance.text).strip(" ,?!¿¡")
            return words if re.search(r"\b\w\.$", words) else words.rstrip(".")
        if rule.how in (As.AMOUNT, As.CURRENCY_FROM, As.CURRENCY_TO):
            return self._conversion(rule)
        if rule.how in (As.TIME, As.DATE_TIME):
            return self._moment(rule)
        if rule.pattern:
            return self._by_pattern(rule)
        # The first and the last day of a span come from the same label.
        is_day = rule.how in (As.DATE, As.FIRST_DAY, As.LAST_DAY)
        spans = self._labelled(rule.slots) if is_day else self._spans(rule.slots)
        if rule.how is As.REPETITION:
            return self._repetition(rule)
        spans = [span for span in spans if self._follows(span, rule)]
        if is_day:
            spans = [span for span in spans if not self._is_bare_part(span) and not self._is_daily(span)]
        return self._from_spans(rule, spans) if spans else rule.default

    def _is_bare_part(self, span: Span) -> bool:
        """Whether a label is a part of any day ("morning"), and not of one ("this evening")."""
        part, is_today = normalize.part_of_day(self._utterance.said(span), self._language)
        return bool(part) and not is_today and span.slot not in ("date", "timeRange")

    def _repetition(self, rule: ArgumentRule) -> Any:
        """How often; of the second and later slots only a rhythm counts ("every" [monday], labelled as a date)."""
        for span in self._labelled(rule.slots):
            start, end = normalize.with_neighbours(self._utterance.text, span.start, span.end, self._language)
            try:
                value, _ = normalize.repetition(self._utterance.text[start:end], self._language)
            except NotUnderstoodError:
                if span.slot == rule.slots[0]:
                    raise
                continue
            self._use(start, end)
            self.is_normalized = True
            return value
        return rule.default

    def _labelled(self, slots: Sequence[str]) -> list[Span]:
        return [span for span in self._utterance.spans if span.slot in slots]

    def _spans(self, slots: Sequence[str]) -> list[Span]:
        return [span for span in self._utterance.spans if span.slot in slots and span in self.unused()]

    def _follows(self, span: Span, rule: ArgumentRule) -> bool:
        if not rule.after:
            return True
        pattern = rule.after.get(self._language)
        before = self._utterance.text[: span.start].rstrip()
        return pattern is not None and re.search(rf"(?:{pattern.pattern})$", before, re.IGNORECASE) is not None

    def _use(self, start: int, end: int) -> str:
        self._used.append((start, end))
        return self._utterance.text[start:end]

    def _one(self, spans: Sequence[Span], rule: ArgumentRule) -> Span:
        if len(spans) > 1:
            said = " and ".join(f"'{self._utterance.said(span)}'" for span in spans)
            raise NotUnderstoodError(RejectReason.SAID_TWICE, f"{said} for '{rule.name}'")
        return spans[0]

    def _from_spans(self, rule: ArgumentRule, spans: Sequence[Span]) -> Any:
        match rule.how:
            case As.TEXT | As.PHRASE:
                return self._joined(rule, spans)
            case As.TEXTS:
                return [self._plain(span) for span in spans]
            case As.EMAILS:
                self.is_normalized = True
                return [normalize.email(self._use(span.start, span.end), self._language) for span in spans]
            case As.DATE | As.FIRST_DAY | As.LAST_DAY:
                return self._day(rule, spans)
            case _:
                return self._normalized(rule, self._one(spans, rule))

    def _plain(self, span: Span) -> Any:
        words = self._use(span.start, span.end)
        if span.value is not None:
            self.is_normalized = self.is_normalized or span.value != words
            return span.value
        return self._tidy(words)

    def _tidy(self, words: str) -> str:
        if words.startswith("="):
            raise NotUnderstoodError(
                RejectReason.WORDS_UNLABELLED, f"{words!r} begins with '=', which marks rules of dates"
            )
        return re.sub(r"['’]s$", "", words) if self._language == "en" else words

    def _joined(self, rule: ArgumentRule, spans: Sequence[Span]) -> Any:
        """The words from the first label to the last, if nothing else stands between them."""
        if len(spans) == 1:
            return self._plain(spans[0])
        text = self._utterance.text
        for before, after in itertools.pairwise(spans):
            if not _JOINTS.fullmatch(text[before.end : after.start]):
                said = " and ".join(f"'{self._utterance.said(span)}'" for span in spans)
                raise NotUnderstoodError(RejectReason.SAID_TWICE, f"{said} for '{rule.name}'")
        return self._tidy(self._use(spans[0].start, spans[-1].end))

    def _by_pattern(self, rule: ArgumentRule) -> Any:
        """Words that no label marks, found by their surroundings."""
        pattern = rule.pattern.get(self._language)
        found = pattern.search(self._template) if pattern is not None else None
        if found is None:
            return rule.default
        if rule.how is As.PHRASE:
            phrase = self._phrase(found.start(1))
            if pattern is not None and pattern.search(phrase):
                raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, "the request is said twice")
            return phrase
        start, end = self._in_text(found.start(1)), self._in_text(found.end(1))
        words = self._use(start, end)
        if rule.how is As.TEXT:
            return self._tidy(words.strip())
        return self._normalized(rule, Span("", start, end))

    def _in_text(self, at: int) -> int:
        """A place in the template as a place in the text."""
        shift = 0
        for span, (start, end) in zip(self._utterance.spans, self._places, strict=True):
            if at >= end:
                shift = span.end - end
            elif at > start:
                return span.start
        return at + shift

    def _phrase(self, begin: int) -> str:
        """What stands after a trigger ("remind me"), without the times around it: "pick up the dry cleaning"."""
        start = self._in_text(begin)
        end = len(self._utterance.text)
        times = [span for span in self._utterance.spans if span.slot in _TIMES]
        changed = True
        while changed:
            changed = False
            start += len(self._utterance.text[start:end]) - len(self._utterance.text[start:end].lstrip(" ,"))
            end = start + len(self._utterance.text[start:end].rstrip(" ,.!?"))
            for span in times:
                left, right = self._with_preposition(span)
                if left <= start < right:
                    start, changed = max(start, right), True
                if left < end <= right and end > start:
                    end, changed = left, True
            if found := _ARTICLES.match(self._utterance.text[start:end]):
                start, changed = start + found.end(), True
            if found := _TAIL.search(self._utterance.text[start:end]):
                end, changed = start + found.start(), True
        if end <= start:
            raise NotUnderstoodError(RejectReason.ARGUMENT_NOT_SAID, "nothing is said but a time")
        words = self._utterance.text[start:end]
        if _BROKEN.search(words):
            raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, "what is to be done breaks off at the time")
        if _TIME_FIRST.search(words):
            raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, "a time or a condition that is not labelled")
        if any(start <= span.start < end for span in times):
            raise NotUnderstoodError(RejectReason.SAID_TWICE, "a time stands in the middle of what is to be done")
        return self._tidy(self._use(start, end))

    def _with_preposition(self, span: Span) -> tuple[int, int]:
        start, end = normalize.with_neighbours(self._utterance.text, span.start, span.end, self._language)
        found = re.search(
            r"\b(?:on|at|in the|for|the|um|am|im|für|den|à|a las?|a|le|el|en|por la|de la|du|pour|para)\s+$",
            self._utterance.text[:start],
            re.IGNORECASE,
        )
        return (found.start() if found else start), end

    # --- values that are read ---

    def _normalized(self, rule: ArgumentRule, span: Span) -> Any:
        said = self._use(span.start, span.end) if span.value is None else str(self._plain(span))
        self.is_normalized = True
        match rule.how:
            case As.NUMBER:
                return normalize.number(said, self._language)
            case As.INTEGER:
                value = normalize.number(said, self._language)
                if value != int(value):
                    raise NotUnderstoodError(RejectReason.NUMBER_NOT_UNDERSTOOD, f"'{said}' is no whole number")
                return int(value)
            case As.SECONDS:
                return normalize.duration(said, self._language)
            case As.MINUTES:
                return max(1, normalize.duration(said, self._language) // 60)
            case As.CURRENCY:
                return normalize.currency(said, self._language)
            case As.TIME_ZONE:
                return normalize.time_zone(said, self._language)
            case As.EMAIL:
                return normalize.email(said, self._language)
            case _:
                assert rule.how is As.CHOICE
                return self._choice(rule, said)

    def _choice(self, rule: ArgumentRule, said: str) -> Any:
        words = said.casefold().strip()
        if words not in rule.values:
            raise NotUnderstoodError(RejectReason.CHOICE_NOT_UNDERSTOOD, f"'{said}' for '{rule.name}'")
        return rule.values[words]

    def _days(self, spans: Sequence[Span], name: str) -> Days:
        """The day that labels speak of; "friday" and "march third" beside each other are one."""
        text = self._utterance.text
        places = [normalize.with_neighbours(text, span.start, span.end, self._language) for span in spans]
        for (_, end), (start, _) in itertools.pairwise(places):
            if not re.fullmatch(r"(?:,|\s|the|of|de|le|el|den|dem|der)*", text[end:start], re.IGNORECASE):
                said = " and ".join(f"'{text[a:b]}'" for a, b in places)
                raise NotUnderstoodError(RejectReason.SAID_TWICE, f"{said} for '{name}'")
        said = self._use(places[0][0], places[-1][1])
        self.is_normalized = True
        try:
            return normalize.days(said, self._language)
        except NotUnderstoodError as error:
            # "every monday" begins on Monday, if another argument says how often.
            if not self._has_repetition:
                raise
            try:
                _, first = normalize.repetition(said, self._language)
            except NotUnderstoodError:
                raise error from None
            if first is None:
                raise
            return first

    def _day(self, rule: ArgumentRule, spans: Sequence[Span]) -> str:
        days = self._days(spans, rule.name)
        if rule.how is As.DATE and days.first != days.last:
            raise NotUnderstoodError(
                RejectReason.DAY_NOT_UNDERSTOOD, f"several days for '{rule.name}', which takes one"
            )
        return days.last if rule.how is As.LAST_DAY else days.first

    def _moment(self, rule: ArgumentRule) -> str | None:
        """A time of day, with its day where the tool wants a date-time."""
        parts = self._labelled(rule.part)
        part, is_today = "", False
        for span in parts:
            found, today = normalize.part_of_day(self._utterance.said(span), self._language)
            if not found:
                raise NotUnderstoodError(RejectReason.TIME_NOT_UNDERSTOOD, f"'{self._utterance.said(span)}'")
            part, is_today = found, is_today or today
        days: Days | None = None
        spans = [span for span in self._labelled(rule.day) if not self._is_daily(span)]
        if spans:
            days = self._days(spans, rule.name)
            if days.first != days.last:
                raise NotUnderstoodError(RejectReason.DAY_NOT_UNDERSTOOD, f"several days for '{rule.name}'")
            part = part or days.part
        if is_today and days is None:
            days = Days("=today", "=today")
        clock = self._clock(rule, part)
        for span in parts:
            self._use(span.start, span.end)
        if clock is None:
            return None
        self.is_normalized = True
        if rule.how is As.TIME:
            return str(clock)
        if days is None:
            if not rule.default_day:
                raise NotUnderstoodError(RejectReason.ARGUMENT_NOT_SAID, f"the day of '{rule.name}'")
            day = "=today" if rule.default_day == "today" else "=today+1"
            days = Days(day, day)
        return f"{days.first}T{clock}"

    def _is_daily(self, span: Span) -> bool:
        """ "every day" names no day to begin on."""
        try:
            start, end = normalize.with_neighbours(self._utterance.text, span.start, span.end, self._language)
            return (
                self._has_repetition
                and normalize.repetition(self._utterance.text[start:end], self._language)[1] is None
            )
        except NotUnderstoodError:
            return False

    def _clock(self, rule: ArgumentRule, part: str) -> Clock | None:
        spans = self._spans(rule.slots)
        if not spans:
            return Clock(12, 0, True) if part == "noon" else Clock(0, 0, True) if part == "midnight" else None
        text = self._utterance.text
        span = self._one(spans, rule)
        start, end = normalize.with_neighbours(text, span.start, span.end, self._language)
        said = self._use(start, end)
        clock = normalize.clock(said, self._language, part)
        if clock.is_settled:
            return clock
        if rule.half_day == "morning" and 4 <= clock.hour <= 11:
            return clock
        if rule.half_day == "afternoon" and 1 <= clock.hour <= 7:
            return Clock(clock.hour + 12, clock.minute, True)
        raise NotUnderstoodError(RejectReason.HALF_OF_DAY_UNKNOWN, f"'{said}' for '{rule.name}'")

    # --- currencies ---

    def _conversion(self, rule: ArgumentRule) -> Any:
        """From what, to what, and how much: the currency that a number or an article stands before is converted."""
        text = self._utterance.text
        spans = self._labelled(rule.slots)
        if len(spans) != 2:
            raise NotUnderstoodError(RejectReason.ARGUMENT_NOT_SAID, f"{len(spans)} currencies, and not two")
        amounts = [normalize.amount_before(text[: span.start], self._language) for span in spans]
        if all(amount is not None for amount in amounts):
            raise NotUnderstoodError(RejectReason.SAID_TWICE, "both currencies have an amount")
        first = 1 if amounts[1] is not None else 0
        amount, words = amounts[first] or (1, "")
        source, target = spans[first], spans[1 - first]
        if first == 0 and amounts[0] is None and normalize.asks_how_many(text[: spans[0].start], self._language):
            source, target = target, source
        self.is_normalized = True
        match rule.how:
            case As.AMOUNT:
                at = (spans[first].start - len(words), spans[first].start)
                if words:
                    self._used.append(at)
                return amount
            case As.CURRENCY_FROM:
                return normalize.currency(self._use(source.start, source.end), self._language)
            case _:
                return normalize.currency(self._use(target.start, target.end), self._language)


_TIMES = frozenset({"date", "time", "timeofday", "general_frequency", "timeRange"})
_TAIL = re.compile(
    r"(?:^|\s+)(?:please|bitte|s'il (?:te|vous) plaît|por favor|on|at|for|of|the|um|am|von|à|a|de|du|del|en|por|para"
    r"|pour|le"
    r"|einstellen|erstellen|setzen|stellen|hinzufügen|(?:right )?now|olly|alexa)$",
    re.IGNORECASE,
)
# A phrase that breaks off where the time stood.
_TIME_FIRST = re.compile(
    r"^(?:at|on|in|by|before|after|when|if|um|am|vor|bevor|nach|wenn|à|avant|après|quand|si|antes|después|cuando)\b",
    re.IGNORECASE,
)
_BROKEN = re.compile(
    r"\b(?:is|are|be|will|ist|sind|est|sont|sera|es|son|será|titled|called|namens)$|^(?:titled|called|namens)\b",
    re.IGNORECASE,
)
# How an assistant is addressed before a request.
_ADDRESSED = re.compile(
    r"^(?:(?:hey|ok|okay|hi|hallo|oye|salut)\s+(?:google\b[\s,]*)?)?(?:(?:olly|alexa|siri|cortana|pda)\b[\s,]*)?"
    r"(?:(?:please|bitte|por favor|s'il (?:te|vous) plaît)\s+)?",
    re.IGNORECASE,
)


# --- data that name the call themselves -------------------------------------------------------------------------------

# Said of what is to happen later, though the program runs at once.
_TRIGGER = re.compile(
    r"^(?:if|when|whenever|once|as soon as)\b|\b(?:let me know|notify me|alert me|tell me) (?:if|when)\b"
)
_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+(?:_[\w.]+:\w+?)?_\d+\b")


def _given_call(utterance: Utterance, mapping: IntentMapping) -> Mapped:
    """Thingpedia's rows: placeholders get one value in the text and in the call."""
    assert utterance.call is not None
    name, given = utterance.call
    group = next((group for group in mapping.groups if any(tool.name == name for tool in group.tools)), None)
    if group is None:
        raise NotUnderstoodError(RejectReason.UNKNOWN_TOOL, f"{name} has no schema")
    tool = next(tool for tool in group.tools if tool.name == name)
    if _TRIGGER.search(utterance.text):
        raise NotUnderstoodError(RejectReason.NOT_ONE_CALL, "worded as a trigger")
    if variables := [value for value in given.values() if isinstance(value, str) and value.startswith(("$", "="))]:
        raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, f"{variables[0]!r} is a variable of a program")
    rng = random.Random(f"{utterance.row_id} {utterance.text}")
    chosen: dict[str, tuple[str, Any]] = {}
    for mark in dict.fromkeys(_PLACEHOLDER.findall(utterance.text)):
        kind = mark.rsplit("_", 1)[0]
        if kind not in mapping.placeholders:
            raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, f"no values for the placeholder {kind}")
        taken = {value for value, _ in chosen.values()}
        pool = [pair for pair in mapping.placeholders[kind] if pair[0] not in taken]
        if not pool:
            raise NotUnderstoodError(RejectReason.WORDS_UNLABELLED, f"too few values for {kind}")
        chosen[mark] = rng.choice(pool)
    text = utterance.text
    for mark in sorted(chosen, key=len, reverse=True):
        text = text.replace(mark, chosen[mark][0])
    properties = tool.parameters["properties"]
    filled = {key: _filled(given[key], chosen) for key in properties if key in given}
    filled |= {key: given[key] for key in given if key not in properties}
    if lost := sorted(set(chosen) - set(re.findall(_PLACEHOLDER, " ".join(map(str, given.values()))))):
        raise NotUnderstoodError(RejectReason.SLOT_WITHOUT_ARGUMENT, f"{lost[0]} is in no argument")
    _require_fit(tool, filled)
    text = _detokenized(text)
    row = replace(utterance, text=text, call=None)
    kind = Kind.NORMALIZED if any(said != str(value) for said, value in chosen.values()) else Kind.ONE
    request = _request(row, mapping, group, (ToolCall(name, filled),), "", kind)
    return Mapped(request, group.name, {}, row)


def _filled(value: Any, chosen: Mapping[str, tuple[str, Any]]) -> Any:
    if not isinstance(value, str):
        return value
    if value in chosen:
        return chosen[value][1]
    for mark in sorted(chosen, key=len, reverse=True):
        value = value.replace(mark, str(chosen[mark][1]))
    return value


def _detokenized(text: str) -> str:
    text = re.sub(r"\s+([.,?!;:])(?=\s|$)", r"\1", text)
    return re.sub(r"\s+('s|n't|'re|'ll|'m|'d|'ve)\b", r"\1", text).strip()
