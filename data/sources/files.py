"""Rows out of files, one at a time: a 2 GB array is never held in memory, and every row gets an id to find it by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

_CHUNK_CHARS = 1 << 20
# No row of any known set comes near; an unclosed bracket would otherwise read the whole file into memory.
_MAX_ROW_CHARS = 1 << 26
_GAP = " \t\r\n,"


class DataFileError(ValueError):
    """A data file that cannot be read as a whole; the message names the file and what to do."""


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its file. `error` is set where the row is not JSON; `value` is then its text."""

    row_id: str
    value: Any
    error: str | None = None


def require_exists(path: Path, key: str) -> None:
    """Raises DataFileError naming the path and the config key that asked for it."""
    if not path.exists():
        raise DataFileError(f"{path}: no such file or folder; set '{key}' to where the data is")


def iter_rows(path: Path, label: str = "") -> Iterator[RawRow]:
    """The rows of a `.json` array, a `.json` object (one row), a `.jsonl` or a `.parquet` file.

    Args:
        label: stands for the file in row ids; its name by default.

    Raises:
        DataFileError: the file as a whole cannot be read.
    """
    label = label or path.name
    if path.suffix == ".parquet":
        yield from _iter_parquet(path, label)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            if path.suffix == ".jsonl":
                yield from _iter_lines(label, stream)
            else:
                yield from _iter_json(path, label, stream)
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not UTF-8 at byte {error.start}") from error


def _iter_lines(label: str, stream: TextIO) -> Iterator[RawRow]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        row_id = f"{label}:{number}"
        try:
            yield RawRow(row_id, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield RawRow(row_id, line, str(error))


def _iter_json(path: Path, label: str, stream: TextIO) -> Iterator[RawRow]:
    """An array is streamed; several objects one after the other (JSONL named .json) are as well."""
    decoder = json.JSONDecoder()
    buffer = stream.read(_CHUNK_CHARS).lstrip(_GAP)
    if not buffer:
        raise DataFileError(f"{path}: empty; expected a JSON array of rows")
    is_array = buffer[0] == "["
    position, index = (1, 0) if is_array else (0, 0)
    while True:
        position = _skip_gap(buffer, position)
        if position == len(buffer):
            if not (chunk := stream.read(_CHUNK_CHARS)):
                break
            buffer, position = chunk, 0
            continue
        if is_array and buffer[position] == "]":
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            chunk = stream.read(max(_CHUNK_CHARS, len(buffer) - position))  # doubling keeps re-reading linear
            if not chunk or len(buffer) - position > _MAX_ROW_CHARS:
                raise DataFileError(f"{path}: not JSON in row {index}: {error}") from error
            buffer, position = buffer[position:] + chunk, 0
            continue
        yield RawRow(f"{label}[{index}]", value)
        position, index = end, index + 1
    if is_array:
        raise DataFileError(f"{path}: the array is never closed after row {index - 1}: the file is cut off")


def _skip_gap(text: str, position: int) -> int:
    while position < len(text) and text[position] in _GAP:
        position += 1
    return position


def _iter_parquet(path: Path, label: str) -> Iterator[RawRow]:
    # Imported here: it takes longer than everything else in this package, and most data is JSON.
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        index = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for value in batch.to_pylist():
                yield RawRow(f"{label}[{index}]", value)
                index += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataFileError(f"{path}: cannot be read as Parquet: {error}") from error


def content_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of all data files below a folder with their names."""
    digest = hashlib.sha256()
    for file in data_files(path):
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_CHARS):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def data_files(path: Path) -> list[Path]:
    """The file itself, or every .json, .jsonl and .parquet file below a folder, sorted.

    Raises:
        DataFileError: a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in {".json", ".jsonl", ".parquet"})
    if not files:
        raise DataFileError(f"{path}: no .json, .jsonl or .parquet file in this folder")
    return files
