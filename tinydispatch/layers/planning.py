"""The planning layer's turn: a plan is asked for, checked, repaired once, run, and its results are handed down."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tinydispatch.layers.models import Answer
from tinydispatch.layers.names import EndState, Handover, Layer, Reason
from tinydispatch.layers.plan import BadPlan, Plan, PlannedCall, plan_from_text
from tinydispatch.layers.plan_run import StepEnd, StepState, is_uncertain, run_plan
from tinydispatch.layers.prompts import planning_messages, repair_messages, shown, uncertain_text
from tinydispatch.layers.run import Run
from tinydispatch.layers.run_state import RunEnd, Step
from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome, canonical
from tinydispatch.tools import ToolCall

_LAST_WORDS_S = 1.0


def plan_step(run: Run) -> RunEnd | None:
    """Ask for a plan and run it; None hands the floor to the layer below, which says what came of it."""
    run.state.n_plans += 1
    plan = _plan(run)
    if isinstance(plan, Handover):
        return _without_plan(run, plan)
    if isinstance(plan, BadPlan):
        run.state.handovers.append((Layer.PLANNING, Handover(Reason.BAD_PLAN, str(plan))))
        return run.end(
            EndState.REFUSED_PLAN, f"I have made no plan that can be carried out, and have done nothing: {plan}"
        )
    if run.state.n_calls + len(plan.calls) > run.stack.policy.limits.max_calls:
        return run.end(EndState.STEP_LIMIT, f"The plan has {len(plan.calls)} calls, more than may still be made.")
    return run_to_end(run, plan)


def _without_plan(run: Run, why: Handover) -> RunEnd | None:
    """The layer gives no reply: the one below goes step by step, unless it was that one that handed up."""
    if Layer.ORCHESTRATION not in run.stack.layers or run.state.used(Layer.ORCHESTRATION).requests:
        return run.hand_up([why])
    run.state.handovers.append((Layer.PLANNING, why))
    run.state.layer = Layer.ORCHESTRATION
    return None


def _plan(run: Run) -> Plan | BadPlan | Handover:
    """A plan that holds; a broken one is repaired once. A layer that gives no reply is no broken plan."""
    toolbox = run.stack.toolbox
    messages = planning_messages(run.dated, toolbox.tools)
    answer = run.ask(Layer.PLANNING, messages)
    if not isinstance(answer, Answer):
        return answer
    plan = plan_from_text(answer.view.text, toolbox.tools, toolbox.result_schemas)
    if isinstance(plan, Plan) or run.state.limit(run.stack.policy.limits, run.stack.clock()):
        return plan
    with run.stack.tracer.span("repair", run.span, problems=[str(problem) for problem in plan.problems]):
        pass
    again = run.ask(Layer.PLANNING, repair_messages(messages, answer.view.text, plan))
    return (
        plan_from_text(again.view.text, toolbox.tools, toolbox.result_schemas) if isinstance(again, Answer) else again
    )


def run_to_end(run: Run, plan: Plan) -> RunEnd | None:
    """Run a plan, and again after a person has decided: calls that were made are remembered by their keys."""
    lock = threading.Lock()
    seen: Counter[str] = Counter()
    with run.stack.tracer.span("plan", run.span, calls=len(plan.calls)) as span:

        def execute(planned: PlannedCall, arguments: Mapping[str, Any]) -> ToolOutcome:
            call = ToolCall(planned.tool, arguments)
            with lock:
                occurrence = seen[canonical(call)]
                seen[canonical(call)] += 1
            return run.execute(Layer.PLANNING, call, planned.id, occurrence, span)

        # Tools are given up at the run's own deadline; how they ended should still be heard.
        ends = run_plan(plan, execute, deadline=run.deadline + _LAST_WORDS_S, clock=run.stack.clock)
        span.set(ends={name: str(end.state) for name, end in ends.items()})
    outcomes = [end.outcome for end in ends.values() if end.outcome is not None]
    if waiting := [outcome for outcome in outcomes if outcome.status is CallStatus.UNCONFIRMED]:
        run.state.resume = lambda: run_to_end(run, plan)
        return run.wait(waiting)
    run.take_in(Step(Layer.PLANNING, "", tuple(outcomes)))
    if uncertain := next((end.outcome for end in ends.values() if is_uncertain(end) and end.outcome), None):
        return run.end(EndState.UNCERTAIN, uncertain_text(uncertain.call, uncertain.error))
    if limit := run.state.limit(run.stack.policy.limits, run.stack.clock()):
        return run.end(*limit)
    return _hand_down(run, plan, ends)


def _hand_down(run: Run, plan: Plan, ends: Mapping[str, StepEnd]) -> RunEnd | None:
    """The layer below sees the results and says what came of them; without one, that is said in plain words."""
    if Layer.ORCHESTRATION in run.stack.layers:
        run.state.layer = Layer.ORCHESTRATION
        return None
    is_well = all(end.state in (StepState.DONE, StepState.SKIPPED) for end in ends.values())
    return run.end(EndState.ANSWERED if is_well else EndState.ASKED, summary(plan, ends))


def summary(plan: Plan, ends: Mapping[str, StepEnd]) -> str:
    """What was done, left out, and went wrong, a line each."""
    lines = []
    for call in plan.calls:
        end = ends[call.id]
        made = end.outcome.call if end.outcome else ToolCall(call.tool, call.arguments)
        lines.append(f"- {end.state}: {shown(made)}" + (f" ({end.reason})" if end.reason else ""))
    return "\n".join(lines)
