"""What earlier replies with the same tools went on with: guesses for the choices that a grammar leaves open.

Most of what a reply chooses is the same each time: to call at all, the key that follows a location, a year. A place is
named by the forced text before it and the id before it, so that what was said in between does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# The last forced run, and the last id.
Place = tuple[tuple[int, ...], int]
_START: Place = ((), -1)
_MAX_PLACES = 4096
# A wrong guess costs about half of what a right one saves.
_WORTH_GUESSING = 0.4


class Recall:
    """The replies so far to one set of tools; bounded, and forgotten with the process."""

    def __init__(self) -> None:
        # What followed each place: a chosen id, or a whole forced run.
        self._next: dict[Place, Counter[tuple[tuple[int, ...], bool]]] = {}

    def trail(self) -> Trail:
        """A new reply."""
        return Trail(self)

    def forget(self) -> None:
        """Know nothing again."""
        self._next.clear()

    def guess(self, place: Place, n_ids: int) -> list[int]:
        """Up to `n_ids` ids that are likely to follow, together more likely than not worth their evaluation."""
        ids: list[int] = []
        certainty = 1.0
        while len(ids) < n_ids and (known := self._next.get(place)):
            (run, is_forced), count = known.most_common(1)[0]
            # One reply says little about a choice, and much about what the grammar forces.
            certainty *= count / (known.total() + (not is_forced))
            if certainty < _WORTH_GUESSING:
                break
            ids += run
            place = _after(place, run, is_forced=is_forced)
        return ids[:n_ids]

    def learn(self, steps: Sequence[tuple[Place, tuple[int, ...], bool]]) -> None:
        """Remember a whole reply."""
        if len(self._next) > _MAX_PLACES:
            self.forget()
        for place, run, is_forced in steps:
            self._next.setdefault(place, Counter())[run, is_forced] += 1


class Trail:
    """One reply on its way."""

    def __init__(self, recall: Recall) -> None:
        self._recall, self._place = recall, _START
        self._steps: list[tuple[Place, tuple[int, ...], bool]] = []

    def follow(self, ids: Sequence[int], *, is_forced: bool) -> None:
        """The reply went on with a chosen id, or with a forced run."""
        if ids:
            self._steps.append((self._place, tuple(ids), is_forced))
            self._place = _after(self._place, tuple(ids), is_forced=is_forced)

    def guess(self, n_ids: int) -> list[int]:
        """Ids that are likely to follow."""
        return self._recall.guess(self._place, n_ids)

    def learn(self) -> None:
        """The reply is whole: remember it."""
        self._recall.learn(self._steps)


def _after(place: Place, ids: tuple[int, ...], *, is_forced: bool) -> Place:
    return (ids if is_forced else place[0], ids[-1])
