"""`python -m scripts.intents table|sample|suite|tools …`: what becomes of labelled intent data under a mapping file."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.config import IntentsSource
from data.intents.mapping import load_mapping
from data.intents.requests import Mapped
from data.rejected import Rejected
from data.sources.files import DataFileError
from data.sources.intents import map_source
from eval.cases import SuiteError
from eval.suites.labelled import SuiteRequest, write_suite


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the command did what it says; 2 when the user has to change something."""
    parser = argparse.ArgumentParser(prog="python -m scripts.intents", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "table": "how many rows are read, kept, and rejected for which reason",
        "sample": "rows at random, with the calls that they become",
        "suite": "a suite of a data set's test part, for scripts.evaluate --suite FOLDER",
        "tools": "the mapping's tools as JSON, for tinydispatch call --tools FILE",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--mapping", required=True, type=Path, help="a mapping file, or the name of one in configs/intents/"
        )
        if name == "tools":
            continue
        command.add_argument(
            "--parts", nargs="+", default=["test"] if name == "suite" else None, help="of the data set"
        )
        command.add_argument("paths", nargs="+", type=Path, help="data files, or folders of them")
        if name in ("sample", "suite"):
            command.add_argument("--seed", type=int, default=0)
        if name == "sample":
            command.add_argument("--count", type=int, default=50)
            command.add_argument("--rejected", metavar="REASON", help="show rows that were rejected for this reason")
        if name == "suite":
            command.add_argument("--count", type=int, default=200, help="cases in all, as many of each language")
            command.add_argument("--out", required=True, type=Path, help="folder of the suite; made if it is not there")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "tools":
            print(tools(arguments.mapping))
            return 0
        sources = [
            IntentsSource(
                kind="intents", path=path, mapping=arguments.mapping, parts=arguments.parts and tuple(arguments.parts)
            )
            for path in arguments.paths
        ]
        if arguments.command == "table":
            print(table(sources))
        elif arguments.command == "sample":
            print(sample(sources, arguments.count, arguments.seed, arguments.rejected))
        else:
            print(suite(sources, arguments.count, arguments.seed, arguments.out))
    except (DataFileError, SuiteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def tools(mapping: Path) -> str:
    """The tools of all groups, in OpenAI's shape."""
    listed = [tool.to_openai() for group in load_mapping(mapping).groups for tool in group.tools]
    if not listed:
        raise DataFileError(f"{mapping}: its tools stand beside the data (tools_file)")
    return json.dumps(listed, indent=2, ensure_ascii=False)


def table(sources: Sequence[IntentsSource]) -> str:
    """A row for each reason, a column for each file; each column adds up to the rows read."""
    columns = []
    for source in sources:
        _, rows = map_source(source)
        kept = [row for row in rows if isinstance(row, Mapped)]
        calls = sum(bool(row.request.calls) for row in kept)
        counts = Counter(str(row.reason) for row in rows if isinstance(row, Rejected))
        columns.append({"read": len(rows), "kept with a call": calls, "kept without one": len(kept) - calls, **counts})
    names = list(dict.fromkeys(name for column in columns for name in column))
    names = names[:3] + sorted(names[3:], key=lambda name: -sum(column.get(name, 0) for column in columns))
    labels = [source.path.name for source in sources]
    lines = [f"| rows | {' | '.join(labels)} |", f"| --- |{' ---: |' * len(labels)}"]
    lines += [f"| {name} | {' | '.join(f'{column.get(name, 0):,}' for column in columns)} |" for name in names]
    for label, column in zip(labels, columns, strict=True):
        assert column["read"] == sum(column.values()) - column["read"], f"{label}: rows are unaccounted for"
    return "\n".join(lines)


def sample(sources: Sequence[IntentsSource], count: int, seed: int, reason: str | None) -> str:
    """Rows at random over all files."""
    rows = [row for source in sources for row in map_source(source)[1]]
    if reason is not None:
        found: list[Mapped | Rejected] = [row for row in rows if isinstance(row, Rejected) and row.reason == reason]
    else:
        found = [row for row in rows if isinstance(row, Mapped)]
    if not found:
        reasons = sorted({str(row.reason) for row in rows if isinstance(row, Rejected)})
        raise DataFileError(f"no such rows; rows were rejected for {', '.join(reasons)}")
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return "\n".join(map(_line, chosen))


def _line(row: Mapped | Rejected) -> str:
    if isinstance(row, Rejected):
        return f"{row.row_id}  {row.sample}\n    {row.detail}"
    calls = "; ".join(
        f"{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}" for call in row.request.calls
    )
    return f"{row.utterance.row_id}  {row.utterance.text}\n    {calls or row.request.reply}"


def suite(sources: Sequence[IntentsSource], count: int, seed: int, out: Path) -> str:
    """Write a suite's folder; says what is in it."""
    requests = []
    offered = None
    for source in sources:
        mapping, rows = map_source(source)
        offered = offered or tuple(tool for group in mapping.groups for tool in group.tools)
        requests += [SuiteRequest(row.request, row.rules, row.utterance) for row in rows if isinstance(row, Mapped)]
    assert offered is not None
    counts = write_suite(requests, offered, count=count, seed=seed, out=out)
    return f"{out}: {sum(counts.values())} cases: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
