"""Grammars of strangers' schemas, made in a process of its own whose death or delay is the error of one request.

The grammar compiler is native code that walks a schema by recursion. Budgets (`docs/schemas.md`) keep it from what is
known to hurt; this process keeps the server from what is not. It starts at the first schema that is not ordinary, stays
for the next ones, and is killed and started anew when it takes too long or too much memory. Ordinary schemas, and those
that were seen before, never come here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from tinydispatch.decoding.reply import CallFormat, ReplyShape, ToolChoice, checked_grammar
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.tools import Tool

DEADLINE_S = 2.0
# The deadline is the processor's time, which a busy machine does not shorten; the clock gives so many times that.
_CLOCK_FACTOR = 4
MEMORY_BYTES = 200 << 20
_START_S, _DYING_S = 60.0, 0.2
_STACK_BYTES = 2 << 20
# More characters than these, patterns, references, or more alternatives are tried out first.
_ORDINARY_CHARS, _ORDINARY_CHOICES = 8_000, 24
_STRANGE = re.compile(r'"(?:pattern|patternProperties|propertyNames|\$ref|\$dynamicRef|\$recursiveRef)":')
_CHOICE = re.compile(r'"(?:allOf|anyOf|oneOf|dependentSchemas|if)":')
_MAY_TRY: ContextVar[bool] = ContextVar("may_try", default=True)


class StrangeSchemaError(Exception):
    """A schema that has to be tried out, met where nobody may wait for that (`no_trials`)."""


@contextmanager
def no_trials() -> Iterator[None]:
    """Within, a schema that would have to be tried out raises `StrangeSchemaError` at once."""
    token = _MAY_TRY.set(False)
    try:
        yield
    finally:
        _MAY_TRY.reset(token)


def is_ordinary(text: str) -> bool:
    """Whether a tool list, as JSON, is so small and plain that compiling it surely costs little."""
    return (
        len(text) <= _ORDINARY_CHARS
        and _STRANGE.search(text) is None
        and sum(1 for _ in _CHOICE.finditer(text)) <= _ORDINARY_CHOICES
    )


class GrammarChild:
    """The process, and what it is asked. Safe for use from several threads; it does one thing at a time.

    Args:
        deadline_s: of the processor's time, for one answer; four times as much by the clock.
        memory_bytes: what the process may take beyond what it has when it is ready.
        command: the program; a test passes its own.
    """

    def __init__(
        self,
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = MEMORY_BYTES,
        command: Sequence[str] = (sys.executable, "-m", "tinydispatch.decoding.child"),
    ) -> None:
        self._deadline_s, self._memory_bytes, self._command = deadline_s, memory_bytes, tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = self._is_abandoned = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return self._process.pid if self._process is not None else None

    def check(self, tools: Sequence[Any]) -> None:
        """Whether tools, in the OpenAI shape, can be read at all within the limits.

        Raises:
            GrammarError: they cannot. What is wrong with one of them is for whoever reads it then.
        """
        if not is_ordinary(json.dumps(tools)):
            self._ask({"tools": tools})

    def grammar(self, tools: Sequence[Tool], shape: ReplyShape, form: CallFormat) -> str:
        """What `checked_grammar` makes of them, made here where they are ordinary.

        Raises:
            GrammarError: no call can fit, or making it takes too long or too much memory.
        """
        entries = [tool.to_openai() for tool in tools]
        if is_ordinary(json.dumps(entries)):
            return checked_grammar(tools, shape, form)
        made = self._ask({"tools": entries, "shape": asdict(shape), "form": asdict(form)})
        return str(made["grammar"])

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._end()

    def abandon(self) -> None:
        """End the process at once, and start no other; may be called from a signal's handler.

        Who waits for an answer, or asks from now on, gets a `GrammarError`.
        """
        self._is_abandoned = True
        process = self._process
        if process is not None:
            process.kill()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if not _MAY_TRY.get():
            raise StrangeSchemaError
        names = ", ".join(_name(entry) for entry in question["tools"][:3])
        with self._lock:
            if self._is_abandoned:
                raise GrammarError(names, "", "nothing is compiled any more: the process is ending")
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            ends = time.monotonic() + _CLOCK_FACTOR * self._deadline_s
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                line = _read_line(process.stdout, ends)
            except BrokenPipeError:
                line = b""
            if not line.endswith(b"\n"):
                is_late = time.monotonic() >= ends or self._end() == -signal.SIGPROF
                self._end()
                # For the next one, which then need not wait for it.
                with contextlib.suppress(OSError):
                    if not self._is_abandoned:
                        self._start()
                reason = (
                    f"it takes longer than {self._deadline_s:g} s to compile"
                    if is_late
                    else f"it takes more than {self._memory_bytes >> 20} MB to compile, or more depth than there is"
                )
                raise GrammarError(names, "", f"{reason}: offer a smaller or plainer schema")
        found: dict[str, Any] = json.loads(line)
        if "problem" in found:
            raise GrammarError(found["tool"], found["path"], found["problem"])
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()
        assert self._process is not None
        assert self._process.stdout is not None
        if not self._is_ready:
            # What it costs to start is nobody's fault and counts against no schema.
            self._is_ready = _read_line(self._process.stdout, time.monotonic() + _START_S) == b"ready\n"
            if not self._is_ready:
                self._end()
                raise OSError("the process that compiles grammars does not start")
        return self._process

    def _start(self) -> None:
        self._is_ready = False
        self._process = subprocess.Popen(
            [*self._command, str(self._memory_bytes), str(self._deadline_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is the parent's; each thread's arena would count against the memory.
            start_new_session=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def _end(self) -> int:
        """The status that it ended with, 0 where there was none."""
        process, self._process = self._process, None
        if process is None:
            return 0
        # What is dead already keeps the status of its death.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_DYING_S)
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return process.wait()


def _name(entry: Any) -> str:
    function = entry.get("function", entry) if isinstance(entry, dict) else {}
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def _read_line(stream: IO[bytes], ends: float) -> bytes:
    """Up to and with the line's end; less where the stream or the time ends before."""
    line = bytearray()
    descriptor = stream.fileno()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, ends - time.monotonic()))
        piece = os.read(descriptor, 1 << 16) if ready else b""
        if not piece:
            break
        line += piece
    return bytes(line)


@lru_cache(maxsize=1)
def shared_child() -> GrammarChild:
    """The one of this process."""
    child = GrammarChild()
    atexit.register(child.close)
    return child


# In the child.


def main(argv: Sequence[str]) -> int:
    """Answer questions, a line each, until there are no more."""
    memory_bytes, deadline_s = int(argv[0]), float(argv[1])
    logging.disable(logging.CRITICAL)
    os.nice(5)  # whoever waits for a reply comes first
    with contextlib.suppress(OSError):  # where memory runs out, this process is the one to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    read = lru_cache(maxsize=4)(_read_tools)
    _answer({"tools": [_PROBE], "shape": asdict(ReplyShape()), "form": asdict(CallFormat())}, read)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Less than any thread has: what passes here overflows no stack there.
    _limit(resource.RLIMIT_STACK, _STACK_BYTES)
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    least = _resident()
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, deadline_s)  # its signal ends the process, whatever it is doing
        try:
            answer = _answer(json.loads(line), read)
        except GrammarError as error:
            answer = {"tool": error.tool, "path": error.path, "problem": error.problem}
        except (MemoryError, RecursionError):
            return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        if _resident() - least > memory_bytes // 2:
            return 0  # the next schema shall not pay for what this one has left behind
    return 0


_PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "pattern": "^[a-z]+$"}}},
    },
}


def _answer(question: dict[str, Any], read: Callable[[str], tuple[Tool, ...]]) -> dict[str, Any]:
    tools = read(json.dumps(question["tools"]))
    if "shape" not in question:
        return {}
    told = question["shape"]
    shape = ReplyShape(ToolChoice(told["choice"]), told["is_parallel"], KeyOrder(told["order"]), told["can_force"])
    return {"grammar": checked_grammar(tools, shape, CallFormat(**question["form"]))}


def _read_tools(text: str) -> tuple[Tool, ...]:
    tools = []
    for entry in json.loads(text):
        # What cannot be read is told by whoever reads it, who then knows that reading it costs little.
        with contextlib.suppress(ValueError):
            tools.append(Tool.from_openai(entry))
    for tool in tools:
        with contextlib.suppress(ValueError):
            _ = tool.schema
    return tuple(tools)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
