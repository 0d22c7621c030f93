from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from babel.numbers import list_currencies

from data.synth.domains import invented_domains
from data.synth.lexicon import TableError, WordLoader, load_tables, tables

SHIPPED = Path(load_tables.__code__.co_filename).with_name("tables.yaml")


def test_on_no_and_off_are_words_and_true_is_a_boolean() -> None:
    assert yaml.load("[on, no, off, yes, NO, true, false]", WordLoader) == ["on", "no", "off", "yes", "NO", True, False]


def test_the_shipped_tables_load_with_their_order_and_repetitions() -> None:
    assert tables().major_currencies[:3] == ("USD", "EUR", "GBP")
    assert tables().currency_nicknames["USD"][:2] == ("dollars", "dollars")
    assert tables().tool_affixes.count("") == 5
    assert list(tables().zone_nicknames)[:2] == ["New York", "NYC"]


def test_every_currency_and_domain_that_the_tables_name_exists() -> None:
    named = {*tables().major_currencies, *tables().currency_nicknames, *tables().currency_symbols}
    assert named <= list_currencies("en")
    assert tables().near_bundled <= {spec.domain for spec in invented_domains()}


def test_every_follow_up_and_made_up_adjunct_has_room_for_the_value() -> None:
    assert all(phrase.count("{change}") == 1 for phrase in tables().follow_ups)
    assert all(phrase.count("{value}") == phrase.count("{name}") == 1 for phrase in tables().invented_adjuncts)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("fillers:", "filers:", "'filers': Extra inputs are not permitted"),
        ("fillers:", "filers:", "'fillers': Field required"),
        ("USD: [dollars,", "USD: [3,", "'currency_nicknames.USD.0': Input should be a valid string"),
        ("fillers: [", "fillers: [[", "not YAML"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(before: str, after: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(SHIPPED.read_text("utf-8").replace(before, after, 1), "utf-8")
    with pytest.raises(TableError) as error:
        load_tables(path)
    assert str(path) in str(error.value)
    assert complaint in str(error.value)
