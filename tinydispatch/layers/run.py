"""One request on its way through the layers."""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinydispatch.formats import with_reference_date
from tinydispatch.layers.escalation import (
    Dependence,
    ReplyView,
    dependence,
    first_group,
    reply_reasons,
    request_number,
    request_text,
)
from tinydispatch.layers.models import Answer
from tinydispatch.layers.names import EndState, Handover, Layer, Reason
from tinydispatch.layers.policy import ErrorAction
from tinydispatch.layers.prompts import confirmation_question, question, uncertain_text
from tinydispatch.layers.run_state import RunEnd, RunState, Step, Waiting
from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome, canonical, idempotency_key, result_text
from tinydispatch.layers.toolbox import Permission
from tinydispatch.layers.trace import Span
from tinydispatch.tools import Message, Role, ToolCall

if TYPE_CHECKING:
    from tinydispatch.layers.stack import Stack


class Run:
    """Goes step by step: ask the layer that has the floor, judge its reply, run its calls, or hand up."""

    def __init__(self, stack: Stack, state: RunState) -> None:
        self.stack, self.state = stack, state
        self.words = [message.content for message in state.messages if message.role in (Role.USER, Role.SYSTEM)]
        self.dependence: Dependence = dependence(request_text(state.messages))
        self.request = request_number(state.messages)
        self._confirming, self._lock = threading.Lock(), threading.Lock()
        self.span: Span | None = None  # of this run

    @property
    def deadline(self) -> float:
        """By the stack's clock."""
        return self.state.started + self.stack.policy.limits.max_seconds

    @property
    def dated(self) -> tuple[Message, ...]:
        """The conversation as the upper layers read it; the dispatch model's own code tells it the date."""
        return with_reference_date(self.state.messages, self.stack.reference_date or dt.date.today())

    def to_end(self) -> RunEnd:
        """Run until the request has come to an end; what a resumed run did before counts."""
        with self.stack.tracer.span("run", layers=[str(layer) for layer in self.stack.layers]) as span:
            span.set(request=self.stack.tracer.content(request_text(self.state.messages)))
            self.span = span
            end = self._first() or self._steps()
            span.set(state=str(end.state), replies=self.state.n_replies, calls=self.state.n_calls, cost=end.cost)
            span.set(reply=self.stack.tracer.content(end.reply))
            return end

    def decided(self, keys: Collection[str], *, is_agreed: bool) -> RunEnd:
        """Go on after a person's decision. The time that the person took does not count."""
        (self.state.agreed if is_agreed else self.state.declined).update(keys)
        self.state.started = self.stack.clock()
        return self.to_end()

    def _first(self) -> RunEnd | None:
        """What comes before the first question to a model."""
        if self.state.resume is not None:
            go_on, self.state.resume = self.state.resume, None
            return go_on()
        if self.dependence.marks and self.state.layer is Layer.DISPATCH:
            rules = self.stack.policy.escalation
            detail = ", ".join(self.dependence.marks)
            if len(self.dependence.marks) >= rules.plan_from_marks and Layer.PLANNING in self.stack.layers:
                return self.hand_up([Handover(Reason.DEPENDENT_WORDS, detail)], to=Layer.PLANNING)
            # Without a layer above, the calls are made one step at a time; see `first_group`.
            if not rules.dispatch_handles_dependence and len(self.stack.layers) > 1:
                return self.hand_up([Handover(Reason.DEPENDENT_WORDS, detail)])
        return None

    def _steps(self) -> RunEnd:
        from tinydispatch.layers.planning import plan_step  # it needs this class

        while True:
            if limit := self.state.limit(self.stack.policy.limits, self.stack.clock()):
                return self.end(*limit)
            step = plan_step(self) if self.state.layer is Layer.PLANNING else self._model_step()
            if step is not None:
                return step

    def _model_step(self) -> RunEnd | None:
        layer = self.state.layer
        answer = self.ask(layer)
        if isinstance(answer, Handover):
            return self.hand_up([answer])
        reply = answer.view
        threshold = self.stack.policy.escalation.min_confidence
        if reasons := reply_reasons(reply, self.state.made, threshold) + self._rash(reply):
            return self.hand_up(reasons)
        if not reply.calls:
            self.state.steps.append(Step(layer, reply.text))
            self.state.messages.append(Message(Role.ASSISTANT, reply.text))
            return self.end(EndState.ANSWERED, reply.text)
        calls, held = (reply.calls, ()) if not self.dependence.marks else first_group(reply.calls)
        return self.call(layer, reply.text, calls, held)

    def _rash(self, reply: ReplyView) -> list[Handover]:
        """A call with effects to a request with a condition, before anything was looked up."""
        if not self.dependence.is_conditional or not reply.calls or self.state.n_calls:
            return []
        if not self.stack.toolbox.has_side_effects(reply.calls[0].name):
            return []
        detail = f"{reply.calls[0].name}, but: {', '.join(self.dependence.marks)}"
        return [Handover(Reason.EFFECT_BEFORE_RESULT, detail)]

    def ask(self, layer: Layer, messages: Sequence[Message] | None = None) -> Answer | Handover:
        """A layer's reply; with `messages`, that of the planning model to them."""
        stack, state = self.stack, self.state
        used = state.used(layer)
        with stack.tracer.span(str(layer), self.span) as span:
            started = stack.clock()
            if layer is Layer.DISPATCH:
                assert stack.dispatch is not None, "only layers that are there get the floor"
                answer = stack.dispatch.ask(state.messages, stack.toolbox.tools, self.deadline)
            elif messages is not None:
                answer = stack.endpoints[layer].write(messages, self.deadline)
            else:
                answer = stack.endpoints[layer].ask(self.dated, stack.toolbox.tools, self.deadline)
            used.seconds += stack.clock() - started
            used.requests += 1
            state.n_replies += 1
            if isinstance(answer, Handover):
                used.failures += 1
                span.set(failure=str(answer))
                return answer
            used.prompt_tokens += answer.prompt_tokens
            used.completion_tokens += answer.completion_tokens
            used.cost += answer.cost
            span.set(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, cost=answer.cost)
            span.set(calls=[call.name for call in answer.view.calls], confidence=answer.view.confidence)
            span.set(text=stack.tracer.content(answer.view.text or None))
            return answer

    def hand_up(self, reasons: Sequence[Handover], to: Layer | None = None) -> RunEnd | None:
        """Give the floor to the next layer that is there; where none is, ask the user."""
        state = self.state
        above = [layer for layer in state.layer.above if layer in self.stack.layers]
        if state.n_plans >= self.stack.policy.limits.max_plans:
            above = [layer for layer in above if layer is not Layer.PLANNING]
        target = to or (above[0] if above else None)
        state.handovers += [(state.layer, reason) for reason in reasons]
        names = {"from": str(state.layer), "to": str(target or "user")}
        with self.stack.tracer.span(
            "hand_up", self.span, reasons=[str(item.reason) for item in reasons], **names
        ) as span:
            span.set(details=self.stack.tracer.content([item.detail for item in reasons]))
        if target is None:
            # Out of time, a layer fails because of that; the limit is the better word for it.
            limit = state.limit(self.stack.policy.limits, self.stack.clock())
            return self.end(*limit) if limit else self.end(EndState.ASKED, question(reasons))
        state.layer = target
        return None

    def call(self, layer: Layer, text: str, calls: Sequence[ToolCall], held: Sequence[ToolCall] = ()) -> RunEnd | None:
        """Run the calls of one reply, one after the other, and take in how they ended."""
        outcomes: list[ToolOutcome] = []
        for call in calls:
            if self.state.n_calls >= self.stack.policy.limits.max_calls:
                break
            outcomes.append(self.execute(layer, call))
            if outcomes[-1].status in (CallStatus.UNCONFIRMED, CallStatus.UNKNOWN):
                break
        waiting = [outcome for outcome in outcomes if outcome.status is CallStatus.UNCONFIRMED]
        if waiting:
            # Gone on with by making the same calls again: those that are done are remembered by their keys.
            self.state.resume = lambda: self.call(layer, text, calls, held)
            return self.wait(waiting)
        self.take_in(Step(layer, text, tuple(outcomes), tuple(held)))
        return self.react(outcomes)

    def execute(
        self, layer: Layer, call: ToolCall, node: str = "", occurrence: int = 0, parent: Span | None = None
    ) -> ToolOutcome:
        """Run one call; from several threads at once, where a plan is run, whose span is then the parent."""
        key = idempotency_key(self.state.conversation, self.request, call, occurrence)
        before = self.state.done.get(key)
        if before is not None and before.status is not CallStatus.FAILED:
            return replace(before, is_replayed=True)
        stack = self.stack
        with stack.tracer.span(
            "tool", parent or self.span, tool=call.name, node=node or None, layer=str(layer)
        ) as span:
            span.set(arguments=stack.tracer.content(dict(call.arguments)))
            outcome = stack.toolbox.execute(call, key, self._permission(), self.deadline)
            if outcome.status is CallStatus.UNCONFIRMED and stack.confirm is not None:
                with self._confirming:  # a person is asked about one call at a time
                    is_agreed = stack.confirm(call, outcome.error)
                (self.state.agreed if is_agreed else self.state.declined).add(key)
                outcome = stack.toolbox.execute(call, key, self._permission(), self.deadline)
            span.set(status=str(outcome.status), attempts=outcome.attempts, key=key, error=outcome.error or None)
            span.set(result=stack.tracer.content(outcome.value), is_replayed=outcome.is_replayed or None)
        if outcome.status is not CallStatus.UNCONFIRMED:
            with self._lock:
                self.state.done[key] = outcome
                self.state.made.add(canonical(call))
                self.state.n_calls += 1
                self.state.used(layer).calls += 1
        return outcome

    def _permission(self) -> Permission:
        return Permission(frozenset(self.state.agreed), frozenset(self.state.declined), self.words)

    def take_in(self, step: Step) -> None:
        """Add a step to the conversation: the calls that were made, and what each returned."""
        limit = self.stack.policy.tools.max_result_characters
        self.state.steps.append(step)
        calls = tuple(outcome.call for outcome in step.outcomes)
        self.state.messages.append(Message(Role.ASSISTANT, step.text, calls))
        for outcome in step.outcomes:
            text = result_text(outcome, limit)
            self.state.messages.append(Message(Role.TOOL, text, tool_name=outcome.call.name))

    def react(self, outcomes: Sequence[ToolOutcome]) -> RunEnd | None:
        """What the policy wants done about calls that did not succeed; None goes on."""
        for outcome in outcomes:
            if outcome.status is CallStatus.UNKNOWN:
                return self.end(EndState.UNCERTAIN, uncertain_text(outcome.call, outcome.error))
            if outcome.status is CallStatus.DECLINED:
                return self.end(EndState.ANSWERED, "I have left that undone.")
            if outcome.is_done:
                continue
            if (end := self._react_to(outcome)) is not None or self.state.layer is not self.state.steps[-1].layer:
                return end
        return None

    def _react_to(self, outcome: ToolOutcome) -> RunEnd | None:
        if limit := self.state.limit(self.stack.policy.limits, self.stack.clock()):
            return self.end(*limit)
        action, alternative = self._action(outcome)
        if action is ErrorAction.ASK:
            return self.end(EndState.ASKED, f"{outcome.call.name}: {outcome.error}. What should I do?")
        if action is ErrorAction.ALTERNATIVE:
            # The note that it stands in for another tool is in the conversation: the failed call, then this one.
            return self.call(self.state.layer, "", [ToolCall(alternative, outcome.call.arguments)])
        if action is ErrorAction.REPAIR and self.state.n_repairs < self.stack.policy.escalation.max_repairs:
            self.state.n_repairs += 1
            return None
        if self.state.layer is Layer.ORCHESTRATION and not any(
            reason.reason is Reason.UNKNOWN_ERROR for _, reason in self.state.handovers
        ):
            # It sees the error and was made for this; only a second one goes further up.
            self.state.handovers.append((self.state.layer, Handover(Reason.UNKNOWN_ERROR, outcome.error)))
            return None
        return self.hand_up([Handover(Reason.UNKNOWN_ERROR, outcome.error)])

    def _action(self, outcome: ToolOutcome) -> tuple[ErrorAction, str]:
        if outcome.status is CallStatus.REFUSED:
            return ErrorAction.REPAIR, ""
        for rule in self.stack.policy.errors:
            if rule.tool in ("", outcome.call.name) and re.search(rule.match, outcome.error, re.IGNORECASE):
                if rule.action is ErrorAction.ALTERNATIVE and outcome.call.name == rule.alternative:
                    continue  # the alternative itself has failed
                return rule.action, rule.alternative
        return ErrorAction.HAND_UP, ""

    def wait(self, outcomes: Sequence[ToolOutcome]) -> RunEnd:
        """End the run until a person has decided."""
        text = confirmation_question([(outcome.call, outcome.error) for outcome in outcomes])
        end = self.end(EndState.NEEDS_CONFIRMATION, text)
        return replace(end, waiting=Waiting(tuple(outcomes)), run=self)

    def end(self, state: EndState, reply: str) -> RunEnd:
        """The end of the run."""
        seconds = self.stack.clock() - self.state.started
        known = self.state
        use: Mapping[Layer, Any] = {layer: replace(use) for layer, use in known.use.items()}
        return RunEnd(
            state, reply, tuple(known.messages), tuple(known.steps), tuple(known.handovers), dict(use), seconds
        )
