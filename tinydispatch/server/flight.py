"""A request between the event loop, where its client waits, and the model's thread, where it is computed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import Any

from starlette.types import Receive

from tinydispatch.server.body import ClientGoneError, until_gone
from tinydispatch.server.errors import ApiError, timed_out
from tinydispatch.server.holder import ModelHolder, QueueFullError, StoppingError
from tinydispatch.server.job import Answer, ChatJob, Part
from tinydispatch.server.request import ChatRequest

# Called in the model's thread when an answer is finished that somebody waits for, before it is sent.
Finished = Callable[[ChatJob, Answer], None]


class Flight:
    """One request under way. `parts` is to be iterated to its end or closed, or the model works on for nobody.

    Args:
        fallback: answers in place of `holder` where that takes nothing more or breaks before the reply has begun.
        broken: told of such a break.

    Raises:
        QueueFullError: as many requests wait as may wait.
        StoppingError: the server takes nothing more.
    """

    def __init__(
        self,
        holder: ModelHolder,
        request: ChatRequest,
        timeout_s: float,
        receive: Receive,
        finished: Finished,
        *,
        fallback: ModelHolder | None = None,
        broken: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._events: asyncio.Queue[Part | Answer | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._timeout_s = timeout_s
        self._ends = self._loop.time() + timeout_s
        self._finished = finished
        self.job = ChatJob(request, timeout_s, self._post) if request.is_stream else ChatJob(request, timeout_s)
        self._fallback, self._broken = fallback, broken
        try:
            self._submit(holder)
        except (QueueFullError, StoppingError):
            if fallback is None:
                raise
            self._fallback = None
            self._submit(fallback)

    async def parts(self) -> AsyncGenerator[Part | Answer, None]:
        """The parts of a streamed reply as they become certain; then, for every reply, the whole answer.

        Raises:
            ApiError: the request turned out to be wrong, or its time has run out.
            ClientGoneError: the client closed the connection; nothing more is computed for it.
        """
        gone = asyncio.ensure_future(until_gone(self._receive))
        try:
            while True:
                event = await self._next(gone)
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Answer):
                    return
        finally:
            gone.cancel()
            self.job.cancel()
            self._future.cancel()

    def abort(self, error: BaseException) -> None:
        """Answer with an error at once; may be called from any thread and from a signal's handler."""
        self._post(error)

    async def _next(self, gone: asyncio.Future[None]) -> Part | Answer | BaseException:
        coming = asyncio.ensure_future(self._events.get())
        try:
            left = self._ends - self._loop.time()
            either: set[asyncio.Future[Any]] = {coming, gone}
            done, _ = await asyncio.wait(either, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                return coming.result()
            return ClientGoneError() if gone in done else timed_out(self._timeout_s)
        finally:
            coming.cancel()

    def _submit(self, holder: ModelHolder) -> None:
        self._future = holder.submit(self.job.run)
        self._future.add_done_callback(self._post_end)

    def _falls_back(self, error: BaseException) -> bool:
        """Whether another model is asked in place of the one that broke."""
        fallback, self._fallback = self._fallback, None
        if fallback is None or isinstance(error, ApiError) or self.job.has_begun or self.job.is_cancelled:
            return False
        if self._broken is not None:
            self._broken(error)
        try:
            self._submit(fallback)
        except (QueueFullError, StoppingError):
            return False
        return True

    def _post(self, event: Part | Answer | BaseException) -> None:
        # The loop is closed when the process ends before the model's thread does.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _post_end(self, future: Future[Answer]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            answer = future.result()
            try:
                if not self.job.is_cancelled:
                    self._finished(self.job, answer)
            finally:
                self._post(answer)
        elif not self._falls_back(error):
            self._post(error)
