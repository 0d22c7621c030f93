"""One adapter per raw format: a row becomes a `Conversation` or a `Rejected`, never nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data.config import (
    GENERATED,
    CatalogueSource,
    DispatchLogSource,
    FileSource,
    HermesSource,
    IntentsSource,
    OpenAIJsonlSource,
    PhrasesSource,
    ShareGptSource,
    SourceConfig,
    SynthSource,
    ToolBenchSource,
    When2CallSource,
    XlamSource,
)
from data.rejected import Rejected, RejectReason, sample_of
from data.sources.dispatch_log import Marks, conversation_from_log, marks_of
from data.sources.files import DataFileError, Piece, RawRow, data_files, iter_pieces, read_piece, require_exists
from data.sources.hermes import conversation_from_hermes
from data.sources.openai_chat import conversation_from_openai
from data.sources.sharegpt import conversation_from_sharegpt
from data.sources.toolbench_answers import conversations_from_answer
from data.sources.toolbench_rows import conversation_from_train_row
from data.sources.when2call import conversation_from_when2call
from data.sources.xlam import conversation_from_xlam
from tinydispatch.tools import Conversation, Tool


@dataclass(frozen=True)
class Part:
    """What one process reads at a time: a piece of a large file, or several small ones; or a file's error.

    `error` is set where a file of a folder cannot be cut into rows; it counts as one rejected row.
    """

    pieces: tuple[Piece, ...] = ()
    error: RawRow | None = None

    @property
    def n_bytes(self) -> int:
        """How much of the source's files this is."""
        return sum(piece.n_bytes for piece in self.pieces)


def check_source(source: SourceConfig, key: str, default_tools: Sequence[Tool] | None = None) -> None:
    """Fail in seconds, before any other source is read.

    Args:
        key: where the source stands in the configuration ("data.sources.0"), for the message.
        default_tools: what phrases are for; None leaves their file unread.

    Raises:
        DataFileError: the path does not exist, a folder holds no data, or a phrase cannot be used.
    """
    if isinstance(source, PhrasesSource):
        require_exists(source.path, f"{key}.path")
        if default_tools is not None:
            next(_read_phrases(source, 0, default_tools))
    if isinstance(source, CatalogueSource):
        require_exists(source.path, f"{key}.path")
        next(_read_catalogue(source, 0))
    if isinstance(source, IntentsSource):
        require_exists(source.path, f"{key}.path")
        _check_intents(source, default_tools)
    if isinstance(source, GENERATED):
        return
    if source.path is not None:
        require_exists(source.path, f"{key}.path")
        data_files(source.path)
    if isinstance(source, ToolBenchSource) and source.groups is not None:
        require_exists(source.groups.queries, f"{key}.groups.queries")


def read_source(source: SourceConfig, *, seed: int, default_tools: Sequence[Tool]) -> Iterator[Conversation | Rejected]:
    """Every row of a source in its order, at most the first `source.max_rows`: a look at it. `prepare` samples.

    Raises:
        DataFileError: a file cannot be read as a whole. Single bad rows come back as `Rejected`.
    """
    if isinstance(source, SynthSource):
        return islice(_read_synth(source, seed), source.max_rows)
    if isinstance(source, PhrasesSource):
        return islice(_read_phrases(source, seed, default_tools), source.max_rows)
    if isinstance(source, CatalogueSource):
        return islice(_read_catalogue(source, seed), source.max_rows)
    if isinstance(source, IntentsSource):
        return islice(_read_intents(source, seed, default_tools), source.max_rows)
    parts = iter_parts(source, source.max_rows)
    return islice((row for part in parts for row in read_part(source, part, default_tools)), source.max_rows)


def iter_parts(source: FileSource, max_rows: int | None = None) -> Iterator[Part]:
    """Cut a source's files; parts depend on the files alone, so the same parts come back after a restart.

    Args:
        max_rows: of each file no row after so many is looked for.

    Raises:
        DataFileError: a single file cannot be read as a whole. In a folder of many, that file is one rejected row.
    """
    assert source.path is not None, "a Hub data set is fetched before it is read"
    is_folder = source.path.is_dir()
    waiting: list[Piece] = []
    for file in data_files(source.path):
        label = str(file.relative_to(source.path)) if is_folder else file.name
        try:
            for piece in iter_pieces(file, label, max_rows):
                waiting.append(piece)
                if sum(each.n_bytes for each in waiting) >= _PART_BYTES or len(waiting) >= _PART_FILES:
                    yield Part(tuple(waiting))
                    waiting = []
        except DataFileError as error:
            if not is_folder:
                raise
            yield Part(tuple(waiting), RawRow(label, "", str(error)))
            waiting = []
    if waiting:
        yield Part(tuple(waiting))


# A quarter of a piece: pieces of large files go alone, small files together.
_PART_BYTES, _PART_FILES = 1 << 20, 256


def read_part(source: FileSource, part: Part, default_tools: Sequence[Tool]) -> Iterator[Conversation | Rejected]:
    """The rows of one part.

    Raises:
        DataFileError: a file is gone since it was cut, or Parquet cannot read it.
    """
    is_log = isinstance(source, DispatchLogSource) and source.path is not None
    marks = marks_of(source.path) if is_log and source.path is not None else None
    for piece in part.pieces:
        for row in read_piece(piece):
            yield from conversations_of(source, row, piece.path, default_tools, marks)
    if part.error is not None:
        yield _not_json(part.error)


def conversations_of(
    source: FileSource, row: RawRow, file: Path, default_tools: Sequence[Tool], marks: Marks | None = None
) -> Iterator[Conversation | Rejected]:
    """What one row gives: one conversation or rejection as a rule, one for each prefix of a raw ToolBench answer.

    Args:
        marks: what other lines of a dispatch log say of this one.
    """
    try:
        yield from _adapted(source, row, file, default_tools, marks)
    except RecursionError:
        # Adapters look at values of any shape in many places; JSON may nest deeper than Python's stack.
        yield Rejected(RejectReason.MALFORMED_ROW, "nested too deeply", row.row_id, sample_of(row.value))


def _adapted(
    source: FileSource, row: RawRow, file: Path, default_tools: Sequence[Tool], marks: Marks | None
) -> Iterator[Conversation | Rejected]:
    if row.error is not None:
        yield _not_json(row)
        return
    value, row_id = row.value, row.row_id
    match source:
        case ToolBenchSource(keep_thoughts=keep) if isinstance(value, dict) and "answer_generation" in value:
            group = file.parent.name if source.path is not None and source.path.is_dir() else ""
            yield from conversations_from_answer(value, row_id, keep_thoughts=keep, group=group)
        case ToolBenchSource(keep_thoughts=keep):
            yield conversation_from_train_row(value, row_id, keep_thoughts=keep)
        case OpenAIJsonlSource():
            yield conversation_from_openai(value, row_id, default_tools, is_columnar=file.suffix == ".parquet")
        case XlamSource():
            yield conversation_from_xlam(value, row_id)
        case HermesSource():
            yield conversation_from_hermes(value, row_id)
        case ShareGptSource():
            yield conversation_from_sharegpt(value, row_id)
        case When2CallSource():
            yield conversation_from_when2call(value, row_id)
        case DispatchLogSource(only_corrected=only):
            yield conversation_from_log(value, row_id, default_tools, only_corrected=only, marks=marks)


def _not_json(row: RawRow) -> Rejected:
    return Rejected(RejectReason.NOT_JSON, row.error or "", row.row_id, sample_of(row.value))


def _read_phrases(source: PhrasesSource, seed: int, default_tools: Sequence[Tool]) -> Iterator[Conversation | Rejected]:
    from data.own_tools import PhraseFileError, generate, load_phrases

    try:
        yield from generate(load_phrases(source.path, default_tools), default_tools, source.count, seed)
    except PhraseFileError as error:
        raise DataFileError(str(error)) from error


def _read_catalogue(source: CatalogueSource, seed: int) -> Iterator[Conversation]:
    from data.catalogue.mixing import mixed
    from data.catalogue.reader import CatalogueError, load_catalogue

    try:
        domains = load_catalogue(source.path)
    except CatalogueError as error:
        raise DataFileError(str(error)) from error
    yield from mixed(
        domains,
        seed=seed,
        passes=source.passes,
        requests_per_list=source.requests_per_list,
        most_tools=source.most_tools,
        whole=source.whole,
        hardening=source.hardening,
    )


def _check_intents(source: IntentsSource, default_tools: Sequence[Tool] | None) -> None:
    from data.sources.intents import check_intents

    check_intents(source, default_tools)


def _read_intents(source: IntentsSource, seed: int, default_tools: Sequence[Tool]) -> Iterator[Conversation | Rejected]:
    # Imported here: names of days, currencies and cities are read that no other source needs.
    from data.sources.intents import read_intents

    yield from read_intents(source, seed, default_tools)


def _read_synth(source: SynthSource, seed: int) -> Iterator[Conversation | Rejected]:
    # Imported here: the generator loads place and name tables that no other source needs.
    from data.synth.generate import generate, generate_lists

    if source.tools == "invented":
        yield from generate_lists(source.count, seed, per_list=source.conversations_per_list)
    else:
        yield from generate(source.count, seed)
