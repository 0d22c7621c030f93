"""`python -m scripts.make_toolbench_file --rows sample.json --out /tmp/rows.json`: a large file in ToolBench's format.

Dialogues of real rows are recombined: tool lists grow by tools of other dialogues (and of query files, with `--apis`)
and change their order, results and sentences of requests are exchanged, every result has other digits, and every text
argument gets a number of its own. So no two dialogues are equal or nearly so, and nothing long recurs in them but
tools, as in the original. The result is for measuring the data stage, not for training.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.files import data_files, iter_rows
from data.sources.toolbench_queries import entry_of_api

ROWS = 187_542  # of toolllama_G123_dfs_train.json
_API_LIST = "Specifically, you have access to the following APIs: "
# With these the mean row has as many bytes as in the original: 2 GB / 187,542.
_MORE_TOOLS = (0, 9)


@dataclass(frozen=True)
class Dialogue:
    """The rows of one request, shortest first, and its tools."""

    rows: tuple[list[dict[str, str]], ...]
    head: str
    tools: tuple[dict[str, Any], ...]
    request: str


@dataclass(frozen=True)
class Pool:
    """What dialogues exchange."""

    dialogues: tuple[Dialogue, ...]
    tools: tuple[dict[str, Any], ...]
    results: tuple[str, ...]
    sentences: tuple[str, ...]


def read_pool(path: Path, apis: Path | None = None) -> Pool:
    """The dialogues of a file of train rows; tools of a folder of query files as well."""
    by_request: dict[str, list[list[dict[str, str]]]] = {}
    for row in json.loads(path.read_text("utf-8")):
        turns = row["conversations"]
        request = next(turn["value"] for turn in turns if turn["from"] == "user")
        by_request.setdefault(request, []).append(turns)
    dialogues = tuple(_dialogue(request, rows) for request, rows in by_request.items())
    tools = {tool["name"]: tool for dialogue in dialogues for tool in dialogue.tools}
    if apis is not None:
        rows = (row.value for file in data_files(apis) for row in iter_rows(file))
        tools = {**{tool["name"]: tool for row in rows for tool in map(_listed, row["api_list"])}, **tools}
    results = {turn["value"] for d in dialogues for turn in d.rows[-1] if turn["from"] == "function"}
    sentences = {s.strip() for d in dialogues for s in d.request.split(". ") if len(s) > 20}
    return Pool(dialogues, tuple(tools.values()), tuple(sorted(results)), tuple(sorted(sentences)))


def _dialogue(request: str, rows: list[list[dict[str, str]]]) -> Dialogue:
    head, _, literal = rows[0][0]["value"].partition(_API_LIST)
    tools = tuple(tool for tool in ast.literal_eval(literal) if tool["name"] != "Finish")
    return Dialogue(tuple(rows), head, tools, request.strip().removesuffix("Begin!").strip())


def _listed(api: dict[str, Any]) -> dict[str, Any]:
    """An API of a query file as a train row lists it."""
    entry = entry_of_api(api)
    said = f'This is the subfunction for tool "{api["tool_name"]}", you can use this tool.'
    if entry["description"]:
        said += f'The description of this function is: "{entry["description"]}"'
    properties = entry["parameters"]["properties"]
    for spec in properties.values():
        spec["type"] = str(spec["type"]).lower()
    required = entry["parameters"]["required"]
    optional = [name for name in properties if name not in required]
    return {**entry, "description": said, "parameters": {**entry["parameters"], "optional": optional}}


def generate(pool: Pool, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Exactly `count` rows; the rows of one dialogue follow each other, as in the original."""
    rng = random.Random(seed)
    made = 0
    for number in range(count):
        for row in _recombined(rng.choice(pool.dialogues), pool, rng, number):
            if made == count:
                return
            made += 1
            yield row


def _recombined(dialogue: Dialogue, pool: Pool, rng: random.Random, number: int) -> Iterator[dict[str, Any]]:
    tools = [*dialogue.tools]
    names = {tool["name"] for tool in tools}
    others = [tool for tool in rng.sample(pool.tools, min(len(pool.tools), 24)) if tool["name"] not in names]
    tools += others[: rng.randint(*_MORE_TOOLS)]
    rng.shuffle(tools)
    finish = {"name": "Finish", "description": "Give the final answer.", "parameters": _FINISH}
    system = f"{dialogue.head}{_API_LIST}{[*tools, finish]!r}"
    request = ". ".join([dialogue.request.rstrip("."), *rng.sample(pool.sentences, 2), f"My reference is {number}."])
    exchanged: dict[str, str] = {}
    for turns in dialogue.rows:
        made = [
            {"from": turn["from"], "value": _value(turn, system, request, dialogue, pool, rng, exchanged, number)}
            for turn in turns
        ]
        yield {"id": f"Step {len(made) - 1}: {request}", "conversations": made}


_FINISH = {
    "type": "object",
    "properties": {"return_type": {"type": "string"}, "final_answer": {"type": "string"}},
    "required": ["return_type"],
    "optional": [],
}


def _value(
    turn: dict[str, str],
    system: str,
    request: str,
    dialogue: Dialogue,
    pool: Pool,
    rng: random.Random,
    exchanged: dict[str, str],
    number: int,
) -> str:
    value = turn["value"]
    if turn["from"] == "system":
        return system
    if turn["from"] == "user":
        return f"\n{request}\nBegin!\n" if dialogue.request in value else value
    if turn["from"] == "function":
        if value not in exchanged:
            digits = str.maketrans("0123456789", "".join(rng.sample("0123456789", 10)))
            exchanged[value] = rng.choice(pool.results).translate(digits)
        return exchanged[value]
    head, marker, text = value.rpartition("Action Input:")
    try:
        arguments = json.loads(text)
    except ValueError:
        return value
    fixed = ("return_type",)
    changed = {
        key: f"{item} {number}" if isinstance(item, str) and item and key not in fixed else item
        for key, item in arguments.items()
    }
    return f"{head}{marker} {json.dumps(changed, indent=2)}"


def write(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Write one JSON array, row by row; returns its size in bytes."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for index, row in enumerate(rows):
            stream.write((",\n" if index else "\n") + json.dumps(row))
        stream.write("\n]\n")
    return path.stat().st_size


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the file is written."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_toolbench_file", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="real rows to recombine, in ToolBench's train format")
    parser.add_argument("--apis", type=Path, help="a folder of ToolBench query files, whose tools are offered as well")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    pool = read_pool(arguments.rows, arguments.apis)
    size = write(generate(pool, arguments.count, arguments.seed), arguments.out)
    print(f"{arguments.out}: {arguments.count:,} rows, {size / 1e6:,.0f} MB, {size / arguments.count:,.0f} bytes a row")
    return 0


if __name__ == "__main__":
    sys.exit(main())
