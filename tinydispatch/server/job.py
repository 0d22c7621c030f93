"""One request on the model's thread: decoding, cut off when nobody waits any more, and what came of it."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tinydispatch.decoding.rules import GrammarError
from tinydispatch.dispatcher import Dispatch
from tinydispatch.engine import PromptTooLongError
from tinydispatch.server.errors import ApiError, invalid, timed_out
from tinydispatch.server.holder import Serving
from tinydispatch.server.reader import Delta, ReplyReader
from tinydispatch.server.request import ChatRequest
from tinydispatch.tools import ToolCall


@dataclass(frozen=True)
class CallPart:
    """A call with its place among the reply's calls and the id under which its result comes back."""

    index: int
    id: str
    call: ToolCall


# What a reply is made of, in order.
Part = str | CallPart


@dataclass(frozen=True)
class Answer:
    """A finished reply.

    `refusal` says why a call was left out, None where none was. `queue_s` and `model_s` are what it waited and took.
    """

    serving_id: str
    parts: tuple[Part, ...]
    refusal: str | None
    finish_reason: str
    dispatch: Dispatch
    reference_date: dt.date
    queue_s: float
    model_s: float

    @property
    def content(self) -> str | None:
        """The reply's words, None where it has none."""
        return "".join(part for part in self.parts if isinstance(part, str)) or None

    @property
    def calls(self) -> tuple[CallPart, ...]:
        """The reply's calls, each of which fits its tool's schema."""
        return tuple(part for part in self.parts if isinstance(part, CallPart))


class ChatJob:
    """A request and its way through the model; `run` is for the model's thread, `cancel` for any.

    Args:
        timeout_s: from now on; what is written after that is cut off.
        emit: hears each part as soon as it is certain, in the model's thread.
    """

    def __init__(self, request: ChatRequest, timeout_s: float, emit: Callable[[Part], None] | None = None) -> None:
        self.request = request
        self.created = int(time.time())
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.serving_id = ""  # known when it runs
        self._timeout_s = timeout_s
        self._taken = time.monotonic()
        self._emit = emit
        self._is_cancelled = False
        self._parts: list[Part] = []
        self._n_calls = 0

    def cancel(self) -> None:
        """End the reply at its next token; nobody waits for it."""
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the reply any more."""
        return self._is_cancelled

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self._taken > self._timeout_s

    def run(self, serving: Serving) -> Answer:
        """Decode the reply.

        Raises:
            ApiError: what is wrong with the request shows only now, or its time has run out.
        """
        started = time.monotonic()
        self.serving_id = serving.id
        if self._is_late:
            raise timed_out(self._timeout_s)
        reader = ReplyReader(self.request.tools, self.request.stop)
        # Taken before decoding, as the dispatcher does: the log states what the model read.
        date = serving.dispatcher.reference_date or dt.date.today()
        dispatch = self._dispatch(serving, reader)
        self._take(reader.end())
        if self._is_late and not dispatch.is_complete:
            raise timed_out(self._timeout_s)
        return Answer(
            serving_id=serving.id,
            parts=tuple(self._parts),
            refusal=_refusal(reader, dispatch),
            finish_reason=self._finish_reason(reader, dispatch),
            dispatch=dispatch,
            reference_date=date,
            queue_s=started - self._taken,
            model_s=time.monotonic() - started,
        )

    def _dispatch(self, serving: Serving, reader: ReplyReader) -> Dispatch:
        request = self.request

        def listen(data: bytes) -> bool:
            self._take(reader.feed(data))
            return not (self._is_cancelled or reader.is_stopped or self._is_late)

        try:
            return serving.dispatcher.dispatch(
                request.messages,
                tools=request.tools,
                choice=request.choice,
                is_parallel=request.is_parallel,
                max_new_tokens=request.max_new_tokens,
                listener=listen,
            )
        except PromptTooLongError as error:
            # Clients look for these words, too.
            message = f"This model's maximum context length is exceeded: {error}"
            raise invalid(message, "messages", "context_length_exceeded") from error
        except GrammarError as error:
            raise _bad_schema(error, request) from error
        except ValueError as error:
            raise invalid(str(error)) from error

    def _take(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            part: Part = delta if isinstance(delta, str) else CallPart(self._n_calls, _call_id(), delta)
            self._n_calls += isinstance(part, CallPart)
            self._parts.append(part)
            if self._emit is not None:
                self._emit(part)

    def _finish_reason(self, reader: ReplyReader, dispatch: Dispatch) -> str:
        if not dispatch.is_complete and not reader.is_stopped:
            return "length"
        # As the OpenAI API has it: a reply that had to call this very tool did nothing but stop.
        return "tool_calls" if self._n_calls and not self.request.is_named else "stop"


def _bad_schema(error: GrammarError, request: ChatRequest) -> ApiError:
    message = f"Invalid schema for function '{error.tool}': {error.path or 'parameters'}: {error.problem}"
    # A named tool was picked out of several, so its place is known only where all are offered.
    names = [] if request.is_named else [tool.name for tool in request.tools]
    place = f"tools[{names.index(error.tool)}].function.parameters" if error.tool in names else "tools"
    return invalid(message, place, "invalid_function_parameters")


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _refusal(reader: ReplyReader, dispatch: Dispatch) -> str | None:
    """What was left out because it cannot be called as it stands; a call that was cut off is no refusal."""
    found = []
    for violation in reader.violations:
        details = "; ".join(f"{detail.path}: {detail.message}".lstrip(": ") for detail in violation.details)
        found.append(f"{violation.call.name}: {details or violation.reason.replace('_', ' ')}")
    if dispatch.is_complete:
        found += [unparsed.error for unparsed in reader.unparsed]
    return f"The model wrote a call that cannot be made, which was left out ({'; '.join(found)})." if found else None
