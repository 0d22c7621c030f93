"""Greedy decoding that evaluates together what is already decided: forced ids, and guesses that are then verified.

An id that was guessed counts only when it is the very id that would have been chosen, so guesses change the time and
never the reply.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinydispatch.decoding.constraint import Constraint, best
from tinydispatch.decoding.recall import Trail
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.formats import CALL_START
from tinydispatch.ggml.runtime import Logits, Runtime

# Hears the bytes of each id as it is decided; False ends the reply.
Listener = Callable[[bytes], bool]
# The ids so far → ids that may well follow.
Drafter = Callable[[Sequence[int]], list[int]]
# Ids that are likely by what earlier replies went on with, evaluated at a time.
_MAX_RECALLED = 24


@dataclass(frozen=True)
class Choice:
    """An id that the model chose: where its text begins in the reply, in bytes, and how likely it was."""

    position: int
    probability: float


@dataclass
class Decoding:
    """A reply as it grows. `seconds_forced` is the forced ids' share of the time for evaluation."""

    ids: list[int] = field(default_factory=list)
    are_forced: list[bool] = field(default_factory=list)  # one for each of the ids
    choices: list[Choice] = field(default_factory=list)
    n_bytes: int = 0
    is_complete: bool = False
    n_forced: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    seconds_forced: float = 0.0
    seconds_chosen: float = 0.0


class GreedyDecoder:
    """Writes one reply into `result`; the prompt is in the runtime's cache already.

    Args:
        opening: what a reply is likely to begin with, guessed where nothing else is recalled.
    """

    def __init__(
        self,
        runtime: Runtime,
        texts: Sequence[bytes],
        constraint: Constraint,
        drafter: Drafter | None = None,
        listener: Listener | None = None,
        trail: Trail | None = None,
        opening: Sequence[int] = (),
    ) -> None:
        self.runtime, self.texts, self.constraint = runtime, texts, constraint
        self.drafter, self.listener, self.trail, self.opening = drafter, listener, trail, list(opening)
        self.result = Decoding()
        self._pending: list[int] = []  # decided, not evaluated
        self._n_pending_forced = 0
        # Guesses that are evaluated already, each with the logits after it.
        self._ahead: list[tuple[int, Logits]] = []
        self._is_heard = True
        self._guesses = drafter is not None or trail is not None

    def start(self, room: int) -> tuple[list[int], list[int]]:
        """The ids that every reply begins with, and guesses; they are to be evaluated with the prompt."""
        ids = self.constraint.take_forced()
        self._record(ids, is_forced=True)
        self.result.n_forced += len(ids)
        return ids[:room], self._guess(room - len(ids))

    def run(self, guess: Sequence[int], rows: Logits, limit: int) -> Decoding:
        """Go on from the logits after the prompt and what `start` gave, up to `limit` ids in all.

        `rows` are the logits after the last id that is decided, and after each of the guesses.

        Raises:
            GrammarError: llguidance gave up on the grammar; names the tool of the call that was being written, ""
                before its name.
        """
        result = self.result
        logits = self._look_ahead(guess, rows)
        while not self.constraint.is_stopped:
            if len(result.ids) >= limit or not self._is_heard:
                return result
            if self._pending:
                logits = self._evaluate(limit - len(result.ids))
            token, probability = best(logits, self.constraint.mask())
            self._check_constraint()
            if token in self.runtime.eog_ids:
                result.choices.append(Choice(result.n_bytes, probability))
                break
            self.constraint.take(token)
            result.choices.append(Choice(result.n_bytes, probability))
            logits = self._append(token, logits)
            self._record([token], is_forced=False)
            for forced in (ids := self.constraint.take_forced()):
                logits = self._append(forced, logits)
                self._n_pending_forced += bool(self._pending)
            self._record(ids, is_forced=True)
            result.n_forced += len(ids)
        self._check_constraint()
        result.is_complete = len(result.ids) <= limit
        if self.trail is not None and result.is_complete:
            self.trail.learn()
        return result

    def _check_constraint(self) -> None:
        """A grammar that gave up allows nothing and says it has stopped: that is no end of a reply."""
        if problem := self.constraint.problem:
            text = b"".join(self.texts[token] for token in self.result.ids).decode("utf-8", "replace")
            named = re.match(r'\s*(?:\{"name": "|<function=)([^">\n]*)[">\n]', text.rpartition(CALL_START)[2])
            is_call = named is not None and CALL_START in text
            raise GrammarError(
                named[1] if is_call and named else "", "", f"the grammar failed while the reply was written: {problem}"
            )

    def _record(self, ids: Sequence[int], *, is_forced: bool) -> None:
        if self.trail is not None:
            self.trail.follow(ids, is_forced=is_forced)
        for token in ids:
            text = self.texts[token]
            self.result.ids.append(token)
            self.result.are_forced.append(is_forced)
            self.result.n_bytes += len(text)
            if self.listener is not None and not self.listener(text):
                self._is_heard = False

    def _append(self, token: int, logits: Logits) -> Logits:
        if self._ahead and self._ahead[0][0] == token:
            self.result.n_accepted += 1
            return self._ahead.pop(0)[1]
        self._drop_ahead()
        self._pending.append(token)
        return logits

    def _drop_ahead(self) -> None:
        if self._ahead:
            kept = self.runtime.cached_ids[: -len(self._ahead)]
            self.runtime.truncate(len(kept))
            self._ahead = []
            if lost := kept[len(self.runtime.cached_ids) :]:
                # A recurrent state cannot be cut: what it held is computed again, and nothing is guessed any more.
                self._pending, self._guesses = [*lost, *self._pending], False

    def _evaluate(self, room: int) -> Logits:
        started = time.perf_counter()
        pending, n_forced = self._pending, self._n_pending_forced
        self._pending, self._n_pending_forced = [], 0
        guess = self._guess(room)
        # The ids before the last pending one are decided: their logits, an output matrix each, are not needed.
        logits = self._look_ahead(guess, self.runtime.decode_all([*pending, *guess], len(pending) - 1))
        elapsed = time.perf_counter() - started
        share = n_forced / len(pending)
        self.result.seconds_forced += elapsed * share
        self.result.seconds_chosen += elapsed * (1 - share)
        return logits

    def _guess(self, room: int) -> list[int]:
        """Ids that may well follow, at least one fewer than there is room for."""
        if not self._guesses:
            return []
        recalled = self.trail.guess(_MAX_RECALLED) if self.trail is not None else []
        if not self.result.ids and self.opening[: len(recalled)] == recalled:
            recalled = self.opening
        copied = self.drafter(self.result.ids) if self.drafter is not None and not recalled else []
        return self.constraint.likely(recalled, copied)[: max(0, room - 1)]

    def _look_ahead(self, guess: Sequence[int], rows: Logits) -> Logits:
        self.result.n_drafted += len(guess)
        self._ahead = list(zip(guess, rows[1:], strict=True))
        logits: Logits = rows[0]
        return logits
