from __future__ import annotations

from pathlib import Path

import pytest

from tinydispatch.server.keys import ApiKeys, SettingsError, load_keys
from tinydispatch.server.settings import Limits, ServerSettings, is_loopback

KEY = "a-key-of-enough-letters"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com"])
def test_beyond_this_machine_a_key_is_needed_or_a_word(host: str) -> None:
    with pytest.raises(SettingsError, match="there is no API key"):
        ServerSettings("m", host=host)
    assert ServerSettings("m", host=host, keys=ApiKeys((KEY,))).host == host
    assert ServerSettings("m", host=host, allows_anybody=True).host == host


def test_loopback_has_several_names() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"]))
    assert not any(map(is_loopback, ["", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1"]))


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# for the kitchen\n{KEY}-1\n\n  {KEY}-2  \n")
    path.chmod(0o600)
    keys = load_keys(path, {"TINYDISPATCH_API_KEYS": f"{KEY}-3, {KEY}-4"})
    assert all(keys.accepts(f"{KEY}-{number}") for number in range(1, 5))
    assert not keys.accepts(KEY)
    assert not keys.accepts("")
    assert not keys.accepts("ké\udce9")
    assert not load_keys(None, {})


def test_a_keys_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_keys(path, {})


@pytest.mark.parametrize(("text", "message"), [("# none\n", "holds no key"), ("short\n", "fewer than 16")])
def test_a_keys_file_without_a_proper_key_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match=message):
        load_keys(path, {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_keys(tmp_path / "absent", {})


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """As an editor or a secret's manager does it: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)


def test_a_changed_keys_file_counts_from_the_next_request_on(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    _write(path, f"{KEY}-1")
    keys = load_keys(path, {"TINYDISPATCH_API_KEYS": f"{KEY}-0"})
    _write(path, f"{KEY}-2")
    assert [keys.accepts(f"{KEY}-{number}") for number in (0, 1, 2)] == [True, False, True]


@pytest.mark.parametrize(("text", "mode"), [("", 0o600), ("short", 0o600), (f"{KEY}-2", 0o644), (None, 0)])
def test_a_keys_file_that_becomes_useless_changes_nothing_and_is_reported(
    tmp_path: Path, text: str | None, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    _write(path, f"{KEY}-1")
    keys = load_keys(path, {})
    if text is None:
        path.unlink()
    else:
        _write(path, text, mode)
    with caplog.at_level("INFO", "tinydispatch.server"):
        assert keys.accepts(f"{KEY}-1")
        assert not keys.accepts(f"{KEY}-2")
    (record,) = caplog.records
    assert record.getMessage() == "keys unchanged"
    assert KEY not in str(vars(record))
    _write(path, f"{KEY}-3")
    assert keys.accepts(f"{KEY}-3")


@pytest.mark.parametrize("key", ["a key of enough letters", "schlüssel-mit-umlaut", "tab\tin-the-middle-of"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="ASCII letters"):
        ApiKeys((key,))


def test_limits_are_more_than_nothing() -> None:
    with pytest.raises(SettingsError, match="max_waiting=0"):
        Limits(max_waiting=0)
