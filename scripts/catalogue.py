"""The catalogue's commands: check files, print statistics or rows at random, export it as OpenAI chat JSONL."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.catalogue.check import problems
from data.catalogue.reader import CatalogueError, Domain, Request, load_catalogue, load_domain
from data.overlap import OverlapIndex
from eval.suites import load_case_texts
from tinydispatch.formats import render_calls
from tinydispatch.tools import Role


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 1 when `check` finds something, 2 when a file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m scripts.catalogue", description=__doc__)
    parser.add_argument("command", choices=["check", "stats", "show", "export"])
    parser.add_argument("files", nargs="*", type=Path, help="catalogue files; none: all of data/catalogue")
    parser.add_argument("--count", type=int, default=50, help="show: how many rows")
    parser.add_argument("--seed", type=int, default=0, help="show, export: which rows, which days")
    parser.add_argument("--out", type=Path, help="export: the JSONL file to write")
    arguments = parser.parse_args(argv)
    try:
        domains = [load_domain(path) for path in arguments.files] or list(load_catalogue())
    except CatalogueError as error:
        print(f"catalogue: {error}", file=sys.stderr)
        return 2
    match arguments.command:
        case "check":
            return _check(domains)
        case "stats":
            _print_stats(domains)
        case "show":
            requests = [request for domain in domains for request in domain.requests]
            for request in random.Random(arguments.seed).sample(requests, min(arguments.count, len(requests))):
                _print_request(request)
        case "export":
            if arguments.out is None:
                parser.error("export needs --out FILE")
            _export(domains, arguments.out, arguments.seed)
    return 0


def _check(domains: Sequence[Domain]) -> int:
    found = [problem for domain in domains for problem in problems(domain)]
    index = OverlapIndex(load_case_texts())
    for request in (request for domain in domains for request in domain.requests):
        if match := index.match_texts(tuple(turn.content for turn in request.turns if turn.role is Role.USER)):
            found.append(f"{request.where}: shares '{match[1]}' with an evaluation case")
    for problem in found:
        print(problem)
    n_requests, n_tools = (sum(map(len, part)) for part in zip(*((d.requests, d.tools) for d in domains), strict=True))
    print(f"{len(domains)} files, {n_tools} tools, {n_requests} requests, {len(found)} problems")
    return 1 if found else 0


def _print_stats(domains: Sequence[Domain]) -> None:
    requests = [request for domain in domains for request in domain.requests]
    tools = [tool for domain in domains for tool in domain.tools]
    print(f"{len(domains)} domains, {len(tools)} tools, {len(requests)} requests")
    calls = Counter(len(request.calls) for request in requests)
    tables: dict[str, Counter[Any]] = {
        "kind": Counter(str(request.kind) for request in requests),
        "voice": Counter(str(request.voice) for request in requests),
        "language": Counter(request.language for request in requests),
        "calls in the answer": calls,
        "parameters of a tool": Counter(len(tool.parameters["properties"]) for tool in tools),
    }
    for name, counts in tables.items():
        ordered = sorted(counts.items()) if all(isinstance(key, int) for key in counts) else counts.most_common()
        print(f"{name}: " + ", ".join(f"{key} {count}" for key, count in ordered))
    words = sorted(len(request.said.split()) for request in requests)
    median, most_of_them = words[len(words) // 2], words[len(words) * 95 // 100]
    print(f"words of a request: median {median}, 95 % under {most_of_them}, most {words[-1]}")


def _print_request(request: Request) -> None:
    print(f"{request.where}  [{request.kind}, {request.voice}, {request.language}]")
    for turn in request.turns:
        print(f"  {turn.role}: {turn.content or render_calls(turn.tool_calls)}")
    print(f"  → {render_calls(request.calls) or request.reply}\n")


def _export(domains: Sequence[Domain], out: Path, seed: int) -> None:
    partial = out.with_name(f".{out.name}.partial")
    rng = random.Random(seed)
    with partial.open("w", encoding="utf-8") as file:
        for domain in domains:
            tools = [tool.to_openai() for tool in domain.tools]
            for request in domain.requests:
                today = dt.date(2024, 1, 1) + dt.timedelta(days=rng.randrange(6 * 365))
                row = {
                    "messages": [message.to_openai() for message in request.messages(today)],
                    "tools": tools,
                    "category": str(request.kind),
                    "reference_date": today.isoformat(),
                    "metadata": {"domain": domain.name, "voice": str(request.voice), "language": request.language},
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(out)
    print(f"{out}: {sum(len(domain.requests) for domain in domains)} rows")


if __name__ == "__main__":
    sys.exit(main())
