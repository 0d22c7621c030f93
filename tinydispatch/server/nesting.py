"""How deep a JSON value is nested: libraries walk it by recursion, and a hostile one would end them in the middle."""

from __future__ import annotations

from typing import Any

# The deepest schemas of public APIs have about 20 levels.
MAX_LEVELS = 64


def is_too_deep(value: Any) -> bool:
    """Whether it has more than `MAX_LEVELS` levels of objects and arrays."""
    level = [value]
    for _ in range(MAX_LEVELS):
        level = [member for item in level for member in _members(item)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _members(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
