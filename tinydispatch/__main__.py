"""The command `tinydispatch`, or `python -m tinydispatch`; each of its commands stands in `tinydispatch/cli/`.

Only what the given command needs is imported, and `call` loads its model while the rest is being imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from tinydispatch import __version__

COMMANDS = {
    "call": "print the calls for one sentence",
    "chat": "talk to a model in the terminal",
    "run": "play a request to its end with a stack of models and tools",
    "serve": "answer the OpenAI API's /v1/chat/completions",
    "review": "go through a dispatch log in the browser, and correct it",
    "bench": "measure a model on this machine",
    "tools": "print tools as JSON",
    "pull": "fetch and make the default model ahead of its first use",
}
_EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0: done, 1: a reply that cannot be used as it stands, 2: bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = str(_parser().parse_args(words[:1]).command)
    module = importlib.import_module(f"tinydispatch.cli.{command}")
    arguments = command_parser(command, module).parse_intermixed_args(words[1:])
    try:
        return _run(module, arguments)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def command_parser(command: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command's arguments, which `module` adds."""
    parser = argparse.ArgumentParser(prog=f"tinydispatch {command}")
    module.add_arguments(parser)
    return parser


def _run(module: ModuleType, arguments: argparse.Namespace) -> int:
    from tinydispatch.cli.memory import give_back_freed_memory
    from tinydispatch.ggml.runtime import ComputeError

    give_back_freed_memory()
    try:
        return int(module.run(arguments))
    except (ValueError, ComputeError, MemoryError) as error:
        print(f"tinydispatch: {error if str(error) else 'not enough memory'}", file=sys.stderr)
        return _EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="tinydispatch",
        description="Turn a sentence into tool calls.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())
        + "\n\n`tinydispatch COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinydispatch {__version__}")
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND", help="one of those below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
