"""Several schemas that must all hold, as one: what `allOf` and keys beside a reference ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Unmergeable(ValueError):  # noqa: N818 (a reason, turned into a GrammarError where the place is known)
    """Schemas that contradict each other, or whose intersection is beyond this program."""


def merged(parts: Sequence[Any]) -> dict[str, Any]:
    """One schema that admits what every part admits.

    Raises:
        Unmergeable: the parts contradict each other, or both hold a keyword that cannot be combined.
    """
    result: dict[str, Any] = {}
    for part in parts:
        if part is True:
            continue
        if not isinstance(part, Mapping):
            raise Unmergeable(f"{part!r} admits no value")
        for key, value in part.items():
            result[key] = _both(key, result[key], value) if key in result else value
    return result


def _both(key: str, left: Any, right: Any) -> Any:
    if left == right:
        return left
    if key in ("description", "title", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions"):
        return left
    if key == "required":
        return list(dict.fromkeys([*left, *right]))
    if key == "properties":
        shared = {name: {"allOf": [left[name], value]} for name, value in right.items() if name in left}
        return {**left, **right, **shared}
    if key in ("minimum", "exclusiveMinimum", "minLength", "minItems"):
        return max(left, right)
    if key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems"):
        return min(left, right)
    if key in ("type", "enum"):
        return _common(key, left, right)
    if key == "allOf":
        return [*left, *right]
    if key == "items":
        return {"allOf": [left, right]}
    if key == "additionalProperties" and False in (left, right):
        return False
    if key in ("pattern", "format"):
        return [*_listed(left), *_listed(right)]
    raise Unmergeable(f"two different values of {key!r} cannot be combined: {left!r} and {right!r}")


def _common(key: str, left: Any, right: Any) -> Any:
    others = _listed(right)
    if key == "type" and "number" in others:
        others = [*others, "integer"]
    mine = _listed(left)
    if key == "type" and "number" in mine:
        mine = [*mine, "integer"]
    common = [value for value in mine if value in others]
    if not common:
        raise Unmergeable(f"no {key} is common to {left!r} and {right!r}")
    if key == "type" and "number" in common:
        common = [value for value in common if value != "integer"]
    return common[0] if key == "type" and len(common) == 1 else common


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]
