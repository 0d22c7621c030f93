"""`call MODEL.gguf "text"`: one sentence in, the calls as JSON out."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinydispatch.bundled import bundled_tools
from tinydispatch.cli import tools as tools_command
from tinydispatch.dispatcher import Dispatch, Dispatcher
from tinydispatch.folders import cache_folder

_EXIT_OK, _EXIT_UNUSABLE = 0, 1


def add_parser(commands: Any) -> None:
    """Add the command's arguments to the program's."""
    call = commands.add_parser(
        "call",
        help="print the calls for one sentence",
        description="Prints the calls as JSON on stdout and the time taken on stderr. The tools on offer are those of "
        "--tools or --mcp, or else the eight bundled ones. "
        "Exit status: 0 call(s) or a reply; 1 the model's answer cannot be used as it stands; 2 bad input.",
    )
    call.add_argument("words", nargs="+", metavar="MODEL.gguf TEXT", help="a model file and the sentence, in quotes")
    tools_command.add_source(call)
    call.add_argument("--date", type=_date, help="what 'today' means, YYYY-MM-DD (default: today)")
    call.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    call.add_argument(
        "--no-cache", action="store_true", help="neither look for a saved state of the tools' prompt nor save one"
    )
    call.add_argument("--json", action="store_true", help="print calls, reply, problems and timings as one document")
    call.set_defaults(run=run)


def _date(text: str) -> dt.date:
    try:
        return dt.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date of the form YYYY-MM-DD") from None


def run(arguments: argparse.Namespace) -> int:
    """Print the calls; 0: calls or a reply, 1: a reply that cannot be used as it stands."""
    model, text = _model_and_text(arguments.words)
    tools = tools_command.read_source(arguments) or bundled_tools()
    started = time.perf_counter()
    cache = None if arguments.no_cache else cache_folder()
    with Dispatcher(model, tools, arguments.date, threads=arguments.threads, cache=cache) as dispatcher:
        load_ms = 1000 * (time.perf_counter() - started)
        dispatch = dispatcher.dispatch(text)
    document = _document(dispatch, load_ms) if arguments.json else _answer(dispatch)
    print(_to_json(document))
    for problem in problems(dispatch):
        print(f"warning: {problem}", file=sys.stderr)
    timings, tokens = dispatch.timings, dispatch.tokens
    print(
        f"load {load_ms:.0f} ms, prefill {timings.prefill_ms:.0f} ms ({tokens.prompt} tokens, {tokens.cached} kept), "
        f"decode {timings.decode_ms:.0f} ms ({tokens.generated} tokens, {tokens.forced} forced), "
        f"confidence {dispatch.confidence:.2f}",
        file=sys.stderr,
    )
    return _EXIT_OK if dispatch.is_usable else _EXIT_UNUSABLE


def _model_and_text(words: Sequence[str]) -> tuple[Path, str]:
    if len(words) == 1:
        raise ValueError(f'expected a model file and a sentence: call {words[0]} "what\'s the weather in Oslo?"')
    if len(words) > 2 and all(word.endswith(".gguf") for word in words[:-1]):
        raise ValueError(f"{len(words) - 1} model files match ({', '.join(words[:-1])}); name one")
    if len(words) > 2:
        raise ValueError(f"expected one sentence in quotes, got {len(words) - 1} words after {words[0]}")
    if "*" in words[0] and not Path(words[0]).exists():
        raise ValueError(f"no file matches {words[0]}")
    if not words[1].strip():
        raise ValueError("the text is empty")
    return Path(words[0]), words[1]


def _answer(dispatch: Dispatch) -> Any:
    calls = [asdict(call) for call in dispatch.calls]
    if not calls:
        return {"reply": dispatch.reply}
    return calls[0] if len(calls) == 1 else calls


def _document(dispatch: Dispatch, load_ms: float) -> dict[str, Any]:
    document = asdict(dispatch)
    document["timings"] = {"load_ms": load_ms, **document["timings"]}
    document["timings"] = {name: round(value, 2) for name, value in document["timings"].items()}
    return document


def _to_json(document: Any) -> str:
    text = json.dumps(document, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal without UTF-8, or half of a surrogate pair that the model wrote
        return json.dumps(document, indent=2)
    return text


def problems(dispatch: Dispatch) -> list[str]:
    """Why a reply cannot be used as it stands, in words; nothing for one that can."""
    found = [f"a call could not be read ({unparsed.error})" for unparsed in dispatch.unparsed]
    for violation in dispatch.violations:
        reason = violation.reason.replace("_", " ")
        details = "; ".join(detail.message for detail in violation.details)
        found.append(f"{violation.call.name}: {reason}" + (f": {details}" if details else ""))
    if not dispatch.is_complete:
        found.append("the reply was cut off at the token limit")
    return found
