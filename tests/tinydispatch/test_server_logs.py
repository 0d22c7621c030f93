"""What the server's log holds, and that it holds no word of a request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures_server import GatedRuntime, Running, running
from tinydispatch.server.logs import LOG, JsonLines, configure_logging

SECRET = "the-word-that-nobody-may-see"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler = _Lines()
    LOG.addHandler(handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    yield handler.lines
    LOG.setLevel(level)
    LOG.removeHandler(handler)


def _last(lines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _ask(server: Running, **more: Any) -> int:
    return server.post(server.ask(SECRET, **more)).status_code


def test_each_request_is_one_line_with_its_id_and_its_cost(lines: list[str]) -> None:
    with running() as server:
        response = server.post(server.ask(SECRET))
    found = json.loads(next(line for line in lines if '"request"' in line))
    assert found["id"] == response.headers["x-request-id"]
    assert found["reply"] == response.json()["id"]
    assert (found["event"], found["method"], found["path"], found["status"]) == (
        "request", "POST", "/v1/chat/completions", 200,
    )  # fmt: skip
    assert 0 <= found["queue_ms"] <= found["ms"]
    assert found["prompt_tokens"] > found["cached_tokens"]


def test_no_line_holds_a_word_of_a_request(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(f"cannot read {SECRET}")

    with running() as server:
        assert _ask(server, **{SECRET: 1}) == 200
    with running(is_strict=True) as server:
        assert _ask(server) == 200
        assert _ask(server, **{SECRET: 1}) == 400
        assert _ask(server, model=SECRET) == 404
        assert _ask(server, tool_choice=SECRET) == 400
        with monkeypatch.context() as patch:
            patch.setattr(GatedRuntime, "decode_all", fail)
            assert _ask(server) == 500
    assert len(lines) >= 6
    assert SECRET not in "".join(lines)
    trace = next(json.loads(line)["traceback"] for line in lines if "traceback" in line)
    assert trace[-1] == "builtins.RuntimeError"
    assert trace[-2].endswith(" in fail")


def test_of_the_systems_errors_the_reason_is_shown(lines: list[str]) -> None:
    try:
        raise ValueError(SECRET) from OSError(28, "No space left on device")
    except ValueError as error:
        LOG.error("x", exc_info=error)
    assert _last(lines)["traceback"][-1] == "builtins.OSError: No space left on device"
    assert SECRET not in lines[-1]


def test_what_other_libraries_report_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("tinydispatch", "uvicorn", None)]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    try:
        configure_logging()
        logging.getLogger("concurrent.futures").error("exception calling callback")
        logging.getLogger("asyncio").info("not this")
        logging.getLogger("tinydispatch.dispatch_log").error("cannot be written")
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    found = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert found == ["exception calling callback", "cannot be written"]
