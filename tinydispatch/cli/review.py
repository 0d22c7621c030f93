"""`review LOG`: a page on loopback for a person who goes through a dispatch log."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from tinydispatch.bundled import load_tools
from tinydispatch.pages.review import ReviewServer
from tinydispatch.redaction import load_redactor
from tinydispatch.review import DECISIONS, ReviewError, Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Shows the lines of a dispatch log in the browser, the least confident first, to accept, correct or reject. "
        "The log stays as it is; docs/retraining.md says how training learns from the decisions."
    )
    parser.add_argument("log", type=Path, metavar="LOG", help="the folder of serve --dispatch-log, or one file of it")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"where decisions are kept (default: {DECISIONS} in or beside LOG)"
    )
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON; for lines that name no tools")
    parser.add_argument("--redaction-rules", type=Path, metavar="FILE", help="JSON; those of the server")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    tools = load_tools(arguments.tools) if arguments.tools else ()
    redactor = load_redactor(arguments.redaction_rules) if arguments.redaction_rules else None
    stack = Stack(arguments.log, arguments.out, tools=tools, redactor=redactor)
    try:
        server = ReviewServer(stack, arguments.port)
    except (OSError, OverflowError) as error:
        raise ReviewError(f"127.0.0.1:{arguments.port} cannot be listened on ({error}); give another --port") from error
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    state = stack.state()
    print(f"{state['left']['confidence']} lines to look at, {state['decided']} decided. Open {server.url}")
    if stack.unreadable:
        print(f"{len(stack.unreadable)} lines cannot be read and are left out; the first: {stack.unreadable[0]}")
    print("Ctrl-C ends it; every decision is kept at once.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        state = stack.state()
        stack.close()
        print(f"\n{state['decided']} decided, {state['left']['confidence']} left; decisions are in {stack.decisions}")
    return 0
