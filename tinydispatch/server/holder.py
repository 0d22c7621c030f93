"""The one model in service, the one thread that may touch it, and the queue before it.

A dispatcher is not safe for use from two threads, and a call computes for milliseconds to seconds. So every request
becomes a job in a bounded queue, and one thread works them off; the event loop only ever waits for futures.

Changing the model while requests come in (a registry's champion, say) is three lines, in any thread but this one's and
the event loop's:

    new = Dispatcher(path, tools, cache=folder)       # loads beside the old one, which goes on answering
    new.dispatch("…")                                 # a self-test; nothing is in service yet
    holder.swap(Serving(new, id="2026-11-24-a"))      # returns when the old one is out of service and closed

`swap` lets the running request finish on the old model; those that wait, and all later ones, get the new one. No
request is refused or lost. When `Dispatcher(…)` or the self-test raises, simply do not swap. The name by which clients
ask for the model is the server's (`ServerSettings.model_name`) and stays; the id is what replies carry as
`system_fingerprint`, and what `/health`, `/metrics` and the logs show. The swapped-in dispatcher is the holder's to
close from then on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from tinydispatch.dispatcher import Dispatcher

T = TypeVar("T")


class QueueFullError(RuntimeError):
    """As many requests wait as may wait."""


class StoppingError(RuntimeError):
    """The holder is being closed and takes nothing more."""


@dataclass(frozen=True)
class Serving:
    """A dispatcher, and the id under which replies, logs and metrics name this very model."""

    dispatcher: Dispatcher
    id: str


@dataclass(frozen=True)
class _Job:
    work: Callable[[Serving], Any]
    future: Future[Any]


class ModelHolder:
    """Owns a dispatcher and the thread that uses it. All methods may be called from any thread.

    Args:
        serving: taken into service at once; the holder closes it.
        max_waiting: jobs that may wait besides the running one.
    """

    def __init__(self, serving: Serving, *, max_waiting: int = 64) -> None:
        self._serving = serving
        self._max_waiting = max_waiting
        self._jobs: deque[_Job] = deque()
        self._next: tuple[Serving, threading.Event] | None = None
        self._is_busy = False
        self._is_closing = False
        self._changed = threading.Condition()
        self._one_swap = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def serving(self) -> Serving:
        """What the next job will get, unless a swap comes first."""
        return self._serving

    @property
    def n_waiting(self) -> int:
        """Jobs that wait, the cancelled ones left out."""
        with self._changed:
            return sum(not job.future.cancelled() for job in self._jobs)

    @property
    def is_busy(self) -> bool:
        """Whether a job is running."""
        return self._is_busy

    @property
    def is_working(self) -> bool:
        """Whether jobs are taken and worked off."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, work: Callable[[Serving], T]) -> Future[T]:
        """Queue a job; the future may be cancelled as long as the job waits.

        Raises:
            QueueFullError: as many jobs wait as may wait.
            StoppingError: the holder is being closed.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._is_closing or not self._thread.is_alive():
                raise StoppingError("the server is stopping")
            if len(self._jobs) >= self._max_waiting:
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
            # With nothing running, the first in the queue is as good as running.
            if len(self._jobs) >= self._max_waiting + (not self._is_busy):
                raise QueueFullError(f"{len(self._jobs)} requests are waiting")
            self._jobs.append(_Job(work, future))
            self._changed.notify_all()
        return future

    def swap(self, new: Serving) -> None:
        """Put another model into service between two jobs, then close the old one; see the module's text.

        Raises:
            StoppingError: the holder is being closed; `new` is left as it is.
        """
        assert threading.current_thread() is not self._thread, "a job cannot swap the model it runs on"
        with self._one_swap:
            done = threading.Event()
            with self._changed:
                if self._is_closing or not self._thread.is_alive():
                    raise StoppingError("the server is stopping")
                old = self._serving
                self._next = (new, done)
                self._changed.notify_all()
            done.wait()
        # Here and not in the model's thread: closing waits for files, and requests should not.
        old.dispatcher.close()

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish every job that was taken, then close the dispatcher; a second call does nothing.

        False when that takes longer than `timeout_s`: the model's thread goes on, and the dispatcher stays open.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._serving.dispatcher.close()
        return True

    def _run(self) -> None:
        while (job := self._wait_for_job()) is not None:
            if job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(job.work(self._serving))
                except BaseException as error:  # noqa: BLE001 (the one who waits for the future gets it)
                    job.future.set_exception(error)
            del job  # or the last request's texts stay in memory until the next comes
            self._is_busy = False

    def _wait_for_job(self) -> _Job | None:
        with self._changed:
            while True:
                if self._next is not None:
                    self._serving, done = self._next
                    self._next = None
                    done.set()
                elif self._jobs:
                    self._is_busy = True
                    return self._jobs.popleft()
                elif self._is_closing:
                    return None
                else:
                    self._changed.wait()
