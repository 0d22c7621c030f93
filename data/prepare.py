"""The data stage: read every source, clean, split and write train.jsonl, heldout.jsonl and the data card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.card import CardBuilder, CardError, DataCard
from data.clean import Cleaner, CountTokens
from data.config import DataConfig, SourceConfig, SynthSource
from data.rejected import Rejected
from data.sources import check_source, read_source
from data.sources.files import content_hash
from data.split import Split, split_of
from data.store import ConversationWriter, data_hash
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.tools import Tool

_CARD_JSON, _CARD_MARKDOWN = "data_card.json", "data_card.md"


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
    case_texts: Sequence[str],
    count_tokens: CountTokens | None,
) -> PreparedData:
    """Write `data/train.jsonl`, `data/heldout.jsonl`, `data_card.md` and, last, `data_card.json` under `out_dir`.

    Deterministic: the same sources and seed give the same bytes. Rows stream through, so memory holds only what finds
    duplicates. Killed on the way, it leaves what was there before, or no `data_card.json`.

    Args:
        seed: for the generator; which side of the split a dialogue is on does not depend on it.
        case_texts: what users say in evaluation cases; rows that share it are rejected.
        count_tokens: length of a conversation as the model reads it; None leaves the length unchecked.

    Raises:
        DataFileError, ToolError: a file that cannot be used, before anything is written.
        EmptyDataError: every row was rejected, or all of them are held out.
    """
    for index, source in enumerate(config.sources):
        check_source(source, f"data.sources.{index}")
    default_tools = load_tools(config.tools) if config.tools is not None else bundled_tools()
    builder = CardBuilder("tokens" if count_tokens else "characters", len(case_texts))
    cleaner = Cleaner(config, case_texts, count_tokens)
    paths = _paths(out_dir)
    with ConversationWriter(paths[Split.TRAIN]) as train, ConversationWriter(paths[Split.HELDOUT]) as heldout:
        writers = {Split.TRAIN: train, Split.HELDOUT: heldout}
        for source in config.sources:
            _read_into(source, seed, default_tools, config.eval_fraction, cleaner, builder, writers)
        _require_training_rows(builder, config)
        digest = data_hash(train.finish(), heldout.finish())
        card = builder.build([_provenance(source, seed) for source in config.sources], digest)
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


def _read_into(
    source: SourceConfig,
    seed: int,
    default_tools: Sequence[Tool],
    eval_fraction: float,
    cleaner: Cleaner,
    builder: CardBuilder,
    writers: Mapping[Split, ConversationWriter],
) -> None:
    builder.start_source()
    total = source.count if isinstance(source, SynthSource) else source.max_rows
    rows = read_source(source, seed=seed, default_tools=default_tools)
    for row in tqdm(rows, desc=f"prepare {source.kind}", total=total, unit="row", disable=None):
        result = row if isinstance(row, Rejected) else cleaner.clean(row)
        if isinstance(result, Rejected):
            builder.add_rejected(result)
            continue
        split = split_of(result.conversation.dialogue_id, eval_fraction)
        writers[split].write_line(result.line)
        builder.add_kept(result, split)


def _require_training_rows(builder: CardBuilder, config: DataConfig) -> None:
    if builder.splits.get(Split.TRAIN):
        return
    if heldout := builder.splits.get(Split.HELDOUT, 0):
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
    return {
        "kind": source.kind,
        "path": str(source.path),
        "licence": source.licence or "not stated",
        "revision": source.revision or f"sha256 {content_hash(source.path)}",
    }


def _commit(out_dir: Path, writers: Mapping[Split, ConversationWriter], card: DataCard) -> None:
    """Everything takes its place at once, as far as a file system can: without the card, nothing looks complete."""
    partial = {name: out_dir / f".{name}.partial" for name in (_CARD_MARKDOWN, _CARD_JSON)}
    partial[_CARD_MARKDOWN].write_text(card.to_markdown(), "utf-8")
    partial[_CARD_JSON].write_text(card.to_json(), "utf-8")
    (out_dir / _CARD_JSON).unlink(missing_ok=True)
    for writer in writers.values():
        writer.commit()
    for name in (_CARD_MARKDOWN, _CARD_JSON):
        partial[name].replace(out_dir / name)
