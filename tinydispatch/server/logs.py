"""Structured logs: one JSON object a line on stderr, without a word of what was asked or answered."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import Any

LOG = logging.getLogger("tinydispatch.server")


class JsonLines(logging.Formatter):
    """`{"time", "level", "event", …}`; what a caller passes as `extra={"fields": {…}}` stands beside them."""

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log(event: str, level: int = logging.INFO, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Write one line."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=exception)


def configure_logging(level: int = logging.INFO) -> None:
    """Send this package's and uvicorn's records to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("tinydispatch", level), ("uvicorn", max(level, logging.WARNING))):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(least)
