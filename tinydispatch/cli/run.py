"""`run "text" --stack FILE`: a request played to its end by a stack, and what happened as a tree."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from pathlib import Path

from tinydispatch.tools import ToolCall

_EXIT_OK, _EXIT_OPEN = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Plays one request to its end: models decide, tools are run, turns are handed up. Prints the trace on stderr, "
        "the reply on stdout. A call with side effects is asked about, in a terminal; elsewhere it is left undone. "
        "Exit status: 0 answered; 1 it ended otherwise, and the reply says how; 2 bad input. docs/layers.md says more."
    )
    parser.add_argument("text", help="the request; - reads it from stdin")
    parser.add_argument(
        "--stack", type=Path, required=True, metavar="FILE", help="a stack file, such as configs/stack.yaml"
    )
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--yes", action="store_true", help="agree to every call with side effects")
    answer.add_argument("--no", action="store_true", help="decline every call with side effects")
    parser.add_argument("--date", type=dt.date.fromisoformat, help="what 'today' means (default: the file's, or today)")
    parser.add_argument(
        "--conversation", default="", help="names the conversation: the same request in it does nothing a second time"
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="append the spans there, as JSON lines")
    parser.add_argument("--json", action="store_true", help="print state, reply, calls and each layer's use as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Play the request."""
    from tinydispatch.layers.policy import load_stack
    from tinydispatch.layers.stack import EndState, RunEnd, open_stack
    from tinydispatch.layers.trace import Tracer, tree

    text = sys.stdin.read().strip() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise ValueError("the text is empty")
    settings = load_stack(arguments.stack)
    path = arguments.trace or (settings.path(settings.trace) if settings.trace else None)
    if arguments.conversation and not settings.ledger:
        print(f"{arguments.stack} names no ledger: --conversation is forgotten when this command ends", file=sys.stderr)
    tracer = Tracer(path, has_content=True)
    more = {"reference_date": arguments.date} if arguments.date else {}
    asks = arguments.yes or arguments.no or sys.stdin.isatty()

    def confirm(call: ToolCall, why: str) -> bool:
        shown = f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"
        if arguments.yes or arguments.no:
            return bool(arguments.yes)
        print(f"{shown} {why}. Do it? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    with open_stack(settings, tracer=tracer, confirm=confirm if asks else None, **more) as stack:
        for line in stack.left_out:
            print(f"not offered: {line}", file=sys.stderr)
        end: RunEnd = stack.run(text, arguments.conversation)
        print("\n".join(tree(list(tracer.spans))), file=sys.stderr)
    if arguments.json:
        print(json.dumps(_document(end), ensure_ascii=False, indent=2, default=str))
    else:
        print(end.reply)
    if end.state is EndState.NEEDS_CONFIRMATION:
        print("nothing was changed; say --yes to agree", file=sys.stderr)
    return _EXIT_OK if end.state is EndState.ANSWERED else _EXIT_OPEN


def _document(end: object) -> dict[str, object]:
    from dataclasses import asdict

    from tinydispatch.layers.stack import RunEnd

    assert isinstance(end, RunEnd), "what a stack returns"
    calls = [
        {"name": outcome.call.name, "arguments": dict(outcome.call.arguments), "status": str(outcome.status),
         "result": outcome.value, "error": outcome.error, "attempts": outcome.attempts}
        for outcome in end.outcomes
    ]  # fmt: skip
    return {
        "state": str(end.state),
        "reply": end.reply,
        "calls": calls,
        "handed_up": [{"from": str(layer), "reason": str(item)} for layer, item in end.handovers],
        "use": {str(layer): asdict(use) for layer, use in end.use.items()},
        "cost": end.cost,
        "seconds": round(end.seconds, 3),
    }
