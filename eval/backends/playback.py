"""A backend that plays replies back, so that evaluation can be run and tested without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.backends.base import ClosesOnExit, Failure, Generation, Request
from tinydispatch.tools import Role


class PlaybackBackend(ClosesOnExit):
    """Answers by the last user message; a message without a recorded reply is a failure, not an empty reply."""

    batch_size = 4

    def __init__(self, replies: Mapping[str, str | Generation | Failure]) -> None:
        self.replies = dict(replies)

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """The recorded replies; a string stands for a complete generation of no latency."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Generation | Failure:
        text = next((m.content for m in reversed(request.messages) if m.role is Role.USER), "")
        reply = self.replies.get(text, Failure(f"no reply is recorded for {text!r}"))
        return Generation(reply, latency_s=0.0, tokens=len(reply)) if isinstance(reply, str) else reply
