"""The dispatch model and an endpoint behind one face: a conversation in, a reply out, failures as values."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tinydispatch.layers.endpoint import Endpoint, LayerFailure
from tinydispatch.layers.escalation import ReplyView
from tinydispatch.layers.names import Handover, Reason
from tinydispatch.layers.prompts import ORCHESTRATION_PROMPT, with_instructions
from tinydispatch.tools import Message, Tool, check_calls


class DispatchModel(Protocol):
    """What the stack needs of a dispatcher; `tinydispatch.dispatcher.Dispatcher` is one."""

    def dispatch(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, listener: Any = None
    ) -> Any:
        """A `Dispatch`."""
        ...


@dataclass(frozen=True)
class Answer:
    """A reply with what it took."""

    view: ReplyView
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class DispatchLayer:
    """The small model in this process; it is asked by one thread at a time."""

    def __init__(self, model: DispatchModel, max_tools: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._max_tools, self._clock = model, max_tools, clock
        self._lock = threading.Lock()

    def ask(self, messages: Sequence[Message], tools: Sequence[Tool], deadline: float) -> Answer | Handover:
        """The reply; or why there is none: too many tools, or a conversation that the model cannot read."""
        if len(tools) > self._max_tools:
            return Handover(Reason.TOO_MANY_TOOLS, f"{len(tools)} tools, {self._max_tools} fit")
        with self._lock:
            try:
                reply = self._model.dispatch(messages, tools=tools, listener=lambda _: self._clock() < deadline)
            except ValueError as error:
                # The dispatcher's word for a prompt that leaves no room; other errors are about tools or templates.
                is_size = "does not fit the context" in str(error)
                return Handover(Reason.TOO_MANY_TOOLS if is_size else Reason.LAYER_FAILED, str(error)[:300])
        view = ReplyView(
            reply.calls, reply.reply, reply.violations, len(reply.unparsed), reply.is_complete,
            reply.confidence, reply.is_confident,
        )  # fmt: skip
        return Answer(view, reply.tokens.prompt, reply.tokens.generated)


class EndpointLayer:
    """A larger model at an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def ask(self, messages: Sequence[Message], tools: Sequence[Tool], deadline: float) -> Answer | Handover:
        """The next calls or words of a model that carries a request out step by step."""
        return self._ask(with_instructions(messages, ORCHESTRATION_PROMPT), tools, deadline)

    def write(self, messages: Sequence[Message], deadline: float) -> Answer | Handover:
        """Words of a model that is offered no tools: a plan."""
        return self._ask(messages, (), deadline)

    def _ask(self, messages: Sequence[Message], tools: Sequence[Tool], deadline: float) -> Answer | Handover:
        reply = self.endpoint.complete(messages, tools, deadline)
        if isinstance(reply, LayerFailure):
            return Handover(Reason.LAYER_FAILED, f"{reply.kind}: {reply.detail}")
        violations = tuple(check_calls(reply.calls, tools))
        view = ReplyView(reply.calls, reply.text, violations, len(reply.unparsed), reply.is_complete)
        return Answer(view, reply.prompt_tokens, reply.completion_tokens, self.endpoint.cost(reply))
