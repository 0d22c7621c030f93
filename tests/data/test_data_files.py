from __future__ import annotations

import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from data.config import OpenAIJsonlSource, ToolBenchSource
from data.rejected import Rejected, RejectReason
from data.sources import check_source, files, read_source
from data.sources.cutter import cut_rows
from data.sources.files import DataFileError, content_hash, iter_rows


def values(path: Path) -> list[Any]:
    return [row.value for row in iter_rows(path)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("start", ["", "\ufeff", " \n"])
def test_an_array_is_cut_whatever_the_block_size(block_bytes: int, start: str) -> None:
    rows = [{"id": i, "text": 'a "quoted", [bracketed] \\ é{' * i, "\\": [{}, []]} for i in range(5)]
    for text in (json.dumps(rows, indent=1, ensure_ascii=False), json.dumps(rows), "\n".join(map(json.dumps, rows))):
        data = (start + text).encode()
        spans = list(cut_rows(io.BytesIO(data), block_bytes))
        assert [json.loads(data[span.start : span.end]) for span in spans] == rows


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.lists(st.text(), max_size=2), max_size=3)), st.integers(1, 9))
def test_any_array_of_objects_comes_back_from_its_pieces(rows: list[Any], block_bytes: int) -> None:
    data = json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")
    spans = list(cut_rows(io.BytesIO(data), block_bytes))
    assert [data[span.start : span.end] for span in spans] == [
        json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows
    ]


def test_what_stands_between_rows_is_a_row_and_never_skipped(tmp_path: Path) -> None:
    rows = list(iter_rows(write(tmp_path / "rows.json", '[{"a": 1}, 7, nope , {"b": 2} x]')))
    assert [(row.row_id, row.value, row.error is None) for row in rows] == [
        ("rows.json[0]", {"a": 1}, True),
        ("rows.json[1]", 7, True),
        ("rows.json[2]", "nope", False),
        ("rows.json[3]", {"b": 2}, True),
        ("rows.json[4]", "x", False),
    ]


def test_pieces_of_a_file_give_the_rows_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values_ = [{"a": "x" * i} for i in range(50)]
    for name, text in (("a.json", json.dumps(values_)), ("b.jsonl", "\n\n".join(map(json.dumps, values_)))):
        whole = list(iter_rows(write(tmp_path / name, text)))
        with monkeypatch.context() as patch:
            patch.setattr(files, "PIECE_BYTES", 100)
            pieces = list(files.iter_pieces(tmp_path / name, name))
            assert len(pieces) > 5
            assert [row for piece in reversed(pieces) for row in reversed(list(files.read_piece(piece)))] == whole[::-1]
        assert [row.value for row in whole] == values_


def test_numbers_of_any_size_and_half_characters_are_read_as_they_stand(tmp_path: Path) -> None:
    text = '[{"big": 100000000000000000000001, "float": 1.0, "half": "\\ud83d"}]'
    row = values(write(tmp_path / "rows.json", text))[0]
    assert repr(row) == repr({"big": 100000000000000000000001, "float": 1.0, "half": "\ud83d"})


def test_numbers_that_json_lacks_make_a_row_with_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"a": NaN}\n{"a": [-Infinity]}\n{"a": 1}\n')
    assert [row.error is None for row in iter_rows(path)] == [False, False, True]
    columns = [{"a": float("nan")}, {"a": 1.5}]
    parquet.write_table(pyarrow.Table.from_pylist(columns), tmp_path / "rows.parquet")
    assert [row.error is None for row in iter_rows(tmp_path / "rows.parquet")] == [False, True]


def test_times_of_parquet_columns_become_text(tmp_path: Path) -> None:
    rows = [{"at": dt.datetime(2026, 3, 19, 9, 30), "price": Decimal("1.10")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert values(tmp_path / "rows.parquet") == [{"at": "2026-03-19 09:30:00", "price": "1.10"}]


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
        ("rows.json", b"[{}] [{}]", "after the end"),
        ("rows.json", b"{}}", "never opened"),
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
