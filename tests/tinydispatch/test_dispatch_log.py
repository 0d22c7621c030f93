from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from data.clean import check_conversation
from data.sources.dispatch_log import conversation_from_log
from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tests.fixtures_server import running
from tinydispatch import formats
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.dispatcher import Dispatch, Dispatcher
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

MAIL = Tool(
    "send_email",
    "Send",
    {"type": "object", "properties": {"to": {"type": "string", "format": "email"}}, "required": ["to"]},
)
ASK = (Message(Role.USER, "mail ada@corp.example please"),)


def _dispatch(call: ToolCall) -> Dispatch:
    return Dispatcher(PlaybackRuntime(formats.render_calls([call])), [MAIL], TODAY).dispatch(ASK)


def _write(log: DispatchLog, **change: Any) -> None:
    dispatch = _dispatch(ToolCall("send_email", {"to": "ada@corp.example"}))
    values: dict[str, Any] = {"messages": ASK, "tools": [MAIL], "dispatch": dispatch, "reference_date": TODAY}
    log.write(**{**values, "model": "m", **change})


def _lines(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]


def _kept(line: str) -> Conversation:
    found = conversation_from_log(json.loads(line), "r", ())
    assert isinstance(found, Conversation), found
    assert check_conversation(found) is None
    return found


def test_the_data_stage_reads_back_what_was_written_without_the_address(tmp_path: Path) -> None:
    log = DispatchLog(tmp_path)
    _write(log, session="somebody")
    log.close()
    (line,) = _lines(tmp_path)
    assert "ada" not in line
    assert "somebody" not in line
    found = _kept(line)
    assert found.calls == (ToolCall("send_email", {"to": "user1@example.com"}),)
    assert found.messages[0].content == "mail user1@example.com please"
    assert found.tools == (MAIL,)
    assert found.reference_date == TODAY
    assert found.metadata["log"]["model"] == "m"
    assert found.dialogue_id.startswith("dispatch_log-")


def test_what_a_server_answers_is_logged_and_read_back_with_its_calls_and_results(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Rome"}'}}
    messages = [
        {"role": "user", "content": "weather in Rome, then Oslo"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    with running(dispatch_log=DispatchLog(tmp_path)) as server:
        assert server.post(server.ask(messages=messages)).status_code == 200
        assert server.post(server.ask(store=False)).status_code == 200
        assert server.post(server.ask(model="other")).status_code == 404
    (line,) = _lines(tmp_path)
    found = _kept(line)
    assert [message.role for message in found.messages] == [Role.USER, Role.ASSISTANT, Role.TOOL, Role.ASSISTANT]
    assert [dict(call.arguments)["location"] for call in found.calls] == ["Rome", "Oslo"]
    assert found.messages[2].tool_name == "get_weather"
    assert [message.is_trained for message in found.messages if message.role is Role.ASSISTANT] == [False, True]
    assert found.tools == (WEATHER,)


def test_each_key_is_a_client_of_its_own_in_the_log_and_is_not_written(tmp_path: Path) -> None:
    keys = ["first-key-of-0123456789", "second-key-of-0123456789"]
    for key in (keys[0], *keys):  # a server that starts again knows its clients by the same names
        with running(dispatch_log=DispatchLog(tmp_path), key=key) as server:
            assert server.post(server.ask(), headers={"Authorization": f"Bearer {key}"}).status_code == 200
    with running(dispatch_log=DispatchLog(tmp_path)) as server:
        assert server.post(server.ask()).status_code == 200
    first, again, second, nobody = (_kept(line).metadata["log"].get("client") for line in _lines(tmp_path))
    assert first == again != second
    assert (len(first), len(second), nobody) == (16, 16, None)
    assert not any(key in line for key in keys for line in _lines(tmp_path))


def test_an_answer_that_cannot_be_used_is_not_accepted(tmp_path: Path) -> None:
    cut = Dispatcher(PlaybackRuntime("Which one?"), [MAIL], TODAY, max_new_tokens=3).dispatch(ASK)
    log = DispatchLog(tmp_path)
    _write(log, dispatch=cut)
    assert json.loads(_lines(tmp_path)[0])["is_accepted"] is False


def test_files_are_the_owners_alone_and_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    today = dt.datetime.now(dt.UTC).date()
    log = DispatchLog(folder, keep_days=7)
    for days in range(1, 10):
        (folder / f"dispatch-{today - dt.timedelta(days)}.jsonl").write_text("{}\n")
    _write(log)
    left = sorted(folder.glob("*"))
    assert [path.name for path in left] == [f"dispatch-{today - dt.timedelta(days)}.jsonl" for days in range(7, -1, -1)]
    assert left[-1].stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_line_that_a_crash_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    first = DispatchLog(tmp_path)
    _write(first)
    first.close()
    path = next(tmp_path.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    _write(DispatchLog(tmp_path))
    cut, whole = _lines(tmp_path)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(cut)
    _kept(whole)


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = DispatchLog(tmp_path / "log")
    (tmp_path / "log").rmdir()
    _write(log)
    _write(log)
    assert caplog.text.count("the dispatch log cannot be written") == 1
