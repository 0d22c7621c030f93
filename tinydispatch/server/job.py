"""One request on the model's thread: decoding, cut off when nobody waits any more, and what came of it."""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinydispatch.decoding.rules import GrammarError
from tinydispatch.dispatcher import Dispatch
from tinydispatch.engine import PromptTooLongError
from tinydispatch.formats import CALL_START, reference_date_of, render_calls
from tinydispatch.server.errors import ApiError, invalid, timed_out
from tinydispatch.server.holder import Serving
from tinydispatch.server.reader import Delta, ReplyReader, TextReader
from tinydispatch.server.request import ChatRequest
from tinydispatch.tools import Tool, ToolCall


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

    `refusal` says why a call was left out or nothing was said, None where that is not so. `reference_date` is the day
    that the model was told, None where it was told none. `queue_s` and `model_s` are what it waited and took. `id` is
    the job's, and `explains` says that the client asked for the reply's tokens.
    """

    serving_id: str
    parts: tuple[Part, ...]
    refusal: str | None
    finish_reason: str
    dispatch: Dispatch
    reference_date: dt.date | None
    queue_s: float
    model_s: float
    id: str
    explains: bool = False

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
        self.id = uuid.uuid4().hex
        self.serving_id = ""  # known when it runs
        self._timeout_s = timeout_s
        self._taken = time.monotonic()
        self._emit = emit
        self._is_cancelled = False
        self._parts: list[Part] = []
        self._n_calls = 0
        self._is_answered = False

    def cancel(self) -> None:
        """End the reply at its next token; nobody waits for it."""
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the reply any more."""
        return self._is_cancelled

    @property
    def has_begun(self) -> bool:
        """Whether a part of the reply is certain, and may have been sent."""
        return bool(self._parts)

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
        request = self.request
        reader = TextReader(request.stop) if request.prompt is not None else ReplyReader(request.tools, request.stop)
        day = self._reference_date(serving)
        dispatch = self._dispatch(serving, reader, day)
        self._take(reader.end())
        if self._is_late and not dispatch.is_complete:
            raise timed_out(self._timeout_s)
        is_cut = not dispatch.is_complete and not reader.is_stopped and not self._is_answered
        if is_cut and request.answer is not None and not self._parts:
            self._add(_begun_answer(reader, request.answer))
        return Answer(
            serving_id=serving.id,
            parts=tuple(self._parts),
            refusal=self._refusal(reader, is_cut=is_cut),
            finish_reason=self._finish_reason(is_cut=is_cut),
            dispatch=dispatch,
            reference_date=reference_date_of(request.messages, day) if request.prompt is None else None,
            queue_s=started - self._taken,
            model_s=time.monotonic() - started,
            id=self.id,
            explains=request.explains,
        )

    def _reference_date(self, serving: Serving) -> dt.date:
        """Taken before decoding, so that what is logged is what the model read."""
        request, fixed = self.request, serving.dispatcher.reference_date
        if request.reference_date or fixed:
            return request.reference_date or fixed or dt.date.today()
        return dt.datetime.now(request.time_zone).date()

    def _dispatch(self, serving: Serving, reader: ReplyReader | TextReader, day: dt.date) -> Dispatch:
        request = self.request

        def listen(data: bytes) -> bool:
            self._take(reader.feed(data))
            return not (self._is_cancelled or reader.is_stopped or self._is_answered or self._is_late)

        try:
            if request.prompt is not None:
                return serving.dispatcher.continue_text(
                    request.prompt,
                    max_new_tokens=request.max_new_tokens,
                    listener=listen,
                    n_alternatives=request.n_alternatives,
                    owner=request.owner,
                )
            return serving.dispatcher.dispatch(
                request.messages,
                tools=request.tools,
                choice=request.choice,
                is_parallel=request.is_parallel,
                max_new_tokens=request.max_new_tokens,
                listener=listen,
                reference_date=day,
                n_alternatives=request.n_alternatives,
                owner=request.owner,
            )
        except PromptTooLongError as error:
            # Clients look for these words, too.
            message = f"This model's maximum context length is exceeded: {error}"
            place = "messages" if request.prompt is None else "prompt"
            raise invalid(message, place, "context_length_exceeded") from error
        except GrammarError as error:
            raise bad_schema(error, request) from error
        except ValueError as error:
            raise invalid(str(error)) from error

    def _take(self, deltas: list[Delta]) -> None:
        answer = self.request.answer
        for delta in deltas:
            if answer is None:
                self._add(delta if isinstance(delta, str) else CallPart(self._n_calls, _call_id(), delta))
            elif isinstance(delta, str) or self._is_answered:
                continue  # words around a reply in JSON are no part of it
            elif delta.name != answer.name:
                self._add(CallPart(self._n_calls, _call_id(), delta))
            else:
                # An answer after calls was written before their results are known.
                self._is_answered = True
                if not self._n_calls:
                    self._add(compact_json(dict(delta.arguments)))

    def _add(self, part: Part) -> None:
        if part == "":
            return
        self._n_calls += isinstance(part, CallPart)
        self._parts.append(part)
        if self._emit is not None:
            self._emit(part)

    def _finish_reason(self, *, is_cut: bool) -> str:
        if is_cut:
            return "length"
        # As the OpenAI API has it: a reply that had to call this very tool did nothing but stop.
        return "tool_calls" if self._n_calls and not self.request.is_named else "stop"

    def _refusal(self, reader: ReplyReader | TextReader, *, is_cut: bool) -> str | None:
        """Why something was left out, or nothing was said: no answer is without a word."""
        if self.request.prompt is not None:
            return None
        found = []
        for violation in reader.violations:
            details = "; ".join(f"{detail.path}: {detail.message}".lstrip(": ") for detail in violation.details)
            found.append(f"{violation.call.name}: {details or violation.reason.replace('_', ' ')}")
        if not is_cut and not self._is_answered:
            found += [unparsed.error for unparsed in reader.unparsed]
        if found:
            return f"The model wrote a call that cannot be made, which was left out ({'; '.join(found)})."
        if self._parts:
            return None
        if is_cut:
            n_tokens = self.request.max_new_tokens
            return (
                f"The reply was cut off before there was a whole call or a word: it may have {n_tokens} tokens at most."
            )
        return "The model ended its reply without a call and without a word."


def _begun_answer(reader: ReplyReader | TextReader, answer: Tool) -> str:
    """What there is of a reply in JSON that was cut off, as the OpenAI API gives it."""
    texts = [unparsed.raw_text.lstrip() for unparsed in reader.unparsed]
    opening = render_calls([ToolCall(answer.name, {})]).removeprefix(CALL_START).partition("{}")[0]
    return next((text.removeprefix(opening) for text in texts if text.startswith(opening)), "")


def bad_schema(error: GrammarError, request: ChatRequest) -> ApiError:
    """400 with the place of the tool or of the reply's form."""
    # A grammar that fails while the reply is written gives its whole state after the reason.
    reason = error.problem.partition("\n")[0]
    message = f"Invalid schema for function '{error.tool}': {error.path or 'parameters'}: {reason}"
    if request.answer is not None and error.tool == request.answer.name:
        return invalid(message.replace("function", "the reply"), request.answer_place, "invalid_json_schema")
    # A named tool was picked out of several, so its place is known only where all are offered.
    names = [] if request.is_named else [tool.name for tool in request.tools]
    place = f"tools[{names.index(error.tool)}].function.parameters" if error.tool in names else "tools"
    return invalid(message, place, "invalid_function_parameters")


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def compact_json(value: Any) -> str:
    """JSON without spaces; what no UTF-8 can express (half of a surrogate pair that a model wrote) is escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text
