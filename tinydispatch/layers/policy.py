"""A stack as configuration: which model is which layer, what it may run, spend and take, and what it does on errors."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from tinydispatch.layers.toolbox import ToolPolicy

T = TypeVar("T")


class PolicyError(ValueError):
    """A policy that cannot be used; the message names the file, the key and the value."""


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint. The key is read from the environment variable `api_key_env`, never from a file.

    `timeout_s` is for one whole reply. Prices are per million tokens; `price_per_call` is added for every request.
    """

    base_url: str
    model: str
    api_key_env: str = ""
    timeout_s: float = 60.0
    max_tokens: int = 1024
    input_price: float = 0.0
    output_price: float = 0.0
    price_per_call: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Where a run ends. Steps are replies of models; the cost is in the currency of the endpoints' prices."""

    max_steps: int = 12
    max_calls: int = 32
    max_seconds: float = 120.0
    max_cost: float = float("inf")
    max_plans: int = 2


class ErrorAction(StrEnum):
    """What is done about a failed call, once the tool's own attempts are used up."""

    REPAIR = "repair"  # the same layer sees the error and replies once more
    ASK = "ask"  # the user is asked
    ALTERNATIVE = "alternative"  # another tool gets the same arguments
    HAND_UP = "hand_up"


@dataclass(frozen=True)
class ErrorRule:
    """The first rule whose `match`, a regular expression, is found in the error decides. `tool` "" means all."""

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


def load_policy(path: Path) -> StackPolicy:
    """Read a TOML or JSON file. A model file's path is relative to it.

    Raises:
        PolicyError: names the file, the key and the value.
    """
    try:
        text = path.read_text("utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PolicyError(f"{path}: {error}") from error
    try:
        policy = policy_from_mapping(value)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    if policy.dispatch is None or Path(policy.dispatch).is_absolute():
        return policy
    return policy_from_mapping({**value, "dispatch": str(path.parent / policy.dispatch)})


def policy_from_mapping(value: Any) -> StackPolicy:
    """A policy from what a YAML, TOML or JSON file holds.

    Raises:
        PolicyError: an unknown key, with a guess at what was meant, or a value of the wrong type.
    """
    return _read(StackPolicy, value, "")


def _read(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, Mapping):
        raise PolicyError(f"'{where or 'policy'}': expected keys and values, not {value!r}")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    types = get_type_hints(kind)
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise PolicyError(f"unknown key '{_joined(where, str(key))}'{hint}")
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise PolicyError(f"'{_joined(where, name)}' is missing")
    try:
        return kind(**{key: _convert(types[key], item, _joined(where, key)) for key, item in value.items()})
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError(f"{where}: {error}".lstrip(": ")) from error


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


_NESTED: dict[str, Any] = {
    "orchestration": EndpointConfig,
    "planning": EndpointConfig,
    "limits": Limits,
    "tools": ToolPolicy,
    "escalation": Escalation,
}


def _convert(kind: Any, value: Any, where: str) -> Any:
    if where in _NESTED:
        return None if value is None else _read(_NESTED[where], value, where)
    if where == "errors":
        if not isinstance(value, list):
            raise PolicyError(f"'errors': expected an array of rules, not {value!r}")
        return tuple(_read(ErrorRule, item, f"errors.{index}") for index, item in enumerate(value))
    if kind is ErrorAction:
        if value not in list(ErrorAction):
            raise PolicyError(f"'{where}': {value!r} is none of {', '.join(ErrorAction)}")
        return ErrorAction(value)
    if where == "tools.allowed" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    expected = {"str": str, "str | None": str, "bool": bool, "int": int, "float": float, "float | None": float}
    wanted = expected.get(getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind))
    if value is None and "None" in str(kind):
        return None
    is_number = wanted is float and isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is None or not (is_number or type(value) is wanted):
        raise PolicyError(f"'{where}': {value!r} is no {getattr(wanted, '__name__', 'array of names')}")
    if (is_number or wanted is int) and (value < 0 or (where.startswith("limits.") and value == 0)):
        raise PolicyError(f"'{where}': {value!r} must be greater than 0")
    return float(value) if is_number else value
