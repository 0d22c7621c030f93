"""`kind: intents`: labelled utterances through a mapping file, as conversations that share lists of tools and days."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from data.catalogue.mixing import mixed
from data.config import IntentsSource
from data.intents.forms import ReadSettings, read_utterances
from data.intents.mapping import IntentMapping, check_against, load_mapping, load_thingpedia_tools
from data.intents.requests import Mapped, domains_of, map_all
from data.rejected import Rejected
from data.sources.files import DataFileError
from tinydispatch.tools import Conversation, Tool


def map_source(
    source: IntentsSource, default_tools: Sequence[Tool] | None = None
) -> tuple[IntentMapping, list[Mapped | Rejected]]:
    """What becomes of each row of a source, in order, before requests are put on lists.

    Raises:
        DataFileError: the mapping or the data cannot be used; names file, line and key.
    """
    mapping = load_mapping(source.mapping, default_tools=default_tools)
    if mapping.form == "thingpedia":
        folder = source.path if source.path.is_dir() else source.path.parent
        mapping = replace(mapping, groups=load_thingpedia_tools(folder / (mapping.tools_file or "tools.jsonl")))
    rows = read_utterances(mapping.form, source.path, ReadSettings(source.parts or mapping.parts, mapping.language))
    if all(row.set_aside is not None for row in rows):
        parts = ", ".join(source.parts or mapping.parts)
        raise DataFileError(f"{source.path}: holds no rows of the part {parts}; 'parts' says which are read")
    check_against(mapping, rows, source.path)
    return mapping, map_all(rows, mapping)


def check_intents(source: IntentsSource, default_tools: Sequence[Tool] | None) -> None:
    """Fail before any other source is read: every label of every row is looked at, and the whole mapping.

    Raises:
        DataFileError: names file, line and key, and what would be right.
    """
    map_source(source, default_tools)


def read_intents(
    source: IntentsSource, seed: int, default_tools: Sequence[Tool] | None = None
) -> Iterator[Conversation | Rejected]:
    """First the rows that were rejected, then every request `passes` times among other tools and on another day."""
    mapping, rows = map_source(source, default_tools)
    yield from (row for row in rows if isinstance(row, Rejected))
    yield from mixed(
        domains_of([row for row in rows if isinstance(row, Mapped)], mapping.groups),
        seed=seed,
        passes=source.passes,
        requests_per_list=source.requests_per_list + 4,  # a domain's last list may come out four short
        most_tools=source.most_tools,
        hardening=source.hardening,
        source=mapping.form,
    )
