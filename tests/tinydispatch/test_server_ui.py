"""`serve --ui` over HTTP: what the page gets, what it may send, and who else may not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from data.sources.dispatch_log import conversation_from_log
from tests.fixtures_playback import WEATHER
from tests.fixtures_server import ONE_CALL, TOOLS, TWO_CALLS, Running, running
from tinydispatch import formats
from tinydispatch.__main__ import command_parser
from tinydispatch.cli import serve
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.pages import HEADERS
from tinydispatch.server.keys import ApiKeys, SettingsError
from tinydispatch.server.settings import ServerSettings
from tinydispatch.tools import Conversation, ToolCall

KEY = "a-key-of-enough-letters"
EXPLAIN = {"tinydispatch": {"explain": True}}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def page(log: Path) -> Iterator[Running]:
    with running(ONE_CALL, dispatch_log=DispatchLog(log), has_ui=True) as server:
        yield server


def written(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(log.glob("*.jsonl")) for line in file.read_text().splitlines()]


def correction_of(reply: dict[str, Any], place: Any = "Rome", **more: Any) -> dict[str, Any]:
    right = {"calls": [{"name": "get_weather", "arguments": {"location": place}}], "reply": ""}
    messages = [{"role": "user", "content": "Rome? ask ada@corp-mail.com"}]
    calls = [{"name": "get_weather", "arguments": {"location": "Oslo"}}]
    return {"answer": reply["id"], "messages": messages, "tools": TOOLS, "calls": calls, "correction": right, **more}


def correct(server: Running, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/ui/corrections", json=body, headers=headers, timeout=60)


def test_an_answer_says_how_sure_each_argument_is_and_which_tokens_were_forced(page: Running) -> None:
    own = page.post(page.ask(**EXPLAIN)).json()["tinydispatch"]
    (sure,) = own["confidences"]
    tokens = own["tokens"]
    assert "".join(token["text"] for token in tokens) == ONE_CALL
    chosen = [token["probability"] for token in tokens if token["probability"] is not None]
    forced = "".join(token["text"] for token in tokens if token["probability"] is None)
    assert forced.startswith('{"name": "get_weather", "arguments": {"location": "')
    # The end of the reply is a choice, too, and no token.
    assert sure["call"] == pytest.approx(math.prod(chosen), abs=0.002)
    assert own["confidence"] <= sure["call"] <= sure["arguments"]["location"] <= 1
    assert sure["tool"] == tokens[0]["probability"]
    assert "tokens" not in page.post(page.ask()).json()["tinydispatch"]


def test_every_call_has_its_confidence_and_a_stream_ends_in_the_same() -> None:
    with running(TWO_CALLS) as server:
        whole = server.post(server.ask(**EXPLAIN)).json()["tinydispatch"]
        assert [list(found["arguments"]) for found in whole["confidences"]] == [["location"], ["location"]]
        events = server.post(server.ask(stream=True, **EXPLAIN)).text
        last = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")][-1]
        assert last["tinydispatch"]["tokens"] == whole["tokens"]


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    call = formats.render_calls([ToolCall("get_weather", {"location": "Å"})])
    with running(call) as server:
        tokens = server.post(server.ask(**EXPLAIN)).json()["tinydispatch"]["tokens"]
    assert "".join(token["text"] for token in tokens) == call
    place = next(index for index, token in enumerate(tokens) if token["text"] == "Å")
    assert tokens[place - 1]["text"] == ""


def test_the_page_comes_with_a_policy_that_lets_nothing_foreign_run(page: Running) -> None:
    for path in ("/ui", "/ui/try.js", "/ui/calls.js", "/ui/style.css"):
        found = httpx.get(f"{page.url}{path}")
        assert found.status_code == 200
        assert HEADERS.items() <= dict(found.headers).items()
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    html = httpx.get(f"{page.url}/ui").text
    assert "<script>" not in html
    assert "http" not in html
    assert httpx.get(f"{page.url}/ui/review.js").status_code == 404


def test_without_the_option_there_is_no_page() -> None:
    with running() as server:
        for path in ("/ui", "/ui/tools", "/ui/calls.js"):
            assert httpx.get(f"{server.url}{path}").status_code == 404
        assert correct(server, {}).status_code == 404


def test_pasted_tools_of_any_shape_come_back_with_their_form_or_with_what_is_wrong(page: Running) -> None:
    def offer(tools: Any) -> httpx.Response:
        return httpx.post(f"{page.url}/ui/tools", json={"tools": tools}, timeout=60)

    mcp = {"name": "f", "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    for tools in (mcp, [mcp], {"tools": [mcp]}, {"jsonrpc": "2.0", "result": {"tools": [mcp]}}):
        found = offer(tools).json()
        assert found["tools"][0]["function"]["parameters"] == mcp["inputSchema"]
        assert found["forms"][0]["field"]["fields"][0]["field"]["kind"] == "integer"
    for tools, message in (
        (None, "expected a non-empty array of tools"),
        ([{"name": "f", "parameters": {"type": "string"}}], "must be a JSON schema with type 'object'"),
        ([mcp, mcp], "occur twice"),
    ):
        refused = offer(tools)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
        assert message in refused.json()["error"]["message"]


def test_a_correction_takes_the_answers_place_in_the_log_without_personal_data(page: Running, log: Path) -> None:
    reply = page.post(page.ask("Rome? ask ada@corp-mail.com")).json()
    assert correct(page, correction_of(reply, reference_date="2026-03-19")).json() == {"is_kept": True}
    answered, corrected = written(log)
    assert f"chatcmpl-{answered['id']}" == reply["id"]
    assert corrected["decides"] == answered["id"] != corrected["id"]
    assert "corp-mail" not in json.dumps(corrected)
    assert corrected["messages"] == answered["messages"]
    found = conversation_from_log(corrected, "r", ())
    assert isinstance(found, Conversation)
    assert found.calls == (ToolCall("get_weather", {"location": "Rome"}),)
    assert found.reference_date is not None
    assert found.reference_date.isoformat() == "2026-03-19"
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in log.glob("*"))


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"answer": "chatcmpl-1"}, 400, "'answer' must be the id of a chat completion"),
        ({"answer": None}, 400, "'answer' must be the id of a chat completion"),
        ({"messages": []}, 400, "messages"),
        ({"tools": [3]}, 400, "tools[0]"),
        ({"calls": "none"}, 400, "'calls'"),
        ({"reference_date": "tomorrow"}, 400, "'reference_date'"),
        ({"correction": {"calls": [], "reply": ""}}, 422, "the answer is empty"),
        ({"correction": {"calls": [{"name": "fly", "arguments": {}}]}}, 422, "none of the tools on offer"),
        ({"correction": {"calls": [{"name": "get_weather", "arguments": {"location": 3}}]}}, 422, "of type 'string'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_correction_is_said_and_nothing_is_kept(
    page: Running, log: Path, change: dict[str, Any], status: int, message: str
) -> None:
    reply = {"id": f"chatcmpl-{'0' * 32}"}
    response = correct(page, correction_of(reply, **change))
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert written(log) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_origins_may_neither_correct_nor_read_even_where_cors_lets_them_ask(
    log: Path, headers: dict[str, str]
) -> None:
    with running(ONE_CALL, dispatch_log=DispatchLog(log), has_ui=True, cors_origins=("*",)) as server:
        body = correction_of({"id": f"chatcmpl-{'0' * 32}"})
        assert correct(server, body, **headers).status_code == 403
        assert httpx.get(f"{server.url}/ui/tools", headers=headers).status_code == 403
        plain = {"content-type": "text/plain"}
        assert httpx.post(f"{server.url}/ui/corrections", content=json.dumps(body), headers=plain).status_code == 415
    assert written(log) == []


def test_where_keys_are_set_the_page_comes_without_one_and_nothing_else_does(log: Path) -> None:
    with running(ONE_CALL, dispatch_log=DispatchLog(log), has_ui=True, key=KEY, tools=(WEATHER,)) as server:
        assert httpx.get(f"{server.url}/ui").status_code == 200
        assert httpx.get(f"{server.url}/ui/tools").status_code == 401
        body = correction_of({"id": f"chatcmpl-{'0' * 32}"})
        assert correct(server, body).status_code == 401
        assert written(log) == []
        assert correct(server, body, authorization=f"Bearer {KEY}").json() == {"is_kept": True}


def test_without_a_dispatch_log_corrections_have_no_place() -> None:
    with running(has_ui=True) as server:
        assert httpx.get(f"{server.url}/ui/tools").json()["can_correct"] is False
        refused = correct(server, correction_of({"id": f"chatcmpl-{'0' * 32}"}))
        assert refused.status_code == 409
        assert "--dispatch-log DIR" in refused.json()["error"]["message"]


def test_a_log_that_cannot_be_written_is_told_to_the_person(page: Running, log: Path) -> None:
    log.rmdir()
    log.write_text("in the way")
    refused = correct(page, correction_of({"id": f"chatcmpl-{'0' * 32}"}))
    assert refused.status_code == 507
    assert "Nothing was kept" in refused.json()["error"]["message"]


def test_beyond_this_machine_the_page_wants_keys() -> None:
    with pytest.raises(SettingsError, match="--ui lets whoever reaches host"):
        ServerSettings("m", host="0.0.0.0", allows_anybody=True, has_ui=True)
    assert ServerSettings("m", host="0.0.0.0", keys=ApiKeys((KEY,)), has_ui=True).has_ui
    assert command_parser("serve", serve).parse_args(["--ui"]).ui
