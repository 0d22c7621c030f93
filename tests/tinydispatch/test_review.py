"""A dispatch log's way through a person's hands: which lines come, what is kept, and what is refused."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures_playback import WEATHER
from tinydispatch.__main__ import main
from tinydispatch.bundled import bundled_tools
from tinydispatch.json_schema import MAX_DEPTH
from tinydispatch.pages.forms import tool_form
from tinydispatch.pages.review import TOKEN_HEADER, ReviewServer
from tinydispatch.review import Decision, Order, RefusedError, ReviewError, Stack
from tinydispatch.tools import Tool

TOOLS = [WEATHER.to_openai()]


def weather(place: Any) -> dict[str, Any]:
    return {"name": "get_weather", "arguments": {"location": place}}


def asked(text: str, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "tools": TOOLS, "calls": list(calls), **more}


def log_of(folder: Path, *rows: dict[str, Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
    (folder / "dispatch-2026-11-30.jsonl").write_text("".join(lines))
    return folder


def texts(stack: Stack, order: Order = Order.CONFIDENCE) -> list[str]:
    """What is asked in the lines as they come, each skipped."""
    found: list[str] = []
    place = 0
    for _ in range(stack.state()["left"][order]):
        shown = stack.next(order, place)
        found.append(shown["line"]["messages"][0]["answer"]["reply"])
        place = shown["place"] + 1
    return found


def decisions(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.decisions.read_text().splitlines()]


def test_the_least_confident_lines_come_first_and_unknown_is_not_confident(tmp_path: Path) -> None:
    rows = [asked(str(value), weather("x"), confidence=value) for value in (0.9, 0.1, None, 0.5)]
    assert texts(Stack(log_of(tmp_path, *rows))) == ["None", "0.1", "0.5", "0.9"]


def test_disagreements_and_corrections_are_orders_of_their_own(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        asked("same", weather("a"), challenger={"calls": [weather("a")], "reply": "other words"}),
        asked("challenged", weather("a"), challenger={"calls": [weather("b")]}, confidence=0.9),
        asked("escalated", weather("a"), escalation={"calls": []}, confidence=0.2),
        asked("corrected", weather("a"), correction={"calls": [weather("b")]}),
    )
    stack = Stack(log)
    assert texts(stack, Order.DISAGREEMENTS) == ["escalated", "challenged"]
    assert texts(stack, Order.CORRECTIONS) == ["corrected"]
    shown = stack.next(Order.CORRECTIONS, 0)["line"]
    assert ([each["name"] for each in shown["answers"]], shown["chosen"]) == (["own", "correction"], "correction")


def test_a_decision_is_the_line_with_what_is_right_and_the_log_stays_as_it_is(tmp_path: Path) -> None:
    row = asked("Oslo?", weather("Oslo"), id="one", session_id="s", someone_elses_key=[1.0])
    log = log_of(tmp_path, row, asked("Rome?", weather("Oslo"), id="two"), asked("joke", weather("x"), id="three"))
    before = (log / "dispatch-2026-11-30.jsonl").read_bytes()
    stack = Stack(log)
    stack.decide("one", Decision.ACCEPT)
    stack.decide("two", Decision.CORRECT, correction={"calls": [weather("Rome")], "reply": ""})
    stack.decide("three", Decision.REJECT)
    accepted, corrected, rejected = decisions(stack)
    assert accepted["correction"] == {"calls": [weather("Oslo")], "reply": ""}
    assert {key: accepted[key] for key in row if key != "id"} == {key: row[key] for key in row if key != "id"}
    assert corrected["correction"]["calls"] == [weather("Rome")]
    assert (rejected["is_accepted"], rejected["correction"]) == (False, None)
    assert [line["decides"] for line in decisions(stack)] == ["one", "two", "three"]
    assert len({line["id"] for line in decisions(stack)} | {"one", "two", "three"}) == 6
    assert (log / "dispatch-2026-11-30.jsonl").read_bytes() == before
    assert stack.decisions.stat().st_mode & 0o777 == 0o600


def test_what_is_decided_is_not_shown_again_until_it_is_undone(tmp_path: Path) -> None:
    log = log_of(tmp_path, asked("a", weather("a")), asked("b", weather("b")))
    stack = Stack(log)
    first = stack.next(Order.CONFIDENCE, 0)["line"]["id"]
    stack.decide(first, Decision.ACCEPT)
    with pytest.raises(ReviewError, match="decided already"):
        stack.decide(first, Decision.REJECT)
    stack.close()
    again = Stack(log)
    assert texts(again) == ["b"]
    assert again.undo() == first
    assert texts(again) == ["a", "b"]
    assert again.undo() is None
    assert again.decisions.read_text() == ""


def test_later_lines_of_the_same_answer_are_shown_with_it_and_decided_with_it(tmp_path: Path) -> None:
    row = asked("a", weather("a"), id="one")
    later = {**row, "is_accepted": False, "challenger": {"model": "next", "calls": [weather("b")]}}
    stack = Stack(log_of(tmp_path, row, later, {**row, "correction": {"calls": [weather("c")]}}))
    assert stack.state()["left"] == {"confidence": 1, "disagreements": 1, "corrections": 1}
    answers = stack.next(Order.DISAGREEMENTS, 0)["line"]["answers"]
    assert [each["name"] for each in answers] == ["own", "correction", "challenger"]
    stack.decide("one", Decision.ACCEPT, answer="challenger")
    assert decisions(stack)[0]["correction"]["calls"] == [weather("b")]
    assert stack.state()["left"]["confidence"] == 0


def test_two_reviews_of_one_log_do_not_run_at_once(tmp_path: Path) -> None:
    log = log_of(tmp_path, asked("a", weather("a")))
    stack = Stack(log)
    with pytest.raises(ReviewError, match="another review is at work"):
        Stack(log)
    stack.close()
    Stack(log).close()


def test_a_line_that_the_page_of_serve_corrected_is_shown_once_as_a_correction(tmp_path: Path) -> None:
    corrected = asked("Rome?", weather("Oslo"), id="b", decides="a", correction={"calls": [weather("Rome")]})
    stack = Stack(log_of(tmp_path, asked("Rome?", weather("Oslo"), id="a"), {**corrected, "corrected_by": "ui"}))
    assert stack.state()["left"] == {"confidence": 1, "disagreements": 0, "corrections": 1}
    answer = stack.next(Order.CONFIDENCE, 0)["line"]["answers"][1]
    assert (answer["by"], answer["answer"]["calls"]) == ("ui", [weather("Rome")])


@pytest.mark.parametrize(
    ("correction", "call", "place", "message"),
    [
        ({"calls": [weather(3)]}, 0, ["location"], "3 is not of type 'string'"),
        ({"calls": [weather("a"), {"name": "fly", "arguments": {}}]}, 1, [], "'fly' is none of the tools on offer"),
        ({"calls": [{"name": "get_weather"}]}, 0, [], "a call has a text 'name'"),
        ({"calls": [], "reply": " "}, None, [], "the answer is empty"),
        ({"reply": "hi"}, None, [], "an array 'calls'"),
        ({"calls": [weather("ada@corp-mail.com")]}, 0, ["location"], "looks like personal data"),
        ({"calls": [], "reply": "call +47 912 34 567"}, None, [], "holds personal data"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_place_and_nothing_is_kept(
    tmp_path: Path, correction: Any, call: int | None, place: list[str], message: str
) -> None:
    stack = Stack(log_of(tmp_path, asked("a", weather("a"), id="a")))
    with pytest.raises(RefusedError) as refused:
        stack.decide("a", Decision.CORRECT, correction=correction)
    found = refused.value.problems[0].to_json()
    assert (found["call"], found["place"]) == (call, place)
    assert message in found["message"]
    assert stack.decisions.read_text() == ""


def test_made_up_addresses_and_what_the_line_says_itself_are_no_personal_data(tmp_path: Path) -> None:
    stack = Stack(log_of(tmp_path, asked("mail 192.0.2.1", weather("a"), id="a")))
    right = {"calls": [weather("192.0.2.1"), weather("user2@example.com")], "reply": ""}
    stack.decide("a", Decision.CORRECT, correction=right)
    assert decisions(stack)[0]["correction"] == right


def test_an_answer_that_breaks_its_schema_cannot_be_accepted_and_can_be_rejected(tmp_path: Path) -> None:
    stack = Stack(log_of(tmp_path, asked("a", {"name": "fly", "arguments": {}}, id="a")))
    assert "none of the tools" in stack.next(Order.CONFIDENCE, 0)["line"]["answers"][0]["problems"][0]
    with pytest.raises(RefusedError, match="none of the tools on offer"):
        stack.decide("a", Decision.ACCEPT)
    stack.decide("a", Decision.REJECT)
    assert decisions(stack)[0]["is_accepted"] is False


def test_lines_that_cannot_be_read_are_counted_and_told_and_the_others_come(tmp_path: Path) -> None:
    foreign = ['{"prompt": "of another program"}\n', "[1]\n", '{"messages": [{"ro']
    log = log_of(tmp_path, asked("a", weather("a")), *foreign)
    stack = Stack(log)
    assert texts(stack) == ["a"]
    assert [line.partition("jsonl:")[2] for line in stack.state()["unreadable"]["first"]] == [
        "2: no array 'messages'; another program or version wrote it",
        "3: not an object",
        "4: the line is cut off",
    ]


def test_odd_tools_and_odd_messages_are_shown_and_never_stop_the_review(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"type": "object", "properties": {"a": deep}}
    bad = {"messages": [{"role": "tool", "content": [1]}, 3], "calls": [], "reply": None, "id": "bad"}
    too_deep = [{"name": "x", "parameters": deep}]
    rows = [{**bad, "tools": too_deep}, {**bad, "id": "none"}, {**bad, "id": "number", "tools": 3}]
    stack = Stack(log_of(tmp_path, *rows))
    for name in ("bad", "number"):
        assert stack.line(name, Order.CONFIDENCE)["line"]["problem"].startswith("its tools cannot be read")
    assert "--tools FILE" in stack.line("none", Order.CONFIDENCE)["line"]["problem"]
    with pytest.raises(RefusedError, match="cannot be read"):
        stack.decide("bad", Decision.CORRECT, correction={"calls": [], "reply": "no"})
    stack.decide("bad", Decision.REJECT)


def test_tools_of_a_file_stand_in_where_a_line_names_none(tmp_path: Path) -> None:
    row = {key: value for key, value in asked("Rome?", weather("Oslo"), id="a").items() if key != "tools"}
    stack = Stack(log_of(tmp_path, row), tools=[WEATHER])
    assert [form["name"] for form in stack.line("a", Order.CONFIDENCE)["line"]["forms"]] == ["get_weather"]
    stack.decide("a", Decision.CORRECT, correction={"calls": [weather("Rome")]})
    assert "tools" not in decisions(stack)[0]


def test_a_line_that_changed_meanwhile_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    log = log_of(tmp_path, asked("a", weather("a"), id="a"))
    stack = Stack(log)
    log_of(tmp_path, asked("b", weather("b"), id="b"))
    with pytest.raises(ReviewError, match="the line is gone or changed"):
        stack.decide("a", Decision.ACCEPT)
    assert stack.decisions.read_text() == ""


def test_a_decision_that_a_crash_cut_off_is_left_behind_and_asked_again(tmp_path: Path) -> None:
    log = log_of(tmp_path, asked("a", weather("a"), id="a"), asked("b", weather("b"), id="b"))
    stack = Stack(log)
    for name in ("a", "b"):
        stack.decide(name, Decision.ACCEPT)
    stack.close()
    stack.decisions.write_bytes(stack.decisions.read_bytes()[:-30])
    again = Stack(log)
    assert texts(again) == ["b"]
    again.decide("b", Decision.REJECT)
    whole = [line for line in again.decisions.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["decision"] for line in whole] == ["accept", "reject"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder; give what serve --dispatch-log wrote"),
        ("", "none of its 0 lines is one of a dispatch log"),
        ("hello\n", "none of its 1 lines is one of a dispatch log; the first, "),
        ("[]\n", "not an object"),
    ],
)
def test_what_is_no_log_is_one_sentence(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    assert main(["review", str(path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "log.reviewed.jsonl").exists()


def test_an_empty_folder_and_a_place_that_cannot_be_written_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["review", str(tmp_path)]) == 2
    assert "no .jsonl file in this folder" in capsys.readouterr().err
    log = log_of(tmp_path / "log", asked("a", weather("a")))
    assert main(["review", str(log), "--out", str(tmp_path / "absent" / "out.jsonl")]) == 2
    assert "decisions cannot be kept there: No such file or directory; give another --out" in capsys.readouterr().err
    assert main(["review", str(log), "--port", "70000"]) == 2
    assert "give another --port" in capsys.readouterr().err


# Over HTTP


@contextmanager
def serving(log: Path) -> Iterator[tuple[httpx.Client, Stack]]:
    stack = Stack(log)
    server = ReviewServer(stack)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    address, _, token = server.url.partition("/#")
    try:
        with httpx.Client(base_url=address, headers={TOKEN_HEADER: token}, timeout=30) as client:
            yield client, stack
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        stack.close()


def test_a_line_is_shown_decided_and_undone_over_http(tmp_path: Path) -> None:
    with serving(log_of(tmp_path, asked("a", weather("a"), id="a"))) as (client, stack):
        shown = client.get("/api/line", params={"order": "confidence", "from": 0}).json()
        assert shown["line"]["forms"][0]["field"]["fields"][0]["name"] == "location"
        wrong = {"id": "a", "decision": "correct", "correction": {"calls": [weather(1)]}}
        refused = client.post("/api/decide", json=wrong)
        assert (refused.status_code, refused.json()["problems"][0]["place"]) == (422, ["location"])
        assert client.post("/api/decide", json={"id": "a", "decision": "accept"}).json()["decided"] == 1
        assert client.get("/api/line").json()["line"] is None
        assert client.post("/api/undo", json={}).json()["id"] == "a"
        assert stack.decisions.read_text() == ""


def test_the_page_runs_nothing_foreign_and_holds_nothing_without_the_token(tmp_path: Path) -> None:
    with serving(log_of(tmp_path, asked("secret", weather("a")))) as (client, _):
        for path in ("/", "/review.js", "/calls.js", "/style.css"):
            found = client.get(path, headers={TOKEN_HEADER: ""})
            assert found.status_code == 200
            assert "secret" not in found.text
            assert "script-src 'self'" in found.headers["content-security-policy"]
            assert "unsafe" not in found.headers["content-security-policy"]
            assert found.headers["x-content-type-options"] == "nosniff"
        assert "<script>" not in client.get("/").text
        assert client.get("/../__init__.py").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({TOKEN_HEADER: ""}, 401),
        ({TOKEN_HEADER: "guess"}, 401),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1:1"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_a_foreign_page_cannot_decide(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    with serving(log_of(tmp_path, asked("a", weather("a"), id="a"))) as (client, stack):
        kind = {"content-type": "application/json"}
        body = b'{"id": "a", "decision": "reject"}'
        response = client.post("/api/decide", content=body, headers={**kind, **headers})
        assert response.status_code == status
        assert "error" in response.json()
        assert stack.decisions.read_text() == ""


@pytest.mark.parametrize("length", ["9999999", "-1", "9" * 5000, "x"])
def test_a_body_that_is_too_long_is_not_read(tmp_path: Path, length: str) -> None:
    with serving(log_of(tmp_path, asked("a", weather("a")))) as (client, _):
        host, port = client.base_url.host, client.base_url.port or 0
        head = f"POST /api/undo HTTP/1.1\r\nhost: {host}:{port}\r\n{TOKEN_HEADER}: {client.headers[TOKEN_HEADER]}"
        with socket.create_connection((host, port), timeout=30) as connection:
            connection.sendall(f"{head}\r\ncontent-length: {length}\r\n\r\n".encode())
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 413")


# Forms


def field(schema: dict[str, Any], *path: str) -> dict[str, Any]:
    found: dict[str, Any] = tool_form(Tool("t", "", schema))["field"]
    for name in path:
        found = next(each["field"] for each in found["fields"] if each["name"] == name)
    return found


def test_every_kind_of_the_bundled_tools_has_a_field_of_its_own() -> None:
    event = next(tool for tool in bundled_tools() if tool.name == "create_calendar_event")
    fields = {each["name"]: each for each in tool_form(event)["field"]["fields"]}
    assert fields["attendees"]["field"]["item"] == {"kind": "string", "hint": "email"}
    recurrence = {each["name"]: each["field"] for each in fields["recurrence"]["field"]["fields"]}
    assert recurrence["frequency"]["values"] == ["daily", "weekly", "monthly"]
    assert recurrence["count"] == {"kind": "integer", "hint": "at least 1, at most 365"}
    assert [name for name, each in fields.items() if each["is_required"]] == ["title", "start"]


def test_references_nulls_and_descriptions_of_any_dialect_reach_the_form() -> None:
    schema = {
        "type": "object",
        "properties": {
            "unit": {"$ref": "#/$defs/unit"},
            "n": {"type": ["integer", "null"], "description": "how many"},
            "who": {"anyOf": [{"type": "string", "description": "a name"}, {"type": "null"}]},
            "old": {"type": "boolean", "nullable": True},
        },
        "$defs": {"unit": {"enum": ["m", "km"], "description": "of length"}},
    }
    unit = field(schema, "unit")
    assert (unit["kind"], unit["values"], unit["description"]) == ("choice", ["m", "km"], "of length")
    assert (field(schema, "n")["kind"], field(schema, "n")["is_nullable"]) == ("integer", True)
    assert field(schema, "n")["description"] == "how many"
    assert (field(schema, "who")["kind"], field(schema, "who")["is_nullable"]) == ("string", True)
    assert (field(schema, "old")["kind"], field(schema, "old")["is_nullable"]) == ("boolean", True)


def test_what_no_form_can_show_is_filled_in_as_json_and_no_schema_makes_a_form_without_an_end() -> None:
    node = {"type": "object", "properties": {name: {"$ref": "#/$defs/node"} for name in "abcdef"}}
    schema = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}, "one": {"oneOf": [{"type": "string"}, {"type": "integer"}]}},
        "$defs": {"node": node},
    }
    assert field(schema, "one") == {"kind": "json"}
    assert len(json.dumps(tool_form(Tool("t", "", schema)))) < 100_000
    assert field({"type": "object", "additionalProperties": {"type": "string"}}) == {
        "kind": "object", "fields": [], "has_others": True,
    }  # fmt: skip
