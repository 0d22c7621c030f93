"""Personal data out of what is logged: each value becomes a made-up one, the same wherever it stands in a record.

A call whose recipient was copied from the sentence must still be a copy after redaction, and still a valid e-mail
address, or nothing could be learned from the record. So values are replaced by numbered ones of the same form.
Patterns find addresses, numbers and secrets; no pattern finds a person's name. What each holds, and what it lets pass,
is printed by `python -m scripts.check_redaction` over a written corpus.

The rules are ours and not a library's: phonenumbers (9 MB) needs to be told the country, and the server would have to
carry it; check digits are a line each.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Span = tuple[int, int]


class RedactionError(ValueError):
    """A file of rules that cannot be used; the message names the file and the rule."""


@dataclass(frozen=True)
class Rule:
    """`pattern` is a regular expression, `replacement` a text in which `{n}` stands for the value's number.

    Where the pattern has a group `value` (or `said`), only that is replaced: the rest is what tells that it is
    personal, and what was found so is replaced everywhere in the record. `spans` picks within a match what really is
    one (a check digit, a country's length); it gets the match's text and gives places in it.
    """

    name: str
    pattern: re.Pattern[str]
    replacement: str
    spans: Callable[[str], Iterator[Span]] | None = None

    @property
    def is_contextual(self) -> bool:
        """Whether the words around a value tell what it is."""
        return "value" in self.pattern.groupindex

    def found(self, text: str) -> Iterator[Span]:
        """Where values of this kind stand, from left to right, none within another."""
        for match in self.pattern.finditer(text):
            start, end = match.span(match.lastgroup if match.lastgroup in ("value", "said") else 0)
            if self.spans is None:
                yield start, end
            else:
                yield from ((start + first, start + last) for first, last in self.spans(text[start:end]))


def _rule(name: str, pattern: str, replacement: str, spans: Callable[[str], Iterator[Span]] | None = None) -> Rule:
    return Rule(name, re.compile(pattern), replacement, spans)


def _cards(text: str) -> Iterator[Span]:
    """Card numbers among groups of digits: 13 to 19 digits of an issuer, with the right check digit."""
    groups = [match.span() for match in re.finditer(r"\d+", text)]
    index = 0
    while index < len(groups):
        start, last, digits = groups[index][0], None, ""
        for after, (begin, end) in enumerate(
            groups[index : index + 19 if text[start] in "23456" else index], index + 1
        ):
            digits += text[begin:end]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _has_check_digit(digits):
                last = (after, end)
        if last is not None:
            yield start, last[1]
        index = last[0] if last is not None else index + 1


def _has_check_digit(digits: str) -> bool:
    doubled = [sum(divmod(2 * int(digit), 10)) if index % 2 else int(digit) for index, digit in enumerate(digits[::-1])]
    return sum(doubled) % 10 == 0


_IBANS = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27
GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 MC27 MD24
ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24
TR26 UA29 VA22 VG24 XK20
"""
_IBAN_LENGTHS = {word[:2]: int(word[2:]) for word in _IBANS.split()}


def _ibans(text: str) -> Iterator[Span]:
    """An account number of its country's length: with the right check digits, or written in capitals."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    places = [index for index, character in enumerate(text) if character.isalnum()][:length]
    if not length or len(places) < length or text[places[-1] + 1 :][:1].isalnum():
        return
    found = "".join(text[place] for place in places)
    number = "".join(str(int(character, 36)) for character in (found[4:] + found[:4]).upper())
    if int(number) % 97 == 1 or found.isupper():
        yield 0, places[-1] + 1


def _ipv6(text: str) -> Iterator[Span]:
    text = text.rstrip(":.") if not text.endswith("::") else text
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return
    # Neither "::" nor "::1", nor what C++ and Ruby write between two names.
    if int(address) > 1 and any(character.isdigit() for character in text):
        yield 0, len(text)


_DATE = re.compile(r"\d{4}[-/.]\d\d?[-/.]\d|\d\d?[-/.]\d\d?[-/.]\d{4}")


def _phones(text: str) -> Iterator[Span]:
    if 7 <= sum(character.isdigit() for character in text) <= 15 and _DATE.search(text) is None:
        yield 0, len(text)


def _secret_words(text: str) -> Iterator[Span]:
    if not text.startswith(("removed", "secret-")):
        yield 0, len(text)


_LETTERS = "A-Za-z0-9À-ɏͰ-ԯ"  # of an address' first half: Latin, Greek, Cyrillic
_NAMES = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|(?:api|access|secret|private)[ _-]?key"
    r"|(?:access|auth|refresh|bearer)[ _-]?token|client[ _-]?secret|cvv2?|cvc|pin(?: code)?|otp|one[- ]time code)"
)

DEFAULT_RULES = (
    _rule(
        "secret",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,9999}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
        r"|\b(?:sk|pk|rk|ghp|gho|ghu|ghs|ghr|github_pat|glpat|gldt|hf|xox[abeprs]|xapp|whsec|npm|pypi|dop_v1|shp(?:at|ss|ca)"
        r"|lin_api|gsk|nvapi|xai|tvly|pplx|ntn|sq0[a-z]{3}|figd|dckr_pat)[-_][A-Za-z0-9_\-]{16,}|\b(?:secret|pat|r8)_[A-Za-z0-9]{20,}"
        r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_\-]{35}|\bya29\.[0-9A-Za-z_\-]{20,}"
        r"|\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}|\b(?:AC|SK)[0-9a-f]{32}\b|\bkey-[0-9a-f]{32}\b"
        r"|\b\d{8,10}:AA[A-Za-z0-9_\-]{33}",
        "secret-{n}",
    ),
    _rule("jwt", r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?", "secret-jwt-{n}"),
    _rule("bearer", r"(?i)\bbearer\s{1,9}(?P<value>[a-z0-9._~+/\-]{16,}=*)", "secret-{n}", _secret_words),
    _rule(
        "url_password",
        r"://(?P<value>[^\s/:@\"'<>]{0,256}:[^\s/@\"'<>]{1,256})@",
        "user:secret-{n}",
    ),
    _rule(
        "url_token",
        r"(?i)[?&#](?:[a-z_\-]{0,20}(?:token|key|secret|passw(?:or)?d|pwd)|sig|signature|code|auth)="
        r"(?P<value>[^\s&#\"'<>]{6,512})",
        "secret-{n}",
        _secret_words,
    ),
    _rule(
        "named_secret",
        rf"(?i)\b{_NAMES}\b[\"']?\s{{0,3}}(?:[:=]\s{{0,3}}[\"']?(?P<value>[^\s\"',;]{{3,256}})"
        rf"|(?:is|to)\s{{1,3}}[\"']?(?=[^\s\"',;]{{0,64}}\d)(?P<said>[^\s\"',;]{{3,256}}))",
        "secret-{n}",
        _secret_words,
    ),
    # Tried where a word begins and nowhere within: a word of thousands of letters would take minutes otherwise.
    _rule(
        "email",
        rf"(?<![{_LETTERS}._%+\-])[{_LETTERS}._%+\-]+@[\w\-]+(?:\.[\w\-]+)*"
        r"\.(?:xn--[A-Za-z0-9\-]{2,59}|[A-Za-z]{2,63}|[^\W\d_A-Za-z]{2,63})",
        "user{n}@example.com",
    ),
    _rule("iban", r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ \-]?[A-Za-z0-9]){11,40}", "XX00TEST{n:08d}", _ibans),
    _rule("card", r"(?<![\d.,])\d(?:[ \-]?\d){12,}(?![\d])", "400000000000{n:04d}", _cards),
    _rule("ssn", r"(?<![\w\-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w\-])", "900-00-{n:04d}"),
    _rule(
        "account",
        r"(?i)\b(?:ssn|social security(?: (?:number|no\.?))?|itin|tin|(?:bank |checking |savings )?account|acct|a/c"
        r"|routing|aba|sort code|iban|konto(?:nummer)?|passport|driver'?s licen[cs]e)\b\.?"
        r"(?: ?(?:number|num|no|nr|id|#)\b\.?)?"
        r"[ :#=]{0,4}(?:is |of )?(?P<value>(?=[A-Z]{0,2}\d)[A-Z]{0,2}\d(?:[ \-]?\d){5,17})(?![\w])",
        "9{n:08d}",
    ),
    _rule(
        "phone",
        r"(?<![\w.])(?:\+|00)\d(?:[ ()/.\-]{0,3}\d){6,14}(?!\w)"
        # North America, with and without its 1
        r"|(?<![\w.])(?:1[ .\-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .\-])[2-9]\d{2}[ .\-]\d{4}(?![\w\-])"
        # a trunk zero: the United Kingdom, Germany, France, the Netherlands, Australia, Japan, …
        r"|(?<![\w.,:/\-])(?:\(0\d{1,4}\)|0[1-9]\d{0,3})[ /.\-]{1,3}\d{2,8}(?:[ .\-]\d{2,6}){0,4}(?![\w:\-])"
        r"|(?<![\w.,:/\-])0[1-9]\d{8,9}(?![\w.,])"
        # pairs, and groups of two and three: Norway, Denmark, Poland, Spain, Portugal; India; China; Brazil; Russia
        r"|(?<![\w.,:/\-])(?:[2-9]\d(?: \d{2}){3}|[4-9]\d{2} \d{2} \d{3}|[5-79]\d{2}(?: \d{3}){2})(?! ?\d|[\w:.,]\d)"
        r"|(?<![\w.,])(?:[6-9]\d{4}[ \-]\d{5}|1[3-9]\d(?:[ \-]?\d{4}){2}|\(\d{2}\) ?9?\d{4}-\d{4}"
        r"|8 ?\(\d{3}\) ?\d{3}-\d{2}-\d{2})(?!\w)",
        "+1555010{n:04d}",
        _phones,
    ),
    _rule(
        "said_phone",
        r"(?i)\b(?:tele?phone|phone|tel|mobile|cell|fax|whatsapp|sms|dial|call|ring|text|telefon|tlf|mobil|handy)\b"
        r"[^\d\n+(]{0,20}(?P<value>[+(]{0,2}\d[\d ()./\-]{5,20}\d)(?![\w:])",
        "+1555010{n:04d}",
        _phones,
    ),
    _rule(
        "ipv6",
        r"(?<![\w:.])(?=[0-9A-Fa-f:]{0,5}:)[0-9A-Fa-f:]{2,39}(?:(?:\d{1,3}\.){3}\d{1,3})?(?![\w])",
        "2001:db8::{n}",
        _ipv6,
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
# A text made of nothing but "pin: 1234" would otherwise be searched once for each of them.
_MAX_KNOWN = 200
# Names of arguments, in any spelling: `clientSecret`, `client_secret`, `client-secret`.
_REMOVED_NAMES = """
password passwd passphrase passcode pwd secret token apikey accesstoken refreshtoken authtoken bearertoken idtoken
sessiontoken clientsecret secretkey accesskey privatekey secretaccesskey credentials pin pincode otp cvv cvv2 cvc
cardcvv securitycode ssn socialsecuritynumber
"""
_REMOVED_KEYS = frozenset(_REMOVED_NAMES.split())
_WITHOUT_SIGNS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Redacted:
    """A record without personal data, and how many values of each class were found in it."""

    record: dict[str, Any]
    found: Mapping[str, int]


@dataclass(frozen=True)
class Redactor:
    """Rules, tried in their order, and the names of arguments whose values are removed, wherever else they stand."""

    rules: tuple[Rule, ...] = DEFAULT_RULES
    removed_keys: frozenset[str] = _REMOVED_KEYS

    @property
    def classes(self) -> frozenset[str]:
        """What `Redacted.found` may count."""
        return frozenset({*(rule.name.removeprefix("said_") for rule in self.rules), "named_secret"})

    def only(self, classes: Container[str]) -> Redactor:
        """A redactor of these classes alone."""
        rules = tuple(rule for rule in self.rules if rule.name.removeprefix("said_") in classes)
        return Redactor(rules, self.removed_keys if "named_secret" in classes else frozenset())

    def record(self, value: Mapping[str, Any], public: Any = ()) -> dict[str, Any]:
        """A record of JSON values without personal data; keys stay as they are.

        Args:
            public: what occurs in it is not personal and stays, such as the values that a tool's schema lists.
        """
        return self.redacted(value, public).record

    def redacted(self, value: Mapping[str, Any], public: Any = ()) -> Redacted:
        """The same, with counts by class: a rule's name; `named_secret` also counts values removed by their keys."""
        redaction = _Redaction(self, json.dumps(public, ensure_ascii=False) if public else "")
        redaction.collect(value)
        record = {key: redaction.value(item) for key, item in value.items()}
        counts = Counter(redaction.classes.values())
        if redaction.n_removed:
            counts["named_secret"] += redaction.n_removed
        return Redacted(record, dict(counts))


@dataclass
class _Redaction:
    """One record's numbers: which value has become which."""

    redactor: Redactor
    public: str
    numbers: dict[str, dict[str, int]] = field(default_factory=dict)  # by the form that takes a value's place
    classes: dict[tuple[str, int], str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    made_up: set[str] = field(default_factory=set)
    known: dict[str, Rule] = field(default_factory=dict)  # found by the words around it, once
    n_removed: int = 0

    def collect(self, value: Any) -> None:
        """Find the values of the arguments that are removed by name, and those that words tell to be personal: a user
        has said them before, or the model repeats them in an argument, without those words.
        """
        if isinstance(value, str):
            self._collect_text(value)
        elif isinstance(value, Mapping):
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

    def _collect_text(self, text: str) -> None:
        for rule in self.redactor.rules:
            if rule.is_contextual:
                for start, end in rule.found(text):
                    if len(self.known) >= _MAX_KNOWN:
                        return  # each is still replaced where it was found
                    if end - start >= _MIN_REMOVED_CHARS and text[start:end] not in self.public:
                        self.known.setdefault(text[start:end], rule)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {key: self._member(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, int) and not isinstance(value, bool) and str(value) in self.known:
            return int(re.sub(r"\D", "", self._replace(self.known[str(value)], str(value))) or 0)
        return value

    def _member(self, key: str, item: Any) -> Any:
        if self._is_removed(key, item):
            self.n_removed += 1
            # A number's place is kept by a number.
            return _REMOVED if isinstance(item, str) else 0
        return self.value(item)

    def _is_removed(self, key: str, item: Any) -> bool:
        if not isinstance(item, str | int | float) or isinstance(item, bool):
            return False
        return (
            key.lower() in self.redactor.removed_keys
            or _WITHOUT_SIGNS.sub("", key.lower()) in self.redactor.removed_keys
        )

    def _text(self, text: str) -> str:
        # The longest first: one may be a part of another.
        for removed in sorted(self.removed, key=len, reverse=True):
            text = text.replace(removed, _REMOVED)
        for known in sorted(self.known, key=len, reverse=True):
            if known in text:
                text = re.sub(rf"(?<!\w){re.escape(known)}(?!\w)", self._replace(self.known[known], known), text)
        for rule in self.redactor.rules:
            text = self._applied(rule, text)
        return text

    def _applied(self, rule: Rule, text: str) -> str:
        parts, position = [], 0
        for start, end in rule.found(text):
            parts += [text[position:start], self._replace(rule, text[start:end])]
            position = end
        return "".join([*parts, text[position:]]) if parts else text

    def _replace(self, rule: Rule, text: str) -> str:
        if text in self.public or text in self.made_up:
            return text
        numbers = self.numbers.setdefault(rule.replacement, {})
        # A number that the model wrote without its spaces is still the same number.
        number = numbers.setdefault(_WITHOUT_SIGNS.sub("", text).lower(), len(numbers) + 1)
        self.classes.setdefault((rule.replacement, number), rule.name.removeprefix("said_"))
        made_up = rule.replacement.format(n=number)
        self.made_up.add(made_up)
        return made_up


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
    return Redactor((*own, *kept), _REMOVED_KEYS | {key.lower() for key in _names(path, value, "removed_keys")})


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
