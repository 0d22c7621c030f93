"""A reply as it is being written → texts and finished calls, so that a stream never shows half a call."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tinydispatch.formats import CALL_END, CALL_START, UnparsedToolCall, parse_reply
from tinydispatch.tools import CallViolation, Tool, ToolCall, check_calls

# What becomes certain: a piece of text, or a whole call.
Delta = str | ToolCall


class ReplyReader:
    """Takes the reply's bytes piece by piece; `feed` and `end` return what became certain.

    However the bytes are cut, all texts together are `parse_reply(…).content` and the calls are its calls, but for
    those that break their tool's schema: they stand in `violations` and are not returned. `is_stopped` turns True when
    one of `stop` occurs in the text, which then ends before it.
    """

    def __init__(self, tools: Sequence[Tool], stop: Sequence[str] = ()) -> None:
        self.violations: list[CallViolation] = []
        self.unparsed: list[UnparsedToolCall] = []
        self.is_stopped = False
        self._tools, self._stop = tools, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread = ""  # may hold a marker, or the beginning of one
        self._held = ""  # text that may be white space at the end, or the beginning of a stop
        self._is_in_call = False
        self._has_text = False

    def feed(self, data: bytes) -> list[Delta]:
        """What became certain with these bytes."""
        self._unread += self._decoder.decode(data)
        return self._read()

    def end(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        self._unread += self._decoder.decode(b"", final=True)
        found = self._read()
        if self._is_in_call:
            self.unparsed.append(UnparsedToolCall(self._unread, "the call is never closed"))
        elif not self.is_stopped:
            self._held += self._unread
        self._unread = ""
        return found + [text for text in [*self._certain_text(), self._held.rstrip()] if text]

    def _read(self) -> list[Delta]:
        found: list[Delta] = []
        while not self.is_stopped:
            marker = CALL_END if self._is_in_call else CALL_START
            before, is_found, after = self._unread.partition(marker)
            if not is_found:
                break
            self._unread = after
            if self._is_in_call:
                found += self._read_call(before)
            else:
                self._held += before
                found += self._certain_text()
            self._is_in_call = not self._is_in_call
        if not self._is_in_call and not self.is_stopped:
            size = _beginning_at_end(self._unread, CALL_START)
            self._held += self._unread[: len(self._unread) - size]
            self._unread = self._unread[len(self._unread) - size :]
            found += self._certain_text()
        return found

    def _read_call(self, body: str) -> list[Delta]:
        parsed = parse_reply(f"{CALL_START}{body}{CALL_END}", self._tools)
        violations = check_calls(parsed.calls, self._tools)
        self.unparsed += parsed.unparsed
        self.violations += violations
        return [] if violations else list(parsed.calls)

    def _certain_text(self) -> list[Delta]:
        text = self._held if self._has_text else self._held.lstrip()
        certain, held, is_stopped = _until_stop(text, self._stop)
        self.is_stopped = self.is_stopped or is_stopped
        text = certain.rstrip()
        self._held = "" if self.is_stopped else certain[len(text) :] + held
        self._has_text = self._has_text or bool(text)
        return [text] if text else []


class TextReader:
    """A `ReplyReader` of texts that are continued: everything is text, markers and white space too."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.violations: list[CallViolation] = []
        self.unparsed: list[UnparsedToolCall] = []
        self.is_stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop

    def feed(self, data: bytes) -> list[Delta]:
        """What became certain with these bytes."""
        if self.is_stopped:
            return []
        self._held += self._decoder.decode(data)
        text, self._held, self.is_stopped = _until_stop(self._held, self._stop)
        return [text] if text else []

    def end(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        found = self.feed(self._decoder.decode(b"", final=True).encode())
        held, self._held = self._held, ""
        return [*found, held] if held and not self.is_stopped else found


def _until_stop(text: str, stop: Sequence[str]) -> tuple[str, str, bool]:
    """What is certain of a text, what may yet become a stop, and whether there is one, before which the text ends."""
    places = [place for marker in stop if (place := text.find(marker)) >= 0]
    if places:
        return text[: min(places)], "", True
    size = max((_beginning_at_end(text, marker) for marker in stop), default=0)
    return text[: len(text) - size], text[len(text) - size :], False


def _beginning_at_end(text: str, marker: str) -> int:
    """How many characters at the end of `text` are a beginning of `marker`."""
    sizes = range(min(len(text), len(marker) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)
