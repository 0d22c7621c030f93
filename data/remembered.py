"""Results remembered by the object that they were made from, for objects that are shared and too large to hash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Remembered(Generic[T, R]):
    """A function of one frozen object; the objects of its latest results are kept alive, so none is mistaken.

    `lru_cache` would need a hash, and a tool's schema has none. Adapters hand out the same `Tool` for the same text,
    so asking by identity is enough.
    """

    def __init__(self, function: Callable[[T], R], limit: int = 16_384) -> None:
        self._function = function
        self._limit = limit
        self._results: dict[int, tuple[T, R]] = {}

    def __call__(self, value: T) -> R:
        if (known := self._results.get(id(value))) is not None:
            return known[1]
        if len(self._results) >= self._limit:
            del self._results[next(iter(self._results))]  # the oldest
        result = self._function(value)
        self._results[id(value)] = (value, result)
        return result
