"""The seam between evaluation and models: requests in, texts out, failures as values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from tinydispatch.tools import Message, Tool


class BackendError(ValueError):
    """A model that cannot be evaluated at all; the message names it and says what to do."""


@dataclass(frozen=True)
class Request:
    """A conversation that waits for a reply, the tools on offer, and the day that is "today".

    `sample` tells draws from one prompt apart where replies are sampled.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    reference_date: dt.date | None
    sample: int = 0


@dataclass(frozen=True)
class Generation:
    """A reply as the model wrote it, call markers included, without the token that ended it.

    `latency_s` is wall-clock time; of a batch, its time divided by its size. `tokens` were generated.
    `is_complete` is False when the token limit cut the reply off.
    """

    text: str
    latency_s: float
    tokens: int
    is_complete: bool = True


@dataclass(frozen=True)
class Failure:
    """No reply, through no decision of the model's: the prompt did not fit, memory ran out, …"""

    reason: str


class Backend(Protocol):
    """Replies of one model; use it as a context manager so that its memory is freed."""

    @property
    def batch_size(self) -> int:
        """How many requests it answers at once."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """One reply or failure per request, in their order."""
        ...

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class ClosesOnExit:
    """The context manager half of a backend."""

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
