"""Runs calls: only those that are allowed and agreed to, within their time, and each effect at most once."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tinydispatch.folders import append_whole
from tinydispatch.layers.tool_calls import BoundTool, CallContext, CallStatus, ToolFailure, ToolOutcome, ToolsetError
from tinydispatch.tools import Tool, ToolCall

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished(Generic[T]):
    """What the work returned, or the exception that it ended in."""

    value: T | None = None
    error: Exception | None = None


def start(work: Callable[[], None], name: str) -> None:
    """Run on a daemon thread: a pool's threads would be joined at exit, and a hanging tool would keep the process."""
    threading.Thread(target=work, name=name, daemon=True).start()


def run_with_timeout(
    work: Callable[[], T], timeout_s: float, late: Callable[[Finished[T]], None] | None = None
) -> Finished[T] | None:
    """What the work ended in, None when it has not ended within the time.

    Args:
        late: told what it ended in all the same, from the thread of the work, if that is after the time was up.
    """
    lock = threading.Lock()
    is_done = threading.Event()
    found: list[Finished[T]] = []
    is_given_up = False

    def body() -> None:
        try:
            end = Finished(value=work())
        except Exception as error:  # noqa: BLE001 (handed to the caller, who knows what it means)
            end = Finished(error=error)
        with lock:
            found.append(end)
            is_late = is_given_up
        is_done.set()
        if is_late and late is not None:
            late(end)

    start(body, "tinydispatch-work")
    is_done.wait(max(0.0, timeout_s))
    with lock:
        is_given_up = not found
        return found[0] if found else None


class LedgerError(ValueError):
    """A ledger file that cannot be read; nothing is run without it, because it might have been run before."""


class Ledger:
    """Remembers calls; with a file, over restarts too. Safe for use from several threads.

    A call is written down before it starts; where that cannot be done (the disk is full), it does not start. One that
    was started and whose end is not known, or could not be written down, counts as unknown after a restart.

    Raises:
        LedgerError: the file is there and damaged; names the line.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ended: dict[str, ToolOutcome] = {}
        self._started: set[str] = set()
        if path is not None and path.exists():
            self._read(path)

    def begin(self, key: str, call: ToolCall) -> ToolOutcome | None:
        """None when the call is new and now belongs to the caller; else how it ended, UNKNOWN if it has not yet.

        REFUSED: the call cannot be written down, and may not start.
        """
        with self._lock:
            if key in self._ended and self._ended[key].status is not CallStatus.FAILED:
                return self._ended[key]
            if key in self._started:
                return ToolOutcome(call, key, CallStatus.UNKNOWN, error="was started before; how it ended is not known")
            # A failed call had no effect: trying it once more is a new start.
            started = {"name": call.name, "arguments": dict(call.arguments)}
            if problem := self._write({"key": key, "started": started}):
                return ToolOutcome(call, key, CallStatus.REFUSED, error=f"was not made: {problem}")
            self._started.add(key)
            self._ended.pop(key, None)
            return None

    def end(self, outcome: ToolOutcome) -> None:
        """How a call that was begun ended; UNKNOWN leaves it open, so that a later answer can still close it."""
        with self._lock:
            if outcome.status is CallStatus.UNKNOWN:
                return
            self._started.discard(outcome.key)
            self._ended[outcome.key] = outcome
            ended = {"status": str(outcome.status), "value": outcome.value, "error": outcome.error}
            call = {"name": outcome.call.name, "arguments": dict(outcome.call.arguments)}
            # Where it cannot be written, this process knows it all the same, and the next one that it is not known.
            if problem := self._write({"key": outcome.key, "ended": ended, "call": call}):
                _LOG.error("the end of call %s of %s stands nowhere: %s", outcome.key, outcome.call.name, problem)

    def known(self, key: str) -> ToolOutcome | None:
        """How the call ended, where that is known."""
        with self._lock:
            return self._ended.get(key)

    def _write(self, line: dict[str, Any]) -> str:
        """Append a line, or nothing; why it could not be written, "" where it was."""
        if self._path is None:
            return ""
        data = json.dumps(line, ensure_ascii=True, default=str).encode("ascii") + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                append_whole(descriptor, data)
                os.fsync(descriptor)  # the call may start only after this is safe from a power cut
            finally:
                os.close(descriptor)
        except OSError as error:
            return f"{self._path}: the ledger cannot be written: {error.strerror}"
        return ""

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        # What stands after the last line feed was cut off by a crash, before the call it speaks of could start, or
        # before its end was safe; the next line must not be glued to it.
        whole, _, rest = data.rpartition(b"\n")
        if rest:
            os.truncate(path, len(data) - len(rest))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._replay(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(f"{path}:{number}: not an entry of a ledger: {error}") from error

    def _replay(self, entry: dict[str, Any]) -> None:
        key = entry["key"]
        if "started" in entry:
            self._started.add(key)
            self._ended.pop(key, None)
            return
        call, ended = entry["call"], entry["ended"]
        self._started.discard(key)
        self._ended[key] = ToolOutcome(
            ToolCall(call["name"], call["arguments"]),
            key,
            CallStatus(ended["status"]),
            ended["value"],
            ended["error"],
        )


# With a scheme, without one (//host/…), and as people write it (www.host, host.com/…); every repetition is bounded.
_LINK = (
    r"[a-z][a-z0-9+.-]{0,20}:[/\\]{1,9}[^\s\"'<>)]+|(?<![\w:/\\])[/\\]{2}[^\s\"'<>)/\\]+\.[^\s\"'<>)]+"
    r"|\bwww\.[^\s\"'<>)]+|\b(?:[\w-]{1,63}\.){1,9}[a-z]{2,24}(?::\d{1,5})?[/?#][^\s\"'<>)]*"
)
_ADDRESS = re.compile(rf"[^\s<>,;:\"'()@/\\?=&#]{{1,64}}@[^\s<>,;:\"'()@/\\]{{1,255}}|{_LINK}", re.IGNORECASE)
_IS_LINK = re.compile(_LINK, re.IGNORECASE)
# Two attempts wait 0.2 s between them, three 0.6 s in all.
_FIRST_WAIT_S = 0.2


@dataclass(frozen=True)
class ToolPolicy:
    """What may be run, and how often it is tried.

    `allowed`: names, None for all. `is_confirming`: a person agrees to each call with side effects. Whatever it says, a
    call with side effects that names an e-mail address that the user never wrote, and any call that names such a link,
    is agreed to by a person: the model may have it from a tool's result, and to read from a link is to write to it.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True}

    allowed: frozenset[str] | None = None
    is_confirming: bool = True
    max_attempts: int = 3
    max_argument_characters: int = 65_536
    max_result_characters: int = 8_000
    transient: str = r"temporar|unavailable|try again|time[ds]?[ -]?out|rate limit|too many requests|busy|overload"

    def __post_init__(self) -> None:
        for name in ("max_attempts", "max_argument_characters", "max_result_characters"):
            if getattr(self, name) < 1:
                raise ToolsetError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Permission:
    """What a person has said about calls: keys that they agreed to and declined, and all the words they wrote."""

    agreed: frozenset[str] = frozenset()
    declined: frozenset[str] = frozenset()
    words: Sequence[str] = ()


class Toolbox:
    """Bound tools under a policy. Safe for use from several threads, as far as the tools are.

    Args:
        ledger: what was run before; one for all conversations.
        sleep: waits between attempts; a test passes its own.

    Raises:
        ToolsetError: two tools have one name, or the policy allows a tool that is not there.
    """

    def __init__(
        self,
        tools: Sequence[BoundTool],
        policy: ToolPolicy | None = None,
        ledger: Ledger | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.policy = policy or ToolPolicy()
        self.ledger = ledger or Ledger()
        self._clock, self._sleep = clock, sleep
        names = [tool.tool.name for tool in tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ToolsetError(f"tool names occur twice: {', '.join(twice)}")
        allowed = self.policy.allowed
        if allowed is not None and (absent := sorted(allowed - set(names))):
            raise ToolsetError(f"allowed tools that are not there: {', '.join(absent)}; there are {', '.join(names)}")
        self._tools = {tool.tool.name: tool for tool in tools if allowed is None or tool.tool.name in allowed}
        self._transient = re.compile(self.policy.transient, re.IGNORECASE)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What models are offered: nothing that is not allowed."""
        return tuple(bound.tool for bound in self._tools.values())

    @property
    def result_schemas(self) -> dict[str, Mapping[str, Any]]:
        """What is known of results, for the check of plans."""
        return {name: bound.result_schema for name, bound in self._tools.items() if bound.result_schema}

    def bound(self, name: str) -> BoundTool | None:
        """The tool of that name, if it is there and allowed."""
        return self._tools.get(name)

    def has_side_effects(self, name: str) -> bool:
        """Whether a call of that name may change something; one of an unknown name changes nothing."""
        bound = self._tools.get(name)
        return bound is not None and bound.has_side_effects

    def execute(self, call: ToolCall, key: str, permission: Permission, deadline: float = float("inf")) -> ToolOutcome:
        """Run a call to its end, its time limit, or `deadline` by the toolbox's clock. Never raises for a tool."""
        started = self._clock()
        outcome = self._refusal(call, key) or self._unagreed(call, key, permission)
        if outcome is None:
            before = self.ledger.begin(key, call) if self._tools[call.name].has_side_effects else None
            outcome = self._run(call, key, deadline) if before is None else self._again(before, deadline)
        return replace(outcome, duration_s=self._clock() - started)

    def _refusal(self, call: ToolCall, key: str) -> ToolOutcome | None:
        bound = self._tools.get(call.name)
        if bound is None:
            reason = f"unknown tool '{call.name}'; there are {', '.join(self._tools)}"
            return ToolOutcome(call, key, CallStatus.REFUSED, error=reason)
        size = len(json.dumps(dict(call.arguments), default=str))
        if size > self.policy.max_argument_characters:
            reason = f"arguments of {size} characters; at most {self.policy.max_argument_characters} are passed on"
            return ToolOutcome(call, key, CallStatus.REFUSED, error=reason)
        if found := bound.tool.violations(call.arguments):
            reason = "; ".join(f"{item.path}: {item.message}".lstrip(": ") for item in found)
            return ToolOutcome(call, key, CallStatus.REFUSED, error=reason)
        return None

    def _unagreed(self, call: ToolCall, key: str, permission: Permission) -> ToolOutcome | None:
        has_side_effects = self._tools[call.name].has_side_effects
        foreign = foreign_addresses(call, permission.words)
        if not has_side_effects:
            # Whoever fetches a link tells its host what stands in it.
            foreign = tuple(address for address in foreign if is_link(address))
            if not foreign:
                return None
        if key in permission.agreed:
            return None
        if key in permission.declined:
            return ToolOutcome(call, key, CallStatus.DECLINED, error="the user does not want this call to be made")
        if foreign:
            reason = f"names {', '.join(foreign)}, which the user has not written"
            return ToolOutcome(call, key, CallStatus.UNCONFIRMED, error=reason)
        if self.policy.is_confirming:
            return ToolOutcome(call, key, CallStatus.UNCONFIRMED, error="has side effects")
        return None

    def _again(self, before: ToolOutcome, deadline: float) -> ToolOutcome:
        """A call that was begun earlier: its result of then; or, where none is known, what can do no harm."""
        if before.status is CallStatus.REFUSED:
            return before
        if before.status is not CallStatus.UNKNOWN:
            return replace(before, is_replayed=True)
        settled = self._settle(before)
        if settled.status is CallStatus.UNKNOWN and self._tools[before.call.name].takes_key:
            return self._run(before.call, before.key, deadline)
        return settled

    def _settle(self, unknown: ToolOutcome) -> ToolOutcome:
        """Find out about a call that may have had its effect: from a late answer, or from the tool itself."""
        if late := self.ledger.known(unknown.key):
            return replace(late, attempts=unknown.attempts)
        bound = self._tools[unknown.call.name]
        if bound.did_happen is None:
            return unknown
        context = CallContext(unknown.key, bound.timeout_s)
        did_happen, arguments = bound.did_happen, unknown.call.arguments
        end = run_with_timeout(lambda: did_happen(arguments, context), bound.timeout_s)
        if end is None or end.error is not None:
            return unknown
        status = CallStatus.FAILED if end.value is None else CallStatus.DONE
        error = f"{unknown.error}; it had no effect" if end.value is None else ""
        found = replace(unknown, status=status, value=end.value, error=error)
        self.ledger.end(found)
        return found

    def _run(self, call: ToolCall, key: str, deadline: float) -> ToolOutcome:
        bound = self._tools[call.name]
        wait_s = _FIRST_WAIT_S
        outcome = ToolOutcome(call, key, CallStatus.FAILED, error="the time was up before the call could be made")
        for attempt in range(1, self.policy.max_attempts + 1):
            left = deadline - self._clock()
            if left <= 0:
                break
            outcome, may_retry = self._attempt(bound, call, key, min(bound.timeout_s, left), attempt)
            if not may_retry or attempt == self.policy.max_attempts or wait_s >= deadline - self._clock():
                break
            self._sleep(wait_s)
            wait_s *= 2
        if bound.has_side_effects:
            self.ledger.end(outcome)
            if outcome.status is CallStatus.UNKNOWN:
                outcome = self._settle(outcome)
        return outcome

    def _attempt(
        self, bound: BoundTool, call: ToolCall, key: str, timeout_s: float, attempt: int
    ) -> tuple[ToolOutcome, bool]:
        """How one attempt ended, and whether another can do no harm and may help."""
        context = CallContext(key, timeout_s)

        def late(end: Finished[Any]) -> None:
            # A call without effects that ends late is nobody's any more.
            if bound.has_side_effects:
                self.ledger.end(self._outcome(bound, call, key, end, attempt)[0])

        end = run_with_timeout(lambda: bound.run(call.arguments, context), timeout_s, late)
        if end is None:
            status = CallStatus.UNKNOWN if bound.has_side_effects else CallStatus.FAILED
            error = f"no answer within {timeout_s:g} s"
            return ToolOutcome(call, key, status, error=error, attempts=attempt), bound.is_repeatable
        return self._outcome(bound, call, key, end, attempt)

    def _outcome(
        self, bound: BoundTool, call: ToolCall, key: str, end: Finished[Any], attempt: int
    ) -> tuple[ToolOutcome, bool]:
        if end.error is None:
            return ToolOutcome(call, key, CallStatus.DONE, end.value, attempts=attempt), False
        error = end.error
        text = str(error) or type(error).__name__
        did_act = error.did_act if isinstance(error, ToolFailure) else None
        is_transient = (isinstance(error, ToolFailure) and error.is_transient) or bool(self._transient.search(text))
        is_open = bound.has_side_effects and did_act is not False
        status = CallStatus.UNKNOWN if is_open else CallStatus.FAILED
        may_retry = is_transient and (bound.is_repeatable or did_act is False)
        return ToolOutcome(call, key, status, error=text, attempts=attempt), may_retry


def foreign_addresses(call: ToolCall, words: Sequence[str]) -> tuple[str, ...]:
    """E-mail addresses and links in the arguments that nobody wrote to us."""
    # Compared as wholes: "jo@kew.co" is no part of what was written by writing "jo@kew.com".
    known = {address.lower() for text in words for address in _addresses(text)}
    found = [address for text in _texts(dict(call.arguments)) for address in _addresses(text)]
    return tuple(dict.fromkeys(address for address in found if address.lower() not in known))


def is_link(address: str) -> bool:
    """Whether it leads somewhere, rather than to a person."""
    return _IS_LINK.match(address) is not None


def _texts(value: Any) -> Iterator[str]:
    """Every text of a JSON value, its keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _addresses(text: str) -> list[str]:
    # As whoever takes them will read them: full-width letters, other dots, and characters that are not seen.
    plain = unicodedata.normalize("NFKC", text).translate(_DOTS)
    plain = "".join(char for char in plain if unicodedata.category(char) != "Cf")
    return [address.rstrip(".,;:!?") for address in _ADDRESS.findall(plain)]


_DOTS = str.maketrans({"\u3002": ".", "\uff61": "."})
