"""`python -m scripts.play_layers [MODEL.gguf]`: suite `workflow` with dispatch alone and with a stack over it.

The upper layers are scripted servers on loopback that answer from the cases' own scripts (`scripts/layers_oracle.py`),
the ceiling. With `--orchestration FILE.gguf`, served by llama.cpp, or a URL, one configuration has a real model there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.backends import Generation, open_backend
from eval.cases import Case, Suite, SuiteError
from eval.config import EvalConfig
from eval.episodes import ToolResult, Turn, World, play, score_episode
from eval.matching import Outcome
from eval.suites import load_suite
from scripts.bench_server import llama_server
from scripts.layers_oracle import Game
from scripts.scripted_server import ScriptedServer
from tinydispatch.cli.model import add_model, model_file
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.formats import ParsedReply, render_calls
from tinydispatch.layers.policy import EndpointConfig, Escalation, Limits, StackPolicy
from tinydispatch.layers.stack import EndState, Layer, LayerUse, RunEnd, Stack, Step, shares
from tinydispatch.layers.tool_calls import result_text
from tinydispatch.layers.toolbox import ToolPolicy
from tinydispatch.layers.trace import Tracer
from tinydispatch.tools import Message, Role

_MAX_RESULT = 8_000
_REAL = "dispatch + orchestration by {}"
CONFIGURATIONS: dict[str, tuple[Layer, ...]] = {
    "dispatch in the stack": (),
    "dispatch + scripted orchestration": (Layer.ORCHESTRATION,),
    "all three, the upper two scripted": (Layer.ORCHESTRATION, Layer.PLANNING),
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
    add_model(parser)
    parser.add_argument("--suite", default="workflow", help="a suite with played cases (default: workflow)")
    parser.add_argument(
        "--orchestration",
        metavar="FILE.gguf|URL",
        help="a real model for the middle layer, in a configuration of its own",
    )
    parser.add_argument("--name", default="model", help="what that model is asked by and called in the table")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp's server (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="start none of its cases after that")
    parser.add_argument("--out", type=Path, help="a folder for the figures (JSON) and one trace per configuration")
    arguments = parser.parse_args(argv)
    try:
        model = model_file(arguments.model, arguments.quantization)
        suite = load_suite(arguments.suite)
        cases = _in_turn(suite)
        rows = []
        with Dispatcher(model, (), n_ctx=4096) as dispatcher:
            if arguments.orchestration:
                rows.append(_with_real_model(arguments, dispatcher, suite, cases))
                cases = cases[: len(rows[0].outcomes)]
            rows[:0] = [
                _stacked(name, layers, dispatcher, suite, cases, arguments.out)
                for name, layers in CONFIGURATIONS.items()
            ]
        rows.insert(0, _bare(model, suite, cases))
    except (SuiteError, ValueError) as error:
        print(f"play_layers: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(rows)))
    if arguments.out:
        figures = json.dumps([row.to_json() for row in rows], indent=2) + "\n"
        (arguments.out / "layers.json").write_text(figures, "utf-8")
    return 0


def _in_turn(suite: Suite) -> list[Case]:
    """One case of each category after the other, so that the first few are of all."""
    groups: dict[str, list[Case]] = {}
    for case in suite.cases:
        groups.setdefault(case.category, []).append(case)
    rounds = itertools.zip_longest(*groups.values())
    return [case for cases in rounds for case in cases if case is not None]


def _with_real_model(arguments: Any, dispatcher: Dispatcher, suite: Suite, cases: Sequence[Case]) -> Row:
    name = _REAL.format(arguments.name)
    if arguments.orchestration.startswith(("http://", "https://")):
        config = EndpointConfig(arguments.orchestration, arguments.name, timeout_s=600.0, max_tokens=200)
        return _stacked(name, config, dispatcher, suite, cases, arguments.out, arguments.max_seconds)
    with llama_server(Path(arguments.orchestration), 8192, arguments.threads) as server:
        config = EndpointConfig(server.url, arguments.name, timeout_s=600.0, max_tokens=200)
        return _stacked(name, config, dispatcher, suite, cases, arguments.out, arguments.max_seconds)


def table(rows: Sequence[Row]) -> list[str]:
    """The comparison in Markdown, and what the figures are figures of."""
    lines = [
        "| configuration | passed | goal reached | premature calls | held back |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        n = len(row.outcomes)
        passed = sum(outcome is Outcome.CORRECT for outcome in row.outcomes.values())
        premature = sum(outcome is Outcome.PREMATURE_CALL for outcome in row.outcomes.values())
        lines.append(f"| {row.name} | {passed}/{n} | {row.n_reached}/{n} | {premature} | {row.n_held_back} |")
    lines += [
        "",
        "| configuration | layer | requests | of them failed | share of calls | tokens read | written | seconds |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows[1:]:
        found = shares(row.uses) or {}
        for layer in Layer:
            uses = [use[layer] for use in row.uses if layer in use]
            if not uses:
                continue
            part = f"{100 * found[layer]:.0f} %" if layer in found else "–"
            counts = [sum(getattr(use, key) for use in uses) for key in ("requests", "failures")]
            tokens = [sum(getattr(use, key) for use in uses) for key in ("prompt_tokens", "completion_tokens")]
            seconds = sum(use.seconds for use in uses)
            lines.append(
                f"| {row.name} | {layer} | {counts[0]} | {counts[1]} | {part} | {tokens[0]:,} | {tokens[1]:,} "
                f"| {seconds:.1f} |"
            )
    lines.append("")
    lines.append("Scripted layers answer from the cases' own answers at once: a ceiling, and no model.")
    for row in rows[1:]:
        why = ", ".join(f"{reason} {count}" for reason, count in row.reasons.most_common())
        ends = ", ".join(f"{state} {count}" for state, count in row.ends.most_common())
        lines.append(f"{row.name}: handed up: {why or 'never'}; ended: {ends}; confirmed: {row.n_confirmed}")
    return lines


def _bare(model: Path, suite: Suite, cases: Sequence[Case]) -> Row:
    """The model in a plain loop: whatever it calls is run."""
    row = Row("dispatch, plain loop")
    with open_backend(model, EvalConfig()) as backend:
        for played in play(backend, cases, suite):
            tools = suite.tools_for(played.case)
            score = score_episode(played.case, played.turns, tools, played.difference) if played.turns else None
            row.outcomes[played.case.id] = score.score.outcome if score else None
            row.n_reached += not played.difference
    return row


def _stacked(
    name: str,
    upper: Sequence[Layer] | EndpointConfig,
    dispatcher: Dispatcher,
    suite: Suite,
    cases: Sequence[Case],
    out: Path | None,
    max_seconds: float = float("inf"),
) -> Row:
    row = Row(name)
    ends_at = time.monotonic() + max_seconds
    tracer = Tracer(out / f"{name.replace(' ', '-').replace(',', '')}.jsonl" if out else None, is_otel=False)
    for case in cases:
        if time.monotonic() > ends_at:
            break
        assert case.episode is not None, "only suites of played cases are compared"
        tools = suite.tools_for(case)
        game = Game(case, tools, World(case.episode, tools, suite.simulators, case.reference_date))
        turns = _play(row, game, upper, dispatcher, tracer)
        difference = game.world.difference()
        row.outcomes[case.id] = score_episode(case, turns, tools, difference).score.outcome
        row.n_reached += not difference
        if isinstance(upper, EndpointConfig):
            print(f"{time.strftime('%H:%M:%S')} {case.category} {row.outcomes[case.id]}", file=sys.stderr, flush=True)
    tracer.close()
    return row


def _play(
    row: Row, game: Game, upper: Sequence[Layer] | EndpointConfig, dispatcher: Dispatcher, tracer: Tracer
) -> list[Turn]:
    """One case through all that its user says."""
    episode = game.case.episode
    assert episode is not None, "only suites of played cases are compared"
    dispatcher.reference_date = game.case.reference_date
    scripts = {Layer.ORCHESTRATION: game.orchestrate, Layer.PLANNING: game.plan}
    servers: dict[Layer, ScriptedServer] = {}
    if isinstance(upper, EndpointConfig):
        config = {Layer.ORCHESTRATION: upper}
    else:
        servers = {layer: ScriptedServer(scripts[layer]) for layer in upper}
        config = {layer: EndpointConfig(server.url, "scripted") for layer, server in servers.items()}
    policy = StackPolicy(
        dispatch="given",
        orchestration=config.get(Layer.ORCHESTRATION),
        planning=config.get(Layer.PLANNING),
        tools=ToolPolicy(is_confirming=False),
        # A model that was never calibrated is not handed up for that alone: the layers would have nothing to show.
        escalation=Escalation(min_confidence=0.0),
        limits=Limits(max_seconds=1800),
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
