"""Runs a conversation to its end: models decide, tools are run, results are fed back, and turns are handed up."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tinydispatch.layers.endpoint import Endpoint
from tinydispatch.layers.ledger import Ledger
from tinydispatch.layers.models import DispatchLayer, DispatchModel, EndpointLayer
from tinydispatch.layers.names import Layer
from tinydispatch.layers.policy import PolicyError, StackPolicy
from tinydispatch.layers.run import Run
from tinydispatch.layers.run_state import RunEnd, RunState
from tinydispatch.layers.tool_calls import BoundTool
from tinydispatch.layers.toolbox import Toolbox
from tinydispatch.layers.trace import Tracer
from tinydispatch.tools import Message, Role, ToolCall

Confirm = Callable[[ToolCall, str], bool]


class Closeable(Protocol):
    """A dispatcher that the stack has opened itself."""

    def close(self) -> None:
        """Free the model."""
        ...


class Stack:
    """Up to three layers over one set of tools; use it as a context manager, or call `close`.

    Args:
        policy: which layers there are and what they may do. The dispatch model's file is opened by `open_stack`.
        tools: what can be run.
        dispatcher: the dispatch model; None where there is none.
        ledger: which calls were made before; with a file, an effect is not repeated after a restart either.
        tracer: where steps are written; None sends them to OpenTelemetry where it is installed.
        reference_date: "today" for relative dates, as the upper layers are told it; None takes the day of each run.
        confirm: asks a person about a call with side effects while the run waits; None ends the run in
            `needs_confirmation`, to be gone on with by `resume`.

    Raises:
        PolicyError: an endpoint cannot be used as it is configured.
    """

    def __init__(
        self,
        policy: StackPolicy,
        tools: Sequence[BoundTool],
        dispatcher: DispatchModel | None = None,
        *,
        reference_date: dt.date | None = None,
        ledger: Ledger | None = None,
        tracer: Tracer | None = None,
        confirm: Confirm | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.policy = policy
        self.toolbox = Toolbox(tools, policy.tools, ledger, clock=clock, sleep=sleep)
        self.tracer = tracer or Tracer()
        self.reference_date, self.confirm, self.clock = reference_date, confirm, clock
        self.owned: Closeable | None = None
        self.dispatch = DispatchLayer(dispatcher, policy.escalation.max_tools, clock) if dispatcher else None
        self.endpoints: dict[Layer, EndpointLayer] = {}
        for layer, config in ((Layer.ORCHESTRATION, policy.orchestration), (Layer.PLANNING, policy.planning)):
            if config is not None:
                self.endpoints[layer] = EndpointLayer(Endpoint(config, sleep, clock))
        if not self.layers:
            raise PolicyError("a stack without a dispatcher and without endpoints cannot answer anything")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that are there, from the cheapest."""
        return (*((Layer.DISPATCH,) if self.dispatch else ()), *self.endpoints)

    def run(self, messages: Sequence[Message] | str, conversation: str = "") -> RunEnd:
        """Answer the user's last message.

        Args:
            messages: the whole conversation; a string is one user message.
            conversation: names the conversation. The same request of the same conversation does nothing twice, even
                when it is sent again; "" makes every run a conversation of its own.

        Raises:
            ValueError: there is no message of the user's.
        """
        known = [Message(Role.USER, messages)] if isinstance(messages, str) else list(messages)
        if not any(message.role is Role.USER for message in known):
            raise ValueError("nothing to do: there is no message of the user's")
        state = RunState(known, conversation or uuid.uuid4().hex, self.layers[0], self.clock())
        return Run(self, state).to_end()

    def resume(self, end: RunEnd, *, is_agreed: bool) -> RunEnd:
        """Go on with a run that waited for a person, who has agreed to its calls or declined them."""
        if end.waiting is None or not isinstance(end.run, Run):
            raise ValueError(f"nothing waits for a decision: the run ended in '{end.state}'")
        return end.run.decided(end.waiting.keys, is_agreed=is_agreed)

    def close(self) -> None:
        """Drop connections and close the trace; a dispatcher that was handed in belongs to whoever made it."""
        for layer in self.endpoints.values():
            layer.endpoint.close()
        self.tracer.close()
        if self.owned is not None:
            self.owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_stack(policy: StackPolicy, tools: Sequence[BoundTool], **settings: Any) -> Stack:
    """A stack with the dispatch model that its policy names; closing it frees the model.

    Args:
        settings: those of `Stack`, such as `confirm` and `tracer`.

    Raises:
        ValueError: the model file cannot be used, or a tool's schema cannot be expressed as a grammar.
    """
    if policy.dispatch is None:
        return Stack(policy, tools, **settings)
    from tinydispatch.dispatcher import Dispatcher  # a stack of endpoints alone needs no engine

    allowed = policy.tools.allowed
    offered = [bound.tool for bound in tools if allowed is None or bound.tool.name in allowed]
    dispatcher = Dispatcher(Path(policy.dispatch), offered, settings.get("reference_date"))
    try:
        stack = Stack(policy, tools, dispatcher, **settings)
    except BaseException:
        dispatcher.close()
        raise
    stack.owned = dispatcher
    return stack
