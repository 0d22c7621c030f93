"""Rows out of files, in pieces that any process can read by itself: a 2 GB array is never held in memory.

Every row gets an id to find it by, which does not depend on how the file was cut into pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from data.sources.cutter import CutError, Span, cut_rows
from tinydispatch.formats import json_decoder

# About 500 ToolBench rows: a second's work, so that little is lost by a kill and processes end together.
PIECE_BYTES = 1 << 22


class DataFileError(ValueError):
    """A data file that cannot be read as a whole; the message names the file and what to do."""


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its file. `error` is set where the row is not JSON; `value` is then its text."""

    row_id: str
    value: Any
    error: str | None = None


@dataclass(frozen=True)
class Piece:
    """Rows of one file that are read together.

    Bytes `start` to `end` hold lines, the first of them with number `first`; or the JSON values at `spans`, the first
    with index `first`. For Parquet `start` is the row group.
    """

    path: Path
    label: str
    first: int
    start: int
    end: int
    spans: tuple[Span, ...] = ()

    @property
    def n_bytes(self) -> int:
        """How much of the file is in this piece."""
        return self.end - self.start


def require_exists(path: Path, key: str) -> None:
    """Raises DataFileError naming the path and the config key that asked for it."""
    if not path.exists():
        raise DataFileError(f"{path}: no such file or folder; set '{key}' to where the data is")


def iter_rows(path: Path, label: str = "", max_rows: int | None = None) -> Iterator[RawRow]:
    """The rows of a `.json` array, a `.json` object (one row), a `.jsonl` or a `.parquet` file.

    Args:
        label: stands for the file in row ids; its name by default.
        max_rows: no row after so many is looked for; a few more may come out of the last piece.

    Raises:
        DataFileError: the file as a whole cannot be read.
    """
    for piece in iter_pieces(path, label or path.name, max_rows):
        yield from read_piece(piece)


def iter_pieces(path: Path, label: str, max_rows: int | None = None) -> Iterator[Piece]:
    """Cut a file, without parsing it. The pieces depend on the file alone.

    Raises:
        DataFileError: the file as a whole cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_pieces(path, label)
        return
    try:
        with path.open("rb") as stream:
            cut = _line_pieces if path.suffix == ".jsonl" else _array_pieces
            yield from cut(path, label, stream, max_rows)
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read: {error.strerror}") from error
    except CutError as error:
        raise DataFileError(f"{path}: {error}") from error


def read_piece(piece: Piece) -> Iterator[RawRow]:
    """Parse the rows of a piece; one that is not JSON comes back with its `error`.

    Raises:
        DataFileError: the file is gone, or Parquet cannot read it.
    """
    if piece.path.suffix == ".parquet":
        yield from _read_row_group(piece)
        return
    try:
        with piece.path.open("rb") as stream:
            stream.seek(piece.start)
            data = stream.read(piece.n_bytes)
    except OSError as error:
        raise DataFileError(f"{piece.path}: cannot be read: {error.strerror}") from error
    if piece.spans:
        for index, span in enumerate(piece.spans, piece.first):
            yield _parsed(f"{piece.label}[{index}]", data[span.start - piece.start : span.end - piece.start])
        return
    for number, line in enumerate(data.split(b"\n"), piece.first):
        if line := line.removeprefix(b"\xef\xbb\xbf").strip():
            yield _parsed(f"{piece.label}:{number}", line)


def _parsed(row_id: str, data: bytes) -> RawRow:
    try:
        return RawRow(row_id, msgspec.json.decode(data))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    # The fast parser refuses some of what Python's reads (half a surrogate pair), and says less about the rest.
    try:
        return RawRow(row_id, json_decoder().decode(data.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        return RawRow(row_id, data.decode("utf-8", "replace"), str(error))


def _array_pieces(path: Path, label: str, stream: BinaryIO, max_rows: int | None) -> Iterator[Piece]:
    spans: list[Span] = []
    first = 0
    for span in cut_rows(stream):
        spans.append(span)
        is_last = max_rows is not None and first + len(spans) >= max_rows
        if span.end - spans[0].start >= PIECE_BYTES or is_last:
            yield Piece(path, label, first, spans[0].start, span.end, tuple(spans))
            first, spans = first + len(spans), []
        if is_last:
            return
    if spans:
        yield Piece(path, label, first, spans[0].start, spans[-1].end, tuple(spans))


def _line_pieces(path: Path, label: str, stream: BinaryIO, max_rows: int | None) -> Iterator[Piece]:
    first, n_rows = 1, 0
    while lines := stream.readlines(PIECE_BYTES):
        start = stream.tell() - sum(map(len, lines))
        yield Piece(path, label, first, start, stream.tell())
        first += len(lines)
        n_rows += sum(not line.isspace() for line in lines)
        if max_rows is not None and n_rows >= max_rows:
            return


def _parquet_pieces(path: Path, label: str) -> Iterator[Piece]:
    # Imported here: it takes longer than everything else in this package, and most data is JSON.
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        metadata = parquet.ParquetFile(path).metadata
    except (OSError, pyarrow.ArrowException) as error:
        raise DataFileError(f"{path}: cannot be read as Parquet: {error}") from error
    first = 0
    for group in range(metadata.num_row_groups):
        yield Piece(path, label, first, group, group + metadata.row_group(group).total_byte_size)
        first += metadata.row_group(group).num_rows


def _read_row_group(piece: Piece) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        index = piece.first
        for batch in parquet.ParquetFile(piece.path).iter_batches(batch_size=256, row_groups=[piece.start]):
            for value in batch.to_pylist():
                yield _as_json(f"{piece.label}[{index}]", value)
                index += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataFileError(f"{piece.path}: cannot be read as Parquet: {error}") from error


def _as_json(row_id: str, value: Any) -> RawRow:
    """Times and decimal numbers become text; a row with a number that JSON lacks comes back with its `error`."""
    try:
        return RawRow(row_id, json.loads(json.dumps(value, default=str, allow_nan=False)))
    except (ValueError, TypeError, RecursionError) as error:
        return RawRow(row_id, value, str(error))


def content_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of all data files below a folder with their names."""
    digest = hashlib.sha256()
    for file in data_files(path):
        digest.update(file.relative_to(path).as_posix().encode())
        state = file.stat()
        digest.update(_hash_of_file(file, state.st_size, state.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=65_536)
def _hash_of_file(file: Path, _size: int, _mtime_ns: int) -> bytes:
    """Remembered while this process runs, because several stages ask for the hash of the same 2 GB."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def data_files(path: Path) -> list[Path]:
    """The file itself, or every .json, .jsonl and .parquet file below a folder, or else every .yaml and .yml, sorted.

    Raises:
        DataFileError: a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in {".json", ".jsonl", ".parquet"})
    files = files or sorted(file for file in path.rglob("*") if file.suffix in {".yaml", ".yml"})
    if not files:
        raise DataFileError(f"{path}: no .json, .jsonl or .parquet file in this folder")
    return files
