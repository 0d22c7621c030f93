from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from data.config import OpenAIJsonlSource, ToolBenchSource
from data.rejected import Rejected, RejectReason
from data.sources import check_source, files, read_source
from data.sources.files import DataFileError, content_hash, iter_rows


def values(path: Path) -> list[Any]:
    return [row.value for row in iter_rows(path)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("chunk_chars", [1, 7, 1 << 20])
def test_an_array_is_streamed_whatever_the_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_chars: int
) -> None:
    monkeypatch.setattr(files, "_CHUNK_CHARS", chunk_chars)
    rows = [{"id": i, "text": 'a "quoted", [bracketed] é' * i} for i in range(5)]
    path = write(tmp_path / "rows.json", json.dumps(rows, indent=1, ensure_ascii=False))
    assert values(path) == rows
    assert [row.row_id for row in iter_rows(path)][:2] == ["rows.json[0]", "rows.json[1]"]


def test_one_object_and_objects_in_a_row_are_rows_too(tmp_path: Path) -> None:
    assert values(write(tmp_path / "one.json", '{"a": 1}\n')) == [{"a": 1}]
    assert values(write(tmp_path / "two.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    assert values(write(tmp_path / "none.json", "[]")) == []


def test_a_bad_line_of_jsonl_is_one_row_with_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"a": 1}\n\nnot json\n{"a": 2}\n')
    rows = list(iter_rows(path))
    assert [(row.row_id, row.error is None) for row in rows] == [
        ("rows.jsonl:1", True),
        ("rows.jsonl:3", False),
        ("rows.jsonl:4", True),
    ]


def test_parquet_rows_come_back_as_objects(tmp_path: Path) -> None:
    rows = [{"id": "a", "conversations": {"from": ["user"], "value": ["hi"]}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert values(tmp_path / "rows.parquet") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"hello", "not JSON in row 0"),
        ("rows.json", b'[{"a": 1}, {"a": ', "not JSON in row 1"),
        ("rows.json", b'[{"a": 1}, {"a": 2}', "cut off"),
        ("rows.json", b"  \n", "empty"),
        ("rows.json", b"[\xff]", "not UTF-8"),
        ("rows.parquet", b"PAR1", "Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_the_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as caught:
        list(iter_rows(path))
    assert str(path) in str(caught.value)


def test_a_missing_path_and_an_empty_folder_are_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"set 'data\.sources\.0\.path'"):
        check_source(OpenAIJsonlSource(kind="openai_jsonl", path=tmp_path / "none.jsonl"), "data.sources.0")
    with pytest.raises(DataFileError, match=r"no \.json"):
        check_source(ToolBenchSource(kind="toolbench", path=tmp_path), "data.sources.0")


def test_one_broken_file_in_a_folder_is_one_rejected_row(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "broken")
    write(tmp_path / "b.json", '[{"id": "x"}]')
    rows = list(read_source(ToolBenchSource(kind="toolbench", path=tmp_path), seed=0, default_tools=()))
    assert [(row.row_id, row.reason) for row in rows if isinstance(row, Rejected)] == [
        ("a.json", RejectReason.NOT_JSON),
        ("b.json[0]", RejectReason.MALFORMED_ROW),
    ]


def test_max_rows_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{}\n" * 10)
    source = OpenAIJsonlSource(kind="openai_jsonl", path=path, max_rows=3)
    assert len(list(read_source(source, seed=0, default_tools=()))) == 3


def test_the_content_hash_follows_names_and_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "[]")
    before = content_hash(tmp_path)
    write(tmp_path / "a.json", "[1]")
    changed = content_hash(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert len({before, changed, content_hash(tmp_path)}) == 3
