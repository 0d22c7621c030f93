"""YAML files and `a.b=c` overrides as nested dicts, and pydantic's complaints as sentences with a guess."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from training.errors import ConfigError

_EXPECTED = {
    "float_type": "a number",
    "int_type": "an integer",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "model_type": "a section (key: value lines)",
    "model_attributes_type": "a section (key: value lines)",
    "dict_type": "a section (key: value lines)",
    "tuple_type": "a list",
    "list_type": "a list",
}


class _Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars: `1e-4` is a number and `off` is text; a key that occurs twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' occurs twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


# PyYAML follows YAML 1.1, where `1e-4` (no dot) is text and `off` is False: both surprise in a training file.
_Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class _QuotingDumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which only YAML 1.2 reads as a number ("1e4")."""


_QuotingDumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_Yaml12Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Yaml12Loader.yaml_implicit_resolvers}
}


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML that `read_yaml` reads back to an equal mapping, keys in their order."""
    return yaml.dump(dict(tree), Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))  # decimal, where YAML 1.1 reads 010 as eight


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, source: str) -> Any:
    """The value that `text` spells; `source` names it in errors.

    Raises:
        ConfigError: not YAML, or a key occurs twice.
    """
    try:
        return yaml.load(text, Loader=_Yaml12Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {describe(value)}")
    return value


def apply_override(tree: dict[str, Any], override: str) -> str:
    """Set one `a.b.0.c=value` (value as YAML) in `tree`; returns the dotted key.

    Raises:
        ConfigError: no `=`, or a list index that is not there.
    """
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"override '{override}': expected KEY=VALUE, such as training.max_steps=2")
    value = parse_yaml(text, f"override '{override}'")
    *parents, last = key.split(".")
    here: Any = tree
    for part in parents:
        index = _index(here, part, override)
        if isinstance(here, dict) and not isinstance(here.get(part), dict | list):
            here[part] = {}
        here = here[index]
    if not isinstance(here, dict | list):
        raise ConfigError(f"override '{override}': '{'.'.join(parents)}' is {describe(here)}, not a section")
    here[_index(here, last, override)] = value
    return key


def _index(container: Any, part: str, override: str) -> Any:
    if not isinstance(container, list):
        return part
    if not part.isdecimal() or int(part) >= len(container):
        raise ConfigError(f"override '{override}': '{part}' is no index of a list of {len(container)}")
    return int(part)


def describe(value: Any) -> str:
    """A value with its kind in YAML's words: `'abc' (text)`."""
    kinds = {bool: "true/false", int: "integer", float: "number", str: "text", list: "list", dict: "section"}
    if value is None:
        return "nothing (null)"
    return f"{value!r} ({kinds.get(type(value), type(value).__name__)})"


def explain(
    error: ValidationError, model: type[BaseModel], tree: Mapping[str, Any], source: str, overrides: Mapping[str, str]
) -> ConfigError:
    """Pydantic's findings as one sentence each, with the file or override, the key, the value and a guess.

    Args:
        tree: what was validated.
        overrides: dotted key → the override's text, for keys that did not come from the file.
    """
    lines = []
    findings = error.errors(include_url=False)
    for found in findings:
        # A list whose items are wrong is also reported as too short.
        if any(other["loc"][: len(found["loc"])] == found["loc"] and other is not found for other in findings):
            continue
        location = _keys_in(tree, found["loc"], found["type"])
        dotted = ".".join(str(part) for part in location)
        text = next((text for key, text in overrides.items() if dotted == key or dotted.startswith(f"{key}.")), None)
        where = source if text is None else f"override '{text}'"
        lines.append(f"{where}: {_sentence(dict(found), location, dotted, model)}")
    return ConfigError("\n".join(dict.fromkeys(lines)))


def _keys_in(tree: Mapping[str, Any], location: Sequence[int | str], kind: str) -> list[int | str]:
    """The part of pydantic's location that the user wrote: without a union's tags and alternatives."""
    keys: list[int | str] = []
    here: Any = tree
    for position, part in enumerate(location):
        is_item = isinstance(here, list) and isinstance(part, int) and part < len(here)
        is_key = isinstance(here, dict) and part in here
        if is_item or is_key:
            here = here[part]
        elif not (kind == "missing" and position == len(location) - 1):
            continue
        keys.append(part)
    return keys


def _sentence(found: dict[str, Any], location: Sequence[int | str], dotted: str, model: type[BaseModel]) -> str:
    kind = found["type"]
    if kind == "extra_forbidden":
        replaced = [getattr(section, "replaced", {}) for section in _sections_at(model, location[:-1])]
        if instead := next((keys[str(location[-1])] for keys in replaced if location[-1] in keys), None):
            return f"key '{dotted}' is gone: {instead}"
        return f"unknown key '{dotted}'{_guess(location, model)}"
    if kind == "missing":
        return f"missing key '{dotted}'"
    if kind == "union_tag_invalid":
        context = found["ctx"]
        key = str(context["discriminator"]).strip("'")
        return f"'{dotted}.{key}': expected one of {context['expected_tags']}, got '{context['tag']}'"
    if kind == "union_tag_not_found":
        return f"missing key '{dotted}.{str(found['ctx']['discriminator']).strip(chr(39))}'"
    expected = _EXPECTED.get(kind) or found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if kind == "value_error":
        return f"'{dotted}': {expected}" if dotted else expected
    return f"'{dotted}': expected {expected}, got {describe(found['input'])}"


def _guess(location: Sequence[int | str], model: type[BaseModel]) -> str:
    """`; did you mean 'x'?` for a close key of the same section, else for the same key in another section."""
    wrong = str(location[-1])
    siblings = sorted({name for section in _sections_at(model, location[:-1]) for name in section.model_fields})
    close = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    elsewhere = [path for path in _all_keys(model) if path.rsplit(".", 1)[-1] == wrong]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return f"; known keys here: {', '.join(siblings)}" if siblings else ""


def _sections_at(model: type[BaseModel], location: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that the section at `location` may be; more than one where a union allows several."""
    sections = [model]
    for part in location:
        fields = [section.model_fields[str(part)] for section in sections if str(part) in section.model_fields]
        # A list index or a union's tag names no field: stay with the models found so far.
        if fields:
            sections = [inner for field in fields for inner in _models_in(field.annotation)]
    return sections


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")
