"""The data stage: read every source, clean, split and write train.jsonl, heldout.jsonl and the data card.

First every row is read and checked by itself, in as many processes as there are cores, to shards on disk; then one
process decides over all of them what is written. Killed, it goes on from the last whole shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.card import CardError, DataCard
from data.card_builder import CardBuilder
from data.card_pages import markdown, page
from data.config import (
    GENERATED,
    CatalogueSource,
    DataConfig,
    DispatchLogSource,
    IntentsSource,
    PhrasesSource,
    SourceConfig,
    SynthSource,
    ToolBenchSource,
)
from data.fit import CountTokens
from data.groups import read_categories
from data.hub import fetched
from data.intents.mapping import licence_of, mapping_files
from data.join import Decisions, Fate, decide
from data.progress import Progress
from data.rejected import Rejected, RejectReason, sample_of
from data.shards import Record, read_records, read_with_lines
from data.sources import check_source, read_source
from data.sources.files import content_hash, data_files
from data.split import Split, copies, sampled
from data.store import ConversationWriter, data_hash, read_conversations, with_trained_turns
from data.truth import Shape, truth_of
from data.work import Job, write_shards
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.folders import owner_only
from tinydispatch.tools import Conversation, Tool

_CARD_JSON, _CARD_MARKDOWN, _CARD_HTML = "data_card.json", "data_card.md", "data_card.html"
_WORK = ".work"
# Distractors are drawn from the tools of so many rows of each source.
_POOL_ROWS = 2000

CaseTexts = Sequence[str] | Mapping[str, Sequence[str]]


class EmptyDataError(ValueError):
    """Nothing is left to train on; the message lists why rows were rejected."""


@dataclass(frozen=True)
class PreparedData:
    """What the data stage leaves behind."""

    train_path: Path
    heldout_path: Path
    card: DataCard


def prepare(
    config: DataConfig,
    *,
    seed: int,
    out_dir: Path,
    case_texts: CaseTexts,
    count_tokens: CountTokens | None,
    suites: Mapping[str, Shape] | None = None,
) -> PreparedData:
    """Write `data/train.jsonl`, `data/heldout.jsonl`, `data_card.md`, `.html` and, last, `.json` under `out_dir`.

    Deterministic: the same sources and seed give the same bytes, whatever the number of processes. Killed on the way,
    it leaves what was there before, or no `data_card.json`; called again with the same arguments, it goes on.

    Args:
        seed: for the generator and for changes on purpose; which side of the split a dialogue is on does not depend
            on it.
        case_texts: what users say in evaluation cases, best by suite; rows that share it are rejected.
        count_tokens: length of a conversation as the model reads it; None leaves the length unchecked. It is handed to
            other processes, so it can be pickled: see `TokenCounter`.
        suites: the shape of each evaluation suite, for the card to put beside what is trained.

    Raises:
        DataFileError, ToolError: a file that cannot be used.
        EmptyDataError: every row was rejected, or all of them are held out.
    """
    default_tools = load_tools(config.tools) if config.tools is not None else bundled_tools()
    for index, source in enumerate(config.sources):
        check_source(source, f"data.sources.{index}", default_tools)
    config = config.model_copy(update={"sources": tuple(map(fetched, config.sources))})
    texts = case_texts if isinstance(case_texts, Mapping) else {"evaluation": case_texts}
    with owner_only(out_dir) if is_private(config) else nullcontext():
        return _prepared(config, seed, texts, count_tokens, default_tools, out_dir, suites)


def _prepared(
    config: DataConfig,
    seed: int,
    texts: Mapping[str, Sequence[str]],
    count_tokens: CountTokens | None,
    default_tools: Sequence[Tool],
    out_dir: Path,
    suites: Mapping[str, Shape] | None,
) -> PreparedData:
    job = _job(config, seed, texts, count_tokens, default_tools, out_dir)
    builder = CardBuilder("tokens" if count_tokens else "characters", texts)
    try:
        prepared = _prepare(job, builder, out_dir, suites)
    except ValueError:
        # The user has to change something, and then nothing of this will fit.
        shutil.rmtree(job.folder.parent, ignore_errors=True)
        raise
    shutil.rmtree(job.folder.parent)
    return prepared


def is_private(config: DataConfig) -> bool:
    """Whether what is made of it is for its owner alone: as its most private source, and every log is private."""
    paths = [
        source.path for source in config.sources if not isinstance(source, SynthSource) and source.path is not None
    ]
    return any(isinstance(source, DispatchLogSource) for source in config.sources) or any(
        not path.stat().st_mode & 0o077 for path in paths
    )


def _prepare(job: Job, builder: CardBuilder, out_dir: Path, suites: Mapping[str, Shape] | None) -> PreparedData:
    config = job.config
    progress = Progress(_total_bytes(config))
    try:
        shards = write_shards(job, progress)
    finally:
        progress.close()
    sources = list(zip(config.sources, shards, strict=True))
    samples = [_sample(job.folder, source, shards) for source, shards in sources]
    decisions = decide(lambda: _records(job.folder, sources, samples), config.near_duplicate_threshold, config.guards)
    paths = _paths(out_dir)
    with ConversationWriter(paths[Split.TRAIN]) as train, ConversationWriter(paths[Split.HELDOUT]) as heldout:
        writers = {Split.TRAIN: train, Split.HELDOUT: heldout}
        _write_rows(job.folder, sources, samples, decisions, builder, writers)
        _require_training_rows(builder, config)
        files = (train.finish(), heldout.finish())
        truth = truth_of(read_conversations(files[0]), builder.train, suites)
        card = builder.build([_provenance(each, job.seed) for each in config.sources], data_hash(*files), truth)
        _commit(out_dir, writers, card)
    return PreparedData(paths[Split.TRAIN], paths[Split.HELDOUT], card)


def load_prepared(out_dir: Path) -> PreparedData | None:
    """What an earlier `prepare` left in `out_dir`; None where it is absent, unfinished or was changed since."""
    paths = _paths(out_dir)
    try:
        card = DataCard.read_json(out_dir / _CARD_JSON)
        if data_hash(paths[Split.TRAIN], paths[Split.HELDOUT]) != card.data_hash:
            return None
    except (CardError, OSError):
        return None
    return PreparedData(paths[Split.TRAIN], paths[Split.HELDOUT], card)


def _paths(out_dir: Path) -> dict[Split, Path]:
    return {split: out_dir / "data" / f"{split}.jsonl" for split in Split}


_Sources = Sequence[tuple[SourceConfig, tuple[int, ...]]]


_Sample = set[int] | None  # rows of a source; None: all


def _sample(folder: Path, source: SourceConfig, shards: Sequence[int]) -> _Sample:
    """The rows that `max_rows` takes."""
    if source.max_rows is None or isinstance(source, GENERATED):
        return None  # of generated rows no more than that were made
    records = (record for shard in shards for record in read_records(folder, shard))
    return sampled([_dialogue(record) for record in records], source.max_rows)


def _dialogue(record: Record) -> str:
    return record.dialogue_id or record.row_id  # a rejected row may belong to none


def _taken(
    source: SourceConfig, sample: _Sample, rows: Iterable[tuple[Record, bytes]]
) -> Iterator[tuple[Record, bytes]]:
    """The rows of a sample; those of training that a weight below 1 leaves out are rejected for it."""
    for place, (record, line) in enumerate(rows):
        if sample is not None and place not in sample:
            continue
        is_trained = not record.reason and record.side == Split.TRAIN
        if is_trained and not copies(_dialogue(record), source.weight):
            detail = f"the weight of its source is {source.weight:g}"
            yield Record(record.row_id, str(RejectReason.LEFT_OUT_BY_WEIGHT), detail), b""
        else:
            yield record, line


def _records(folder: Path, sources: _Sources, samples: Sequence[_Sample]) -> Iterator[Record]:
    for (source, shards), sample in zip(sources, samples, strict=True):
        rows = ((record, b"") for shard in shards for record in read_records(folder, shard))
        yield from (record for record, _ in _taken(source, sample, rows))


def _write_rows(
    folder: Path,
    sources: _Sources,
    samples: Sequence[_Sample],
    decisions: Decisions,
    builder: CardBuilder,
    writers: Mapping[Split, ConversationWriter],
) -> None:
    position = 0
    for (source, shards), sample in zip(sources, samples, strict=True):
        builder.start_source()
        rows = (row for shard in shards for row in read_with_lines(folder, shard))
        for record, line in _taken(source, sample, rows):
            _write_row(position, record, line, source.weight, decisions, builder, writers)
            position += 1


def _write_row(
    position: int,
    record: Record,
    line: bytes,
    weight: float,
    decisions: Decisions,
    builder: CardBuilder,
    writers: Mapping[Split, ConversationWriter],
) -> None:
    if record.reason:
        builder.add_rejected(record.rejected())
        return
    verdict = decisions.verdict(position, record)
    if verdict.fate is Fate.JOINED:
        builder.add_kept(record, is_joined=True)
    elif verdict.fate is Fate.WRITTEN:
        text = line.decode()
        split = Split.TRAIN if record.side == Split.TRAIN else Split.HELDOUT
        text = with_trained_turns(text, verdict.joined) if verdict.joined else text
        times = copies(_dialogue(record), weight) if split is Split.TRAIN else 1
        for _ in range(times):
            writers[split].write_line(text)
        builder.add_kept(record, times=times)
    else:
        builder.add_rejected(
            Rejected(RejectReason(verdict.fate), verdict.detail, record.row_id, sample_of(record.text))
        )


def _job(
    config: DataConfig,
    seed: int,
    suites: Mapping[str, Sequence[str]],
    count_tokens: CountTokens | None,
    default_tools: Sequence[Tool],
    out_dir: Path,
) -> Job:
    pool: list[Tool] = []
    if config.augment.distractors:
        for source in config.sources:
            rows = islice(read_source(source, seed=seed, default_tools=default_tools), _POOL_ROWS)
            pool += [tool for row in rows if isinstance(row, Conversation) for tool in row.tools]
    groups = [source.groups if isinstance(source, ToolBenchSource) else None for source in config.sources]
    return Job(
        config=config,
        seed=seed,
        case_texts=tuple(text for texts in suites.values() for text in texts),
        count_tokens=count_tokens,
        default_tools=tuple(map(replace, default_tools)),  # without the validators that they have made since
        tool_pool=tuple(replace(tool) for tool in {tool.name: tool for tool in pool}.values()),
        categories=tuple(read_categories(group.queries) if group is not None else None for group in groups),
        folder=_work_folder(config, seed, suites, count_tokens, default_tools, out_dir),
    )


def _work_folder(
    config: DataConfig,
    seed: int,
    suites: Mapping[str, Sequence[str]],
    count_tokens: CountTokens | None,
    default_tools: Sequence[Tool],
    out_dir: Path,
) -> Path:
    """Where shards lie; its name changes with everything that decides what is in them. Older ones are removed."""
    here = Path(__file__).parent
    code = [*sorted(here.rglob("*.py")), *sorted((here.parent / "tinydispatch").glob("*.py"))]
    parts = [
        config.model_dump_json(exclude={"workers"}),
        seed,
        {suite: list(texts) for suite, texts in suites.items()},
        _counter_mark(count_tokens),
        [tool.to_openai() for tool in default_tools],
        [[str(file), content_hash(file)] for file in [*_inputs(config), *code]],
    ]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    folder = out_dir / "data" / _WORK / name
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _counter_mark(count_tokens: CountTokens | None) -> object:
    """What tells one way of counting from another; a counter that says nothing about itself counts as unlike any."""
    mark = getattr(count_tokens, "fingerprint", None)
    return mark if count_tokens is None or mark is not None else repr(count_tokens)


def _inputs(config: DataConfig) -> list[Path]:
    folders = [source.path for source in config.sources if not isinstance(source, SynthSource)]
    mappings = [
        file for each in config.sources if isinstance(each, IntentsSource) for file in mapping_files(each.mapping)
    ]
    return mappings + [file for folder in folders if folder is not None for file in data_files(folder)]


def _total_bytes(config: DataConfig) -> int:
    return sum(file.stat().st_size for file in _inputs(config))


def _require_training_rows(builder: CardBuilder, config: DataConfig) -> None:
    if builder.train:
        return
    if heldout := builder.heldout:
        raise EmptyDataError(
            f"all {heldout} rows that passed are held out (data.eval_fraction is {config.eval_fraction}); "
            "set it lower or give more dialogues"
        )
    if not builder.read:
        raise EmptyDataError("the sources in data.sources hold no rows at all")
    reasons = [
        f"{count} {reason} (e.g. {builder.first_detail(reason)})" for reason, count in builder.rejected.most_common()
    ]
    raise EmptyDataError(f"none of the {builder.read} rows can be trained on:\n  " + "\n  ".join(reasons))


def _provenance(source: SourceConfig, seed: int) -> dict[str, Any]:
    if isinstance(source, SynthSource):
        made = f"{source.count} conversations from seed {seed}"
        licence = source.licence or "generated by this project: Apache-2.0"
        return {"kind": source.kind, "path": None, "licence": licence, "revision": source.revision or made}
    assert source.path is not None
    hub = None if isinstance(source, PhrasesSource | CatalogueSource | IntentsSource) else source.hub
    stated, revision = source.licence, source.revision or f"sha256 {content_hash(source.path)}"
    if isinstance(source, IntentsSource):
        stated = stated or licence_of(source.mapping)
        revision += f", mapping {source.mapping} sha256 {content_hash(mapping_files(source.mapping)[0])}"
    return {
        "kind": source.kind,
        "path": hub or str(source.path),
        "licence": stated or "not stated",
        "revision": revision,
    }


def _commit(out_dir: Path, writers: Mapping[Split, ConversationWriter], card: DataCard) -> None:
    """Everything takes its place at once, as far as a file system can: without the card, nothing looks complete."""
    pages = {_CARD_MARKDOWN: markdown(card), _CARD_HTML: page(card), _CARD_JSON: card.to_json()}  # JSON last
    partial = {name: out_dir / f".{name}.partial" for name in pages}
    for name, text in pages.items():
        partial[name].write_text(text, "utf-8")
    (out_dir / _CARD_JSON).unlink(missing_ok=True)
    for writer in writers.values():
        writer.commit()
    for name in pages:
        partial[name].replace(out_dir / name)
