"""References to the results of earlier calls: `${calendar.events[0].start}` inside the arguments of a planned call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

CALL_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_\-]*)|\[([0-9]{1,6})\]|\[(\"(?:[^\"\\]|\\.)*\")\]")
# `$${` stands for the characters `${` themselves.
_IN_TEXT = re.compile(r"(\$?)\$\{([^{}]*)\}")


class BadReferenceError(ValueError):
    """A reference that cannot be read, or that leads nowhere in the results there are."""


@dataclass(frozen=True)
class Reference:
    """A place in the result of the call `call`: keys and positions, () for the whole result."""

    call: str
    path: Path = ()

    def __str__(self) -> str:
        return self.call + "".join(_shown_step(step) for step in self.path)


def _shown_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _STEP.fullmatch(f".{step}") else f"[{json.dumps(step)}]"


def read_reference(text: str, start: int = 0) -> tuple[Reference, int]:
    """The longest reference at `start`, and where it ends.

    Raises:
        BadReferenceError: no call's id stands there.
    """
    name = CALL_ID.match(text, start)
    if name is None:
        raise BadReferenceError(f"expected a call's id at {text[start : start + 20]!r}")
    path: list[str | int] = []
    end = name.end()
    while step := _STEP.match(text, end):
        key, position, quoted = step.groups()
        path.append(key if key is not None else int(position) if position is not None else str(json.loads(quoted)))
        end = step.end()
    return Reference(name.group(), tuple(path)), end


def parse_reference(text: str) -> Reference:
    """The reference that `text` is from end to end.

    Raises:
        BadReferenceError: it is none.
    """
    reference, end = read_reference(text.strip())
    if end != len(text.strip()):
        raise BadReferenceError(f"{text!r} is no reference; expected for example calendar.events[0].start")
    return reference


def lookup(reference: Reference, results: Mapping[str, Any]) -> Any:
    """The value that the reference leads to.

    Raises:
        BadReferenceError: the call has no result, or the result has no such place.
    """
    if reference.call not in results:
        raise BadReferenceError(f"{reference}: '{reference.call}' has no result")
    value = results[reference.call]
    for step in reference.path:
        is_item = isinstance(step, int) and isinstance(value, list) and step < len(value)
        is_key = isinstance(step, str) and isinstance(value, Mapping) and step in value
        if not (is_item or is_key):
            raise BadReferenceError(f"{reference}: the result has no {step!r}; {_shown_shape(value)}")
        value = value[step]
    return value


def _shown_shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"its keys are {list(value)[:8]}"
    return f"it has {len(value)} items" if isinstance(value, list) else f"it is a {type(value).__name__}"


def whole_reference(text: str) -> Reference | None:
    """The reference that a string consists of; its value then keeps its type. None where there is other text too."""
    found = _IN_TEXT.fullmatch(text)
    return parse_reference(found.group(2)) if found and not found.group(1) else None


def references_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Reference, bool]]:
    """Every reference within arguments: where it stands, what it names, whether it is the whole value there.

    Raises:
        BadReferenceError: what stands in `${…}` is no reference.
    """
    if isinstance(value, str):
        is_whole = whole_reference(value) is not None
        for escape, inner in _IN_TEXT.findall(value):
            if not escape:
                yield path, parse_reference(inner), is_whole
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from references_in(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from references_in(item, (*path, index))


def resolve(value: Any, results: Mapping[str, Any]) -> Any:
    """Arguments with every reference replaced by what it leads to; what a result says is never read as a reference.

    Raises:
        BadReferenceError: a reference leads nowhere.
    """
    if isinstance(value, str):
        whole = whole_reference(value)
        return lookup(whole, results) if whole is not None else _IN_TEXT.sub(lambda at: _inserted(at, results), value)
    if isinstance(value, Mapping):
        return {key: resolve(item, results) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, results) for item in value]
    return value


def _inserted(found: re.Match[str], results: Mapping[str, Any]) -> str:
    if found.group(1):
        return f"${{{found.group(2)}}}"
    value = lookup(parse_reference(found.group(2)), results)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
