"""Where in a suite's files a reader stands, so that every error can name file, line, case and key."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, NoReturn


class SuiteError(ValueError):
    """A suite that cannot be read; the message names the file, the line, the key and what was expected."""


@dataclass
class Place:
    """`where` is "file" or "file:line"; `case_id` is known once it has been read."""

    where: str
    case_id: str = ""

    def fail(self, key: str, message: str) -> NoReturn:
        """Raise a `SuiteError` about `key`."""
        case = f" case '{self.case_id}':" if self.case_id else ""
        raise SuiteError(f"{self.where}:{case} key '{key}': {message}")

    def check_keys(self, value: Any, known: set[str], key: str) -> None:
        """Refuse what is no object or has keys that nobody reads."""
        if not isinstance(value, dict):
            self.fail(key or "(whole)", f"expected an object, not {type(value).__name__}")
        for name in value:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}"
                self.fail(f"{key}.{name}".lstrip("."), f"unknown key; {hint}")

    def items(self, value: Any, name: str, prefix: str = "") -> list[tuple[str, Any]]:
        """The array `value[name]` with each item's key, `[]` where it is absent."""
        items = value.get(name, [])
        if not isinstance(items, list):
            self.fail(f"{prefix}{name}", "expected an array")
        return [(f"{prefix}{name}.{index}", item) for index, item in enumerate(items)]

    def flag(self, value: Any, name: str, prefix: str = "", *, default: bool = False) -> bool:
        """`value[name]`, which must be true or false."""
        flag = value.get(name, default)
        if not isinstance(flag, bool):
            self.fail(f"{prefix}{name}", "expected true or false")
        return flag
