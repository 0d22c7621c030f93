"""The hand-written lists of tables.yaml as frozen types, and the YAML dialect of all the generator's files."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

_PATH = Path(__file__).with_name("tables.yaml")


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
    return load_tables(_PATH)
