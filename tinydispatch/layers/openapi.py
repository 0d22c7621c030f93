"""HTTP endpoints as tools, from an OpenAPI 3.0 or 3.1 document: one tool per operation that can be sent as written.

What the document leaves open, or what a model cannot give (a file), is refused by name and never guessed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import ipaddress
import json
import re
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolFailure, ToolsetError
from tinydispatch.tools import Tool, ToolError

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
# By HTTP's own definition these change nothing, and those may be sent again.
_SAFE, _REPEATABLE = {"get", "head", "options"}, {"put", "delete"}
_MAX_REFERENCES = 32
# Parts of one operation's schemas; references that fan out could make millions of them.
_MAX_NODES = 50_000
# Of a result, which only the check of plans looks at; of a larger one nothing is known.
_MAX_RESULT_NODES = 2_000
_MAX_RESPONSE_BYTES = 20_000_000
_MAX_NAME = 64
# Answers that say that nothing was done and that it may be tried again.
_LATER = {425, 429, 503}
# Parts of a schema that are no part of JSON Schema, or say nothing about values.
_NO_SCHEMA = {"example", "examples", "xml", "discriminator", "externalDocs", "deprecated", "readOnly", "writeOnly"}
_HOLDERS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DATA = ("enum", "const", "default")
# What an object may say for its keys to become arguments one by one; of anything else the body stays whole.
_PLAIN_OBJECT = {"type", "properties", "required", "description", "title", "additionalProperties", "nullable"}
# Never a model's to set: the first three by OpenAPI's own rule, the others make up the request itself.
_RESERVED_HEADERS = frozenset(
    {"accept", "content-type", "authorization", "host", "content-length", "transfer-encoding", "connection", "cookie"}
    | {"proxy-authorization", "expect", "te", "trailer", "upgrade", "content-encoding", "forwarded"}
)
_STYLES = {
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
}
_FORM, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")

Send = Callable[[urllib.request.Request, float], tuple[int, bytes]]


@dataclass(frozen=True)
class OpenApiTools:
    """What a document offers. `refused` maps operations ("POST /files") to why they are no tools, `omitted` tools to
    their optional parameters that cannot be given, each with its reason.
    """

    tools: tuple[BoundTool, ...]
    refused: Mapping[str, str]
    omitted: Mapping[str, Sequence[str]]


class _Inexpressible(Exception):  # noqa: N818 (becomes a reason, or a failed call)
    """A request cannot be what the document says."""


@dataclass(frozen=True)
class _Part:
    """One parameter, or one key of a form: how its value is written. `media`: as that, in place of a style."""

    name: str
    where: str
    style: str = "form"
    explode: bool = True
    media: str = ""
    is_required: bool = False
    allows_reserved: bool = False


@dataclass(frozen=True)
class _Body:
    """`parts`: the keys of a form. `keys`: arguments that make up the object; None: the argument `argument` is all."""

    media: str
    is_required: bool
    argument: str = ""
    keys: frozenset[str] | None = None
    parts: Mapping[str, _Part] = field(default_factory=dict)


@dataclass(frozen=True)
class _Operation:
    method: str
    path: str
    base: str
    parts: Mapping[str, _Part]  # by argument
    body: _Body | None
    headers: Mapping[str, str]


def tools_from_openapi(document: Mapping[str, Any], base_url: str = "", **settings: Any) -> tuple[BoundTool, ...]:
    """The tools of `read_openapi`.

    Raises:
        ToolsetError: there are none; names each operation with the reason.
    """
    found = read_openapi(document, base_url, **settings)
    if found.refused and not found.tools:
        raise ToolsetError("; ".join(f"{operation}: {reason}" for operation, reason in found.refused.items()))
    return found.tools


def read_openapi(
    document: Mapping[str, Any],
    base_url: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    only: Sequence[str] = (),
    hosts: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
    exchange: Send | None = None,
) -> OpenApiTools:
    """Tools for the operations of a document that has been read.

    GET, HEAD and OPTIONS have no side effects. Every other request carries the header `Idempotency-Key`; that the
    server heeds it is assumed of operations that name the header as a parameter. PUT and DELETE do no more a second
    time. Redirects are not followed.

    Args:
        base_url: in place of the document's servers; needed where there are `headers`.
        headers: sent with each request, such as the authorization; models neither see nor set them.
        only: patterns of operations ("GET /pets/*") or tool names ("list_*"); () offers all.
        hosts: further hosts that operations may name as their own server. Without `base_url` the document chooses,
            among hosts that are no private or link-local addresses.
        variables: of the servers' URLs, in place of their defaults.
        exchange: sends a request; a test passes its own.

    Raises:
        ToolsetError: the document is no OpenAPI 3, or where its requests should go is not settled.
    """
    version = str(document.get("openapi", ""))
    if not version.startswith(("3.0", "3.1")):
        raise ToolsetError(f"openapi: {document.get('openapi')!r}; documents of version 3.0 and 3.1 are read")
    if headers and not base_url:
        raise ToolsetError("base_url is missing: with headers, the document must not choose where they are sent")
    if base_url and urlsplit(base_url).scheme not in ("http", "https"):
        raise ToolsetError(f"base_url: '{base_url}': expected http://… or https://…")
    named = frozenset(filter(None, [urlsplit(base_url).hostname, *(host.lower() for host in hosts)]))
    places = _Places(document, base_url.rstrip("/"), named, dict(variables or {}))
    tools: list[BoundTool] = []
    refused: dict[str, str] = {}
    omitted: dict[str, Sequence[str]] = {}
    sent = dict(headers or {})
    for path, method, item, operation in _operations(document, refused):
        label = f"{method.upper()} {path}"
        reader = _Reader(document)
        try:
            name = _name(operation, method, path, {tool.tool.name for tool in tools})
            if only and not any(fnmatch.fnmatchcase(text, pattern) for text in (label, name) for pattern in only):
                continue
            base = places.base(item, operation)
            tool, target, takes_key, result = reader.tool(name, path, method, base, item, operation, sent)
        except (_Inexpressible, ToolError) as error:
            refused[label] = str(error)
            continue
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
            refused[label] = f"it is not written as OpenAPI wants it: {error}"
            continue
        is_safe = method in _SAFE
        run = _runner(target, exchange or sender(named), is_safe=is_safe)
        tools.append(BoundTool(tool, run, not is_safe, takes_key, timeout_s, result_schema=result))
        if reader.omitted:
            omitted[name] = tuple(reader.omitted)
    return OpenApiTools(tuple(tools), refused, omitted)


def _operations(
    document: Mapping[str, Any], refused: dict[str, str]
) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    paths = document.get("paths") or {}
    if not isinstance(paths, Mapping):
        raise ToolsetError(f"paths: expected an object, not {paths!r:.60}")
    for path, item in paths.items():
        try:
            item = _Reader(document).resolved(item)
        except _Inexpressible as error:
            refused[str(path)] = str(error)
            continue
        for method in _METHODS:
            if isinstance(item.get(method), Mapping):
                yield str(path), method, item, item[method]


def _name(operation: Mapping[str, Any], method: str, path: str, taken: set[str]) -> str:
    """The operation's own name in the characters of tools; a digest tells apart what is equal then."""
    wanted = str(operation.get("operationId") or f"{method}{path}")
    name = re.sub(r"[^A-Za-z0-9_.\-]+", "_", wanted).strip("_") or method
    if len(name) <= _MAX_NAME and name not in taken:
        return name
    digest = hashlib.sha256(f"{wanted} {method} {path}".encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME - 9]}_{digest}"


@dataclass(frozen=True)
class _Places:
    """Where requests go: to what the user named; where nothing is named, to what the document says."""

    document: Mapping[str, Any]
    base_url: str
    named: frozenset[str]
    variables: Mapping[str, str]

    def base(self, item: Mapping[str, Any], operation: Mapping[str, Any]) -> str:
        own = operation.get("servers") or item.get("servers")
        if not own and self.base_url:
            return self.base_url
        shared = self.document.get("servers") or [{"url": ""}]
        url = self._url(own or shared)
        if own and self.base_url and url == self._url_or_none(shared):
            return self.base_url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _Inexpressible(f"servers: '{url}': expected http://… or https://…; give base_url")
        if not parts.netloc.isascii():
            raise _Inexpressible(f"servers: '{parts.netloc}': a host is written in ASCII (xn--…)")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise _Inexpressible(f"servers: '{parts.hostname}': a user name, query or fragment has no place there")
        if parts.hostname in self.named and self._is_kept_secret(parts.scheme):
            return url
        if self.base_url:
            raise _Inexpressible(
                f"its own server is {parts.scheme}://{parts.netloc}, which is neither base_url's host nor one of hosts"
            )
        if _is_private_name(parts.hostname):
            raise _Inexpressible(f"servers: '{parts.hostname}' is private, and named by the document: give base_url")
        return url

    def _is_kept_secret(self, scheme: str) -> bool:
        return scheme == "https" or urlsplit(self.base_url).scheme != "https"

    def _url_or_none(self, servers: Any) -> str | None:
        try:
            return self._url(servers)
        except _Inexpressible:
            return None

    def _url(self, servers: Any) -> str:
        """The first server, its variables filled in."""
        first = servers[0] if isinstance(servers, list) and servers and isinstance(servers[0], Mapping) else {}
        known = first.get("variables") or {}

        def value(found: re.Match[str]) -> str:
            name = found.group(1)
            variable = known.get(name) if isinstance(known, Mapping) else None
            if not isinstance(variable, Mapping):
                raise _Inexpressible(f"servers: the variable '{name}' is not described")
            chosen = self.variables.get(name, variable.get("default"))
            if not isinstance(chosen, str | int | float) or (variable.get("enum") and chosen not in variable["enum"]):
                raise _Inexpressible(f"servers: the variable '{name}' cannot be {chosen!r}: {variable.get('enum')}")
            return str(chosen)

        return re.sub(r"\{([^{}]*)\}", value, str(first.get("url", ""))).rstrip("/")


@dataclass
class _Reader:
    """Reads one operation."""

    document: Mapping[str, Any]
    omitted: list[str] = field(default_factory=list, init=False)
    n_nodes: int = field(default=0, init=False)
    definitions: dict[str, Any] = field(default_factory=dict, init=False)
    names: dict[tuple[str, str], str] = field(default_factory=dict, init=False)

    def tool(
        self,
        name: str,
        path: str,
        method: str,
        base: str,
        item: Mapping[str, Any],
        operation: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> tuple[Tool, _Operation, bool, Mapping[str, Any]]:
        """The tool, where its arguments go, whether it takes a key, and what is known of its result."""
        if not path.startswith("/") or re.search(r"[?#\s\\]|//|/\.\.?(?:/|$)", path):
            raise _Inexpressible(f"the path '{path}' is none: expected /… without ? and #")
        properties: dict[str, Any] = {}
        parts: dict[str, _Part] = {}
        required: list[str] = []
        given = {key.lower() for key in headers}
        takes_key = method in _REPEATABLE
        for parameter in self._parameters(item, operation):
            key, where = parameter["name"], parameter["in"]
            if where == "header" and key.lower() == "idempotency-key":
                takes_key = True
                continue
            try:
                part, schema = self._parameter(parameter, given)
            except _Inexpressible as error:
                if parameter.get("required") or where == "path":
                    raise
                self.omitted.append(str(error))
                continue
            if part is None:
                continue
            argument = key if key not in properties else f"{key}_{where}"
            if argument in properties:
                raise _Inexpressible(f"{where} parameter '{key}': the name '{argument}' is taken, too")
            properties[argument], parts[argument] = schema, part
            required += [argument] if part.is_required else []
        self._check_path(path, parts)
        body = self._body(method, operation, properties, required)
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        text = str(operation.get("summary") or operation.get("description") or "")
        tool = Tool(name, text, {**schema, **({"$defs": self.definitions} if self.definitions else {})})
        result = self._result(operation)
        return tool, _Operation(method, path, base, parts, body, headers), takes_key, result

    def _parameters(self, item: Mapping[str, Any], operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Those of the operation in place of the path's; the path's own come first, so that they keep their names."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for entry in [*(item.get("parameters") or []), *(operation.get("parameters") or [])]:
            parameter = self.resolved(entry)
            name, where = parameter.get("name"), parameter.get("in")
            if not isinstance(name, str) or where not in ("path", "query", "header", "cookie"):
                raise _Inexpressible(f"parameter {name!r} in {where!r}: expected path, query, header or cookie")
            found[name, str(where)] = parameter
        order = ("path", "query", "header", "cookie")
        return sorted(found.values(), key=lambda parameter: order.index(parameter["in"]))

    def _parameter(self, parameter: Mapping[str, Any], given: set[str]) -> tuple[_Part | None, dict[str, Any]]:
        name, where = parameter["name"], parameter["in"]
        label, is_required = f"{where} parameter '{name}'", bool(parameter.get("required")) or where == "path"
        if where == "header" and (name.lower() in _RESERVED_HEADERS or name.lower() in given):
            return None, {}  # who calls sets it, and no model
        if where == "header" and not _HEADER_NAME.fullmatch(name):
            raise _Inexpressible(f"{label}: not a header's name")
        if where == "cookie":
            raise _Inexpressible(f"{label}: cookies are not sent")
        content = parameter.get("content")
        if isinstance(content, Mapping):
            kind = next(iter(content), "")
            if len(content) != 1 or not _is_json(kind):
                raise _Inexpressible(f"{label}: content {', '.join(map(str, content))}: only JSON is written")
            part = _Part(name, where, media="json", is_required=is_required)
            return part, self._described(parameter, (content[kind] or {}).get("schema") or {})
        schema = parameter.get("schema")
        if not isinstance(schema, Mapping):
            raise _Inexpressible(f"{label}: has no schema")
        style = parameter.get("style") or ("form" if where == "query" else "simple")
        if style not in _STYLES[where]:
            raise _Inexpressible(f"{label}: style {style!r} is not defined there")
        explode = parameter.get("explode")
        # By the letter deepObject is not exploded unless that is said, but it has no other form.
        explode = style in ("form", "deepObject") if explode is None else explode is True
        reserved = parameter.get("allowReserved") is True and where == "query"
        part = _Part(name, where, style, explode, "", is_required, reserved)
        self._check_style(part, schema, label)
        return part, self._described(parameter, schema)

    def _check_style(self, part: _Part, schema: Any, label: str) -> None:
        """What no value of the schema can be written in is refused now, the rest when a value comes."""
        kinds = self._kinds(schema)
        is_listed = part.style in ("spaceDelimited", "pipeDelimited")
        possible = {"array", "object"} if is_listed else {"object"} if part.style == "deepObject" else set(kinds)
        if (is_listed and part.explode) or (part.style == "deepObject" and not part.explode):
            raise _Inexpressible(f"{label}: style {part.style} with explode {str(part.explode).lower()} is not defined")
        for kind in kinds & possible:
            inner = self._inner(schema, kind)
            if not inner or inner - {"array", "object"}:
                return
        raise _Inexpressible(
            f"{label}: style {part.style} is not defined for {' or '.join(sorted(kinds)) or 'it'}"
            + (" of arrays and objects" if kinds & possible else "")
        )

    def _kinds(self, schema: Any, depth: int = 0) -> set[str]:
        """The JSON types that a schema may allow."""
        every = {"string", "number", "boolean", "array", "object"}
        if not isinstance(schema, Mapping) or depth > _MAX_REFERENCES:
            return every
        schema = self.resolved(schema)
        kind = schema.get("type")
        found = set([kind] if isinstance(kind, str) else kind if isinstance(kind, list) else every)
        found = {"number" if name == "integer" else name for name in found} - {"null"}
        if kind is None and "properties" in schema:
            found = {"object"}
        for key in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(key), list):
                found &= set().union(*(self._kinds(branch, depth + 1) for branch in branches))
        for branch in schema.get("allOf") or []:
            found &= self._kinds(branch, depth + 1)
        if isinstance(values := schema.get("enum"), list):
            found &= {_kind(value) for value in values}
        return found

    def _inner(self, schema: Any, kind: str) -> set[str]:
        """The types of an array's items or an object's values, where the schema says; () for a plain value."""
        schema = self.resolved(schema)
        if kind == "array":
            return self._kinds(schema.get("items"), 1)
        if kind == "object" and isinstance(properties := schema.get("properties"), Mapping) and properties:
            return set().union(*(self._kinds(item, 1) for item in properties.values()))
        return set()

    def _check_path(self, path: str, parts: Mapping[str, _Part]) -> None:
        wanted = re.findall(r"\{([^{}]*)\}", path)
        there = [part.name for part in parts.values() if part.where == "path"]
        for name in {*wanted, *there}:
            if (wanted.count(name), there.count(name)) != (1, 1):
                count = wanted.count(name)
                raise _Inexpressible(
                    f"path parameter '{name}': {count} times in the path, {there.count(name)} described"
                )
        if "{" in re.sub(r"\{[^{}]*\}", "", path):
            raise _Inexpressible(f"the path '{path}' has a brace too many")

    def _described(self, parameter: Mapping[str, Any], schema: Any) -> dict[str, Any]:
        made = self.schema(schema, is_request=True)
        found = dict(made) if isinstance(made, Mapping) else {} if made else {"not": {}}
        if text := parameter.get("description"):
            found["description"] = str(text)
        return found

    def _body(
        self, method: str, operation: Mapping[str, Any], properties: dict[str, Any], required: list[str]
    ) -> _Body | None:
        """How the body is written; its keys become arguments, or the whole of it one, in `properties`."""
        body = self.resolved(operation.get("requestBody") or {})
        content, is_required = body.get("content") or {}, body.get("required") is True
        if not content or method in _SAFE:
            if is_required:
                raise _Inexpressible(
                    f"a {method.upper()} request has no body" if content else "requestBody: no content"
                )
            return None
        reasons = []
        for kind in sorted(content, key=_preference):
            media = content[kind] if isinstance(content[kind], Mapping) else {}
            before = (dict(properties), list(required), list(self.omitted))
            try:
                return self._content(str(kind), media, is_required, properties, required)
            except _Inexpressible as error:
                reasons.append(str(error))
                properties.clear()
                properties.update(before[0])
                required[:], self.omitted[:] = before[1], before[2]
        if is_required:
            raise _Inexpressible("requestBody: " + "; ".join(dict.fromkeys(reasons)))
        self.omitted.append("requestBody: " + "; ".join(dict.fromkeys(reasons)))
        return None

    def _content(
        self, kind: str, media: Mapping[str, Any], is_required: bool, properties: dict[str, Any], required: list[str]
    ) -> _Body:
        plain = kind.partition(";")[0].strip().lower()
        raw = media.get("schema") or {}
        if _is_json(kind) or plain in ("*/*", "application/*"):
            sent = kind if "*" not in kind else "application/json"
            if _charset(kind, "utf-8").replace("_", "-") not in ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1"):
                raise _Inexpressible(f"{kind}: JSON is written in UTF-8")
            schema = self.schema(raw, is_request=True)
            keys = self._as_arguments(schema, properties, required)
            if keys is not None:
                return _Body(sent, is_required, keys=keys)
            return _Body(sent, is_required, self._whole(schema, is_required, properties, required))
        if plain in ("text/plain", "text/*") or (plain.startswith("text/") and self._kinds(raw) == {"string"}):
            sent = "text/plain" if "*" in plain else kind
            schema = self.schema(raw or {"type": "string"}, is_request=True)
            if self._kinds(raw or {"type": "string"}) != {"string"} or self._is_file(raw):
                raise _Inexpressible(f"{kind}: only a string is written as that")
            return _Body(sent, is_required, self._whole(schema, is_required, properties, required))
        if plain in (_FORM, _MULTIPART):
            return self._form(plain, media, is_required, properties, required)
        raise _Inexpressible(f"{kind} is not written")

    def _whole(self, schema: Any, is_required: bool, properties: dict[str, Any], required: list[str]) -> str:
        argument = "body" if "body" not in properties else "request_body"
        if argument in properties:
            raise _Inexpressible(f"the names 'body' and '{argument}' are taken by parameters")
        properties[argument] = schema
        required += [argument] if is_required else []
        return argument

    def _as_arguments(self, schema: Any, properties: dict[str, Any], required: list[str]) -> frozenset[str] | None:
        """The keys of a plain object that may stand beside the parameters; None where the body has to stay whole.

        What the object requires is required, also where the body as a whole is optional: it is then always sent.
        """
        schema = self._looked_up(schema)
        inner = schema.get("properties") if isinstance(schema, Mapping) else None
        if (
            not inner
            or schema.get("type", "object") != "object"
            or set(schema) - _PLAIN_OBJECT
            or schema.get("nullable")
        ):
            return None
        needed = list(schema.get("required") or [])
        if set(inner) & set(properties) or set(needed) - set(inner):
            return None
        if schema.get("additionalProperties") not in (None, True, False):
            return None
        properties.update(inner)
        required += needed
        return frozenset(inner)

    def _looked_up(self, schema: Any) -> Any:
        """A request's schema behind a reference to `definitions`."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(schema, Mapping) or set(schema) != {"$ref"}:
                return schema
            schema = self.definitions[schema["$ref"].removeprefix("#/$defs/")]
        return schema

    def _form(
        self, plain: str, media: Mapping[str, Any], is_required: bool, properties: dict[str, Any], required: list[str]
    ) -> _Body:
        """A form's keys, each with its encoding; a file is nothing that a model can give."""
        raw = self._merged(media.get("schema") or {})
        inner, needed = raw.get("properties"), list(raw.get("required") or [])
        if not isinstance(inner, Mapping) or not inner:
            raise _Inexpressible(f"{plain}: its schema lists no keys")
        encodings = media.get("encoding") or {}
        parts: dict[str, _Part] = {}
        schemas: dict[str, Any] = {}
        for key, item in inner.items():
            if self._is_read_only(item):
                needed = [name for name in needed if name != key]
                continue
            try:
                parts[key] = self._form_part(plain, key, item, encodings.get(key) or {}, is_needed=key in needed)
                schemas[key] = self.schema(item, is_request=True)
            except _Inexpressible as error:
                if key in needed:
                    raise
                self.omitted.append(str(error))
        if not parts:
            raise _Inexpressible(f"{plain}: none of its keys can be given: {'; '.join(self.omitted)}")
        schema = {**{key: item for key, item in raw.items() if key in ("description", "title")}, "type": "object"}
        schema |= {"properties": schemas, "required": needed}
        others = set(raw) - _PLAIN_OBJECT - _NO_SCHEMA - {key for key in raw if key.startswith("x-")}
        if others & {"anyOf", "oneOf", "not", "if", "minProperties", "maxProperties", "dependentRequired"}:
            branched = [key for key in ("anyOf", "oneOf", "not", "if", "then", "else") if key in raw]
            kept = {key: self.schema({key: raw[key]}, is_request=True)[key] for key in branched}
            schema |= kept | {
                key: raw[key] for key in ("minProperties", "maxProperties", "dependentRequired") if key in raw
            }
            schema["additionalProperties"] = False
        keys = self._as_arguments(schema, properties, required)
        if keys is not None:
            return _Body(plain, is_required, keys=keys, parts=parts)
        argument = self._whole({**schema, "additionalProperties": False}, is_required, properties, required)
        return _Body(plain, is_required, argument, parts=parts)

    def _form_part(self, plain: str, key: str, schema: Any, encoding: Any, *, is_needed: bool) -> _Part:
        label = f"{plain}, '{key}'"
        if not isinstance(encoding, Mapping) or encoding.get("headers"):
            raise _Inexpressible(f"{label}: its encoding has headers of its own")
        if self._is_file(schema):
            raise _Inexpressible(f"{label}: a file cannot be given")
        kinds, media = self._kinds(schema), str(encoding.get("contentType") or "")
        if _is_json(media):
            return _Part(key, "body", media="json", is_required=is_needed)
        if media and not media.startswith("text/plain"):
            raise _Inexpressible(f"{label}: content type {media} is not written")
        if plain == _MULTIPART:
            items = self._inner(schema, "array") if kinds == {"array"} else set()
            if kinds - {"string", "number", "boolean"} and (media or (kinds != {"object"} and kinds != {"array"})):
                raise _Inexpressible(f"{label}: whether it is text or JSON is not said")
            if "array" in items or ("object" in items and items != {"object"}):
                raise _Inexpressible(f"{label}: an array in an array")
            is_json = kinds == {"object"} or items == {"object"}
            return _Part(key, "body", "form", True, "json items" if kinds == {"array"} and is_json else
                         "json" if is_json else "", is_needed)  # fmt: skip
        style = encoding.get("style")
        if style not in (None, *_STYLES["query"]):
            raise _Inexpressible(f"{label}: style {style!r} is not defined there")
        if "object" in kinds and style is None and not media:
            # 3.0 spreads its keys, 3.1 writes JSON.
            raise _Inexpressible(f"{label}: an object without an encoding has no settled form")
        explode = encoding.get("explode")
        explode = style in (None, "form", "deepObject") if explode is None else explode is True
        part = _Part(key, "body", style or "form", explode, "", is_needed)
        self._check_style(part, schema, label)
        return part

    def _merged(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """A form's object with the properties of its allOf drawn together."""
        schema: dict[str, Any] = dict(self.resolved(value))
        if depth > _MAX_REFERENCES:
            raise _Inexpressible("a schema within itself")
        for branch in schema.pop("allOf", None) or []:
            other = self._merged(branch, depth + 1)
            if set(other) - _PLAIN_OBJECT - _NO_SCHEMA or set(other.get("properties") or {}) & set(
                schema.get("properties") or {}
            ):
                raise _Inexpressible("allOf of more than plain objects")
            schema["properties"] = {**(schema.get("properties") or {}), **(other.get("properties") or {})}
            schema["required"] = [*(schema.get("required") or []), *(other.get("required") or [])]
        return schema

    def _is_file(self, schema: Any, depth: int = 0) -> bool:
        if not isinstance(schema, Mapping) or depth > 8:
            return False
        schema = self.resolved(schema)
        if schema.get("format") == "binary" or schema.get("contentMediaType") == "application/octet-stream":
            return True
        branches = [
            schema.get("items"),
            *(part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key) or []),
        ]
        return any(self._is_file(branch, depth + 1) for branch in branches)

    def _is_read_only(self, schema: Any) -> bool:
        return isinstance(schema, Mapping) and self._is_marked(schema, "readOnly")

    def _is_marked(self, schema: Mapping[str, Any], mark: str, depth: int = 0) -> bool:
        if not isinstance(schema, Mapping) or depth > 8:
            return False
        schema = {**self.resolved(schema), **{key: value for key, value in schema.items() if key == mark}}
        return schema.get(mark) is True or any(
            self._is_marked(branch, mark, depth + 1) for branch in schema.get("allOf") or []
        )

    def _result(self, operation: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is known of the result, without the keys that are only written; {} for nothing."""
        try:
            answers = operation.get("responses") or {}
            answer = next((self.resolved(answers[code]) for code in answers if str(code).startswith("2")), {})
            content = answer.get("content") or {}
            media = next((content[kind] for kind in content if _is_json(kind)), None) or {}
            schema = media.get("schema")
            self.definitions, self.names = {}, {}  # the tool has its own
            self.n_nodes = _MAX_NODES - _MAX_RESULT_NODES
            made = self.schema(schema, is_request=False) if isinstance(schema, Mapping) else {}
        except _Inexpressible:
            return {}
        found = dict(made) if isinstance(made, Mapping) else {}
        for _ in range(_MAX_REFERENCES):
            if set(found) != {"$ref"}:
                break
            found = dict(self.definitions[found["$ref"].removeprefix("#/$defs/")])
        return {**found, **({"$defs": self.definitions} if found and self.definitions else {})}

    def resolved(self, value: Any) -> Mapping[str, Any]:
        """What a "$ref" within the document leads to; others are not fetched."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(value, Mapping):
                raise _Inexpressible(f"expected an object, not {value!r:.60}")
            if not isinstance(value.get("$ref"), str):
                return value
            value = self._target(value["$ref"])
        raise _Inexpressible("a $ref leads to itself")

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            raise _Inexpressible(f"$ref '{reference}': only references within the document are followed")
        found: Any = self.document
        for part in reference[2:].split("/"):
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, Mapping) and part in found:
                found = found[part]
            else:
                raise _Inexpressible(f"$ref '{reference}' leads nowhere")
        return found

    def schema(self, value: Any, *, is_request: bool, without: frozenset[str] = frozenset()) -> Any:
        """A schema as one side sees it: a request without what is only read, a result without what is only written.

        References lead into `definitions`, so that what contains itself stays as strict as it was written.

        Args:
            without: keys that this very object does not require, because another branch takes them away.
        """
        self.n_nodes += 1
        if self.n_nodes > _MAX_NODES:
            raise _Inexpressible("its schemas, with all references followed, are larger than is read")
        if not isinstance(value, Mapping):
            if isinstance(value, bool):
                return value
            raise _Inexpressible(f"a schema is an object, not {value!r:.60}")
        if isinstance(value.get("$ref"), str):
            return self._reference(value, is_request, without)
        mark = "readOnly" if is_request else "writeOnly"
        without |= self._taken_away(value, mark)
        found: dict[str, Any] = {}
        for key, item in value.items():
            if key in _NO_SCHEMA or key.startswith("x-"):
                continue
            if key in _DATA:
                found[key] = item
            elif key in _HOLDERS and isinstance(item, Mapping):
                kept = {name: part for name, part in item.items() if key != "properties" or name not in without}
                found[key] = {name: self.schema(part, is_request=is_request) for name, part in kept.items()}
            elif key == "required" and isinstance(item, list):
                if kept_names := [name for name in item if name not in without]:
                    found[key] = kept_names
            elif key in ("allOf", "anyOf", "oneOf") and isinstance(item, list):
                found[key] = [self.schema(part, is_request=is_request, without=without) for part in item]
            elif isinstance(item, Mapping):
                found[key] = self.schema(item, is_request=is_request)
            elif isinstance(item, list) and any(isinstance(part, Mapping) for part in item):
                found[key] = [self.schema(part, is_request=is_request) for part in item]
            else:
                found[key] = item
        self._with_discriminator(found, value)
        return found

    def _with_discriminator(self, found: dict[str, Any], value: Mapping[str, Any]) -> None:
        """The key that tells which schema is meant has to be there, and that schema alone counts."""
        told = value.get("discriminator")
        branches = value.get("oneOf") or value.get("anyOf")
        if (
            not isinstance(told, Mapping)
            or not isinstance(branches, list)
            or not isinstance(told.get("propertyName"), str)
        ):
            return
        name, mapping = told["propertyName"], told.get("mapping")
        found["required"] = list(dict.fromkeys([*(found.get("required") or []), name]))
        if not isinstance(mapping, Mapping) or not mapping:
            return
        key = "oneOf" if value.get("oneOf") else "anyOf"
        for index, branch in enumerate(branches):
            reference = str(branch.get("$ref", ""))
            implied = reference.rpartition("/")[2]
            named = [str(told) for told, target in mapping.items() if str(target) in (reference, implied)]
            values = [*named, *([implied] if implied and implied not in mapping else [])]
            if values:
                chosen = {"properties": {name: {"enum": list(dict.fromkeys(values))}}}
                found[key][index] = {"allOf": [found[key][index], chosen]}

    def _reference(self, value: Mapping[str, Any], is_request: bool, without: frozenset[str]) -> Any:
        """3.0 ignores what stands beside a $ref; descriptions are worth keeping, and 3.1 does."""
        reference = value["$ref"]
        beside = {} if str(self.document.get("openapi")).startswith("3.0") else {
            key: item for key, item in value.items() if key != "$ref"}  # fmt: skip
        key = (reference, ",".join(sorted(without)) + ("" if is_request else " result"))
        if key not in self.names:
            base = re.sub(r"[^A-Za-z0-9_]+", "_", reference.rpartition("/")[2]) or "schema"
            name = base if base not in self.definitions else f"{base}_{len(self.definitions)}"
            self.names[key], self.definitions[name] = name, {}
            target = self._target(reference)
            self.definitions[name] = self.schema(target, is_request=is_request, without=without)
        made = {"$ref": f"#/$defs/{self.names[key]}"}
        if not beside:
            return made
        other = self.schema(beside, is_request=is_request)
        return {**other, **made} if not {"allOf", "$ref"} & set(other) else {"allOf": [made, other]}

    def _taken_away(self, schema: Mapping[str, Any], mark: str, depth: int = 0) -> frozenset[str]:
        """Keys of an object, or of the branches of its allOf, that the other side alone gives."""
        if depth > 8:
            return frozenset()
        found: set[str] = set()
        if isinstance(properties := schema.get("properties"), Mapping):
            found |= {
                key for key, item in properties.items() if isinstance(item, Mapping) and self._is_marked(item, mark)
            }
        for branch in schema.get("allOf") or []:
            if isinstance(branch, Mapping):
                found |= self._taken_away(self.resolved(branch), mark, depth + 1)
        return frozenset(found)


def _preference(kind: str) -> int:
    """JSON before forms, forms before text."""
    plain = kind.partition(";")[0].strip().lower()
    if _is_json(kind):
        return 0 if plain == "application/json" else 1
    order = ("*/*", "application/*", _FORM, _MULTIPART)
    return 2 + order.index(plain) if plain in order else 9


def _is_json(kind: str) -> bool:
    plain = str(kind).partition(";")[0].strip().lower()
    return plain in ("application/json", "text/json") or bool(re.fullmatch(r"application/[\w.\-]+\+json", plain))


def _charset(kind: str, default: str) -> str:
    found = re.search(r";\s*charset\s*=\s*\"?([\w\-:.]+)", kind, re.IGNORECASE)
    return found.group(1).lower() if found else default


def _kind(value: Any) -> str:
    names: tuple[tuple[type, str], ...] = ((bool, "boolean"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in names if isinstance(value, kind)), "number" if value is not None else "null")


def _runner(operation: _Operation, exchange: Send, *, is_safe: bool) -> Callable[[Mapping[str, Any], CallContext], Any]:
    def run(arguments: Mapping[str, Any], context: CallContext) -> Any:
        try:
            request = _request(operation, arguments)
        except _Inexpressible as error:
            raise ToolFailure(str(error), did_act=False) from error
        if not is_safe:
            request.add_header("Idempotency-Key", context.idempotency_key)
        try:
            status, body = exchange(request, context.timeout_s)
        except urllib.error.URLError as error:
            never_sent = isinstance(error.reason, ConnectionRefusedError | socket.gaierror | PrivateAddressError)
            is_transient = not isinstance(error.reason, PrivateAddressError)
            did_act = False if never_sent else None
            raise ToolFailure(f"no answer: {error.reason}", did_act=did_act, is_transient=is_transient) from error
        except ConnectionRefusedError as error:
            raise ToolFailure("no connection", did_act=False, is_transient=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise ToolFailure(f"no answer: {error!r}", did_act=None, is_transient=True) from error
        return _answer(status, body)

    return run


def _request(operation: _Operation, arguments: Mapping[str, Any]) -> urllib.request.Request:
    """The request as the document says.

    Raises:
        _Inexpressible: a value cannot be written where it belongs.
    """
    path, query, sent = operation.path, list[tuple[_Part, Any]](), {"Accept": "application/json", **operation.headers}
    for argument, part in operation.parts.items():
        value = arguments.get(argument)
        if value is None:  # JSON's null has no form there
            if part.is_required:
                raise _Inexpressible(f"{argument}: null cannot be sent in the {part.where}")
            continue
        if part.where == "path":
            text = _in_path(part, value)
            if text in ("", ".", ".."):
                raise _Inexpressible(f"{argument}: {value!r} cannot be a segment of a path")
            path = path.replace("{" + part.name + "}", text)
        elif part.where == "query":
            query.append((part, value))
        else:
            sent[part.name] = _in_header(part, value)
    names = {part.name for part in operation.parts.values() if part.where == "query"}
    written_query = _joined(query, names, _escape)
    address = operation.base + path + (f"?{written_query}" if written_query else "")
    address = re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0]), address)  # of the document's own path
    base, joined = urlsplit(operation.base), urlsplit(address)
    if (base.scheme, base.netloc) != (joined.scheme, joined.netloc):
        raise _Inexpressible(f"the path leads from {base.netloc} to {joined.netloc}")
    data = None
    if operation.body is not None and (written := _written(operation.body, arguments)) is not None:
        data, kind = written
        sent = {name: value for name, value in sent.items() if name.lower() != "content-type"}
        sent["Content-Type"] = kind
    return urllib.request.Request(address, data, sent, method=operation.method.upper())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | Mapping) or value is None:
        raise _Inexpressible(f"{json.dumps(value)[:60]}: an array or object within another has no form there")
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return json.dumps(int(value) if is_whole else value)


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _escape(part: _Part) -> Callable[[str], str]:
    return (lambda text: quote(text, safe=":/?@!$'()*,;")) if part.allows_reserved else _quoted


def _listed(part: _Part, value: Any, escape: Callable[[str], str], between: str) -> list[str]:
    """An array's items, or an object's keys and values in turn; most readers unescape before they part them."""
    texts = [text for key, item in value.items() for text in (str(key), _text(item))] if isinstance(
        value, Mapping) else [_text(item) for item in value]  # fmt: skip
    if any(between in text for text in texts):
        raise _Inexpressible(f"{part.name}: an item contains {between!r}, which parts the items")
    return [escape(text) for text in texts]


def _in_path(part: _Part, value: Any) -> str:
    """RFC 6570, as OpenAPI names its forms."""
    if part.media:
        return _quoted(json.dumps(value))
    mark, between = {"simple": ("", ","), "label": (".", "."), "matrix": (";", ";")}[part.style]
    if not isinstance(value, list | Mapping):
        text = _quoted(_text(value))
        if text.strip(".") == "" and mark != ";":
            raise _Inexpressible(f"{part.name}: {value!r} cannot be a segment of a path")
        return f";{part.name}={text}" if mark == ";" else mark + text
    if not value:
        raise _Inexpressible(f"{part.name}: an empty {'array' if isinstance(value, list) else 'object'} in a path")
    if isinstance(value, Mapping) and part.explode:
        return mark + between.join(f"{_quoted(str(key))}={_quoted(_text(item))}" for key, item in value.items())
    if mark == ";":
        items = _listed(part, value, _quoted, ";" if part.explode else ",")
        return ("".join(f";{part.name}={item}" for item in items) if part.explode else
                f";{part.name}={','.join(items)}")  # fmt: skip
    between = between if part.explode else ","
    return mark + between.join(_listed(part, value, _quoted, between))


def _in_header(part: _Part, value: Any) -> str:
    if part.media:
        text = json.dumps(value)
    elif isinstance(value, Mapping) and part.explode:
        text = ",".join(f"{key}={_text(item)}" for key, item in value.items())
    elif isinstance(value, list | Mapping):
        items = _listed(part, value, str, ",")
        text = ",".join(items)
    else:
        text = _text(value)
    if not re.fullmatch(r"[\t\x20-\x7e\xa0-\xff]*", text) or text != text.strip():
        raise _Inexpressible(f"{part.name}: {text[:40]!r} cannot be a header's value")
    return text


def _joined(
    given: Sequence[tuple[_Part, Any]], names: Collection[str], escape_of: Callable[[_Part], Callable[[str], str]]
) -> str:
    """A query or a form; `names` are all keys that the document describes there."""
    pairs: list[tuple[str, str]] = []
    for part, value in given:
        is_spread = isinstance(value, Mapping) and part.style == "form" and part.explode and not part.media
        if is_spread and (both := {str(key) for key in value} & (set(names) - {part.name})):
            raise _Inexpressible(f"{part.name}: its keys {', '.join(sorted(both))} are names of others, too")
        found = _pairs(part, value, escape_of(part))
        if not found:
            raise _Inexpressible(f"{part.name}: an empty array or object has no form there")
        pairs += found
    return "&".join("=".join(pair) for pair in pairs)


def _pairs(part: _Part, value: Any, escape: Callable[[str], str]) -> list[tuple[str, str]]:
    """Keys and values, escaped, of a query or a form."""
    name = escape(part.name)
    if part.media:
        return [(name, escape(json.dumps(value)))]
    if part.style == "deepObject":
        if not isinstance(value, Mapping):
            raise _Inexpressible(f"{part.name}: style deepObject takes an object, not {json.dumps(value)[:40]}")
        return [(escape(f"{part.name}[{key}]"), escape(_text(item))) for key, item in value.items()]
    if not isinstance(value, list | Mapping):
        if part.style != "form":
            raise _Inexpressible(f"{part.name}: style {part.style} takes an array, not {json.dumps(value)[:40]}")
        return [(name, escape(_text(value)))]
    if part.style == "form" and part.explode:
        if isinstance(value, Mapping):
            return [(escape(str(key)), escape(_text(item))) for key, item in value.items()]
        return [(name, escape(_text(item))) for item in value]
    if not value:
        return []
    between = {"form": ",", "spaceDelimited": " ", "pipeDelimited": "|"}[part.style]
    written = between if between == "," else _quoted(between)
    return [(name, written.join(_listed(part, value, escape, between)))]


def _written(body: _Body, arguments: Mapping[str, Any]) -> tuple[bytes, str] | None:
    """The body's bytes and its content type; None where there is none to send."""
    if body.keys is None:
        if body.argument not in arguments:
            return None
        value = arguments[body.argument]
    else:
        value = {key: item for key, item in arguments.items() if key in body.keys}
        if not value and not body.is_required:
            return None
    plain = body.media.partition(";")[0].strip().lower()
    if body.parts:
        if not isinstance(value, Mapping):
            raise _Inexpressible(f"{plain}: expected an object, not {json.dumps(value)[:60]}")
        given = [(body.parts[key], item) for key, item in value.items() if item is not None]
        if any(item is None for item in value.values()):
            names = ", ".join(key for key, item in value.items() if item is None and body.parts[key].is_required)
            if names:
                raise _Inexpressible(f"{names}: null cannot be sent in a form")
        if plain == _FORM:
            return _joined(given, body.parts, lambda _: quote_plus).encode("ascii"), plain
        return _multipart(given)
    if _is_json(body.media):
        return json.dumps(value).encode("ascii"), body.media
    charset = _charset(body.media, "")
    try:
        return str(value).encode(charset or "utf-8"), body.media if charset else f"{body.media}; charset=utf-8"
    except (LookupError, UnicodeEncodeError) as error:
        raise _Inexpressible(f"body: cannot be written as {body.media}: {error}") from error


def _multipart(given: Sequence[tuple[_Part, Any]]) -> tuple[bytes, str]:
    fields: list[tuple[str, str, bytes]] = []
    for part, value in given:
        items = value if isinstance(value, list) and part.media != "json" else [value]
        for item in items:
            if part.media:
                fields.append((part.name, "application/json", json.dumps(item).encode("ascii")))
            else:
                fields.append((part.name, "text/plain; charset=utf-8", _text(item).encode()))
    boundary = uuid.uuid4().hex
    lines = b""
    for name, kind, data in fields:
        shown = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{shown}"\r\nContent-Type: {kind}\r\n\r\n'
        lines += head.encode() + data + b"\r\n"
    return lines + f"--{boundary}--\r\n".encode(), f"{_MULTIPART}; boundary={boundary}"


def _answer(status: int, body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    if 200 <= status < 300:
        try:
            return json.loads(text) if text else {"status": status}
        except (ValueError, RecursionError):
            return text
    # 4xx: the server has refused to act. Of a redirect, or 5xx, nobody knows how far it came.
    did_act = False if 400 <= status < 500 or status in _LATER else None
    raise ToolFailure(f"HTTP {status}: {text[:500]}", did_act=did_act, is_transient=status in _LATER)


class PrivateAddressError(OSError):
    """A host that the document, and not the user, has named leads into a private network."""


def sender(named: frozenset[str] = frozenset()) -> Send:
    """Sends requests: no redirect is followed, and private addresses are for hosts in `named` alone.

    The address that was looked at is the one that is connected to, so that a name cannot change in between.
    """

    def send(request: urllib.request.Request, timeout_s: float) -> tuple[int, bytes]:
        host = (urlsplit(request.full_url).hostname or "").lower()
        is_local = host in ("localhost", "127.0.0.1", "::1")
        handlers: list[Any] = [_NoRedirect()]
        if host not in named:
            handlers += [urllib.request.ProxyHandler({}), _GuardedHttp(), _GuardedHttps()]
        elif is_local:
            handlers.append(urllib.request.ProxyHandler({}))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as response:
                return int(response.status), response.read(_MAX_RESPONSE_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(_MAX_RESPONSE_BYTES)

    return send


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the credentials to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _connect_to_public(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    places = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    for *_, place in places:
        if not is_public(str(place[0])):
            raise PrivateAddressError(f"{address[0]} is the private address {place[0]}; name the host to allow it")
    return socket.create_connection((str(places[0][4][0]), address[1]), timeout, source_address)


class _GuardedHttp(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_guarded(http.client.HTTPConnection), req)


class _GuardedHttps(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_guarded(http.client.HTTPSConnection), req)


def _guarded(kind: Any) -> Any:
    def connection(host: str, **settings: Any) -> Any:
        made = kind(host, **settings)
        made._create_connection = _connect_to_public  # where http.client takes its sockets from
        return made

    return connection


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _is_private_name(host: str) -> bool:
    """Whether a host can be told to be private without asking anybody."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return not is_public(str(ipaddress.ip_address(host.strip("[]"))))
    except ValueError:
        pass
    try:  # 2130706433 and 0x7f.1 are addresses, too
        return not is_public(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return False
