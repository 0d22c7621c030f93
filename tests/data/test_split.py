from __future__ import annotations

from data.split import Split, split_of


def held_out(fraction: float, count: int = 5000) -> set[int]:
    return {i for i in range(count) if split_of(f"dialogue-{i}", fraction) is Split.HELDOUT}


def test_about_the_asked_share_is_held_out() -> None:
    assert 0.08 < len(held_out(0.1)) / 5000 < 0.12
    assert held_out(0.0) == set()


def test_a_larger_share_keeps_what_was_held_out() -> None:
    assert held_out(0.05) < held_out(0.2)


def test_the_side_of_a_dialogue_never_changes() -> None:
    assert [i for i in range(40) if split_of(f"dialogue-{i}", 0.1) is Split.HELDOUT] == [14, 17, 21, 29]
