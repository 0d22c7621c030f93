"""`python -m scripts.fuzz_server MODEL.gguf`: hostile prompts and random schemas through the HTTP server.

Starts the server on a free port. Prompts are those of `scripts.fuzz_dispatch`, with the bundled tools; schemas are
random, as a tool's and as a reply's (`response_format`), a third with what no grammar says. Every call and every reply
in JSON is checked against its schema, as is that no answer is empty, malformed, or later than `--patience` seconds.
With `--log` a run that was stopped goes on where it stopped. The exit status is 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from scripts.fuzz_dispatch import random_prompt
from scripts.random_schemas import random_tool
from scripts.server_process import ServerProcess
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Tool, ToolError

_KINDS = ("prompt", "tool schema", "reply schema")
# What a grammar leaves to the check, or refuses.
_ODD: tuple[dict[str, Any], ...] = (
    {"type": "string", "pattern": "^(?!no)[a-z]+$"},
    {"type": "string", "pattern": r"(a+)+\1$"},
    {"type": "string", "maxLength": 1_000_000},
    {"type": "string", "minLength": 60, "maxLength": 60},
    {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 2},
    {"type": "array", "contains": {"const": 3}, "maxItems": 4},
    {"not": {"type": "string"}},
    {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "type": "object", "properties": {"a": {}, "b": {}}},
    {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {"type": "null"}, "b": {}}},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"type": "number", "minimum": 1e38, "maximum": 1e39},
    {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]},
    {"enum": [f"value {number}" for number in range(3_000)]},
    {"$ref": "#/nowhere"},
    {"type": "string", "pattern": "["},
    {"type": "object", "patternProperties": {"^x": False}, "minProperties": 3},
    {"type": "object", "properties": {f"k{number}": {"type": "integer"} for number in range(400)}},
    {"allOf": [{"anyOf": [{"minimum": 1}, {"maximum": 0}]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}]},
    {"type": "strin"},
    {"type": "string", "enum": []},
)


@dataclass(frozen=True)
class Answer:
    """What came of one request; the outcome is explained under the table, and `problem` says why it is "bad"."""

    index: int
    kind: str
    outcome: str
    n_calls: int = 0
    seconds: float = 0.0
    problem: str = ""


def make_request(index: int, kind: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The body of request number `index`, and the tools that it offers; both depend on the arguments alone."""
    rng = random.Random(f"{seed}/{kind}/{index}")
    body: dict[str, Any] = {"max_tokens": 96}
    if kind == "prompt":
        body["messages"] = [{"role": "user", "content": random_prompt(rng)[1]}]
        tools = [tool.to_openai() for tool in bundled_tools()]
    else:
        schema = dict(random_tool(rng).parameters)
        if rng.random() < 0.35:
            schema["properties"] = {**schema.get("properties", {}), "odd": rng.choice(_ODD)}
            schema["required"] = [*schema.get("required", []), "odd"]
        words = ("note this down: a, b and 1-2", "set a to 7 and b to true", "", random_prompt(rng)[1][:80])
        body["messages"] = [{"role": "user", "content": rng.choice(words)}]
        tools = [{"type": "function", "function": {"name": "t", "description": "Write it down", "parameters": schema}}]
    if kind == "reply schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
        return body, tools
    body["tools"], body["tool_choice"] = tools, rng.choice(("auto", "required", "required"))
    body["parallel_tool_calls"] = rng.random() < 0.3
    return body, tools


def judged(response: httpx.Response, kind: str, tools: Sequence[dict[str, Any]]) -> tuple[str, int, str]:
    """The outcome of an answer, how many calls it holds, and what is wrong with it."""
    answer = response.json()
    if response.status_code == 400 and answer.get("error", {}).get("message") and answer["error"].get("code"):
        return "refused", 0, ""
    if response.status_code != 200:
        return "bad", 0, f"status {response.status_code}: {response.text[:300]}"
    choice = answer["choices"][0]
    message, calls = choice["message"], choice["message"].get("tool_calls") or []
    if not calls and not message.get("content") and not message.get("refusal"):
        return "bad", 0, f"empty, finish_reason {choice['finish_reason']}"
    offered = {tool["function"]["name"]: Tool.from_openai(tool) for tool in tools}
    for call in calls:
        tool = offered.get(call["function"]["name"])
        if tool is None or (violations := tool.violations(json.loads(call["function"]["arguments"]))):
            return "bad", len(calls), f"invalid call {call['function']}: {'' if tool is None else violations}"
    is_cut = choice["finish_reason"] == "length"
    if kind == "reply schema" and message.get("content") and not is_cut:
        if violations := offered["t"].violations(json.loads(message["content"])):
            return "bad", 0, f"invalid reply {message['content']}: {violations}"
        return "json", 0, ""
    return "cut" if is_cut else "calls" if calls else "refusal" if message.get("refusal") else "words", len(calls), ""


def ask(client: httpx.Client, index: int, kind: str, seed: int) -> Answer:
    """Send one request and judge what comes back."""
    body, tools = make_request(index, kind, seed)
    started = time.monotonic()
    try:
        outcome, n_calls, problem = judged(client.post("/v1/chat/completions", json=body), kind, tools)
    except httpx.TimeoutException:
        outcome, n_calls, problem = "bad", 0, "no answer in time"
    except (httpx.TransportError, ValueError, KeyError, TypeError, ToolError) as error:
        outcome, n_calls, problem = "bad", 0, f"{type(error).__name__}: {error}"
    return Answer(index, kind, outcome, n_calls, round(time.monotonic() - started, 3), problem)


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing was wrong; 1: something was; 2: bad input; 130: interrupted."""
    arguments = _parser().parse_args(argv)
    wanted = [("prompt", index) for index in range(arguments.prompts)]
    wanted += [(_KINDS[1 + index % 2], index) for index in range(arguments.schemas)]
    try:
        answers = _logged(arguments.log) if arguments.log else []
        done = {(found.kind, found.index) for found in answers}
        process = ServerProcess([str(arguments.model), "--threads", "1", "--no-cache", *arguments.serve])
        started = time.monotonic()
        with process.running(), httpx.Client(base_url=process.url, timeout=arguments.patience) as client:
            for kind, index in wanted:
                if (kind, index) in done:
                    continue
                if arguments.seconds is not None and time.monotonic() - started > arguments.seconds:
                    break
                answers.append(found := ask(client, index, kind, arguments.seed))
                if found.problem:
                    print(f"{kind} {index}: {found.problem}", file=sys.stderr)
                if arguments.log:
                    with arguments.log.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(asdict(found)) + "\n")
    except (ValueError, OSError) as error:
        print(f"fuzz_server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report(answers))
    return 1 if any(found.problem for found in answers) else 0


def _logged(path: Path) -> list[Answer]:
    if not path.exists():
        return []
    try:
        return [Answer(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a log of this program: {error}") from error


def report(answers: Sequence[Answer]) -> str:
    """A table with a line for each kind of request."""
    outcomes = ("calls", "json", "words", "refusal", "cut", "refused", "bad")
    lines = ["| requests | sent | calls checked | " + " | ".join(outcomes) + " | slowest |", "| --- " * 11 + "|"]
    for kind in (*_KINDS, "all"):
        mine = [found for found in answers if kind in (found.kind, "all")]
        counts = Counter(found.outcome for found in mine)
        cells = [kind, len(mine), sum(found.n_calls for found in mine), *(counts[outcome] for outcome in outcomes)]
        slowest = max((found.seconds for found in mine), default=0.0)
        lines.append("| " + " | ".join(map(str, cells)) + f" | {slowest:.1f} s |")
    lines.append("refusal: 200 that says why there is no call; cut: at the token limit; refused: 400 with a code")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fuzz_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--prompts", type=int, default=2_000, help="hostile prompts (default: 2000)")
    parser.add_argument("--schemas", type=int, default=500, help="random schemas (default: 500)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--patience", type=float, default=90.0, help="seconds after which there is no answer (90)")
    parser.add_argument("--seconds", type=float, help="stop after so long; start again with the same --log to go on")
    parser.add_argument("--log", type=Path, help="JSONL file with an answer a line, from which a stopped run goes on")
    parser.add_argument("--serve", nargs="*", default=[], help="more options for the server")
    return parser


if __name__ == "__main__":
    sys.exit(main())
