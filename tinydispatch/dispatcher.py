"""Messages and tools in, calls out: the object that an application holds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tinydispatch.engine import Engine, Timings, TokenCounts
from tinydispatch.formats import UnparsedToolCall, parse_reply, with_reference_date
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.tools import CallViolation, Message, Role, Tool, ToolCall, check_calls

DEFAULT_MAX_NEW_TOKENS = 384


@dataclass(frozen=True)
class Dispatch:
    """What the model decided: calls, a text reply, or both.

    `violations` lists the calls that name no offered tool or break its schema; they stand in `calls` too. `unparsed`
    is what looked like a call and could not be read. `is_complete` is False when the reply was cut off.
    """

    calls: tuple[ToolCall, ...]
    reply: str
    violations: tuple[CallViolation, ...]
    unparsed: tuple[UnparsedToolCall, ...]
    is_complete: bool
    timings: Timings
    tokens: TokenCounts

    @property
    def is_usable(self) -> bool:
        """Whether the reply was complete and every call in it can be made as it stands."""
        return self.is_complete and not self.violations and not self.unparsed


class Dispatcher:
    """A model with the tools it may call; consecutive calls reuse the state of the prompt they share.

    Not safe for use from two threads at once. Use it as a context manager, or call `close`.

    Args:
        model: a GGUF file, which the dispatcher then owns and closes, or a loaded runtime, which it does not.
        tools: offered to every call.
        reference_date: "today" for relative dates; None takes the day of each call.

    Raises:
        GgufError: the file is damaged or foreign.
    """

    def __init__(
        self,
        model: Path | Runtime,
        tools: Sequence[Tool],
        reference_date: dt.date | None = None,
        *,
        n_ctx: int = 2048,
        threads: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        self.tools = tuple(tools)
        self.reference_date = reference_date
        self.max_new_tokens = max_new_tokens
        self._is_owner = isinstance(model, Path)
        self._runtime = LlamaModel(model, n_ctx, threads) if isinstance(model, Path) else model
        self._engine = Engine(self._runtime)

    def dispatch(self, messages: Sequence[Message] | str) -> Dispatch:
        """The calls or the reply to a conversation; a string is one user message.

        Raises:
            ValueError: there are no messages, or the prompt does not fit the context.
        """
        conversation = (Message(Role.USER, messages),) if isinstance(messages, str) else tuple(messages)
        if not conversation:
            raise ValueError("nothing to dispatch: there are no messages")
        dated = with_reference_date(conversation, self.reference_date or dt.date.today())
        completion = self._engine.complete(dated, self.tools, self.max_new_tokens)
        parsed = parse_reply(completion.text)
        return Dispatch(
            calls=parsed.calls,
            reply=parsed.content,
            violations=tuple(check_calls(parsed.calls, self.tools)),
            unparsed=parsed.unparsed,
            is_complete=completion.is_complete,
            timings=completion.timings,
            tokens=completion.tokens,
        )

    def close(self) -> None:
        """Free the model if the dispatcher opened it; a second call does nothing."""
        if self._is_owner:
            self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
