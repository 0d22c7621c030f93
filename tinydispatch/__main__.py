"""`python -m tinydispatch call|chat|serve|bench|tools`; each command stands in `tinydispatch/cli/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tinydispatch.cli import bench, call, chat, serve, tools
from tinydispatch.cli.memory import give_back_freed_memory
from tinydispatch.ggml.runtime import ComputeError

_EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0: done, 1: a reply that cannot be used as it stands, 2: bad input."""
    arguments = _parser().parse_args(argv)
    give_back_freed_memory()
    try:
        return int(arguments.run(arguments))
    except ValueError as error:
        print(f"tinydispatch: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    except (ComputeError, MemoryError) as error:
        print(f"tinydispatch: {error or 'not enough memory'}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinydispatch", description="Turn a sentence into tool calls.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (call, chat, serve, bench, tools):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
