"""A stack as a file: which model is which layer, where tools come from, what may be run and spent, what errors do."""

from __future__ import annotations

import datetime as dt
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from tinydispatch.layers.toolbox import ToolPolicy

# For pydantic, which reads files into these classes; code that makes them itself needs no pydantic.
_STRICT = {"extra": "forbid", "strict": True}


class PolicyError(ValueError):
    """A policy that cannot be used; the message names the file, the key and the value."""


def _positive(owner: Any, *, but: Sequence[str] = ()) -> None:
    for name, value in vars(owner).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (value < 0 or (value == 0 and name not in but)):
            raise PolicyError(f"{name}={value!r}: must be {'at least' if name in but else 'greater than'} 0")


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint. The key is read from the environment variable `api_key_env`, never from a file.

    `timeout_s` is for one whole reply. Prices are per million tokens; `price_per_call` is added for every request.
    `replies` is a JSON file of recorded replies, played in place of an endpoint: {request: [{"text", "calls",
    "prompt_tokens", "completion_tokens"}]}.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    base_url: str = ""
    model: str = ""
    api_key_env: str = ""
    timeout_s: float = 60.0
    max_tokens: int = 1024
    input_price: float = 0.0
    output_price: float = 0.0
    price_per_call: float = 0.0
    replies: str = ""

    def __post_init__(self) -> None:
        _positive(self, but=("input_price", "output_price", "price_per_call"))
        if bool(self.replies) == bool(self.base_url) or bool(self.model) != bool(self.base_url):
            raise PolicyError("an endpoint needs base_url and model, or a file of replies")


@dataclass(frozen=True)
class Limits:
    """Where a run ends. Steps are replies of models; the cost is in the currency of the endpoints' prices."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    max_steps: int = 12
    max_calls: int = 32
    max_seconds: float = 120.0
    max_cost: float = float("inf")
    max_plans: int = 2

    def __post_init__(self) -> None:
        _positive(self)


class ErrorAction(StrEnum):
    """What is done about a failed call, once the tool's own attempts are used up."""

    REPAIR = "repair"  # the same layer sees the error and replies once more
    ASK = "ask"  # the user is asked
    ALTERNATIVE = "alternative"  # another tool gets the same arguments
    HAND_UP = "hand_up"


@dataclass(frozen=True)
class ErrorRule:
    """The first rule whose `match`, a regular expression, is found in the error decides. `tool` "" means all."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    match: str
    action: ErrorAction
    tool: str = ""
    alternative: str = ""


_DEFAULT_RULES = (
    ErrorRule(r"permission|denied|forbidden|unauthori[sz]ed|credential", ErrorAction.ASK),
    ErrorRule(
        r"not found|no such|unknown|ambiguous|invalid|must |expected|required|did you mean|supported|instead",
        ErrorAction.REPAIR,
    ),
)


@dataclass(frozen=True)
class Escalation:
    """When a layer's turn is handed up.

    `min_confidence`: None takes the dispatch model's own calibrated threshold. `dispatch_handles_dependence`: it was
    trained to make only the first of two dependent calls. `plan_from_marks`: a request with so many words of dependence
    goes straight to the planning layer. `max_tools`: more are not shown to the dispatch model.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    min_confidence: float | None = None
    dispatch_handles_dependence: bool = False
    plan_from_marks: int = 2
    max_tools: int = 32
    max_repairs: int = 2


@dataclass(frozen=True)
class StackPolicy:
    """Everything about a stack but its tools. A layer that is None is absent; `dispatch` is a GGUF file."""

    dispatch: str | None = None
    orchestration: EndpointConfig | None = None
    planning: EndpointConfig | None = None
    limits: Limits = field(default_factory=Limits)
    tools: ToolPolicy = field(default_factory=ToolPolicy)
    escalation: Escalation = field(default_factory=Escalation)
    errors: tuple[ErrorRule, ...] = _DEFAULT_RULES

    def __post_init__(self) -> None:
        if self.dispatch is None and self.orchestration is None and self.planning is None:
            raise PolicyError("a stack needs at least one of 'dispatch', 'orchestration' and 'planning'")
        for rule in self.errors:
            try:
                re.compile(rule.match)
            except re.error as error:
                raise PolicyError(f"errors: {rule.match!r} is no regular expression: {error}") from error
            if (rule.action is ErrorAction.ALTERNATIVE) != bool(rule.alternative):
                raise PolicyError(f"errors: {rule.match!r}: 'alternative' goes with action 'alternative' and no other")


@dataclass(frozen=True)
class ToolSource:
    """Where tools come from: one of `python` (a file), `mcp` (a URL, or a command in words) and `openapi` (a file).

    `only`: names of functions and tools, or patterns of operations; () takes all. `side_effects` and `read_only` are
    the user's word about single tools, above the source's. `headers_env` maps headers to the environment variables that
    hold their values, `environment` names the variables that a command gets besides a few harmless ones. `base_url`,
    `hosts` and `variables` say where an OpenAPI document's requests may go.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    python: str = ""
    mcp: str | tuple[str, ...] = ""
    openapi: str = ""
    only: tuple[str, ...] = ()
    side_effects: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    headers_env: dict[str, str] = field(default_factory=dict)
    environment: tuple[str, ...] = ()
    base_url: str = ""
    hosts: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        _positive(self)
        kinds = [kind for kind in ("python", "mcp", "openapi") if getattr(self, kind)]
        if len(kinds) != 1:
            raise PolicyError(f"one of python, mcp and openapi says where tools come from; given: {kinds or 'none'}")
        if both := sorted(set(self.side_effects) & set(self.read_only)):
            raise PolicyError(f"side_effects and read_only both name {', '.join(both)}")
        of_openapi = ("headers_env", "base_url", "hosts", "variables")
        foreign = [name for name in of_openapi if getattr(self, name) and kinds != ["openapi"]]
        foreign += ["environment"] if self.environment and kinds != ["mcp"] else []
        if foreign:
            raise PolicyError(f"{', '.join(foreign)}: nothing that tools from {kinds[0]} know")


@dataclass(frozen=True)
class StackSettings:
    """A stack file. `name` is what clients of the server ask for.

    `dispatch` is "default", a GGUF file, or "none". `ledger` keeps effects from being repeated after a restart,
    `trace` is a JSONL file for the spans; `trace_content` puts words, arguments and results into it. Paths are relative
    to the file.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    tools: tuple[ToolSource, ...]
    name: str = ""
    dispatch: str = "default"
    orchestration: EndpointConfig | None = None
    planning: EndpointConfig | None = None
    reference_date: dt.date | None = None
    limits: Limits = field(default_factory=Limits)
    calls: ToolPolicy = field(default_factory=ToolPolicy)
    escalation: Escalation = field(default_factory=Escalation)
    errors: tuple[ErrorRule, ...] = _DEFAULT_RULES
    ledger: str = ""
    trace: str = ""
    trace_content: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.tools:
            raise PolicyError("tools: a stack without tools has nothing to do")

    def policy(self) -> StackPolicy:
        """What of it the engine reads."""
        dispatch = None if self.dispatch == "none" else self.dispatch
        middle, top = (_in_folder(config, self.folder) for config in (self.orchestration, self.planning))
        return StackPolicy(dispatch, middle, top, self.limits, self.calls, self.escalation, self.errors)

    def path(self, name: str) -> Path:
        """A path of the file, from its folder."""
        return Path(self.folder) / name


def _in_folder(config: EndpointConfig | None, folder: str) -> EndpointConfig | None:
    return replace(config, replies=str(Path(folder) / config.replies)) if config and config.replies else config


def load_stack(path: Path) -> StackSettings:
    """Read a stack file (YAML).

    Raises:
        PolicyError: names the file, the key and the value.
    """
    try:
        import yaml
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:
        raise PolicyError(f"stack files need {error.name}: pip install 'tinydispatch[layers]'") from error
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise PolicyError(f"{path}: expected keys and values, not {value!r:.60}")
    if "folder" in value:
        raise PolicyError(f"{path}: folder: unknown key; known: {_known(StackSettings)}")
    try:
        text = json.dumps({**value, "folder": str(path.parent)}, default=str)
        settings = TypeAdapter(StackSettings).validate_json(text)
        policy = settings.policy()
    except ValidationError as error:
        raise PolicyError("\n".join(f"{path}: {_told(dict(item))}" for item in error.errors())) from error
    except (PolicyError, TypeError) as error:
        raise PolicyError(f"{path}: {error}") from error
    for name in [settings.dispatch] if settings.dispatch not in ("default", "none") else []:
        if not settings.path(name).is_file():
            raise PolicyError(f"{path}: dispatch: {settings.path(name)}: there is no such file")
    del policy  # made to have its checks here
    return settings if settings.name else replace(settings, name=path.stem)


def _told(error: dict[str, Any]) -> str:
    """One complaint of pydantic's as a sentence: key, value, and what is wrong."""
    loc = [str(part) for part in error["loc"] if part not in ("str", "tuple[str, ...]", "none")]
    place = ".".join(loc)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = {"limits": Limits, "calls": ToolPolicy, "escalation": Escalation, "orchestration": EndpointConfig,
                      "planning": EndpointConfig, "errors": ErrorRule, "tools": ToolSource}.get(
            loc[0] if len(loc) > 1 else "", StackSettings)  # fmt: skip
        names = [item.name for item in fields(owner) if item.name != "folder"]
        near = difflib.get_close_matches(loc[-1], names, n=1)
        return f"{place}: unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}")
    if error["type"] == "missing":
        return f"{place}: is missing"
    message = re.sub(r"^(?:Value error|Assertion failed), ", "", error["msg"])
    message = message[:1].lower() + message[1:]
    given = error.get("input")
    shown = "" if isinstance(given, dict) else f"{json.dumps(given, ensure_ascii=False)[:80]}: "
    return f"{place}: {shown}{message}" if place else message


def _known(owner: Any) -> str:
    return ", ".join(item.name for item in fields(owner) if item.name != "folder")
