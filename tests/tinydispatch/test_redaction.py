from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from scripts import check_redaction
from tinydispatch.redaction import RedactionError, Redactor, load_redactor


def _text(text: str) -> str:
    found: str = Redactor().record({"text": text})["text"]
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Ada.L+x@sub.example.org.", "write to user1@example.com."),
        ("call +47 22 12 34 56 now", "call +15550100001 now"),
        ("call (212) 555-0199", "call +15550100001"),
        ("pay with 4111 1111 1111 1111", "pay with 4000000000000001"),
        ("to DE89 3704 0044 0532 0130 00", "to XX00TEST00000001"),
        ("key sk-abcdefghijklmnop1234", "key secret-1"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer secret-1"),
        ("ping 10.1.2.3", "ping 192.0.2.1"),
    ],
)
def test_personal_data_becomes_made_up_data_of_the_same_form(text: str, expected: str) -> None:
    assert _text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "on 2026-03-19 at 2026-03-19T10:30, 1234567890123456 pieces",
        "convert 1500.50 USD to EUR, order 4111111111111112",
        "Europe/Oslo, version 1.2, 30 minutes, @home",
    ],
)
def test_dates_amounts_and_order_numbers_stay(text: str) -> None:
    assert _text(text) == text


def test_a_value_stays_one_value_across_a_record() -> None:
    record = {
        "messages": [{"content": "mail bo@x.org and al@x.org, then BO@x.org"}],
        "calls": [{"name": "send_email", "arguments": {"to": ["bo@x.org", "al@x.org"], "password": "hunter2"}}],
    }
    found: Any = Redactor().record(record)
    assert found["messages"][0]["content"] == "mail user1@example.com and user2@example.com, then user1@example.com"
    assert found["calls"][0]["arguments"] == {"to": ["user1@example.com", "user2@example.com"], "password": "removed"}
    assert found["calls"][0]["name"] == "send_email"


def test_a_long_text_without_anything_to_find_is_read_in_one_pass() -> None:
    # With a pattern that starts anew at every letter each of these would take minutes.
    for text in ("a" * 300_000, "a." * 150_000, "a@" * 100_000, "@" + "a-" * 100_000, "1 " * 100_000, "A1" * 100_000):
        assert _text(text) == text


def test_a_password_goes_from_the_sentence_too() -> None:
    arguments = {"user": "bo", "password": "hunter2", "pin": 4711, "token": True, "otp": "12"}
    record = {
        "messages": [{"content": "log bo in with hunter2, pin 4711, 12 times"}, {"content": "hunter2222"}],
        "calls": [{"name": "log_in", "arguments": arguments}],
    }
    found: Any = Redactor().record(record)
    assert found["messages"][0]["content"] == "log bo in with removed, pin removed, 12 times"
    assert "hunter2" not in json.dumps(found)
    assert found["calls"][0]["arguments"] == {
        "user": "bo", "password": "removed", "pin": 0, "token": True, "otp": "removed",
    }  # fmt: skip


def test_what_a_tool_offers_is_not_personal() -> None:
    offered = [{"parameters": {"properties": {"to": {"enum": ["sales@x.org"]}}}}]
    assert Redactor().record({"a": "sales@x.org, me@x.org"}, offered) == {"a": "sales@x.org, user1@example.com"}


def test_a_file_adds_rules_and_leaves_some_out(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    rules = [{"name": "customer", "pattern": "C-[0-9]{6}", "replacement": "C-{n:06d}"}]
    path.write_text(json.dumps({"rules": rules, "without": ["ip_address"], "removed_keys": ["Diagnosis"]}))
    found = load_redactor(path).record({"a": "C-123456 at 10.1.2.3", "b": {"diagnosis": "flu", "pin": "1"}})
    assert found == {"a": "C-000001 at 10.1.2.3", "b": {"diagnosis": "removed", "pin": "removed"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ('{"rule": []}', "expected an object with"),
        ('{"rules": [{"name": "a"}]}', "KeyError"),
        ('{"rules": [{"name": "a", "pattern": "(", "replacement": ""}]}', "rule"),
        ('{"rules": [{"name": "a", "pattern": "x*", "replacement": ""}]}', "matches the empty text"),
        ('{"rules": [{"name": "a", "pattern": "x", "replacement": "{m}"}]}', "KeyError"),
        ('{"without": ["names"]}', "names no built-in rule"),
        ('{"removed_keys": "pin"}', "must be an array"),
    ],
)
def test_a_file_of_rules_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(RedactionError, match=message):
        load_redactor(path)


def test_the_written_corpus_is_held_and_its_look_alikes_are_left_alone() -> None:
    _, wrong = check_redaction.misses(Redactor())
    assert wrong == []


@pytest.mark.parametrize("unit", ["4 ", "12-", "pin: 1234x9 ", "-----BEGIN PRIVATE KEY-----", "ab:", "://a:", "DE12 "])
def test_hostile_text_takes_time_in_proportion_to_its_length(unit: str) -> None:
    def seconds(n_chars: int) -> float:
        start = time.process_time()
        _text(unit * (n_chars // len(unit)))
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 12 * max(seconds(10_000), 0.005)


def test_an_account_that_words_told_is_replaced_in_the_argument_too() -> None:
    record = {"say": "pay from account 12345678", "call": {"account_number": "12345678", "amount": 12}}
    assert Redactor().record(record) == {
        "say": "pay from account 900000001", "call": {"account_number": "900000001", "amount": 12},
    }  # fmt: skip
