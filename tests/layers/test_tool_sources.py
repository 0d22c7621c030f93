"""Tools from Python functions, OpenAPI documents and MCP servers, used end to end."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, Literal

import pytest

from tests.layers.kitchen import FREE
from tinydispatch.layers.openapi import is_public, read_openapi, sender, tools_from_openapi
from tinydispatch.layers.python_tools import tool_from_function
from tinydispatch.layers.tool_calls import CallContext, CallStatus, ToolFailure, ToolsetError
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
    tools = tools_from_openapi(document(), shop.url, headers={"Authorization": "Bearer secret"})
    by_name = {tool.tool.name: tool for tool in tools}
    assert len(by_name) == 50
    assert sum(tool.has_side_effects for tool in tools) == 30
    assert {by_name[name].takes_key for name in ("replace_thing3", "delete_thing3")} == {True}
    assert by_name["create_thing3"].takes_key is False
    assert by_name["get_thing3_id"].result_schema == {"type": "object"}
    create = by_name["create_thing3"].tool
    assert create.violations({"name": "Lamp", "size": None, "parent": {"name": "Room"}}) == []
    assert create.violations({"name": "Lamp", "parent": {"size": "x"}}), "what contains itself stays as strict"
    assert all("secret" not in json.dumps(tool.tool.to_openai()) for tool in tools)
    assert run(tools, ToolCall("create_thing3", {"name": "Lamp", "size": 3})).value == {"ok": True}
    assert run(tools, ToolCall("list_thing0", {"tag": ["a b", "ü"]})).is_done
    assert run(tools, ToolCall("get_thing3_id", {"id": "../../admin?x=1"})).is_done
    assert "cannot be a segment" in run(tools, ToolCall("get_thing3_id", {"id": ".."})).error
    assert [(method, path, body) for method, path, _, body in shop.seen] == [
        ("POST", "/api/thing3", {"name": "Lamp", "size": 3}),
        ("GET", "/api/thing0?tag=a%20b&tag=%C3%BC", None),
        ("GET", "/api/thing3/..%2F..%2Fadmin%3Fx%3D1", None),
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


def one(operation: dict[str, Any], path: str = "/a", method: str = "get", **more: Any) -> dict[str, Any]:
    """A document of one operation."""
    return {
        "openapi": "3.0.3",
        "servers": [{"url": "https://api.example/v1"}],
        "paths": {path: {method: operation}},
        **more,
    }


def sent(document: dict[str, Any], arguments: dict[str, Any], *base: Any, **settings: Any) -> Any:
    """The request that the only tool sends; a `ToolFailure` where it does not."""
    seen: list[Any] = []
    tools = tools_from_openapi(
        document, *base, exchange=lambda made, _: (seen.append(made), (200, b"{}"))[1], **settings
    )
    assert tools[0].tool.violations(arguments) == []
    tools[0].run(arguments, CallContext("k", 1.0))
    return seen[0]


STRINGS = {"type": "array", "items": {"type": "string"}}


def parameter(where: str = "query", schema: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": "p", "in": where, "schema": STRINGS if schema is None else schema, **more}


OBJECT = {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("entry", "value", "url"),
    [
        (parameter(), ["a", "b c"], "/a?p=a&p=b%20c"),
        (parameter(explode=False), ["a", "b"], "/a?p=a,b"),
        (parameter(style="pipeDelimited", explode=False), ["a", "b"], "/a?p=a%7Cb"),
        (parameter(style="spaceDelimited", explode=False), ["a", "b"], "/a?p=a%20b"),
        (parameter(schema=OBJECT), {"x": "1", "y": 2}, "/a?x=1&y=2"),
        (parameter(schema=OBJECT, explode=False), {"x": "1", "y": 2}, "/a?p=x,1,y,2"),
        (parameter(schema=OBJECT, style="deepObject", explode=True), {"y": 2}, "/a?p%5By%5D=2"),
        (parameter(schema=OBJECT, style="deepObject"), {"y": 2}, "/a?p%5By%5D=2"),
        (parameter(schema={"type": "boolean"}), True, "/a?p=true"),
        (parameter("path", required=True), ["a", "b"], "/a/a,b"),
        (parameter("path", required=True, style="label", explode=True), ["a", "b"], "/a/.a.b"),
        (parameter("path", required=True, style="matrix"), ["a", "b"], "/a/;p=a,b"),
        (parameter("path", OBJECT, required=True, explode=True), {"x": "1", "y": 2}, "/a/x=1,y=2"),
    ],
)
def test_parameters_are_written_in_the_style_that_the_document_names(entry: Any, value: Any, url: str) -> None:
    path = "/a/{p}" if entry["in"] == "path" else "/a"
    assert sent(one({"parameters": [entry]}, path), {"p": value}).full_url == f"https://api.example/v1{url}"


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (parameter(explode=False), ["a,b"]),
        (parameter(), []),
        (parameter(schema={}), [["a"]]),
        (parameter(schema={}, style="deepObject", explode=True), 5),
        (parameter("header", {"type": "string"}), "a\r\nAuthorization: x"),
        (parameter("path", {"type": "string"}, required=True), ""),
    ],
)
def test_a_value_that_has_no_form_is_not_sent(entry: Any, value: Any) -> None:
    path = "/a/{p}" if entry["in"] == "path" else "/a"
    with pytest.raises(ToolFailure) as failure:
        sent(one({"parameters": [entry]}, path), {"p": value})
    assert failure.value.did_act is False


def body(kind: str, schema: Any, **more: Any) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema, **more}}}}


@pytest.mark.parametrize(
    ("operation", "arguments", "data", "kind"),
    [
        (body("application/json; charset=utf-8", OBJECT), {"x": "é"}, b'{"x": "\\u00e9"}',
         "application/json; charset=utf-8"),
        (body("application/merge-patch+json", OBJECT), {}, b"{}", "application/merge-patch+json"),
        (body("text/plain", {"type": "string"}), {"body": "é"}, "é".encode(), "text/plain; charset=utf-8"),
        (body("text/plain; charset=latin-1", {"type": "string"}), {"body": "é"}, b"\xe9",
         "text/plain; charset=latin-1"),
        (body("application/x-www-form-urlencoded", OBJECT), {"x": "a b&", "y": 1}, b"x=a+b%26&y=1",
         "application/x-www-form-urlencoded"),
        (body("application/x-www-form-urlencoded", {"type": "object", "properties": {"o": OBJECT}},
              encoding={"o": {"style": "deepObject", "explode": True}}), {"o": {"x": "1"}}, b"o%5Bx%5D=1",
         "application/x-www-form-urlencoded"),
    ],
)  # fmt: skip
def test_bodies_are_written_as_their_content_type_says(operation: Any, arguments: Any, data: bytes, kind: str) -> None:
    request = sent(one(operation, method="post"), arguments)
    assert (request.data, request.get_header("Content-type")) == (data, kind)


def test_a_multipart_form_has_a_part_for_each_key_and_no_files() -> None:
    file = {"type": "string", "format": "binary"}
    schema = {"type": "object", "properties": {"x": {"type": "string"}, "o": OBJECT, "file": file}}
    request = sent(one(body("multipart/form-data", schema), method="post"), {"x": "é", "o": {"y": 1}})
    assert b'name="x"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xa9\r\n' in request.data
    assert b'name="o"\r\nContent-Type: application/json\r\n\r\n{"y": 1}\r\n' in request.data
    found = read_openapi(one({"operationId": "up", **body("multipart/form-data", schema)}, method="post"))
    assert found.omitted == {"up": ("multipart/form-data, 'file': a file cannot be given",)}


def test_of_several_content_types_one_that_can_be_written_is_taken() -> None:
    content = {"application/xml": {"schema": OBJECT}, "application/x-www-form-urlencoded": {"schema": OBJECT}}
    request = sent(one({"requestBody": {"required": True, "content": content}}, method="post"), {"x": "1"})
    assert request.data == b"x=1"


def test_what_only_the_server_writes_is_no_argument_and_what_only_the_client_writes_no_result() -> None:
    secret = {"type": "string", "writeOnly": True}
    base = {"type": "object", "required": ["id", "name", "pin"], "properties": {
        "id": {"type": "integer", "readOnly": True}, "name": {"type": "string"}, "pin": secret}}  # fmt: skip
    operation = {**body("application/json", {"allOf": [{"$ref": "#/components/schemas/Base"}]}),
                 "responses": {"200": {"content": {"application/json": {"schema": base}}}}}  # fmt: skip
    document = one(operation, method="post", components={"schemas": {"Base": base}})
    (bound,) = tools_from_openapi(document)
    assert bound.tool.violations({"body": {"name": "x", "pin": "1"}}) == []
    assert bound.tool.violations({"body": {"name": "x"}})
    assert (set(bound.result_schema["properties"]), bound.result_schema["required"]) == ({"id", "name"}, ["id", "name"])


@pytest.mark.parametrize(
    ("operation", "path", "reason"),
    [
        ({}, "a", "expected /…"),
        ({}, "/a?b=c", "expected /…"),
        ({}, "/../a", "expected /…"),
        ({}, "/a/{id}", "path parameter 'id': 1 times in the path, 0 described"),
        ({"parameters": [{"$ref": "http://x/y"}]}, "/a", "only references within the document"),
        ({"parameters": 5}, "/a", "not written as OpenAPI wants it"),
        ({"parameters": [{"$ref": "#/components/x"}]}, "/a", "leads nowhere"),
        ({"parameters": [parameter("cookie", required=True)]}, "/a", "cookies are not sent"),
        ({"parameters": [parameter(style="deepObject", explode=True, required=True)]}, "/a", "not defined for array"),
        ({"servers": [{"url": "https://{region}.example"}]}, "/a", "variable 'region' is not described"),
        ({"servers": [{"url": "http://169.254.169.254/latest"}]}, "/a", "is private, and named by the document"),
        ({"servers": [{"url": "http://2130706433/"}]}, "/a", "is private"),
        ({"servers": [{"url": "http://[::ffff:10.0.0.1]/"}]}, "/a", "is private"),
        ({"servers": [{"url": "http://localhost:8080"}]}, "/a", "is private"),
        ({"servers": [{"url": "http://127\u30020.0.1"}]}, "/a", "written in ASCII"),
    ],
)
def test_one_operation_that_cannot_be_sent_is_named_and_the_others_are_offered(
    operation: Any, path: str, reason: str
) -> None:
    document = one({"operationId": "good"}, "/good")
    document["paths"][path] = {"get": operation}
    found = read_openapi(document)
    assert [bound.tool.name for bound in found.tools] == ["good"]
    assert reason in found.refused[f"GET {path}"]


def test_a_path_in_any_script_is_escaped() -> None:
    assert sent(one({}, "/\u5e97/a"), {}).full_url == "https://api.example/v1/%E5%BA%97/a"


def test_a_discriminator_tells_which_schema_counts() -> None:
    cat = {"type": "object", "properties": {"kind": {"type": "string"}, "lives": {"type": "integer"}}}
    dog = {**cat, "properties": {**cat["properties"], "walks": {"type": "integer"}}, "required": ["walks"]}
    names = {"cat": "#/components/schemas/Cat", "dog": "Dog"}
    pet = {"oneOf": [{"$ref": names["cat"]}, {"$ref": "#/components/schemas/Dog"}]}
    pet["discriminator"] = {"propertyName": "kind", "mapping": names}
    document = one(body("application/json", pet), method="post", components={"schemas": {"Cat": cat, "Dog": dog}})
    assert json.loads(sent(document, {"body": {"kind": "dog", "walks": 2}}).data) == {"kind": "dog", "walks": 2}
    (tool,) = tools_from_openapi(document)
    assert not tool.tool.violations({"body": {"kind": "cat"}})
    assert all(tool.tool.violations({"body": value}) for value in ({"kind": "dog"}, {"kind": "cow"}, {"walks": 2}))


def test_server_variables_have_their_defaults_or_what_the_user_says() -> None:
    variables = {"region": {"default": "eu", "enum": ["eu", "us"]}}
    document = one({}, servers=[{"url": "https://{region}.example", "variables": variables}])
    assert sent(document, {}).full_url == "https://eu.example/a"
    assert sent(document, {}, variables={"region": "us"}).full_url == "https://us.example/a"
    with pytest.raises(ToolsetError, match="cannot be 'moon'"):
        sent(document, {}, variables={"region": "moon"})


def test_credentials_go_to_the_hosts_that_the_user_named_and_to_no_other() -> None:
    own = one({"servers": [{"url": "https://uploads.example"}]})
    secret = {"Authorization": "Bearer s"}
    with pytest.raises(ToolsetError, match="base_url is missing"):
        sent(own, {}, "", headers=secret)
    with pytest.raises(ToolsetError, match="neither base_url's host nor one of hosts"):
        sent(own, {}, "https://api.example", headers=secret)
    allowed = sent(own, {}, "https://api.example", headers=secret, hosts=["uploads.example"])
    assert (allowed.full_url, allowed.get_header("Authorization")) == ("https://uploads.example/a", "Bearer s")
    with pytest.raises(ToolsetError, match="neither base_url's host"):
        sent(one({"servers": [{"url": "http://api.example"}]}), {}, "https://api.example", headers=secret)


@pytest.mark.parametrize("name", ["Authorization", "authorization", "X-Api-Key", "x-api-KEY", "Host", "Cookie"])
def test_no_parameter_can_replace_a_header_that_is_not_the_models(name: str) -> None:
    document = one({"parameters": [{"name": name, "in": "header", "schema": {"type": "string"}}]})
    headers = {"authorization": "Bearer s", "X-API-Key": "s"}
    tools = tools_from_openapi(document, "https://api.example", headers=headers, exchange=lambda *_: (200, b"{}"))
    assert tools[0].tool.parameters["properties"] == {}


def test_a_name_that_leads_into_a_private_network_is_not_followed_unless_the_user_wrote_it(shop: Shop) -> None:
    request = urllib.request.Request(shop.url.replace("127.0.0.1", "localhost"))
    with pytest.raises(urllib.error.URLError, match="is the private address"):
        sender()(request, 5.0)
    assert sender(frozenset({"localhost"}))(request, 5.0)[0] == 200


@pytest.mark.parametrize(
    ("address", "is_open"),
    [("93.184.216.34", True), ("10.1.2.3", False), ("169.254.169.254", False), ("100.64.0.1", False), ("::1", False),
     ("fe80::1%eth0", False), ("::ffff:192.168.0.1", False), ("64:ff9b::a00:1", False), ("2002:a00:1::", False),
     ("224.0.0.1", False), ("0.0.0.0", False), ("2606:4700::1111", True)],
)  # fmt: skip
def test_private_addresses_are_told_whatever_they_are_wrapped_in(address: str, is_open: bool) -> None:
    assert is_public(address) is is_open


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"openapi": "2.0"}, "documents of version 3"),
        ({"servers": [{"url": "/v1"}]}, "expected http"),
        ({"paths": {"/a": {"get": {"parameters": [{"$ref": "http://x/y"}]}}}}, "GET /a: .* within the document"),
    ],
)
def test_a_document_that_offers_nothing_is_refused_with_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolsetError, match=message):
        tools_from_openapi({**document(1), **change})
