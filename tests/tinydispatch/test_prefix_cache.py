from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.prefix_cache import PrefixCache, shared_prefix


def _saved(folder: Path, owner: bytes = b"model") -> PrefixCache:
    return PrefixCache(owner, folder)


def test_the_state_that_shares_most_is_found() -> None:
    cache = PrefixCache(b"model")
    cache.put([1, 2, 3], b"short")
    cache.put([1, 2, 3, 4, 5], b"long")
    cache.put([9], b"other")
    assert cache.find([1, 2, 3, 4, 6], 0) == ((1, 2, 3, 4, 5), b"long")
    assert cache.find([1, 2, 3, 4, 6], 4) is None
    assert cache.find([8], 0) is None


def test_a_state_outlives_the_process_and_belongs_to_its_model(tmp_path: Path) -> None:
    first = _saved(tmp_path)
    first.put([1, 2, 3], b"state")
    first.close()
    assert _saved(tmp_path).find([1, 2, 3, 4], 0) == ((1, 2, 3), b"state")
    assert _saved(tmp_path, b"another model").find([1, 2, 3, 4], 0) is None


@pytest.mark.parametrize("damage", ["truncated", "magic", "ids", "empty"])
def test_a_damaged_head_is_dropped_with_its_file(tmp_path: Path, damage: str) -> None:
    cache = _saved(tmp_path)
    cache.put([1, 2, 3], b"state")
    cache.close()
    (path,) = tmp_path.glob("*.prefix")
    data = bytearray(path.read_bytes())
    if damage == "magic":
        data[0] ^= 1
    elif damage == "ids":
        data[14] ^= 1
    path.write_bytes({"truncated": data[:20], "empty": b""}.get(damage, bytes(data)))
    assert _saved(tmp_path).find([1, 2, 3], 0) is None
    assert not path.exists()


def test_a_state_that_does_not_load_is_dropped_and_the_answer_stays(tmp_path: Path) -> None:
    dispatcher = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY, cache=tmp_path)
    dispatcher.dispatch("hi")
    dispatcher.close()
    (path,) = tmp_path.glob("*.prefix")
    path.write_bytes(path.read_bytes().replace(b"STATE", b"stale"))
    again = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY, cache=tmp_path)
    dispatch = again.dispatch("hi")
    again.close()
    assert (dispatch.reply, dispatch.tokens.cached) == ("ok", 0)
    assert path.read_bytes().count(b"STATE") == 1, "written anew"


def test_the_least_recently_used_file_goes_first(tmp_path: Path) -> None:
    for number in (1, 2):
        before = set(tmp_path.glob("*.prefix"))
        cache = PrefixCache(b"model", tmp_path, disk_bytes=2500)
        cache.put([number], b"x" * 1000)
        cache.close()
        (path,) = set(tmp_path.glob("*.prefix")) - before
        os.utime(path, (100 - number, 100 - number))  # the first was used last
    again = PrefixCache(b"model", tmp_path, disk_bytes=2500)
    again.put([3], b"x" * 1000)
    again.close()
    left = PrefixCache(b"model", tmp_path)
    assert [left.holds([number]) for number in (1, 2, 3)] == [True, False, True]


def test_a_file_that_another_process_dropped_is_done_without(tmp_path: Path) -> None:
    cache = _saved(tmp_path)
    cache.put([1, 2], b"short")
    cache.close()
    (short,) = tmp_path.glob("*.prefix")
    cache.put([1, 2, 3], b"long")
    cache.close()
    again = _saved(tmp_path)
    next(path for path in tmp_path.glob("*.prefix") if path != short).unlink()
    assert again.find([1, 2, 3, 4], 0) == ((1, 2), b"short")
    assert not again.holds([1, 2, 3])


def test_memory_is_bounded_and_holds_the_latest() -> None:
    cache = PrefixCache(b"model", memory_bytes=2500)
    for number in (1, 2, 3):
        cache.put([number], b"x" * 1000)
    assert [cache.holds([number]) for number in (1, 2, 3)] == [False, True, True]


def test_what_is_on_disk_is_not_held_in_memory_too(tmp_path: Path) -> None:
    cache = _saved(tmp_path)
    cache.put([1, 2, 3], b"state")
    cache.close()
    assert not cache._states
    assert cache.find([1, 2, 3, 4], 0) == ((1, 2, 3), b"state")
    assert not cache._states
    next(tmp_path.glob("*.prefix")).unlink()
    assert cache.find([1, 2, 3, 4], 0) is None


def test_no_half_written_file_is_left_behind(tmp_path: Path) -> None:
    cache = _saved(tmp_path)
    cache.put([1], b"state")
    cache.close()
    assert [path.suffix for path in tmp_path.glob("*.prefix")] == [".prefix"]


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = PrefixCache(b"model", blocked)
    cache.put([1, 2], b"state")
    cache.close()
    assert cache.find([1, 2], 0) == ((1, 2), b"state")


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [([], [], 0), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([2], [1], 0), ([1, 2], [1, 2], 2)],
)
def test_shared_prefix_counts_equal_items_at_the_start(left: list[int], right: list[int], length: int) -> None:
    assert shared_prefix(left, right) == length
