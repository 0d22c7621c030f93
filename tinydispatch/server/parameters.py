"""The parameters that the routes share, as pydantic models, and pydantic's findings in the OpenAI API's words.

`null` means not given. A name that no model lists is kept in `model_extra`: it is ignored with a warning, or refused by
a strict server.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tinydispatch.decoding.child import shared_child
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.server.errors import ApiError, invalid, too_long_array, unsupported, unsupported_value, wrong_type
from tinydispatch.server.nesting import MAX_LEVELS, is_too_deep
from tinydispatch.tools import Tool, ToolError

MAX_TOP_LOGPROBS, MAX_STOPS = 20, 4
_MAX_METADATA, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512
_EXPECTED = {
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal number",
    "string_type": "a string",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "an array",
}
# Without an entry they ask for nothing.
_HARMLESS_EMPTY = {"logit_bias", "guided_json"}
_Model = TypeVar("_Model", bound="Body")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_empty_stop(value: list[str]) -> list[str]:
    if "" in value:
        raise ValueError("the empty text stands before every reply")
    return value


def _short_metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > _MAX_METADATA:
        raise ValueError(f"at most {_MAX_METADATA} keys are allowed")
    if any(len(key) > _MAX_KEY_CHARS or len(text) > _MAX_VALUE_CHARS for key, text in value.items()):
        raise ValueError(f"keys have at most {_MAX_KEY_CHARS} characters, values {_MAX_VALUE_CHARS}")
    return value


def _finite_depth(value: Any) -> Any:
    if is_too_deep(value):
        raise ValueError(f"it is nested more than {MAX_LEVELS} levels deep")
    return value


Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stops = Annotated[list[str], BeforeValidator(_listed), Field(max_length=MAX_STOPS), AfterValidator(_no_empty_stop)]
Schema = Annotated[dict[str, Any], AfterValidator(_finite_depth)]


class Part(BaseModel):
    """An object inside a body; what it does not list is nobody's business."""

    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(Part):
    """`include_usage` ends a stream in the token counts."""

    include_usage: bool | None = None


class OwnOptions(Part):
    """What the OpenAI API has no place for.

    `reference_date` (YYYY-MM-DD) or `time_zone` say what "today" means to the client; `explain` asks for the reply's
    tokens, forced and chosen ones.
    """

    reference_date: str | None = None
    time_zone: str | None = None
    explain: bool | None = None


class NamedSchema(Part):
    """The form that a reply in JSON must have."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """Chat completions' `response_format`. llama.cpp's server and others read a `schema` beside json_object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Schema | None = Field(None, alias="schema")

    @property
    def form(self) -> NamedSchema | None:
        """The schema that is asked for, wherever it stands."""
        if self.type == "json_object" and self.schema_ is not None:
            return NamedSchema(name="answer", schema=self.schema_)
        return self.json_schema if self.type == "json_schema" else None


class Body(BaseModel):
    """What every route reads. `REFUSED` names what the route knows and does not do, with the reason."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    REFUSED: ClassVar[Mapping[str, str]] = {}

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tinydispatch: OwnOptions | None = None
    reference_date: str | None = None
    time_zone: str | None = None
    user: str | None = None
    # Decoding is greedy: these change the wording of replies in other models, and here they are checked and do nothing.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    # Other servers' own, which clients that know them send anywhere; nothing here depends on them.
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    repeat_penalty: Any = None
    cache_prompt: Any = None
    chat_template_kwargs: Any = None

    @classmethod
    def read(cls, value: Any, *, is_strict: bool) -> Self:
        """The checked parameters.

        Raises:
            ApiError: 400, names the parameter that is wrong, refused, or, for a strict server, unknown.
        """
        found = validated(cls, value)
        for key, reason in cls.REFUSED.items():
            if value.get(key) not in (None, False, "") and not (key in _HARMLESS_EMPTY and not value[key]):
                raise unsupported(key, f"'{key}' is not supported here. {reason}")
        if is_strict and found.model_extra:
            key = next(iter(found.model_extra))
            raise invalid(f"Unknown parameter: {shown(key)}.", key, "unknown_parameter")
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was sent and changes nothing."""
        return tuple(f"unknown parameter {shown(key)} was ignored" for key in self.model_extra or ())

    @property
    def explains(self) -> bool:
        """Whether the answer lists its tokens."""
        return bool(self.tinydispatch and self.tinydispatch.explain)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends in the token counts."""
        if self.stream_options is None:
            return False
        if not self.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise invalid(message, "stream_options")
        return bool(self.stream_options.include_usage)

    def today(self, metadata: Mapping[str, str] | None) -> tuple[dt.date | None, zoneinfo.ZoneInfo | None]:
        """The day and the time zone that the client names: in `tinydispatch`, in `metadata`, or by themselves.

        Raises:
            ApiError: one is none, or two places contradict each other.
        """
        options = self.tinydispatch or OwnOptions()
        day, zone = (
            _one_of(
                {
                    f"tinydispatch.{key}": getattr(options, key),
                    f"metadata.{key}": (metadata or {}).get(key),
                    key: getattr(self, key),
                }
            )
            for key in ("reference_date", "time_zone")
        )
        return (_day(*day) if day else None), (_zone(*zone) if zone else None)


class Dialogue(Body):
    """What both routes for conversations read."""

    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str], AfterValidator(_short_metadata)] | None = None
    store: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    service_tier: str | None = None
    moderation: Any = None


class Generation(Body):
    """What both routes with sampling settings read."""

    max_tokens: Count | None = None
    n: Count | None = None
    seed: int | None = None
    stop: Stops | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def check_one(self, key: str = "n") -> None:
        """Refuse more than one reply."""
        number = getattr(self, key)
        if number is not None and number > 1:
            message = f"'{key}' does not support {number} with this model: it decodes greedily, so all would be equal."
            raise unsupported_value(key, message)


def validated(model: type[_Model], value: Any) -> _Model:
    """A body, checked.

    Raises:
        ApiError: 400, names the place.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise api_error(error) from error


def api_error(error: ValidationError) -> ApiError:
    """The first of pydantic's findings as the OpenAI API would say it."""
    found = error.errors(include_url=False)[0]
    kind, value, context = found["type"], found["input"], found.get("ctx", {})
    place = ""
    for part in found["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    if kind == "missing":
        return invalid(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    if kind in _EXPECTED:
        return wrong_type(place, _EXPECTED[kind], value)
    if kind == "too_long":
        return too_long_array(place, len(value), context["max_length"])
    if kind == "literal_error":
        return invalid(
            f"Invalid value: {value!r}. Supported values are: {context['expected']}.", place, "invalid_value"
        )
    if kind in ("greater_than_equal", "less_than_equal"):
        is_low = kind == "greater_than_equal"
        number = (
            "integer" if isinstance(value, int) and isinstance(context["ge" if is_low else "le"], int) else "decimal"
        )
        sign, limit = (">=", context["ge"]) if is_low else ("<=", context["le"])
        message = f"Invalid '{place}': {number} {'below minimum' if is_low else 'above maximum'} value. "
        message += f"Expected a value {sign} {limit:g}, but got {value} instead."
        return invalid(message, place, f"{number}_{'below_min' if is_low else 'above_max'}_value")
    reason = context.get("error", found["msg"])
    return invalid(f"Invalid '{place}': {reason}.", place, "invalid_value")


def answer_tool(form: NamedSchema | None, where: str, taken: Sequence[str]) -> Tool:
    """The form of a reply in JSON as a tool, whose arguments the reply then is; None asks for any JSON object.

    Raises:
        ApiError: names the place of the schema.
    """
    if form is None:
        return Tool(_free_name("answer", taken), "The answer as a JSON object", {"type": "object", **_OPEN})
    description = form.description or form.schema_.get("description") or "The answer"
    try:
        shared_child().check([{"name": form.name, "parameters": form.schema_}])
        return Tool(_free_name(form.name, taken), str(description), form.schema_)
    except (ToolError, GrammarError) as error:
        raise invalid(f"Invalid schema for response_format '{form.name}': {error}.", where, "invalid_value") from error


_OPEN = {"additionalProperties": True}


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"{name[:57]}_answer"
    return name


def shown(key: str) -> str:
    """A client's own word for messages and headers: ASCII, short, in quotes."""
    return ascii(key if len(key) <= 64 else f"{key[:61]}...")


def max_new_tokens(limit: int, named: Mapping[str, int | None]) -> int:
    """How long the reply may become. Agent frameworks send generous defaults, so more than the limit is capped."""
    given = {key: number for key, number in named.items() if number is not None}
    if len(set(given.values())) > 1:
        first, second = given
        message = f"Setting '{first}' and '{second}' at the same time is not supported."
        raise invalid(message, first, "invalid_parameter_combination")
    return min([limit, *given.values()])


def _one_of(named: Mapping[str, str | None]) -> tuple[str, str] | None:
    given = {place: text for place, text in named.items() if text is not None}
    if len(set(given.values())) > 1:
        places = " and ".join(f"'{place}' ({shown(text)})" for place, text in given.items())
        raise invalid(f"Contradicting values: {places}.", next(iter(given)), "invalid_parameter_combination")
    return next(iter(given.items()), None)


def _day(place: str, text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise invalid(f"Invalid '{place}': expected a date of the form YYYY-MM-DD.", place, "invalid_value") from None


def _zone(place: str, text: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        message = f"Invalid '{place}': expected an IANA time zone such as 'Europe/Oslo'."
        raise invalid(message, place, "invalid_value") from None
