"""Which day a word of the user's stands for, as an extra target at that very word.

A model of this size does not find by itself that "Friday" has to be looked up in the date line: the answer that would
reward it comes thirty tokens later and needs three steps that are useless one without the others. So the hidden state
at the word, half-way up the layers, is asked for the day's number; carrying it to the answer is then copying.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tinydispatch.formats import TURN_END, TURN_START

_DATE_LINE = re.compile(r"Today is (\w+) \d{4}-\d\d-(\d\d)\. Next: (.+?)\.")
_DAY = re.compile(r"\d{4}-\d\d-(\d\d) (\w+)")
_USER_TURN = re.compile(re.escape(f"{TURN_START}user\n") + r"(.*?)" + re.escape(TURN_END), re.DOTALL)
_WORD = re.compile(
    r"(?<!next )(?<!after )\b(?:(mon|tue|wed|thu|fri|sat|sun)(?:s|r|rs|nes|ur)?(?:day)?|today|tonight|tomorrow)\b"
    r"(?! (?:of )?next week)",
    re.IGNORECASE,
)


def lookups(text: str) -> Iterator[tuple[int, str]]:
    """(end of a user's word that names a day, two digits of that day) for a conversation with a date line.

    "Next Friday" and "the day after tomorrow" are left out: those have to be worked out, not looked up.
    """
    line = _DATE_LINE.search(text)
    if line is None:
        return
    days = [(weekday.lower(), day) for day, weekday in _DAY.findall(line.group(3))]
    table = {weekday[:3]: day for weekday, day in days} | {"today": line.group(2), "tonight": line.group(2)}
    table["tomorrow"] = days[0][1]
    for turn in _USER_TURN.finditer(text, line.end()):
        for word in _WORD.finditer(text, turn.start(1), turn.end(1)):
            yield word.end(), table[(word.group(1) or word.group()).lower()]
