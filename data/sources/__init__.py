"""One adapter per raw format: a row becomes a `Conversation` or a `Rejected`, never nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from data.config import OpenAIJsonlSource, SourceConfig, SynthSource, ToolBenchSource
from data.rejected import Rejected, RejectReason, sample_of
from data.sources.files import DataFileError, RawRow, data_files, iter_rows, require_exists
from data.sources.openai_chat import conversation_from_openai
from data.sources.toolbench_answers import conversations_from_answer
from data.sources.toolbench_rows import conversation_from_train_row
from tinydispatch.tools import Conversation, Tool


def check_source(source: SourceConfig, key: str) -> None:
    """Fail in seconds, before any other source is read.

    Args:
        key: where the source stands in the configuration ("data.sources.0"), for the message.

    Raises:
        DataFileError: the path does not exist, or a folder holds no data.
    """
    if isinstance(source, ToolBenchSource | OpenAIJsonlSource):
        require_exists(source.path, f"{key}.path")
        data_files(source.path)


def read_source(source: SourceConfig, *, seed: int, default_tools: Sequence[Tool]) -> Iterator[Conversation | Rejected]:
    """Every row of a source in its order, at most `source.max_rows` of them.

    Raises:
        DataFileError: a file cannot be read as a whole. Single bad rows come back as `Rejected`.
    """
    match source:
        case SynthSource():
            rows = _read_synth(source.count, seed)
        case ToolBenchSource():
            rows = _read_toolbench(source.path, source.keep_thoughts)
        case OpenAIJsonlSource():
            rows = _read_openai(source.path, default_tools)
    return islice(rows, source.max_rows)


def _read_synth(count: int, seed: int) -> Iterator[Conversation | Rejected]:
    # Imported here: the generator loads place and name tables that no other source needs.
    from data.synth.generate import generate

    yield from generate(count, seed)


def _read_toolbench(path: Path, keep_thoughts: bool) -> Iterator[Conversation | Rejected]:
    for file, row in _rows_below(path):
        if row.error is not None:
            yield Rejected(RejectReason.NOT_JSON, row.error, row.row_id, sample_of(row.value))
        elif isinstance(row.value, dict) and "answer_generation" in row.value:
            group = file.parent.name if path.is_dir() else ""
            yield from conversations_from_answer(row.value, row.row_id, keep_thoughts=keep_thoughts, group=group)
        else:
            yield conversation_from_train_row(row.value, row.row_id, keep_thoughts=keep_thoughts)


def _read_openai(path: Path, default_tools: Sequence[Tool]) -> Iterator[Conversation | Rejected]:
    for _, row in _rows_below(path):
        if row.error is not None:
            yield Rejected(RejectReason.NOT_JSON, row.error, row.row_id, sample_of(row.value))
        else:
            yield conversation_from_openai(row.value, row.row_id, default_tools)


def _rows_below(path: Path) -> Iterator[tuple[Path, RawRow]]:
    """Rows of the file, or of every file below the folder: there one broken file among thousands is a rejected row."""
    for file in data_files(path):
        label = str(file.relative_to(path)) if path.is_dir() else file.name
        try:
            for row in iter_rows(file, label):
                yield file, row
        except DataFileError as error:
            if not path.is_dir():
                raise
            yield file, RawRow(label, "", str(error))
