"""Both pages in a real browser, with the keyboard alone: what a person does ends where retraining reads it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data.clean import check_conversation
from data.sources.dispatch_log import conversation_from_log
from retraining.config import IntakeConfig
from retraining.intake import Earlier, take_in
from tests.fixtures_browser import Person, browser
from tests.fixtures_playback import WEATHER
from tests.fixtures_server import ONE_CALL, running
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.pages.review import ReviewServer
from tinydispatch.review import Stack
from tinydispatch.tools import Conversation, ToolCall

pytestmark = pytest.mark.slow
KEY = "a-key-of-enough-letters"
FORECAST: dict[str, Any] = {
    "name": "forecast",
    "description": "Weather of the coming days",
    "inputSchema": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer", "maximum": 14}},
        "required": ["place"],
    },
}
TOOLS = [tool.to_openai() for tool in bundled_tools()]


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    with browser() as chrome:
        yield Person(chrome)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def weather(place: str, **more: Any) -> dict[str, Any]:
    return {"name": "get_weather", "arguments": {"location": place, **more}}


def asked(text: str, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    ask = [{"role": "user", "content": text}]
    return {"messages": ask, "tools": TOOLS, "calls": list(calls), "reply": "", "reference_date": "2026-03-19", **more}


@contextmanager
def reviewing(log: Path, *rows: dict[str, Any]) -> Iterator[ReviewServer]:
    if rows:
        log.mkdir(exist_ok=True)
        (log / "dispatch-2026-11-30.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stack = Stack(log)
    server = ReviewServer(stack)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        stack.close()


def taken_in(tmp_path: Path, log: Path, **settings: Any) -> list[dict[str, Any]]:
    source = {"kind": "dispatch_log", "path": str(log), **settings}
    config = IntakeConfig.model_validate_json(json.dumps({"sources": [source], "min_new": 1}))
    folder = tmp_path / "intake"
    take_in(folder, config, Earlier(), default_tools=(), case_texts=(), seed=0)
    return [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]


def test_a_request_is_tried_corrected_and_found_in_the_log_with_the_keyboard_alone(
    tmp_path: Path, person: Person
) -> None:
    log = tmp_path / "log"
    with running(ONE_CALL, dispatch_log=DispatchLog(log), has_ui=True, tools=(WEATHER,)) as server:
        person.chrome.get(f"{server.url}/ui")
        person.sees("get_weather")
        person.until(lambda: person.focused == "Request", "the request has not the focus")
        person.types("Weather in Bergen, please")
        person.presses_with_control("\ue007")
        person.sees("Oslo")
        assert "reply tokens" in person.page
        assert "of them forced" in person.page
        tokens = person.chrome.execute_script(
            "return [...document.querySelectorAll('#tokens > *')].map(e => [e.title, e.firstChild.textContent])"
        )
        assert ["forced", "{"] in tokens
        assert any(title.startswith("chosen, 9") and text == "O" for title, text in tokens)
        person.types("c")
        person.until(lambda: person.focused == "tool", "the form has not the focus")
        person.tabs_to("location")
        person.empties()
        person.types("Bergen")
        person.presses_with_control("\ue007")
        person.sees("Kept in the dispatch log")
        assert [text for text in person.new_complaints() if "favicon" not in text] == []
    answered, corrected = written(log)
    assert corrected["decides"] == answered["id"]
    assert (answered["calls"], corrected["calls"]) == ([weather("Oslo")], [weather("Oslo")])
    assert corrected["correction"] == {"calls": [weather("Bergen")], "reply": ""}
    found = conversation_from_log(corrected, "r", ())
    assert isinstance(found, Conversation)
    assert check_conversation(found) is None
    assert found.calls == (ToolCall("get_weather", {"location": "Bergen"}),)
    (row,) = taken_in(tmp_path, log)
    assert json.loads(json.dumps(row["messages"][-1]["tool_calls"][0]["function"])) == weather("Bergen")


def test_a_pasted_tool_is_offered_and_its_values_are_checked_at_their_field(tmp_path: Path, person: Person) -> None:
    log = tmp_path / "log"
    reply = formats.render_calls([ToolCall("forecast", {"place": "Oslo", "days": 3})])
    with running(reply, dispatch_log=DispatchLog(log), has_ui=True) as server:
        person.chrome.get(f"{server.url}/ui")
        person.sees("get_weather")
        person.tabs_to("Paste tools of your own")
        person.types(" ")
        person.tabs_to("A tool, an array of tools, or the answer of MCP's tools/list, as JSON")
        person.types('{"name": "forecast"')
        person.tabs_to("Offer these instead")
        person.types(" ")
        person.sees("This is no JSON")
        person.empties()
        person.chrome.execute_script("arguments[0].value = arguments[1]", person.chrome.switch_to.active_element,
                                     json.dumps({"tools": [FORECAST]}))  # fmt: skip
        person.tabs_to("Offer these instead")
        person.types(" ")
        person.sees("Weather of the coming days")
        person.until(lambda: person.focused == "Request", "the request has not the focus")
        person.types("Oslo, a month")
        person.presses_with_control("\ue007")
        person.sees("reply tokens")
        person.types("c")
        person.tabs_to("days")
        person.empties()
        person.types("thirty")
        person.presses_with_control("\ue007")
        person.sees("'thirty' is not of type 'integer'")
        assert person.focused == "days"
        assert "not of type 'integer'" in person.told
        person.empties()
        person.types("14")
        person.presses_with_control("\ue007")
        person.sees("Kept in the dispatch log")
    assert written(log)[-1]["correction"]["calls"] == [{"name": "forecast", "arguments": {"place": "Oslo", "days": 14}}]


def test_with_keys_the_page_asks_for_one_and_nothing_works_without(tmp_path: Path, person: Person) -> None:
    with running(ONE_CALL, dispatch_log=DispatchLog(tmp_path), has_ui=True, key=KEY) as server:
        person.chrome.get(f"{server.url}/ui")
        person.sees("This server wants a key")
        assert "get_weather" not in person.page
        person.types("wrong-key-of-enough-letters\n")
        person.sees("Incorrect API key")
        person.empties()
        person.types(f"{KEY}\n")
        person.sees("get_weather")
        person.until(lambda: person.focused == "Request", "the request has not the focus")
        person.types("Oslo?")
        person.presses_with_control("\ue007")
        person.sees("reply tokens")
        person.types("y")
        person.sees("Kept in the dispatch log")
    assert written(tmp_path)[-1]["correction"]["calls"] == [weather("Oslo")]


def test_without_a_log_the_page_says_how_corrections_are_kept(person: Person) -> None:
    with running(ONE_CALL, has_ui=True) as server:
        person.chrome.get(f"{server.url}/ui")
        person.sees("get_weather")
        person.until(lambda: person.focused == "Request", "the request has not the focus")
        person.types("Oslo?")
        person.presses_with_control("\ue007")
        person.sees("Corrections are kept where the server was started with --dispatch-log DIR.")


def test_a_page_of_another_origin_can_neither_post_nor_frame_nor_read(tmp_path: Path, person: Person) -> None:
    """The other origin is a page of another port; its script posts as a browser allows it without asking."""
    attack = """
        const [url, done] = arguments, body = JSON.stringify({answer: "chatcmpl-" + "0".repeat(32)});
        const plain = fetch(url, {method: "POST", mode: "no-cors", headers: {"content-type": "text/plain"}, body});
        const json = fetch(url, {method: "POST", headers: {"content-type": "application/json"}, body});
        Promise.allSettled([plain, json]).then((all) => done(all.map((each) => each.value?.type ?? each.status)));
    """
    frame = """
        const frame = document.createElement("iframe");
        frame.src = arguments[0];
        frame.onload = () => arguments[1]();
        document.body.append(frame);
    """
    log = tmp_path / "log"
    with (
        running(ONE_CALL, dispatch_log=DispatchLog(log), has_ui=True) as server,
        running(ONE_CALL, has_ui=True) as other,
        reviewing(tmp_path / "stack", asked("weather in Oslo", weather("Oslo"))) as review,
    ):
        # A page without a policy of its own, which would stop the attack before it starts.
        person.chrome.get(f"{other.url}/health")
        review_url = review.url.partition("#")[0]
        for url in (f"{server.url}/ui/corrections", f"{review_url}api/decide"):
            blind, readable = person.chrome.execute_async_script(attack, url)
            assert blind in ("opaque", "rejected"), "its script can read the answer"
            assert readable == "rejected"
        person.new_complaints()
        for page in (f"{server.url}/ui", review_url):
            person.chrome.execute_async_script(frame, page)
            person.until(lambda: "frame-ancestors" in str(person.new_complaints()), f"{page} stands in a frame")
    assert written(log) == []
    assert (tmp_path / "stack" / "reviewed.jsonl").read_text() == ""


def test_a_stack_is_reviewed_with_the_keyboard_alone_and_retraining_learns_from_it(
    tmp_path: Path, person: Person
) -> None:
    log = tmp_path / "log"
    event = {
        "title": "planning",
        "start": "2026-03-20T10:00",
        "attendees": ["user1@example.com"],
        "recurrence": {"frequency": "weekly", "count": 4},
    }
    planning = {"name": "create_calendar_event", "arguments": event}
    challenger = {"model": "next", "calls": [weather("Lyon")]}
    rows = [
        asked("weather in Bergen", weather("Bergen"), confidence=0.98),
        asked("weather in Graz", weather("Gras"), confidence=0.2),
        asked("planning with user1@example.com and user2@example.com", planning, confidence=0.4),
        asked("tell me a joke", weather("joke"), confidence=0.6),
        asked("weather in Lyon", weather("Lyons"), confidence=0.8, challenger=challenger),
        asked("weather in Turin", weather("Turin"), confidence=0.9),
    ]
    person.new_complaints()
    with reviewing(log, *rows) as server:
        person.chrome.get(server.url)
        # The least confident first: corrected in its form, where a wrong value is shown at its field.
        person.sees("weather in Graz")
        person.sees("6 left, 0 decided")
        person.types("c")
        person.until(lambda: person.focused == "tool", "the form has not the focus")
        person.tabs_to("location")
        person.empties()
        person.types("Graz")
        person.tabs_to("date")
        person.types("tomorrow")
        person.presses_with_control("\ue007")
        person.sees("'tomorrow' is not a 'date'")
        assert person.focused == "date"
        person.empties()
        person.types("2026-03-20")
        person.presses_with_control("\ue007")
        # Nested objects, numbers, enumerations and arrays.
        person.sees("planning with user1")
        person.types("c")
        person.tabs_to("attendees, item")
        person.tabs_to("Add to attendees")
        person.types(" ")
        person.types("ada@corp-mail.com")
        person.tabs_to("frequency")
        person.types("m")
        person.tabs_to("count")
        person.empties()
        person.types("400")
        person.presses_with_control("\ue007")
        person.sees("400 is greater than the maximum of 365")
        assert person.focused == "count"
        assert "greater than the maximum" in person.told
        person.empties()
        person.types("12")
        person.presses_with_control("\ue007")
        person.sees("looks like personal data")
        person.empties()
        person.types("user2@example.com")
        person.presses_with_control("\ue007")
        person.sees("tell me a joke")
        person.types("r")
        person.sees("weather in Lyon")
        person.types("2", "a")
        person.sees("weather in Turin")
        person.types("a")
        person.sees("weather in Bergen")
        person.types("s")
        person.sees("1 left, 5 decided")
        person.types("u")
        person.sees("weather in Turin")
        person.sees("2 left, 4 decided")
        assert [text for text in person.new_complaints() if "favicon" not in text and "422" not in text] == []
    decided = log / "reviewed.jsonl"
    assert decided.stat().st_mode & 0o777 == 0o600
    decisions = [json.loads(line)["decision"] for line in decided.read_text().splitlines()]
    assert decisions == ["correct", "correct", "reject", "accept"]
    both = ["user1@example.com", "user2@example.com"]
    changed = {**event, "attendees": both, "recurrence": {"frequency": "monthly", "count": 12}}
    right = {
        "weather in Graz": weather("Graz", date="2026-03-20"),
        "weather in Lyon": weather("Lyon"),
        "planning with user1@example.com and user2@example.com": {**planning, "arguments": changed},
    }
    pool = {row["messages"][0]["content"]: row for row in taken_in(tmp_path, log, only_corrected=True)}
    assert {text: row["messages"][-1]["tool_calls"][0]["function"] for text, row in pool.items()} == right
    assert all(row["retraining"]["trust"] == 4 for row in pool.values())
    # Begun again, what is decided is not shown again.
    with reviewing(log) as server:
        person.chrome.get(server.url)
        person.sees("2 left, 4 decided")
        person.sees("weather in Turin")
