"""Tools from Python functions, OpenAPI documents and MCP servers, used end to end."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, Literal

import pytest

from tests.layers.kitchen import FREE
from tinydispatch.layers.openapi import tools_from_openapi
from tinydispatch.layers.python_tools import tool_from_function
from tinydispatch.layers.tool_calls import CallContext, CallStatus, ToolsetError
from tinydispatch.layers.toolbox import Permission, Toolbox
from tinydispatch.tools import ToolCall


class Size(enum.StrEnum):
    SMALL = "small"
    LARGE = "large"


@dataclasses.dataclass
class Guest:
    name: str
    age: int = 0


def book_table(
    restaurant: str,
    on: dt.date,
    guests: list[Guest],
    size: Size = Size.SMALL,
    tags: dict[str, str] | None = None,
    where: Literal["inside", "outside"] = "inside",
    note: Annotated[str, "for the cook"] = "",
    *,
    context: CallContext,
) -> dict[str, Any]:
    """Book a table at
    a restaurant.

    More words that models do not need.

    Args:
        restaurant: its name, as
            it is written
        on (date): the day
    """
    names = [guest.name for guest in guests]
    return {"restaurant": restaurant, "on": on, "names": names, "size": size, "key": context.idempotency_key,
            "tags": tags, "where": where, "note": note}  # fmt: skip


def run(tools: Any, call: ToolCall, key: str = "k") -> Any:
    return Toolbox(tools, FREE, sleep=lambda _: None).execute(call, key, Permission())


def test_a_function_becomes_a_tool_with_the_schema_of_its_hints() -> None:
    bound = tool_from_function(book_table)
    schema = bound.tool.parameters
    assert bound.tool.description == "Book a table at a restaurant."
    assert schema["required"] == ["restaurant", "on", "guests"]
    assert schema["properties"]["restaurant"] == {"description": "its name, as it is written", "type": "string"}
    assert schema["properties"]["on"] == {"description": "the day", "type": "string", "format": "date"}
    assert schema["properties"]["guests"]["items"]["required"] == ["name"]
    assert schema["properties"]["size"] == {"enum": ["small", "large"]}
    assert schema["properties"]["where"]["enum"] == ["inside", "outside"]
    assert schema["properties"]["note"] == {"description": "for the cook", "type": "string"}
    assert "context" not in schema["properties"]
    assert bound.takes_key


def test_a_function_gets_the_objects_that_it_was_written_for() -> None:
    arguments = {"restaurant": "Lumen", "on": "2026-03-19", "guests": [{"name": "Jo"}], "size": "large"}
    outcome = run([tool_from_function(book_table)], ToolCall("book_table", arguments))
    assert outcome.value == {"restaurant": "Lumen", "on": "2026-03-19", "names": ["Jo"], "size": "large", "key": "k",
                             "tags": None, "where": "inside", "note": ""}  # fmt: skip
    wrong = run([tool_from_function(book_table)], ToolCall("book_table", {**arguments, "on": "Thursday"}))
    assert wrong.status is CallStatus.REFUSED


def test_a_function_without_a_schema_is_refused_by_name() -> None:
    def bare(thing, other: int) -> None: ...  # type: ignore[no-untyped-def]

    def odd(thing: set[object]) -> None: ...

    def many(*things: int) -> None: ...

    with pytest.raises(ToolsetError, match="function 'bare', parameter 'thing': no type annotation"):
        tool_from_function(bare)
    with pytest.raises(ToolsetError, match=r"function 'odd', parameter 'thing': .* has no JSON schema"):
        tool_from_function(odd)
    with pytest.raises(ToolsetError, match="parameter 'things'"):
        tool_from_function(many)


class Shop:
    """An HTTP server that keeps what it was asked; `answers` maps "METHOD /path" to status and body."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.answers: dict[str, list[tuple[int, str]]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                headers = {key.lower(): value for key, value in self.headers.items()}
                outer.seen.append((self.command, self.path, headers, body))
                scripted = outer.answers.get(self.command, [])
                status, text = scripted.pop(0) if scripted else (200, json.dumps({"ok": True}))
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "http://127.0.0.1:1/steal")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/api"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


def document(n_things: int = 10) -> dict[str, Any]:
    """Five operations on each of ten kinds of things: fifty in all."""
    paths: dict[str, Any] = {}
    for number in range(n_things):
        thing = f"thing{number}"
        one = {"parameters": [{"$ref": "#/components/parameters/Id"}]}
        body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}}
        paths[f"/{thing}"] = {
            "get": {"operationId": f"list_{thing}", "summary": "List", "parameters": [
                {"name": "tag", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}}]},
            "post": {"operationId": f"create_{thing}", "requestBody": body},
        }  # fmt: skip
        paths[f"/{thing}/{{id}}"] = {
            **one,
            "get": {"responses": {"200": {"content": {"application/json": {"schema": {"type": "object"}}}}}},
            "put": {"operationId": f"replace_{thing}", "requestBody": body},
            "delete": {"operationId": f"delete_{thing}"},
        }
    return {
        "openapi": "3.1.0",
        "servers": [{"url": "https://things.example/v1"}],
        "paths": paths,
        "components": {
            "parameters": {"Id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}},
            "schemas": {"Thing": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "size": {"type": "integer", "nullable": True},
                "parent": {"$ref": "#/components/schemas/Thing"}}}},
        },
    }  # fmt: skip


def test_a_document_of_fifty_operations_becomes_fifty_tools(shop: Shop) -> None:
    tools = tools_from_openapi(document(), shop.url, {"Authorization": "Bearer secret"})
    by_name = {tool.tool.name: tool for tool in tools}
    assert len(by_name) == 50
    assert sum(tool.has_side_effects for tool in tools) == 30
    assert {by_name[name].takes_key for name in ("replace_thing3", "delete_thing3")} == {True}
    assert by_name["create_thing3"].takes_key is False
    assert by_name["get_thing3_id"].result_schema == {"type": "object"}
    size = by_name["create_thing3"].tool.parameters["properties"]["size"]
    assert size == {"type": ["integer", "null"]}
    assert all("secret" not in json.dumps(tool.tool.to_openai()) for tool in tools)
    assert run(tools, ToolCall("create_thing3", {"name": "Lamp", "size": 3})).value == {"ok": True}
    assert run(tools, ToolCall("list_thing0", {"tag": ["a b", "ü"]})).is_done
    assert run(tools, ToolCall("get_thing3_id", {"id": "../../admin?x=1"})).is_done
    assert run(tools, ToolCall("get_thing3_id", {"id": ".."})).is_done
    assert [(method, path, body) for method, path, _, body in shop.seen] == [
        ("POST", "/api/thing3", {"name": "Lamp", "size": 3}),
        ("GET", "/api/thing0?tag=a+b&tag=%C3%BC", None),
        ("GET", "/api/thing3/..%2F..%2Fadmin%3Fx%3D1", None),
        ("GET", "/api/thing3/%2E%2E", None),
    ]
    assert shop.seen[0][2]["authorization"] == "Bearer secret"
    assert shop.seen[0][2]["idempotency-key"] == "k"


@pytest.mark.parametrize(
    ("call", "answers", "status", "n_requests"),
    [
        (ToolCall("create_thing0", {"name": "x"}), [(503, ""), (200, "{}")], CallStatus.DONE, 2),
        (ToolCall("create_thing0", {"name": "x"}), [(500, "boom, try again")], CallStatus.UNKNOWN, 1),
        (ToolCall("create_thing0", {"name": "x"}), [(422, "no")], CallStatus.FAILED, 1),
        (ToolCall("delete_thing0", {"id": "7"}), [(500, "boom, try again"), (204, "")], CallStatus.DONE, 2),
        (ToolCall("list_thing0", {}), [(302, "")], CallStatus.FAILED, 1),
    ],
)
def test_http_errors_are_retried_only_where_nothing_can_have_happened(
    shop: Shop, call: ToolCall, answers: list[tuple[int, str]], status: CallStatus, n_requests: int
) -> None:
    method = {"create": "POST", "delete": "DELETE", "list": "GET"}[call.name.split("_")[0]]
    shop.answers[method] = answers
    outcome = run(tools_from_openapi(document(1), shop.url), call)
    assert (outcome.status, len(shop.seen)) == (status, n_requests)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"openapi": "2.0"}, "documents of version 3"),
        ({"servers": [{"url": "/v1"}]}, "expected http"),
        ({"components": {}}, r"POST /thing0: \$ref '#/components/.*' leads nowhere"),
        ({"paths": {"/a": {"get": {"operationId": "x"}}, "/b": {"get": {"operationId": "x"}}}}, "'x' occurs twice"),
        ({"paths": {"/a": {"get": {"parameters": [{"$ref": "http://x/y"}]}}}}, "GET /a: .* within the document"),
    ],
)
def test_a_document_that_cannot_be_used_is_refused_with_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolsetError, match=message):
        tools_from_openapi({**document(1), **change})
