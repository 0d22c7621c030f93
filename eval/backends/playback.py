"""A backend that plays replies back, so that evaluation can be run and tested without a model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from eval.backends.base import ClosesOnExit, Failure, Generation, Request
from tinydispatch.tools import Role

Recorded = str | Generation | Failure


class PlaybackBackend(ClosesOnExit):
    """Answers by the whole request (`key`) or by the last user message; what is not recorded is a failure.

    A list holds the replies to one message in turn: the first, the one after its calls' results, and so on. Under a key
    it holds the replies to one request that is made again and again.
    """

    batch_size = 4

    def __init__(self, replies: Mapping[str, Recorded | Sequence[Recorded]]) -> None:
        self.replies = dict(replies)
        self._asked: Counter[str] = Counter()

    @staticmethod
    def key(request: Request) -> str:
        """Stands for a request, whichever draw it is of."""
        tools = [tool.to_openai() for tool in request.tools]
        return hashlib.sha256(repr((request.messages, tools, request.reference_date)).encode()).hexdigest()

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """The recorded replies; a string stands for a complete generation of no latency."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Generation | Failure:
        key = self.key(request)
        if key in self.replies:
            return _generation(self._next(key))
        roles = [message.role for message in request.messages]
        last = len(roles) - 1 - roles[::-1].index(Role.USER) if Role.USER in roles else -1
        text = request.messages[last].content if last >= 0 else ""
        recorded = self.replies.get(text, Failure(f"no reply is recorded for {text!r}"))
        if isinstance(recorded, list | tuple):
            turn = roles[last:].count(Role.ASSISTANT)
            missing = Failure(f"only {len(recorded)} replies are recorded for {text!r}")
            recorded = recorded[turn] if turn < len(recorded) else missing
        return _generation(recorded)

    def _next(self, key: str) -> Recorded | Sequence[Recorded]:
        recorded = self.replies[key]
        if not isinstance(recorded, list | tuple):
            return recorded
        self._asked[key] += 1
        found: Recorded = recorded[(self._asked[key] - 1) % len(recorded)]
        return found


def _generation(recorded: Recorded | Sequence[Recorded]) -> Generation | Failure:
    if isinstance(recorded, str):
        return Generation(recorded, latency_s=0.0, tokens=len(recorded))
    assert isinstance(recorded, Generation | Failure), "a reply is text, a generation or a failure"
    return recorded
