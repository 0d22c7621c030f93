"""`python -m scripts.check_openapi FILE …`: what OpenAPI documents offer as tools, and if their requests are right.

Of each operation that is offered, requests with made-up arguments are built, and read again by another reader, the
package openapi-core: it must find them valid, and the values in them equal to the arguments.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import email
import email.policy
import json
import re
import sys
import urllib.request
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tinydispatch.layers.openapi import OpenApiTools, read_openapi
from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolFailure, ToolsetError

_SHOWN = 8
_NASTY = "a b&c=d/é,+%"
_FORMATS = {
    "date": "2026-03-19", "date-time": "2026-03-19T12:00:00+00:00", "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "email": "jo@kew.example", "uri": "https://kew.example/a", "byte": "aGk=", "ipv4": "192.0.2.1", "time": "12:00:00Z",
}  # fmt: skip
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no request was wrong, 1 when one was, 2 for a file that is no document."""
    parser = argparse.ArgumentParser(prog="python -m scripts.check_openapi", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="OpenAPI 3.0 or 3.1, JSON or YAML")
    parser.add_argument("--every", action="store_true", help="list every refused operation")
    parser.add_argument("--limit", type=int, default=None, help="check the requests of so many operations a document")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # hypothesis wants its examples for tests alone
    n_wrong = 0
    for path in arguments.files:
        try:
            document = _read(path)
            found = read_openapi(document, exchange=_never)
        except (OSError, ValueError) as error:
            print(f"check_openapi: {path}: {error}", file=sys.stderr)
            return 2
        print("\n".join(shares(path.name, found, is_whole=arguments.every)))
        n_checked, n_requests, n_unsent, wrong = check(document, found, arguments.limit)
        print(f"  {n_requests} requests of {n_checked} operations read again: {len(wrong)} wrong; {n_unsent} not sent")
        print("".join(f"  WRONG {line}\n" for line in wrong[:20]), end="", flush=True)
        n_wrong += len(wrong)
    return 1 if n_wrong else 0


def shares(name: str, found: OpenApiTools, *, is_whole: bool = False) -> list[str]:
    """How many operations are tools, and why the others are not."""
    n = len(found.tools) + len(found.refused)
    percent = 100 * len(found.tools) / n if n else 0.0
    lines = [f"{name}: {len(found.tools)} of {n} operations offered ({percent:.1f} %), {len(found.refused)} refused"]
    if is_whole:
        return lines + [f"  {operation}: {reason}" for operation, reason in found.refused.items()]
    groups = Counter(re.sub(r"'[^']*'", "…", reason) for reason in found.refused.values())
    lines += [f"  refused {count}: {reason}" for reason, count in groups.most_common(_SHOWN)]
    left_out = Counter(re.sub(r"'[^']*'", "…", reason) for reasons in found.omitted.values() for reason in reasons)
    return lines + [f"  optional, left out {count}: {reason}" for reason, count in left_out.most_common(_SHOWN)]


def check(
    document: Mapping[str, Any], found: OpenApiTools, limit: int | None = None
) -> tuple[int, int, int, list[str]]:
    """Operations and requests looked at, calls that were not sent, and what was wrong with the others."""
    names = iter(_labels(document, found))
    readable = _readable(document)
    is_woven = '"#/paths/' in json.dumps(readable, default=str)
    n_checked = n_requests = n_unsent = 0
    wrong: list[str] = []
    for bound, (method, path) in list(zip(found.tools, names, strict=True))[:limit]:
        n_checked += 1
        reader = _Reader(readable, method, path, is_woven=is_woven)
        for arguments in samples(bound):
            try:
                request = _sent(bound.tool.name, arguments, found)
            except ToolFailure:
                n_unsent += 1
                continue
            n_requests += 1
            if problem := reader.problem(request, arguments):
                wrong.append(
                    f"{method.upper()} {path} {json.dumps(arguments, ensure_ascii=False)[:120]}: {problem}"[:600]
                )
                break
    return n_checked, n_requests, n_unsent, wrong


def samples(bound: BoundTool) -> Iterator[dict[str, Any]]:
    """Arguments that hold the schema: the required ones, all, and all with characters that need escaping."""
    seen: list[dict[str, Any]] = []
    for is_full, text in ((False, "abc"), (True, "abc"), (True, _NASTY)):
        made = _value(bound.tool.parameters, bound.tool.parameters, text, 0 if is_full else 3)
        if isinstance(made, dict) and not bound.tool.violations(made) and made not in seen:
            seen.append(made)
            yield made


def _value(schema: Any, root: Any, text: str, depth: int) -> Any:
    """A value for a schema, at best: its user checks. From depth 3 on objects have only what they require."""
    if not isinstance(schema, Mapping) or depth > 14:
        return text
    if "$ref" in schema:
        found = _at(root, schema["$ref"])
        return _value({**found, **{key: item for key, item in schema.items() if key != "$ref"}}, root, text, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return next((item for item in schema["enum"] if item is not None), None)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            rest = {name: item for name, item in schema.items() if name != key}
            return _value(_both(rest, schema[key][0], root), root, text, depth + 1)
    if "allOf" in schema:
        merged: Any = {key: item for key, item in schema.items() if key != "allOf"}
        for branch in schema["allOf"]:
            merged = _both(merged, branch, root)
        return _value(merged, root, text, depth + 1)
    kinds = schema.get("type") or (["object"] if "properties" in schema else ["string"])
    kind = next((name for name in ([kinds] if isinstance(kinds, str) else kinds) if name != "null"), "null")
    if kind == "object":
        required = set(schema.get("required") or [])
        wanted = {key: item for key, item in (schema.get("properties") or {}).items() if key in required or depth < 3}
        return {key: _value(item, root, text, depth + 1) for key, item in wanted.items() if item is not False}
    if kind == "array":
        count = max(int(schema.get("minItems") or 0), 2 if depth < 3 and int(schema.get("maxItems") or 2) > 1 else 1)
        items = [_value(schema.get("items") or {}, root, text, depth + 1) for _ in range(count)]
        return items[:1] if schema.get("uniqueItems") else items
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        return low if low is not None else min(5, high) if high is not None else 5
    if kind == "boolean":
        return True
    return None if kind == "null" else _string(schema, text)


def _both(one: Mapping[str, Any], other: Any, root: Any) -> dict[str, Any]:
    if isinstance(other, Mapping) and "$ref" in other:
        found = _at(root, other["$ref"])
        other = {**found, **{key: item for key, item in other.items() if key != "$ref"}}
    if not isinstance(other, Mapping):
        return dict(one)
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    if "allOf" in one and "allOf" in other:
        merged["allOf"] = [*one["allOf"], *other["allOf"]]
    return merged


def _string(schema: Mapping[str, Any], text: str) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    least, most = int(schema.get("minLength") or 0), schema.get("maxLength")
    tries = [text, "abc", "1", "a1b2c3d4", "AC" + "0" * 32, "12:00", "+15550100", "https://kew.example/a", "2026-03-19"]
    for made in [text * (1 + least // len(text)), *tries] if "pattern" in schema else [text * (1 + least // len(text))]:
        made = made[:most] if most is not None else made
        if "pattern" not in schema or re.search(schema["pattern"], made):
            return made
    from hypothesis import strategies

    return str(strategies.from_regex(re.compile(schema["pattern"], re.ASCII), fullmatch=True).example())


def _sent(name: str, arguments: Mapping[str, Any], found: OpenApiTools) -> urllib.request.Request:
    """The request that a call would send."""

    bound = next(tool for tool in found.tools if tool.tool.name == name)
    try:
        bound.run(arguments, CallContext("k", 1.0))
    except _CaughtError as caught:
        return caught.request
    raise AssertionError("every request goes through the exchange")


class _CaughtError(Exception):
    def __init__(self, request: urllib.request.Request) -> None:
        super().__init__("caught")
        self.request = request


def _never(request: urllib.request.Request, timeout_s: float) -> tuple[int, bytes]:
    del timeout_s
    raise _CaughtError(request)


def _labels(document: Mapping[str, Any], found: OpenApiTools) -> list[tuple[str, str]]:
    """Method and path of each tool, in the order of the tools."""
    every = [(method, path) for path, item in document["paths"].items() for method in _METHODS
             if method in _pointed(document, item)]  # fmt: skip
    return [(method, path) for method, path in every if f"{method.upper()} {path}" not in found.refused]


def _pointed(document: Mapping[str, Any], value: Any) -> Any:
    while isinstance(value, Mapping) and "$ref" in value:
        value = _at(document, value["$ref"])
    return value


def _at(document: Any, reference: str) -> Any:
    for part in reference[2:].split("/"):
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        document = document[int(part) if isinstance(document, list) else part]
    return document


class _Reader:
    """openapi-core on one operation: the document with that path alone, which reads a hundred times faster."""

    def __init__(self, document: Mapping[str, Any], method: str, path: str, *, is_woven: bool) -> None:
        from jsonschema_path import SchemaPath
        from openapi_core import V30RequestUnmarshaller, V31RequestUnmarshaller

        item = _pointed(document, document["paths"][path])
        self._item, self._method, self._path = item, method, path
        self.parameters = [
            _pointed(document, entry)
            for entry in [*(item.get("parameters") or []), *(item[method].get("parameters") or [])]
        ]
        kind = V30RequestUnmarshaller if str(document["openapi"]).startswith("3.0") else V31RequestUnmarshaller
        self._is_woven = is_woven
        self._document = document
        self._open: Any = lambda small: kind(SchemaPath.from_dict(small))

    def _unmarshaller(self, arguments: Mapping[str, Any]) -> Any:
        """Without credentials, which are no arguments, and without what was not given, where the reader stumbles."""
        operation = {key: part for key, part in self._item[self._method].items() if key != "security"}
        operation["parameters"] = [
            entry
            for entry in self.parameters
            if entry["name"] in arguments or f"{entry['name']}_{entry['in']}" in arguments
        ]
        if body := _pointed(self._document, operation.get("requestBody") or {}):
            content = {_plain_kind(kind): _of_given(media, arguments) for kind, media in body["content"].items()}
            operation["requestBody"] = {**body, "content": content}
        item = {key: part for key, part in self._item.items() if key != "parameters"}
        others = self._document["paths"] if self._is_woven else {}
        paths = {**others, self._path: {**item, self._method: operation}}
        small = {**self._document, "paths": paths, "security": []}
        return self._open(small)

    def _plain_schema(self, parameter: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a deepObject the reader knows objects alone, no choice that has one; and it forbids readOnly here, too."""
        if "schema" not in parameter:
            return parameter
        schema = {key: item for key, item in _pointed(self._document, parameter["schema"]).items() if key != "readOnly"}
        if parameter.get("style") == "deepObject":
            branches = [_pointed(self._document, item) for item in schema.get("anyOf") or [schema]]
            schema = next((item for item in branches if item.get("type") == "object"), branches[0])
        return {**parameter, "schema": schema}

    def problem(self, request: urllib.request.Request, arguments: Mapping[str, Any]) -> str:
        """What is wrong with a request; "" for nothing."""
        found = self._unmarshaller(arguments).unmarshal(_Seen(request))
        is_multipart = str(request.get_header("Content-type")).startswith("multipart/")
        if found.errors and not (is_multipart and all("Body" in type(error).__name__ for error in found.errors)):
            error = found.errors[0]
            return f"{error!r} {error.__cause__!r} {getattr(error.__cause__, 'schema_errors', '')}"
        left = dict(arguments)
        for parameter in self.parameters:
            name, where = parameter["name"], parameter["in"]
            argument = f"{name}_{where}" if f"{name}_{where}" in left else name
            if argument not in left or where == "cookie":
                continue
            values = getattr(found.parameters, where, {})
            values = {key.lower(): item for key, item in values.items()} if where == "header" else values
            key = name.lower() if where == "header" else name
            is_spread = isinstance(left[argument], Mapping) and parameter.get("style", "form") == "form"
            if where == "query" and is_spread and "schema" in parameter and parameter.get("explode", True):
                pairs = dict(parse_qsl(urlsplit(request.full_url).query))  # which the reader does not put together
                values = {key: {part: type(item)(pairs.get(part)) for part, item in left[argument].items()}}
            if argument == name and key not in values:
                continue  # of the body, perhaps
            seen, given = _plain(values.get(key)), _plain(left.pop(argument))
            seen = unquote(seen) if where == "path" and isinstance(seen, str) else seen
            if not _same(seen, given):
                return f"{where} parameter {name} reads {seen!r}"
        # Of a multipart body openapi-core reads strings alone, whatever the schema says.
        seen = _multipart(request) if is_multipart else _plain(found.body)
        body = left["body"] if set(left) == {"body"} and not (isinstance(seen, dict) and "body" in seen) else left
        if (body or seen) and not _same(seen, _plain(body)):
            return f"the body reads {seen!r:.200}, given was {body!r:.200}"
        return ""


def _plain_kind(kind: str) -> str:
    """The reader takes a body of application/…+json for bytes."""
    return "application/json" if kind.partition(";")[0].endswith("+json") else kind


def _of_given(media: Mapping[str, Any], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    given = arguments["body"] if isinstance(arguments.get("body"), Mapping) else arguments
    if "encoding" not in media:
        return media
    encoding = {key: part for key, part in media["encoding"].items() if key in given}
    schema = media["schema"]
    if "properties" in schema:
        schema = {**schema, "properties": {key: part for key, part in schema["properties"].items() if key in given}}
    return {**media, "encoding": encoding, "schema": schema}


def _readable(value: Any) -> Any:
    """A document without formats that the reader does not know, discriminators that name no schemas, and defaults,
    which it fills in before it checks."""
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _readable(item) for key, item in value.items() if key != "default" or isinstance(item, Mapping)}
    if isinstance(found.get("format"), str) and found["format"] not in _FORMATS:
        del found["format"]
    if isinstance(found.get("discriminator"), Mapping) and "mapping" not in found["discriminator"]:
        del found["discriminator"]
    return found


class _Seen:
    """A request as openapi-core wants to see it."""

    def __init__(self, request: urllib.request.Request) -> None:
        from openapi_core.datatypes import RequestParameters
        from werkzeug.datastructures import Headers, ImmutableMultiDict

        parts = urlsplit(request.full_url)
        self.host_url = f"{parts.scheme}://{parts.netloc}"
        self.path = re.sub(r"%(?!2F|25)..(%[89AB].)*", lambda found: unquote(found.group()), parts.path)
        self.method = request.get_method().lower()
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(parse_qsl(parts.query, keep_blank_values=True)),
            header=Headers(dict(request.header_items())),
        )
        self.body = request.data
        self.content_type = _plain_kind(request.get_header("Content-type") or "")


def _multipart(request: urllib.request.Request) -> dict[str, Any]:
    """A multipart body's parts as the standard library's reader of e-mail sees them."""
    assert isinstance(request.data, bytes), "the body is there"
    head = f"Content-Type: {request.get_header('Content-type')}\r\n\r\n".encode()
    found: dict[str, Any] = {}
    for part in email.message_from_bytes(head + request.data, policy=email.policy.HTTP).iter_parts():
        text = part.get_content()
        name = str(part.get_param("name", header="content-disposition"))
        is_text = part.get_content_type() == "text/plain" and text not in ("true", "false") and not text.isdigit()
        value = text if is_text else json.loads(text)
        found[name] = [*found[name], value] if isinstance(found.get(name), list) else value
    return found


def _same(seen: Any, given: Any) -> bool:
    """Equal, but for what the reader adds by the schemas' defaults."""
    if isinstance(seen, dict) and isinstance(given, dict):
        return all(key in seen and _same(seen[key], item) for key, item in given.items())
    if isinstance(seen, list) and isinstance(given, list):
        return len(seen) == len(given) and all(map(_same, seen, given))
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (seen, given))
    return (are_numbers or type(seen) is type(given)) and bool(seen == given)


def _plain(value: Any) -> Any:
    """Values as JSON has them, whatever the reader made of their formats."""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text("utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ToolsetError(f"not YAML: {error}") from error
    if not isinstance(value, Mapping):
        raise ToolsetError("not an OpenAPI document: expected an object")
    return value


if __name__ == "__main__":
    sys.exit(main())
