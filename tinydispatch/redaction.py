"""Personal data out of what is logged: each value becomes a made-up one, the same wherever it stands in a record.

A call whose recipient was copied from the sentence must still be a copy after redaction, and still a valid e-mail
address, or nothing could be learned from the record. So values are replaced by numbered ones of the same form.
Patterns find addresses, numbers and secrets; no pattern finds a person's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class RedactionError(ValueError):
    """A file of rules that cannot be used; the message names the file and the rule."""


@dataclass(frozen=True)
class Rule:
    """`pattern` is a regular expression, `replacement` a text in which `{n}` stands for the value's number.

    `has_check_digit` leaves alone the numbers that fail Luhn's test: order numbers are as long as card numbers.
    """

    name: str
    pattern: re.Pattern[str]
    replacement: str
    has_check_digit: bool = False


def _rule(name: str, pattern: str, replacement: str, *, has_check_digit: bool = False) -> Rule:
    return Rule(name, re.compile(pattern), replacement, has_check_digit)


DEFAULT_RULES = (
    _rule(
        "secret",
        r"\b(?:sk|pk|rk|ghp|gho|ghs|glpat|hf|xox[abpr])[-_][A-Za-z0-9_\-]{16,}|\bAKIA[0-9A-Z]{16}\b",
        "secret-{n}",
    ),
    _rule("bearer", r"(?i)\bbearer\s+[a-z0-9._~+/\-]{16,}=*", "Bearer secret-{n}"),
    # Tried where a word begins and nowhere within: a word of thousands of letters would take minutes otherwise.
    _rule(
        "email",
        r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]+@[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\.[A-Za-z]{2,}",
        "user{n}@example.com",
    ),
    _rule("iban", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b", "XX00TEST{n:08d}"),
    _rule("card", r"\b\d(?:[ \-]?\d){12,18}\b", "400000000000{n:04d}", has_check_digit=True),
    _rule(
        "phone",
        r"(?<![\w.])(?:\+|00)\d(?:[ ()/.\-]{0,2}\d){6,14}\b"
        r"|\(\d{3}\) ?\d{3}[ .\-]\d{4}\b|\b\d{3}[.\-]\d{3}[.\-]\d{4}\b",
        "+1555010{n:04d}",
    ),
    _rule("ip_address", r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b", "192.0.2.{n}"),
)
# Set aside for examples (RFC 2606): they belong to nobody, and made-up data should stay as varied as it was made.
NOBODYS = re.compile(
    r"[\w.%+-]+@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:example|test|invalid))\b", re.IGNORECASE
)
_REMOVED = "removed"
# A shorter one that was removed stands by chance in other texts.
_MIN_REMOVED_CHARS = 4


@dataclass(frozen=True)
class Redactor:
    """Rules, tried in their order, and the names of arguments whose values are removed, wherever else they stand."""

    rules: tuple[Rule, ...] = DEFAULT_RULES
    removed_keys: frozenset[str] = frozenset({"password", "passwd", "secret", "token", "api_key", "pin", "otp"})

    def record(self, value: Mapping[str, Any], public: Any = ()) -> dict[str, Any]:
        """A record of JSON values without personal data; keys stay as they are.

        Args:
            public: what occurs in it is not personal and stays, such as the values that a tool's schema lists.
        """
        redaction = _Redaction(self, json.dumps(public, ensure_ascii=False))
        redaction.collect(value)
        return {key: redaction.value(item) for key, item in value.items()}


@dataclass
class _Redaction:
    """One record's numbers: which value has become which."""

    redactor: Redactor
    public: str
    numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)

    def collect(self, value: Any) -> None:
        """Find the values of the arguments that are removed by name: a user has said them before, in words."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                if (
                    self._is_removed(key, item)
                    and len(str(item)) >= _MIN_REMOVED_CHARS
                    and str(item) not in self.public
                ):
                    self.removed.add(str(item))
                self.collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self.collect(item)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {key: self._member(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def _member(self, key: str, item: Any) -> Any:
        if self._is_removed(key, item):
            # A number's place is kept by a number.
            return _REMOVED if isinstance(item, str) else 0
        return self.value(item)

    def _is_removed(self, key: str, item: Any) -> bool:
        is_named = key.lower() in self.redactor.removed_keys
        return is_named and isinstance(item, str | int | float) and not isinstance(item, bool)

    def _text(self, text: str) -> str:
        # The longest first: one may be a part of another.
        for removed in sorted(self.removed, key=len, reverse=True):
            text = text.replace(removed, _REMOVED)
        for rule in self.redactor.rules:
            text = rule.pattern.sub(lambda found, rule=rule: self._replace(rule, found.group()), text)  # type: ignore[misc]
        return text

    def _replace(self, rule: Rule, text: str) -> str:
        if text in self.public or (rule.has_check_digit and not _has_check_digit(text)):
            return text
        numbers = self.numbers.setdefault(rule.name, {})
        # A number that the model wrote without its spaces is still the same number.
        same = re.sub(r"[\W_]", "", text).lower()
        return rule.replacement.format(n=numbers.setdefault(same, len(numbers) + 1))


def _has_check_digit(text: str) -> bool:
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) if index % 2 else digit for index, digit in enumerate(digits)]
    return sum(doubled) % 10 == 0


def load_redactor(path: Path) -> Redactor:
    """Rules from a JSON file, on top of the built-in ones.

        {"rules": [{"name": "customer", "pattern": "C-[0-9]{6}", "replacement": "C-{n:06d}"}],
         "without": ["ip_address"], "removed_keys": ["diagnosis"]}

    `rules` come first; `without` names built-in rules to leave out; `removed_keys` joins the built-in names.

    Raises:
        RedactionError: names the file and the rule.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict) or (unknown := set(value) - {"rules", "without", "removed_keys"}):
            raise RedactionError(f"{path}: expected an object with 'rules', 'without' or 'removed_keys', got {unknown}")
        own = tuple(_own_rule(path, entry) for entry in value.get("rules", []))
        without = _names(path, value, "without")
        if strange := without - {rule.name for rule in DEFAULT_RULES}:
            raise RedactionError(f"{path}: 'without' names no built-in rule: {', '.join(sorted(strange))}")
    except OSError as error:
        raise RedactionError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise RedactionError(f"{path}: not JSON: {error}") from error
    kept = tuple(rule for rule in DEFAULT_RULES if rule.name not in without)
    return Redactor((*own, *kept), Redactor.removed_keys | {key.lower() for key in _names(path, value, "removed_keys")})


def _names(path: Path, value: Mapping[str, Any], key: str) -> frozenset[str]:
    names: Sequence[Any] = value.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RedactionError(f"{path}: '{key}' must be an array of strings")
    return frozenset(names)


def _own_rule(path: Path, entry: Any) -> Rule:
    try:
        rule = _rule(str(entry["name"]), entry["pattern"], entry["replacement"])
        rule.replacement.format(n=1)
    except (KeyError, TypeError, ValueError, IndexError, re.error) as error:
        raise RedactionError(f"{path}: rule {entry!r}: {error!r}") from error
    if rule.pattern.search(""):
        raise RedactionError(f"{path}: rule '{rule.name}' matches the empty text")
    return rule
