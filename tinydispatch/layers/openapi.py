"""HTTP endpoints as tools, from an OpenAPI 3 document: one tool per operation."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolFailure, ToolsetError
from tinydispatch.tools import Tool, ToolError

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
# By HTTP's own definition these change nothing, and those may be sent again.
_SAFE, _REPEATABLE = {"get", "head", "options"}, {"put", "delete"}
_MAX_DEPTH = 12
# Of OpenAPI's own, and no part of JSON Schema.
_NO_SCHEMA = {"example", "xml", "properties", "discriminator", "externalDocs"}
# Parts of one operation's schemas; references that fan out could make millions of them.
_MAX_NODES = 50_000
_MAX_RESPONSE_BYTES = 20_000_000
# Answers that say that nothing was done and that it may be tried again.
_LATER = {425, 429, 503}

Send = Callable[[urllib.request.Request, float], tuple[int, bytes]]


@dataclass(frozen=True)
class _Operation:
    """`places`: where each argument goes: path, query, header, or body."""

    method: str
    path: str
    places: Mapping[str, str]
    is_body_whole: bool  # the argument "body" is the whole body; otherwise each body argument is a key of it


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the credentials to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def send(request: urllib.request.Request, timeout_s: float) -> tuple[int, bytes]:
    """One HTTP exchange; a status that means an error is an answer too."""
    is_local = urlsplit(request.full_url).hostname in ("localhost", "127.0.0.1", "::1")
    proxies = [urllib.request.ProxyHandler({})] if is_local else []
    opener = urllib.request.build_opener(_NoRedirect(), *proxies)
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return int(response.status), response.read(_MAX_RESPONSE_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MAX_RESPONSE_BYTES)


def tools_from_openapi(
    document: Mapping[str, Any],
    base_url: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 30.0,
    exchange: Send = send,
) -> tuple[BoundTool, ...]:
    """Tools for every operation of a document that has been read.

    GET, HEAD and OPTIONS have no side effects. Every other request carries the header `Idempotency-Key`; that the
    server heeds it is assumed of operations that name the header as a parameter. PUT and DELETE do no more a second
    time.

    Args:
        base_url: in place of the document's first server. Requests go there and nowhere else.
        headers: sent with each request, such as the authorization; models never see them.

    Raises:
        ToolsetError: the document is no OpenAPI 3, or an operation cannot be expressed; names path and method.
    """
    if not str(document.get("openapi", "")).startswith("3."):
        raise ToolsetError(f"openapi: {document.get('openapi')!r}; documents of version 3 are read")
    servers = document.get("servers") or [{}]
    base = (base_url or str(servers[0].get("url", ""))).rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise ToolsetError(f"servers: '{base}': expected http://… or https://…, or give base_url")
    reader = _Reader(document)
    found: list[BoundTool] = []
    for path, method, operation, shared in _operations(document):
        tool, target, takes_key, result = reader.tool(path, method, operation, shared)
        if any(tool.name == other.tool.name for other in found):
            raise ToolsetError(f"{method.upper()} {path}: the name '{tool.name}' occurs twice")
        is_safe = method in _SAFE
        run = _runner(target, base, dict(headers or {}), exchange, is_safe=is_safe)
        found.append(BoundTool(tool, run, not is_safe, takes_key, timeout_s, result_schema=result))
    return tuple(found)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], list[Any]]]:
    for path, item in (document.get("paths") or {}).items():
        for method in _METHODS:
            if isinstance(item, Mapping) and isinstance(item.get(method), Mapping):
                yield path, method, item[method], list(item.get("parameters") or [])


@dataclass
class _Reader:
    document: Mapping[str, Any]
    place: str = field(default="", init=False)
    n_expanded: int = field(default=0, init=False)

    def tool(
        self, path: str, method: str, operation: Mapping[str, Any], shared: list[Any]
    ) -> tuple[Tool, _Operation, bool, Mapping[str, Any]]:
        """The tool, where its arguments go, whether it takes a key, and what is known of its result."""
        self.place, self.n_expanded = f"{method.upper()} {path}", 0
        name = str(operation.get("operationId") or f"{method}{path}")
        name = re.sub(r"[^A-Za-z0-9_.\-]+", "_", name).strip("_")[:64]
        text = str(operation.get("summary") or operation.get("description") or "")
        properties: dict[str, Any] = {}
        places: dict[str, str] = {}
        required: set[str] = set()
        takes_key = method in _REPEATABLE
        for entry in [*shared, *(operation.get("parameters") or [])]:
            parameter = self._resolved(entry, 0)
            key, where = str(parameter.get("name")), str(parameter.get("in"))
            if where == "header" and key.lower() == "idempotency-key":
                takes_key = True
                continue
            if where not in ("path", "query", "header"):
                continue  # cookies are the application's
            properties[key] = self._described(parameter)
            places[key] = where
            if parameter.get("required") or where == "path":
                required.add(key)
        is_whole = self._body(operation, properties, places, required)
        schema = {"type": "object", "properties": properties, "required": sorted(required)}
        try:
            tool = Tool(name, text, {**schema, "additionalProperties": False})
        except ToolError as error:
            raise ToolsetError(f"{self.place}: {error}") from error
        return tool, _Operation(method, path, places, is_whole), takes_key, self._result(operation)

    def _described(self, parameter: Mapping[str, Any]) -> dict[str, Any]:
        schema = dict(self._expanded(parameter.get("schema") or {"type": "string"}))
        if text := parameter.get("description"):
            schema["description"] = str(text)
        return schema

    def _body(
        self, operation: Mapping[str, Any], properties: dict[str, Any], places: dict[str, str], required: set[str]
    ) -> bool:
        """Add the body's keys to the arguments, or the body as a whole where it is no object or a name is taken."""
        body = self._resolved(operation.get("requestBody") or {}, 0)
        media = (body.get("content") or {}).get("application/json")
        if media is None:
            if body.get("required"):
                raise ToolsetError(f"{self.place}: requestBody: only application/json is sent")
            return False
        schema = self._expanded(media.get("schema") or {})
        inner = schema.get("properties")
        if schema.get("type") != "object" or not inner or set(inner) & set(properties):
            properties["body"], places["body"] = dict(schema), "body"
            required |= {"body"} if body.get("required") else set()
            return True
        properties.update(inner)
        places.update(dict.fromkeys(inner, "body"))
        required |= set(schema.get("required") or []) if body.get("required") else set()
        return False

    def _result(self, operation: Mapping[str, Any]) -> Mapping[str, Any]:
        answers = operation.get("responses") or {}
        answer = next((self._resolved(answers[code], 0) for code in answers if str(code).startswith("2")), {})
        media = (answer.get("content") or {}).get("application/json") or {}
        schema = media.get("schema")
        return self._expanded(schema) if isinstance(schema, Mapping) else {}

    def _resolved(self, value: Any, depth: int) -> Mapping[str, Any]:
        """What a "$ref" within the document leads to; others are not fetched."""
        if not isinstance(value, Mapping):
            raise ToolsetError(f"{self.place}: expected an object, not {value!r}")
        reference = value.get("$ref")
        if reference is None:
            return value
        if not isinstance(reference, str) or not reference.startswith("#/") or depth > _MAX_DEPTH:
            raise ToolsetError(f"{self.place}: $ref {reference!r}: only references within the document are followed")
        found: Any = self.document
        for part in reference[2:].split("/"):
            part = urllib.parse.unquote(part).replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                raise ToolsetError(f"{self.place}: $ref '{reference}' leads nowhere")
            found = found[part]
        return self._resolved(found, depth + 1)

    def _expanded(self, schema: Any, within: tuple[str, ...] = ()) -> Any:
        """A schema without references; where it contains itself, anything is allowed."""
        self.n_expanded += 1
        if self.n_expanded > _MAX_NODES:
            raise ToolsetError(f"{self.place}: its schemas, with all references followed, are larger than is read")
        if isinstance(schema, list):
            return [self._expanded(item, within) for item in schema]
        if not isinstance(schema, Mapping):
            return schema
        if isinstance(reference := schema.get("$ref"), str):
            return {} if reference in within else self._expanded(self._resolved(schema, 0), (*within, reference))
        found = {key: self._expanded(item, within) for key, item in schema.items() if key not in _NO_SCHEMA}
        if isinstance(properties := schema.get("properties"), Mapping):  # whose keys are names, whatever they spell
            found["properties"] = {name: self._expanded(item, within) for name, item in properties.items()}
        if found.pop("nullable", False) is True and isinstance(found.get("type"), str):
            found["type"] = [found["type"], "null"]
        return found


def _runner(
    operation: _Operation, base: str, headers: Mapping[str, str], exchange: Send, *, is_safe: bool
) -> Callable[[Mapping[str, Any], CallContext], Any]:
    def run(arguments: Mapping[str, Any], context: CallContext) -> Any:
        request = _request(operation, base, headers, arguments)
        if not is_safe:
            request.add_header("Idempotency-Key", context.idempotency_key)
        try:
            status, body = exchange(request, context.timeout_s)
        except ConnectionRefusedError as error:
            raise ToolFailure("no connection", did_act=False, is_transient=True) from error
        except urllib.error.URLError as error:
            is_refused = isinstance(error.reason, ConnectionRefusedError)
            did_act = False if is_refused else None
            raise ToolFailure(f"no answer: {error.reason}", did_act=did_act, is_transient=True) from error
        return _answer(status, body)

    return run


def _request(
    operation: _Operation, base: str, headers: Mapping[str, str], arguments: Mapping[str, Any]
) -> urllib.request.Request:
    path, query, body = operation.path, list[tuple[str, str]](), dict[str, Any]()
    sent = {"Accept": "application/json", **headers}
    for key, value in arguments.items():
        where = operation.places[key]
        if where == "path":
            # Nothing in a value may lead out of its segment.
            segment = quote(_text(value), safe="")
            path = path.replace("{" + key + "}", segment.replace(".", "%2E") if set(segment) <= {"."} else segment)
        elif where == "query":
            query += [(key, _text(item)) for item in (value if isinstance(value, list) else [value])]
        elif where == "header":
            sent.setdefault(key, re.sub(r"[\r\n]", " ", _text(value)))
        else:
            body[key] = value
    address = f"{base}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    document = arguments.get("body") if operation.is_body_whole else body
    data = json.dumps(document).encode() if document else None
    if data is not None:
        sent["Content-Type"] = "application/json"
    return urllib.request.Request(address, data, sent, method=operation.method.upper())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _answer(status: int, body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    if 200 <= status < 300:
        try:
            return json.loads(text) if text else {"status": status}
        except ValueError:
            return text
    # 4xx: the server has refused to act. 5xx: nobody knows how far it came.
    did_act = False if status < 500 or status in _LATER else None
    raise ToolFailure(f"HTTP {status}: {text[:500]}", did_act=did_act, is_transient=status in _LATER)
