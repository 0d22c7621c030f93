"""`call [MODEL.gguf] "text"`: one sentence in, the calls as JSON out."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydispatch.cli import tools as tools_command
from tinydispatch.cli.model import add_context, add_quantization, model_file
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model

if TYPE_CHECKING:  # imported while the model is being loaded
    from tinydispatch.dispatcher import Dispatch

_EXIT_OK, _EXIT_UNUSABLE = 0, 1
_STDIN = "-"
_SUFFIX = ".gguf"
_SWITCH_S = 5e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Prints the calls as JSON on stdout and the time taken on stderr. The tools on offer are those of "
        "--tools or --mcp, or else the eight bundled ones. "
        "Exit status: 0 call(s) or a reply; 1 the model's answer cannot be used as it stands; 2 bad input."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[MODEL.gguf] TEXT",
        help="a model file (default: the default model) and the sentence; - reads the sentence from stdin",
    )
    tools_command.add_source(parser)
    parser.add_argument("--date", type=_date, help="what 'today' means, YYYY-MM-DD (default: today)")
    add_context(parser)
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    add_quantization(parser)
    parser.add_argument(
        "--no-cache", action="store_true", help="neither look for a saved state of the tools' prompt nor save one"
    )
    parser.add_argument("--json", action="store_true", help="print calls, reply, problems and timings as one document")


def _date(text: str) -> dt.date:
    try:
        return dt.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date of the form YYYY-MM-DD") from None


def run(arguments: argparse.Namespace) -> int:
    """Print the calls; 0: calls or a reply, 1: a reply that cannot be used as it stands."""
    named, text = _model_and_text(arguments.words)
    path = model_file(named, arguments.quantization)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        # llama.cpp takes 0.2 seconds for a vocabulary of 49,152 tokens, and the imports below as long. Loading, it logs
        # 2,000 pieces of lines through Python, each of which would wait for its turn beside the imports, up to 5 ms.
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH_S)
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(
            open_model, path, arguments.context, arguments.threads
        )
        stack.callback(_close, opening)
        from tinydispatch.bundled import bundled_tools
        from tinydispatch.dispatcher import Dispatcher
        from tinydispatch.engine import EngineOptions
        from tinydispatch.folders import cache_folder

        tools = tools_command.read_source(arguments) or bundled_tools()
        cache = None if arguments.no_cache else cache_folder()
        options = EngineOptions(rehearses=False)
        dispatcher = stack.enter_context(
            Dispatcher(opening.result(), tools, arguments.date, options=options, cache=cache)
        )
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


def _close(opening: Future[GgufModel]) -> None:
    if opening.exception() is None:
        opening.result().close()


def _model_and_text(words: Sequence[str]) -> tuple[Path | None, str]:
    """The first word, where it is a file's or ends in .gguf, and the others as one sentence."""
    is_named = bool(words) and (words[0].endswith(_SUFFIX) or _is_file(words[0]))
    model, said = (Path(words[0]), words[1:]) if is_named else (None, words)
    if said and all(word.endswith(_SUFFIX) for word in said[:1]):
        names = [word for word in words if word.endswith(_SUFFIX)]
        raise ValueError(f"{len(names)} model files match ({', '.join(names)}); name one")
    if model is not None and "*" in model.name and not model.exists():
        raise ValueError(f"no file matches {model}")
    if not said:
        example = " ".join(["call", *words, '"what\'s the weather in Oslo?"'])
        raise ValueError(f"a sentence is missing: tinydispatch {example}")
    text = " ".join(sys.stdin.read() if word == _STDIN else word for word in said)
    if not text.strip():
        raise ValueError("the text is empty")
    return model, text.strip() if _STDIN in said else text


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # too long for a name
        return False


def _answer(dispatch: Dispatch) -> Any:
    calls = [asdict(call) for call in dispatch.calls]
    if not calls:
        return {"reply": dispatch.reply}
    return calls[0] if len(calls) == 1 else calls


def _document(dispatch: Dispatch, load_ms: float) -> dict[str, Any]:
    document = asdict(dispatch)
    del document["logprobs"], document["written"]
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
