"""The grammar of a whole reply: prose, calls in the model's own format, and how they may follow each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import llguidance

from tinydispatch import formats
from tinydispatch.decoding import terminals
from tinydispatch.decoding.rules import GrammarError, Rules
from tinydispatch.decoding.schema import KeyOrder, SchemaCompiler
from tinydispatch.formats import CALL_END, CALL_START, TURN_END
from tinydispatch.tools import Message, Role, Tool, ToolCall


class ToolChoice(StrEnum):
    """Whether a reply may call, must, or must not."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


@dataclass(frozen=True)
class CallFormat:
    """The white space that a model's template writes between a call's markers and its JSON."""

    after_start: str = ""
    before_end: str = ""


@dataclass(frozen=True)
class ReplyShape:
    """What is allowed besides the schemas.

    `is_parallel` False stops the reply after one call. `can_force` False leaves every token to the model, for
    tokenizers that spell a text differently when they see only part of it.
    """

    choice: ToolChoice = ToolChoice.AUTO
    is_parallel: bool = True
    order: KeyOrder = KeyOrder.SCHEMA
    can_force: bool = True


@lru_cache(maxsize=8)
def call_format(template: str | None) -> CallFormat:
    """How the model writes a call, learned by having its template render one.

    Raises:
        ValueError: the template does not write calls as JSON between `<tool_call>` and `</tool_call>`.
    """
    call = ToolCall("probe", {"key": 1})
    messages = [Message(Role.USER, "probe"), Message(Role.ASSISTANT, "", (call, call))]
    tool = Tool("probe", "", {"type": "object", "properties": {"key": {"type": "integer"}}})
    text = formats.render_prompt(messages, [tool], template, add_generation_prompt=False)
    body = formats.render_calls([call]).removeprefix(CALL_START).removesuffix(CALL_END)
    pattern = rf"{re.escape(CALL_START)}(\s*){re.escape(body)}(\s*){re.escape(CALL_END)}"
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(
            f"the model's chat template does not write calls as {CALL_START}{{…}}{CALL_END}, so its replies cannot be "
            "constrained: use another model, or decode without constraints"
        )
    return CallFormat(found[1], found[2])


def reply_grammar(tools: Sequence[Tool], shape: ReplyShape, form: CallFormat) -> str:
    """The grammar in llguidance's Lark dialect, its end token left out.

    Raises:
        GrammarError: a tool's schema cannot be expressed; names the tool and the place in its schema.
    """
    rules = Rules()
    calls = []
    if shape.choice is not ToolChoice.NONE:
        for tool in {tool.name: tool for tool in tools}.values():
            start = terminals.quoted(f'{tool.name}", "arguments": ')
            calls.append(f"{start} {SchemaCompiler(tool, rules, shape.order).arguments()}")
    options = '%llguidance {"no_forcing": true}' if not shape.can_force else "%llguidance {}"
    return f"{options}\n{_frame(calls, shape, form)}{rules.text()}"


def _frame(calls: Sequence[str], shape: ReplyShape, form: CallFormat) -> str:
    prose = f"PROSE: /(?s:.*)/ & {terminals.not_containing(TURN_END)}\n"
    prose += f"TEXT: PROSE & {terminals.not_containing(CALL_START)}\n"
    if not calls:
        return prose + "start: TEXT\n"
    opening, closing = form.after_start + '{"name": "', "}" + form.before_end + CALL_END
    body = f"body: {terminals.quoted(opening)} call {terminals.quoted(closing)}\ncall: {' | '.join(calls)}\n"
    # Lazy: the first marker ends the prose.
    head = f"HEAD: PROSE {terminals.quoted(CALL_START)}\nhead[lazy]: HEAD\n"
    first = terminals.quoted(CALL_START) + " body" if shape.choice is ToolChoice.REQUIRED else ""
    if shape.is_parallel:
        start = f"{first} (head body)* TEXT"
    else:
        start = first or "head body | TEXT"
        head = head if not first else ""
    return f"start: {start}\n{head}{prose}{body}"


def check_grammar(grammar: str, tools: Sequence[Tool], shape: ReplyShape, form: CallFormat) -> None:
    """Compile the grammar; where that fails, find whose fault it is.

    Raises:
        GrammarError: names the tool, the place in its schema, and llguidance's reason.
    """
    problem = _problem(grammar)
    if not problem:
        return
    for tool in tools:
        if _problem(reply_grammar([tool], shape, form)):
            rules = Rules()
            SchemaCompiler(tool, rules, shape.order).arguments()
            for name, (owner, path) in rules.origins.items():
                if owner and (reason := _problem(f"%llguidance {{}}\nstart: {name}\n{name}: {rules.body(name)}\n")):
                    raise GrammarError(owner, path, reason)
            raise GrammarError(tool.name, "", _problem(reply_grammar([tool], shape, form)))
    raise GrammarError(", ".join(tool.name for tool in tools), "", problem)


def _problem(grammar: str) -> str:
    is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if not is_error:
        return ""
    first, *rest = str(messages[0]).splitlines()
    # A regular expression's parser gives its reason in the last line.
    return " ".join([first, *(line.strip() for line in rest if line.startswith("error:"))])
