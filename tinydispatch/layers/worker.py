"""Work that may never end: done on a thread of its own that nobody has to wait for, not even at exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


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
