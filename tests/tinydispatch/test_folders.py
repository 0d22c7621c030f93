from __future__ import annotations

from pathlib import Path

import pytest

from tinydispatch.folders import cache_folder


@pytest.mark.parametrize(
    ("named", "base", "expected"),
    [("/own", "/base", "/own"), ("", "/base", "/base/tinydispatch"), ("", "", "/home/ada/.cache/tinydispatch")],
)
def test_who_names_the_cache(monkeypatch: pytest.MonkeyPatch, named: str, base: str, expected: str) -> None:
    for name, value in (("TINYDISPATCH_CACHE", named), ("XDG_CACHE_HOME", base), ("HOME", "/home/ada")):
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINYDISPATCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ValueError, match=r"no folder for the cache: .*set TINYDISPATCH_CACHE"):
        cache_folder()
