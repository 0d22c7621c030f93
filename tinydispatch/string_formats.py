"""The values of `format` that are enforced: one regular expression each, which the grammar writes and the check reads.

Beside the standards' formats stand four of ours: `local-date-time` (`YYYY-MM-DDTHH:MM`), `local-time` (`HH:MM`),
`currency` and `iana-time-zone`.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

TIME_ZONE = "iana-time-zone"

_YEAR = r"(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
# Multiples of four, but of a hundred only those that are multiples of four hundred.
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_MINUTES = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
# RFC 3339: seconds and an offset are part of a time.
_TIME = rf"{_MINUTES}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_MINUTES})"
_N = r"[0-9]{1,9}"
_CLOCK = rf"T(?:{_N}H(?:{_N}M)?(?:{_N}(?:\.{_N})?S)?|{_N}M(?:{_N}(?:\.{_N})?S)?|{_N}(?:\.{_N})?S)"
_DURATION = rf"P(?:{_N}W|(?:{_N}Y(?:{_N}M)?(?:{_N}D)?|{_N}M(?:{_N}D)?|{_N}D)(?:{_CLOCK})?|{_CLOCK})"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_HEX = r"[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [
        rf"(?:{_HEX}:){{7}}{_HEX}",
        rf"(?:{_HEX}:){{6}}{_IPV4}",
        *(rf"(?:{_HEX}:){{{n}}}(?::{_HEX}){{1,{7 - n}}}" for n in range(1, 7)),
        *(rf"(?:{_HEX}:){{{n}}}(?::{_HEX}){{0,{5 - n}}}:{_IPV4}" for n in range(1, 6)),
        rf":(?::{_HEX}){{1,7}}",
        rf":(?::{_HEX}){{0,5}}:{_IPV4}",
        rf"(?:{_HEX}:){{1,7}}:",
        "::",
    ]
)
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9\-]{0,61}[a-zA-Z0-9])?"
# A mailbox as mail servers take it: words joined by single signs, so that neither part can be a run of signs.
# Letters by their blocks, which mean the same to Python and to llguidance: no full-width signs, no punctuation.
_LETTERS = (
    r"0-9A-Za-z\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u02AF\u0370-\u037D\u037F-\u1FFF\u2C00-\u2DFF\u3041-\uD7FF\uF900-\uFAFF"
)
_WORD = f"[{_LETTERS}_]"
_LOCAL = rf"{_WORD}(?:[.+'&=~#!$%*?^`{{|}}\/\-]?{_WORD}){{0,63}}"
_DOMAIN = f"[{_LETTERS}](?:-{{0,2}}[{_LETTERS}]){{0,62}}"
_EMAIL = rf"{_LOCAL}@{_DOMAIN}(?:\.{_DOMAIN}){{1,8}}"
_URI_CHARACTER = r"[^\s\"\\<>^`{|}\x00-\x20\x7F]"

# In the syntax of llguidance (Rust's), each for the whole text.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "date": _DATE,
        "local-date-time": f"{_DATE}T{_MINUTES}",
        "local-time": _MINUTES,
        "date-time": f"{_DATE}T{_TIME}",
        "time": _TIME,
        "duration": _DURATION,
        "currency": "[A-Z]{3}",
        "email": _EMAIL,
        "idn-email": _EMAIL,
        "uri": rf"[a-zA-Z][a-zA-Z0-9+.\-]{{0,31}}:{_URI_CHARACTER}{{1,2000}}",
        "iri": rf"[a-zA-Z][a-zA-Z0-9+.\-]{{0,31}}:{_URI_CHARACTER}{{1,2000}}",
        "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
        "ipv4": _IPV4,
        "ipv6": _IPV6,
        "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,30}}",
    }
)


def fits_format(text: str, form: str) -> bool:
    """Whether a text is of that format; every text is of a format that is not known here."""
    if form == TIME_ZONE:
        return text in time_zones()
    if form not in FORMATS:
        return True
    if form in ("date-time", "time"):
        text = text.upper()  # RFC 3339 takes a small t and z, too
    return _compiled(form).fullmatch(text) is not None


@lru_cache(maxsize=32)
def _compiled(form: str) -> re.Pattern[str]:
    # Ours, and none of them can backtrack twice over the same text.
    return re.compile(FORMATS[form])


@lru_cache(maxsize=1)
def time_zones() -> frozenset[str]:
    """Every time zone name that this machine knows, looked up once: it takes a walk through several hundred files."""
    return frozenset(zoneinfo.available_timezones())
