"""The suite's own answers as a model: `gold` shows that every case can be passed, by each rule that scores it."""

from __future__ import annotations

from collections.abc import Sequence

from eval.backends import Failure, Generation, PlaybackBackend, Request
from eval.backends.base import ClosesOnExit
from eval.cases import Case, Suite
from eval.episodes import play
from tinydispatch.formats import render_calls

GOLD = "gold"
# What a reply in words says is not judged.
_WORDS = "Is there anything else?"


def gold_backend(suites: Sequence[Suite]) -> PlaybackBackend:
    """Plays the expected calls back, words where no call may be made, and a played case's script turn by turn."""
    replies: dict[str, list[str]] = {}
    for suite in suites:
        for case in suite.cases:
            if case.episode is None:
                request = Request(case.messages, suite.tools_for(case), case.today)
                text = render_calls([wanted.examples()[0] for wanted in case.expected])
                # One data set may hold a request twice and want different things: they are asked in the suite's order.
                replies.setdefault(PlaybackBackend.key(request), []).append(text or _WORDS)
            else:
                script = _Script(case)
                play(script, [case], suite)
                replies.update({key: [text] for key, text in script.replies.items()})
    return PlaybackBackend(replies)


class _Script(ClosesOnExit):
    """Says a played case's lines one by one and notes what each was the reply to."""

    batch_size = 1

    def __init__(self, case: Case) -> None:
        assert case.episode is not None, "only cases with an episode are played"
        self.replies: dict[str, str] = {}
        self._lines: list[str] = []
        for phase in case.episode.phases:
            self._lines += [render_calls([wanted.examples()[0] for wanted in step.calls]) for step in phase.steps]
            self._lines.append(_WORDS)

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """The next line."""
        texts = [self._lines.pop(0) for _ in requests]
        self.replies.update(zip(map(PlaybackBackend.key, requests), texts, strict=True))
        return [Generation(text, 0.0, len(text)) for text in texts]
