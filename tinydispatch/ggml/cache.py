"""What every cache of keys and values that numpy sees has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt


class Cache(ABC):
    """Keys and values of every layer, in the layout of whoever computes with them; a number takes `item_bytes`."""

    item_bytes: int

    @abstractmethod
    def filled(self, n_positions: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Views of what the first `n_positions` take up of the keys and of the values, layers first."""

    @abstractmethod
    def close(self) -> None:
        """Give up the memory; a second call does nothing."""

    def read(self, n_positions: int) -> list[npt.NDArray[Any]]:
        """Keys, then values, of the first `n_positions`, a view for each layer."""
        keys, values = self.filled(n_positions)
        return [*keys, *values]

    def write(self, payload: memoryview, n_positions: int) -> bool:
        """Put back the numbers that `read` gave; False when that is not as long as it should be."""
        keys, values = self.filled(n_positions)
        if len(payload) != keys.nbytes + values.nbytes:
            return False
        numbers = np.frombuffer(payload, dtype=keys.dtype)
        keys[...] = numbers[: keys.size].reshape(keys.shape)
        values[...] = numbers[keys.size :].reshape(values.shape)
        return True
