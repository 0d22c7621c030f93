"""How far the data stage is: rows a second and the time left, on a terminal and in a log."""

from __future__ import annotations

import logging
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0


class Progress:
    """Counts rows and bytes; what an earlier run did counts as done, and not towards the speed."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = self._skipped_bytes = 0
        self._rows = 0
        self._started = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total_bytes or None, desc="prepare", unit="B", unit_scale=True, disable=None, dynamic_ncols=True
        )

    def add(self, rows: int, n_bytes: int) -> None:
        """So many rows were read just now."""
        self._rows += rows
        self._done_bytes += n_bytes
        self._bar.set_postfix_str(f"{self._rows:,} rows, {self._rate():,.0f} rows/s", refresh=False)
        self._bar.update(n_bytes)
        if self._bar.disable and time.monotonic() - self._logged >= _LOG_EVERY_S:
            self._logged = time.monotonic()
            logger.info("prepare: %s", self.line())

    def skip(self, n_bytes: int) -> None:
        """So much was done by an earlier run."""
        self._skipped_bytes += n_bytes
        self._bar.update(n_bytes)

    def restart(self) -> None:
        """What was done so far is about to be skipped over."""
        self._skipped_bytes = self._done_bytes = self._rows = 0
        self._started = time.monotonic()
        self._bar.reset(self._total_bytes or None)

    def line(self) -> str:
        """Example: `52,000 rows, 1,130 rows/s, 41 % of 2,041 MB, 1:57 left`."""
        parts = [f"{self._rows:,} rows, {self._rate():,.0f} rows/s"]
        if self._total_bytes:
            done = self._done_bytes + self._skipped_bytes
            parts.append(f"{done / self._total_bytes:.0%} of {self._total_bytes / 1e6:,.0f} MB")
        if self._done_bytes:
            left = self._total_bytes - self._done_bytes - self._skipped_bytes
            seconds = round(self._seconds() * max(0, left) / self._done_bytes)
            parts.append(f"{seconds // 60}:{seconds % 60:02} left")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()

    def _seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._started)

    def _rate(self) -> float:
        return self._rows / self._seconds()
