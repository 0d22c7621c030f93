"""`python -m scripts.play_layers MODEL.gguf`: suite `workflow` with dispatch alone and with the stack over it.

The upper layers are scripted servers on loopback that answer from the cases' own scripts (`scripts/layers_oracle.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.backends import Generation, open_backend
from eval.cases import Suite, SuiteError
from eval.config import EvalConfig
from eval.episodes import ToolResult, Turn, World, play, score_episode
from eval.matching import Outcome
from eval.suites import load_suite
from scripts.layers_oracle import Game
from scripts.scripted_server import ScriptedServer
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.formats import ParsedReply, render_calls
from tinydispatch.layers.names import EndState, Layer
from tinydispatch.layers.policy import EndpointConfig, Limits, StackPolicy
from tinydispatch.layers.run_state import LayerUse, RunEnd, Step, shares
from tinydispatch.layers.stack import Stack
from tinydispatch.layers.tool_calls import result_text
from tinydispatch.layers.toolbox import ToolPolicy
from tinydispatch.layers.trace import Tracer
from tinydispatch.tools import Message, Role

_MAX_RESULT = 8_000
CONFIGURATIONS: dict[str, tuple[Layer, ...]] = {
    "dispatch in the stack": (),
    "dispatch + orchestration": (Layer.ORCHESTRATION,),
    "all three": (Layer.ORCHESTRATION, Layer.PLANNING),
}


@dataclass
class Row:
    """What one configuration did on all cases. `uses` and `ends` stay empty for the bare loop."""

    name: str
    outcomes: dict[str, Outcome | None] = field(default_factory=dict)
    n_reached: int = 0
    n_held_back: int = 0
    n_confirmed: int = 0
    uses: list[dict[Layer, LayerUse]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        found = shares(self.uses)
        return {
            "name": self.name,
            "outcomes": {case: str(outcome) for case, outcome in self.outcomes.items()},
            "goal_reached": self.n_reached,
            "shares": {str(layer): share for layer, share in found.items()} if found else None,
            "held_back": self.n_held_back,
            "ends": dict(self.ends),
            "reasons": dict(self.reasons),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """0 after printing the comparison, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m scripts.play_layers", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--suite", default="workflow", help="a suite with played cases (default: workflow)")
    parser.add_argument("--out", type=Path, help="a folder for the figures (JSON) and one trace per configuration")
    arguments = parser.parse_args(argv)
    try:
        suite = load_suite(arguments.suite)
        rows = [_bare(arguments.model, suite)]
        with Dispatcher(arguments.model, (), n_ctx=4096) as dispatcher:
            for name, layers in CONFIGURATIONS.items():
                trace = arguments.out / f"{name.replace(' ', '-')}.jsonl" if arguments.out else None
                rows.append(_stacked(name, layers, dispatcher, suite, trace))
    except (SuiteError, ValueError) as error:
        print(f"play_layers: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(rows)))
    if arguments.out:
        figures = json.dumps([row.to_json() for row in rows], indent=2) + "\n"
        (arguments.out / "layers.json").write_text(figures, "utf-8")
    return 0


def table(rows: Sequence[Row]) -> list[str]:
    """The comparison in Markdown, and what the figures are figures of."""
    lines = [
        "| configuration | passed | goal reached | premature calls | held back | dispatch | orchestration | planning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        n = len(row.outcomes)
        passed = sum(outcome is Outcome.CORRECT for outcome in row.outcomes.values())
        premature = sum(outcome is Outcome.PREMATURE_CALL for outcome in row.outcomes.values())
        found = shares(row.uses) or {}
        part = " | ".join(f"{100 * found[layer]:.0f} %" if layer in found else "–" for layer in Layer)
        lines.append(f"| {row.name} | {passed}/{n} | {row.n_reached}/{n} | {premature} | {row.n_held_back} | {part} |")
    lines.append("")
    lines.append("The last three columns are shares of the calls of tools, by the layer that decided on them.")
    lines.append("Orchestration and planning are scripted from the cases' own answers: an upper bound, not a model.")
    for row in rows[1:]:
        why = ", ".join(f"{reason} {count}" for reason, count in row.reasons.most_common())
        ends = ", ".join(f"{state} {count}" for state, count in row.ends.most_common())
        lines.append(f"{row.name}: handed up: {why or 'never'}; ended: {ends}; confirmed: {row.n_confirmed}")
    return lines


def _bare(model: Path, suite: Suite) -> Row:
    """The model in a plain loop: whatever it calls is run."""
    row = Row("dispatch, plain loop")
    with open_backend(model, EvalConfig()) as backend:
        for played in play(backend, suite.cases, suite):
            tools = suite.tools_for(played.case)
            score = score_episode(played.case, played.turns, tools, played.difference) if played.turns else None
            row.outcomes[played.case.id] = score.score.outcome if score else None
            row.n_reached += not played.difference
    return row


def _stacked(name: str, layers: Sequence[Layer], dispatcher: Dispatcher, suite: Suite, trace: Path | None) -> Row:
    row = Row(name)
    tracer = Tracer(trace, is_otel=False)
    for case in suite.cases:
        assert case.episode is not None, "only suites of played cases are compared"
        tools = suite.tools_for(case)
        game = Game(case, tools, World(case.episode, tools, suite.simulators, case.reference_date))
        turns = _play(row, game, layers, dispatcher, tracer)
        difference = game.world.difference()
        row.outcomes[case.id] = score_episode(case, turns, tools, difference).score.outcome
        row.n_reached += not difference
    tracer.close()
    return row


def _play(row: Row, game: Game, layers: Sequence[Layer], dispatcher: Dispatcher, tracer: Tracer) -> list[Turn]:
    """One case through all that its user says."""
    episode = game.case.episode
    assert episode is not None, "only suites of played cases are compared"
    dispatcher.reference_date = game.case.reference_date
    scripts = {Layer.ORCHESTRATION: game.orchestrate, Layer.PLANNING: game.plan}
    servers = {layer: ScriptedServer(scripts[layer]) for layer in layers}
    config = {layer: EndpointConfig(server.url, "scripted") for layer, server in servers.items()}
    policy = StackPolicy(
        dispatch="given",
        orchestration=config.get(Layer.ORCHESTRATION),
        planning=config.get(Layer.PLANNING),
        tools=ToolPolicy(is_confirming=False),
        limits=Limits(max_seconds=600),
    )

    def confirm(*_: Any) -> bool:
        row.n_confirmed += 1
        return True

    turns: list[Turn] = []
    messages = list(game.case.messages)
    stack = Stack(
        policy,
        game.bound(),
        dispatcher,
        reference_date=game.case.reference_date,
        tracer=tracer,
        confirm=confirm,
        sleep=lambda _: None,
    )
    for number, phase in enumerate(episode.phases):
        if number:
            messages.append(Message(Role.USER, phase.user or ""))
        game.phase, game.attempts = number, []
        end = stack.run(messages, game.case.id)
        turns += turns_of(number, end, game.attempts)
        _count(row, end)
        messages = list(end.messages)
        if end.state is not EndState.ANSWERED:
            messages.append(Message(Role.ASSISTANT, end.reply))
    for layer in stack.endpoints.values():
        layer.endpoint.close()
    for server in servers.values():
        server.close()
    return turns


def _count(row: Row, end: RunEnd) -> None:
    row.uses.append(end.use)
    row.ends[str(end.state)] += 1
    row.reasons.update(str(handover.reason) for _, handover in end.handovers)
    row.n_held_back += sum(len(step.held_back) for step in end.steps)


def turns_of(phase: int, end: RunEnd, attempts: Sequence[ToolResult]) -> list[Turn]:
    """A run as the scorer reads conversations: every attempt counts; a plan's calls come in the order they ended."""
    left = list(attempts)
    turns: list[Turn] = []
    for step in end.steps:
        if not step.outcomes:
            continue
        rounds = _rounds(step, left)
        turns += [_turn(phase, "", results) for results in rounds]
    return [*turns, _turn(phase, end.reply or "…", [])]


def _rounds(step: Step, left: list[ToolResult]) -> list[list[ToolResult]]:
    """First attempts of one reply's calls together, then each further attempt; calls of a plan one by one."""
    rounds: list[list[ToolResult]] = [[]]
    for outcome in step.outcomes:
        made: list[ToolResult] = []
        for _ in range(0 if outcome.is_replayed else outcome.attempts):
            found = next(result for result in left if result.call == outcome.call)
            left.remove(found)
            made.append(found)
        made = made or [ToolResult(outcome.call, result_text(outcome, _MAX_RESULT), not outcome.is_done)]
        if step.layer is Layer.PLANNING:
            rounds += [[result] for result in made]
        else:
            rounds[0].append(made[0])
            rounds += [[result] for result in made[1:]]
    return [results for results in rounds if results]


def _turn(phase: int, text: str, results: Sequence[ToolResult]) -> Turn:
    calls = tuple(result.call for result in results)
    generation = Generation(text + render_calls(calls), latency_s=0.0, tokens=0)
    return Turn(phase, generation, ParsedReply(text, calls), tuple(results))


if __name__ == "__main__":
    sys.exit(main())
