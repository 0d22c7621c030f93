"""Structured logs: one JSON object a line on stderr, without a word of what was asked or answered."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any

LOG = logging.getLogger("tinydispatch.server")
_MAX_FRAMES = 20


class JsonLines(logging.Formatter):
    """`{"time", "level", "event", …}`; what a caller passes as `extra={"fields": {…}}` stands beside them."""

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = list(_traceback(record.exc_info[1]))
        return json.dumps(line, default=str)


def _traceback(error: BaseException | None) -> Iterator[str]:
    """Where an error came from, and its kind; its message may quote a request, and of it only the system's is shown."""
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]:
            yield f"{frame.filename}:{frame.lineno} in {frame.name}"
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        yield f"{type(error).__module__}.{type(error).__qualname__}{reason}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def log(event: str, level: int = logging.INFO, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Write one line."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=exception)


def configure_logging(level: int = logging.INFO) -> None:
    """Send every record to stderr as a JSON line: this package's, and of others' the warnings and errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("tinydispatch", level), ("uvicorn", logging.WARNING), (None, logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(max(level, least))
