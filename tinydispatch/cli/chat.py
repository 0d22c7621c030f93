"""`chat [MODEL.gguf]`: a conversation in the terminal, in which you play the user and the tools."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from tinydispatch.bundled import bundled_tools
from tinydispatch.cli import tools as tools_command
from tinydispatch.cli.call import problems
from tinydispatch.cli.model import add_model, model_file
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.engine import PromptTooLongError
from tinydispatch.folders import cache_folder
from tinydispatch.tools import Message, Role

_NEW = "/new"
# After that many rounds of calls in a row the user is asked again.
_MAX_ROUNDS = 8

# A prompt → the line that was typed; raises EOFError at the end.
Ask = Callable[[str], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Type what a user says, and for each call what the tool answers. "
        f"An empty result ends the turn; {_NEW} forgets the conversation; Ctrl-D leaves."
    )
    add_model(parser)
    tools_command.add_source(parser)
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends."""
    tools = tools_command.read_source(arguments) or bundled_tools()
    model = model_file(arguments.model, arguments.quantization)
    with Dispatcher(model, tools, threads=arguments.threads, cache=cache_folder()) as dispatcher:
        talk(dispatcher, input)
    return 0


def talk(dispatcher: Dispatcher, ask: Ask) -> None:
    """Take turns until `ask` comes to its end."""
    messages: list[Message] = []
    while True:
        try:
            text = ask("> ").strip()
            if text == _NEW:
                messages = []
            elif text:
                messages = _turn(dispatcher, [*messages, Message(Role.USER, text)], ask)
        except EOFError:
            return
        except PromptTooLongError:
            print(f"The conversation no longer fits the context; {_NEW} begins another.", file=sys.stderr)


def _turn(dispatcher: Dispatcher, messages: list[Message], ask: Ask) -> list[Message]:
    """The conversation with the model's answers to the last message, and the tools' to its calls."""
    for _ in range(_MAX_ROUNDS):
        dispatch = dispatcher.dispatch(messages)
        messages = [*messages, Message(Role.ASSISTANT, dispatch.reply, dispatch.calls)]
        if dispatch.reply:
            print(dispatch.reply)
        for call in dispatch.calls:
            print(json.dumps({"name": call.name, "arguments": dict(call.arguments)}))
        for problem in problems(dispatch):
            print(f"warning: {problem}", file=sys.stderr)
        print(f"({dispatch.timings.total_ms:.0f} ms, confidence {dispatch.confidence:.2f})", file=sys.stderr)
        results = [Message(Role.TOOL, ask(f"{call.name} = "), tool_name=call.name) for call in dispatch.calls]
        messages = [*messages, *results]
        if not any(result.content for result in results):
            break
    return messages
