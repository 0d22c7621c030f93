"""The check of OpenAPI requests by another reader, on a document with one operation of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import check_openapi
from scripts.check_openapi import main

pytest.importorskip("openapi_core")


def operation(**more: Any) -> dict[str, Any]:
    return {"responses": {"200": {"description": "ok"}}, **more}


def document(style: str = "form") -> dict[str, Any]:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}
    form = {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}
    file = {"type": "object", "required": ["f"], "properties": {"f": {"type": "string", "format": "binary"}}}
    upload = {"required": True, "content": {"multipart/form-data": {"schema": file}}}
    names = {"type": "array", "items": {"type": "string"}}
    parameter = {"name": "p", "in": "query", "required": True, "style": style, "schema": names}
    return {
        "openapi": "3.0.3",
        "info": {"title": "t", "version": "1"},
        "servers": [{"url": "https://api.example"}],
        "paths": {
            "/form": {"post": operation(requestBody=form)},
            "/list": {"get": operation(parameters=[parameter])},
            "/upload": {"post": operation(requestBody=upload)},
        },
    }


def test_shares_reasons_and_wrong_requests_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "api.json").write_text(json.dumps(document()))
    assert main([str(tmp_path / "api.json")]) == 0
    out = capsys.readouterr().out
    assert "api.json: 2 of 3 operations offered (66.7 %), 1 refused" in out
    assert "refused 1: requestBody: multipart/form-data, …: a file cannot be given" in out
    assert "requests of 2 operations read again: 0 wrong" in out


def test_a_request_that_differs_from_the_document_is_found() -> None:
    """Offered by one document, and read by another, which wants the list in another style."""
    found = check_openapi.read_openapi(document(), exchange=check_openapi.never)
    other = document()
    other["paths"]["/list"]["get"]["parameters"][0]["explode"] = False
    assert check_openapi.check(other, found)[3] != []
    assert check_openapi.check(document(), found)[3] == []


def test_a_file_that_is_no_document_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "api.json").write_text("[]")
    assert main([str(tmp_path / "api.json")]) == 2
    assert "api.json: not an OpenAPI document" in capsys.readouterr().err
