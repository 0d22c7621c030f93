"""`python -m scripts.fuzz_dispatch MODEL.gguf`: is every call of every reply to nonsense a call that can be made?

Prompts are noise, other languages, 10 kB of text, call markers, half JSON and broken requests. Each is answered under a
tool choice and a parallelism of its own. With `--log` a run that was stopped goes on where it stopped. The exit
status is 1 when a call was invalid, or a finished reply held something that could not be read.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.dispatcher import Dispatch, Dispatcher
from tinydispatch.engine import PromptTooLongError

_TODAY = dt.date(2026, 3, 19)
_LONG_BYTES = 10_000
_PROGRESS_S = 10.0
_MARKERS = (
    "<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>assistant\n", "<tool_response>", "<|endoftext|>",
    '<tool_call>{"name": "launch", "arguments": {}}</tool_call>', "</tool_call></tool_call>", "<tools>",
)  # fmt: skip
_HALF_JSON = (
    '{"name": "get_weather", "arguments": {', '"}}', "{" * 30, "[1, 2", "\\u0041", "\\ud83d", "null", '{"to": [',
    '"amount": -1e999', "NaN", '{"a": {"a": {"a":', "'}]", '"\\', "0x1F", '{"start": "2026-99-99T99:99"',
)  # fmt: skip
_LANGUAGES = (
    "東京の天気は？", "Какая завтра погода в Осло?", "مرحبا، ما الطقس غدا؟", "convertis 5 € en yens", "기억해 줘",
    "Erinnere mich übermorgen daran", "ส่งอีเมลถึงนิดา", "¿qué hora es en Lima?", "שלח דואר", "🎉🚀👩‍👩‍👧‍👦" * 3,
    "\u202eabc",
)  # fmt: skip
_REQUESTS = (
    "weather in", "remind me to", "email a@b.co", "convert 5", "USD to", "tomorrow", "at 25:61", "on 31 February",
    "Oslo", "and then", "search for", "every day for 400 days", "what time is it in", "Mars/Phobos", "or not", "cancel",
)  # fmt: skip


class PromptKind(StrEnum):
    """What a prompt is made of."""

    NOISE = "noise"
    LANGUAGES = "languages"
    LONG = "long"
    MARKERS = "markers"
    HALF_JSON = "half_json"
    REQUESTS = "requests"


@dataclass(frozen=True)
class Answer:
    """What came of one prompt. `is_refused`: it did not fit the context, and as much of it as fits was answered."""

    index: int
    kind: PromptKind
    n_calls: int
    is_complete: bool
    is_refused: bool
    problem: str = ""


def random_prompt(rng: random.Random) -> tuple[PromptKind, str]:
    """A prompt of a random kind; long ones, which cost most, are one in fifty."""
    if rng.random() < 0.02:
        return PromptKind.LONG, _joined(rng, (*_MARKERS, *_HALF_JSON, *_LANGUAGES, *_REQUESTS), _LONG_BYTES)
    kind = rng.choice([kind for kind in PromptKind if kind is not PromptKind.LONG])
    n_bytes = rng.randint(1, 160)
    if kind is PromptKind.NOISE:
        ranges = ((0, 128), (0xA0, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF))
        return kind, "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(1 + n_bytes // 3))
    if kind is PromptKind.MARKERS:
        return kind, _joined(rng, (*_MARKERS, *_REQUESTS), n_bytes)
    return kind, _joined(rng, _PIECES[kind], n_bytes)


_PIECES = {
    PromptKind.LANGUAGES: _LANGUAGES,
    PromptKind.HALF_JSON: _HALF_JSON,
    PromptKind.REQUESTS: _REQUESTS,
}


def _joined(rng: random.Random, pieces: Sequence[str], n_bytes: int) -> str:
    parts: list[str] = []
    while sum(len(part.encode()) for part in parts) < n_bytes:
        parts.append(rng.choice(pieces) + rng.choice(("", " ", " ", "\n")))
    return "".join(parts)


def answer(dispatcher: Dispatcher, index: int, seed: int) -> Answer:
    """Answer prompt number `index`, which depends on that number and the seed alone."""
    rng = random.Random(f"{seed}/{index}")
    kind, text = random_prompt(rng)
    choice = rng.choice((ToolChoice.AUTO, ToolChoice.REQUIRED, ToolChoice.REQUIRED))
    is_parallel = rng.random() < 0.25
    is_refused = False
    while True:
        try:
            dispatch = dispatcher.dispatch(text, choice=choice, is_parallel=is_parallel)
            break
        except PromptTooLongError:
            is_refused, text = True, text[: len(text) * 2 // 3]
    problem = _problem(dispatch, choice, is_parallel=is_parallel)
    return Answer(index, kind, len(dispatch.calls), dispatch.is_complete, is_refused, problem)


def _problem(dispatch: Dispatch, choice: ToolChoice, *, is_parallel: bool) -> str:
    if dispatch.violations:
        violation = dispatch.violations[0]
        return f"{violation.reason}: {violation.call} {violation.details}"
    if not dispatch.is_complete:
        # Of a reply that the limit cut, what was finished counts; the rest is never handed on as a call.
        return "" if len(dispatch.unparsed) <= 1 else f"unparsed: {dispatch.unparsed}"
    if dispatch.unparsed:
        return f"unparsed: {dispatch.unparsed[0]}"
    if choice is ToolChoice.REQUIRED and not dispatch.calls:
        return "a call was required and none was made"
    return "" if is_parallel or len(dispatch.calls) <= 1 else "several calls where one was allowed"


def main(argv: Sequence[str] | None = None) -> int:
    """0: every call was valid; 1: not so; 2: bad input; 130: interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        tools = load_tools(arguments.tools) if arguments.tools else bundled_tools()
        settings = {
            "model": str(arguments.model), "seed": arguments.seed, "max_new_tokens": arguments.max_new_tokens,
            "tools": str(arguments.tools or "bundled"),
        }  # fmt: skip
        with (
            Dispatcher(
                arguments.model, tools, _TODAY, threads=arguments.threads, max_new_tokens=arguments.max_new_tokens
            ) as dispatcher,
            _log(arguments.log, settings) as (answers, log),
        ):
            _run(dispatcher, answers, log, arguments)
    except ValueError as error:
        print(f"fuzz_dispatch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(_report(answers))
    return 1 if any(found.problem for found in answers) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.fuzz_dispatch", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--count", type=int, default=2000, help="prompts in all (default: 2000)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--tools", type=Path, help="JSON file with the tools on offer (default: the eight bundled ones)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=96, help="limit of each reply (default: 96)")
    parser.add_argument("--log", type=Path, help="JSONL file with an answer a line, from which a stopped run goes on")
    parser.add_argument("--seconds", type=float, help="stop after so long; start again with the same --log to go on")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    return parser


@contextmanager
def _log(path: Path | None, settings: dict[str, object]) -> Iterator[tuple[list[Answer], IO[str] | None]]:
    """The answers that a log holds already, and the log, open for more.

    Raises:
        ValueError: it is the log of a run with other settings, or no log.
    """
    if path is None:
        yield [], None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        stream.seek(0)
        lines = stream.read().splitlines()
        try:
            rows = [json.loads(line) for line in lines]
            found = [Answer(**{**row, "kind": PromptKind(row["kind"])}) for row in rows[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not a log of this program: {error}") from error
        if not rows:
            stream.write(json.dumps(settings) + "\n")
        elif rows[0] != settings:
            raise ValueError(f"{path}: the log of another run: {rows[0]}, and now {settings}; give another --log")
        yield found, stream


def _run(dispatcher: Dispatcher, answers: list[Answer], log: IO[str] | None, arguments: argparse.Namespace) -> None:
    done = {found.index for found in answers}
    started = said = time.monotonic()
    for index in range(arguments.count):
        if index in done:
            continue
        answers.append(found := answer(dispatcher, index, arguments.seed))
        if found.problem:
            print(f"prompt {index}: {found.problem}", file=sys.stderr)
        if log is not None:
            log.write(json.dumps(asdict(found)) + "\n")
            log.flush()
        now = time.monotonic()
        if now - said > _PROGRESS_S:
            said = now
            print(f"{len(answers)} of {arguments.count}", file=sys.stderr)
        if arguments.seconds is not None and now - started > arguments.seconds:
            return


def _report(answers: Sequence[Answer]) -> str:
    lines = [f"{'prompts':<12}{'':>8}{'calls':>8}{'cut':>8}{'too long':>10}{'invalid':>9}"]
    kinds = Counter(found.kind for found in answers)
    for name, rows in [
        *((str(kind), [found for found in answers if found.kind is kind]) for kind in kinds),
        ("all", list(answers)),
    ]:
        lines.append(
            f"{name:<12}{len(rows):>8}{sum(row.n_calls for row in rows):>8}"
            f"{sum(not row.is_complete for row in rows):>8}{sum(row.is_refused for row in rows):>10}"
            f"{sum(bool(row.problem) for row in rows):>9}"
        )
    lines.append("cut: the reply ended at the token limit; a call that was cut is not handed on")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
