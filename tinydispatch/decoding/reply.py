"""The grammar of a whole reply: prose, calls in the model's own format, and how they may follow each other."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import llguidance

from tinydispatch import formats
from tinydispatch.decoding import terminals
from tinydispatch.decoding.rules import GrammarError, Rules
from tinydispatch.decoding.schema import KeyOrder, SchemaCompiler, Spelling
from tinydispatch.formats import CALL_END, CALL_START, FUNCTION_END, FUNCTION_START, TURN_END
from tinydispatch.json_schema import Note
from tinydispatch.patterns import byte_table
from tinydispatch.tools import Message, Role, Tool, ToolCall

_LOG = logging.getLogger(__name__)
# Of a tool with more rules than these, the first steps are tried out before it is offered.
_SURELY_SMALL = 200
_N_TRIED = 48


class ToolChoice(StrEnum):
    """Whether a reply may call, must, or must not."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


@dataclass(frozen=True)
class CallFormat:
    """How a model's template writes a call between its markers: white space around JSON, or around `<function=…>`.

    `has_python_literals`: in the second form true, false and null are spelled as Python does.
    """

    after_start: str = ""
    before_end: str = ""
    is_xml: bool = False
    has_python_literals: bool = False

    @property
    def before_name(self) -> str:
        """What stands between the marker and the tool's name."""
        return self.after_start + (FUNCTION_START if self.is_xml else '{"name": "')

    @property
    def after_name(self) -> str:
        """What stands between the tool's name and its arguments."""
        return ">\n" if self.is_xml else '", "arguments": '

    @property
    def closing(self) -> str:
        """What follows the arguments, the marker included."""
        return (FUNCTION_END if self.is_xml else "}") + self.before_end + CALL_END


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
        ValueError: the template writes calls in a form that the reader of replies does not know.
    """
    call = ToolCall("probe", {"key": 1, "text": "a\nb", "is_on": True, "list": [{"none": None}]})
    messages = [Message(Role.USER, "probe"), Message(Role.ASSISTANT, "", (call, call))]
    kinds = {"key": "integer", "text": "string", "is_on": "boolean", "list": "array"}
    properties = {key: {"type": kind} for key, kind in kinds.items()}
    tool = Tool("probe", "", {"type": "object", "properties": properties})
    text = formats.render_prompt(messages, [tool], template, add_generation_prompt=False)
    body = formats.render_calls([call]).removeprefix(CALL_START).removesuffix(CALL_END)
    if found := re.search(rf"{re.escape(CALL_START)}(\s*){re.escape(body)}(\s*){re.escape(CALL_END)}", text):
        return CallFormat(found[1], found[2])
    for is_python in (True, False):
        if formats.render_xml_calls([call, call], python_literals=is_python) in text:
            return CallFormat("\n", "\n", is_xml=True, has_python_literals=is_python)
    raise ValueError(
        f"the model's chat template does not write calls as {CALL_START}{{…}}{CALL_END} or as {CALL_START}"
        f"{FUNCTION_START}…>, so its replies cannot be read: use another model, or decode without constraints"
    )


def reply_grammar(tools: Sequence[Tool], shape: ReplyShape, form: CallFormat) -> str:
    """The grammar in llguidance's Lark dialect, its end token left out.

    What it does not enforce of a schema is logged as a warning. A tool that no call can fit is left out of it.

    Raises:
        GrammarError: no call can fit the only tool, or any of them; names the tool and the place in its schema.
    """
    rules = Rules()
    calls = []
    impossible: list[GrammarError] = []
    if shape.choice is not ToolChoice.NONE:
        for tool in {tool.name: tool for tool in tools}.values():
            try:
                calls.append(_call(tool, rules, shape, form))
            except GrammarError as error:
                impossible.append(error)
    if impossible and not calls:
        raise impossible[0]
    for reason in impossible:
        _LOG.warning("%s: no call can fit it, so it is not offered to the model", reason)
    return f"{_options(shape)}\n{_frame(calls, shape, form)}{rules.text()}"


def _options(shape: ReplyShape) -> str:
    return "%llguidance {}" if shape.can_force else '%llguidance {"no_forcing": true}'


def _call(tool: Tool, rules: Rules, shape: ReplyShape, form: CallFormat) -> str:
    """A call of one tool, from its name to the end of its arguments."""
    start = terminals.quoted(tool.name + form.after_name)
    trial = Rules()
    compiler = _compiler(tool, trial, shape, form)
    body = compiler.arguments()
    notes, is_loose = compiler.notes, compiler.is_loose
    if compiler.is_risky or len(trial) > _SURELY_SMALL:
        alone = f"{_options(shape)}\n{_frame([f'{start} {body}'], shape, form)}{trial.text()}"
        if problem := _problem(alone) or _problem_in_use(alone, tool, form):
            notes = [*notes, Note("", f"only names and kinds of arguments are in the grammar ({problem})")]
            is_loose = True
    for note in notes:
        _LOG.warning("tool %r: %s: %s", tool.name, note.path or "parameters", note.text)
    return f"{start} {_compiler(tool, rules, shape, form, is_loose=is_loose).arguments()}"


def _compiler(
    tool: Tool, rules: Rules, shape: ReplyShape, form: CallFormat, *, is_loose: bool = False
) -> SchemaCompiler:
    spelling = (Spelling.PYTHON if form.has_python_literals else Spelling.JSON) if form.is_xml else None
    return SchemaCompiler(tool, rules, shape.order, is_loose=is_loose, elements=spelling)


def _problem_in_use(grammar: str, tool: Tool, form: CallFormat) -> str:
    """What llguidance says against the first steps of a call, "" for nothing."""
    matcher = llguidance.LLMatcher(byte_table(), grammar, log_level=0)
    opening = f"{CALL_START}{form.before_name}{tool.name}{form.after_name}"
    matcher.consume_tokens(list(opening.encode()))
    for step in range(_N_TRIED):
        mask = matcher.compute_bitmask()
        if problem := matcher.get_error():
            return problem.splitlines()[0]
        allowed = [byte for byte in range(32, 127) if mask[byte // 8] >> byte % 8 & 1]
        if matcher.is_stopped() or not allowed:
            return ""
        matcher.consume_token(allowed[(7 * step) % len(allowed)])
    return ""


def _frame(calls: Sequence[str], shape: ReplyShape, form: CallFormat) -> str:
    prose = f"PROSE: /(?s:.*)/ & {terminals.not_containing(TURN_END)}\n"
    prose += f"TEXT: PROSE & {terminals.not_containing(CALL_START)}\n"
    if not calls:
        return prose + "start: TEXT\n"
    before, closing = terminals.quoted(form.before_name), terminals.quoted(form.closing)
    body = f"body: {before} call {closing}\ncall: {' | '.join(calls)}\n"
    # Lazy: the first marker ends the prose.
    head = f"HEAD: PROSE {terminals.quoted(CALL_START)}\nhead[lazy]: HEAD\n"
    first = terminals.quoted(CALL_START) + " body" if shape.choice is ToolChoice.REQUIRED else ""
    if shape.is_parallel:
        start = f"{first} (head body)* TEXT"
    else:
        start = first or "head body | TEXT"
        head = head if not first else ""
    return f"start: {start}\n{head}{prose}{body}"


def checked_grammar(tools: Sequence[Tool], shape: ReplyShape, form: CallFormat) -> str:
    """`reply_grammar`, compiled once.

    Raises:
        GrammarError: as `reply_grammar` and `check_grammar`.
    """
    grammar = reply_grammar(tools, shape, form)
    check_grammar(grammar, tools, shape, form)
    return grammar


def check_grammar(grammar: str, tools: Sequence[Tool], shape: ReplyShape, form: CallFormat) -> None:
    """Compile the grammar; where that fails, find whose fault it is.

    Raises:
        GrammarError: names the tool and llguidance's reason.
    """
    problem = _problem(grammar)
    if not problem:
        return
    for tool in tools:
        if reason := _problem(reply_grammar([tool], shape, form)):
            raise GrammarError(tool.name, "", reason)
    raise GrammarError(", ".join(tool.name for tool in tools), "", problem)


def _problem(grammar: str) -> str:
    is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if not is_error:
        return ""
    first, *rest = str(messages[0]).splitlines()
    # A regular expression's parser gives its reason in the last line.
    return " ".join([first, *(line.strip() for line in rest if line.startswith("error:"))])
