"""Cases that are played to their end: the world that answers each call, and the verdict on the transcript.

The first deviation from the script decides the verdict; the rest of the transcript is evidence.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.backends import Backend, Failure, Generation, Request
from eval.cases import Case, Episode, ExpectedCall, Phase, Simulator, SimulatorError, State, Step, Suite
from eval.matchers import accepts, pair_up, show
from eval.matching import Outcome, Score, fits, is_same_call, score_arguments, score_form
from tinydispatch.formats import ParsedReply, parse_reply
from tinydispatch.tools import Message, Role, Tool, ToolCall


@dataclass(frozen=True)
class ToolResult:
    """What a call returned, as the text of the tool's message; a call with `is_error` had no effect."""

    call: ToolCall
    content: str
    is_error: bool


class World:
    """Deterministic: the same calls in the same order get the same answers and lead to the same state."""

    def __init__(
        self, episode: Episode, tools: Sequence[Tool], simulators: Mapping[str, Simulator], today: dt.date | None
    ) -> None:
        self._episode = episode
        self._tools = {tool.name: tool for tool in tools}
        self._simulators = simulators
        self._today = today
        self._uses = [0] * len(episode.rules)
        records = {name: [dict(item) for item in items] for name, items in episode.state.items()}
        self.state: State = copy.deepcopy(records)

    def answer(self, call: ToolCall) -> ToolResult:
        """Run a call. One that names no offered tool, or breaks its schema, is answered by an error."""
        try:
            result = self._run(call)
        except SimulatorError as error:
            return ToolResult(call, json.dumps({"error": str(error)}, ensure_ascii=False), is_error=True)
        return ToolResult(call, json.dumps(result, ensure_ascii=False), is_error=False)

    def _run(self, call: ToolCall) -> Any:
        tool = self._tools.get(call.name)
        if tool is None:
            raise SimulatorError(f"unknown tool '{call.name}'")
        if found := tool.violations(call.arguments):
            raise SimulatorError("; ".join(f"{item.path}: {item.message}".lstrip(": ") for item in found))
        rule = next((index for index in range(len(self._uses)) if self._applies(index, call, tool)), None)
        if rule is not None:
            self._uses[rule] += 1
            error = self._episode.rules[rule].error
            if error is not None:
                raise SimulatorError(error)
        simulated = self._simulators[call.name].run(call.arguments, self.state, self._today)
        return simulated if rule is None else self._episode.rules[rule].result

    def _applies(self, index: int, call: ToolCall, tool: Tool) -> bool:
        rule = self._episode.rules[index]
        if rule.tool != call.name or (rule.times is not None and self._uses[index] >= rule.times):
            return False
        properties = tool.parameters.get("properties", {})
        return all(
            name in call.arguments and accepts(value, call.arguments[name], properties.get(name, {}))
            for name, value in rule.when.items()
        )

    def difference(self) -> str:
        """How the state differs from what the case wants it to be in the end, "" where it does not.

        A wanted record names the fields that matter; a record may have others. No record may be there besides.
        """
        found = []
        wanted_state = self._episode.final_state
        for name in sorted({*self.state, *self._episode.state, *wanted_state}):
            before = [dict(item) for item in self._episode.state.get(name, [])]
            wanted = list(wanted_state[name]) if name in wanted_state else before
            got = self.state.get(name, [])
            pairs = pair_up(wanted, got, _has_fields)
            absent = [show(item) for index, item in enumerate(wanted) if index not in pairs]
            surplus = [show(item) for index, item in enumerate(got) if index not in pairs.values()]
            found += [f"{name}: {item} is not there" for item in absent]
            found += [f"{name}: {item} should not be there" for item in surplus]
        return "; ".join(found)


def _has_fields(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
    # Numbers in the state come from arguments of either kind, so 5 and 5.0 are the same here.
    return all(name in got and accepts(value, got[name], {"type": "number"}) for name, value in wanted.items())


@dataclass(frozen=True)
class Turn:
    """One reply of the model's, to the user's message number `phase`, and the answers to its calls."""

    phase: int
    generation: Generation
    reply: ParsedReply
    results: tuple[ToolResult, ...]


@dataclass(frozen=True)
class Played:
    """A case played to its end. `failure`: the backend gave up on the way. `difference`: what the final state lacks."""

    case: Case
    turns: tuple[Turn, ...]
    failure: Failure | None
    difference: str


@dataclass
class _Game:
    case: Case
    world: World
    request: Request
    turns: list[Turn] = field(default_factory=list)
    phase: int = 0
    failure: Failure | None = None
    is_over: bool = False

    def played(self) -> Played:
        return Played(self.case, tuple(self.turns), self.failure, self.world.difference())

    def take(self, generation: Generation | Failure) -> None:
        """The model's reply: run its calls, or go on to the user's next message."""
        if isinstance(generation, Failure):
            self.failure, self.is_over = generation, True
            return
        text, tools = generation.text, self.request.tools
        reply = parse_reply(text, tools) if generation.is_complete else ParsedReply(text)
        is_readable = generation.is_complete and not reply.unparsed
        calls = _encodable(reply.calls)
        results = tuple(self.world.answer(call) for call in calls) if is_readable else ()
        self.turns.append(Turn(self.phase, generation, reply, results))
        episode = self.case.episode
        assert episode is not None, "only cases with an episode are played"
        if not is_readable or sum(turn.phase == self.phase for turn in self.turns) >= episode.max_turns:
            self.is_over = True
            return
        added = [Message(Role.ASSISTANT, reply.content, calls)]
        added += [Message(Role.TOOL, result.content, tool_name=result.call.name) for result in results]
        if not reply.calls:
            self.phase += 1
            if self.phase == len(episode.phases):
                self.is_over = True
                return
            added.append(Message(Role.USER, episode.phases[self.phase].user or ""))
        messages = (*self.request.messages, *added)
        self.request = Request(messages, self.request.tools, self.request.reference_date, self.request.sample)


def play(
    backend: Backend,
    cases: Sequence[Case],
    suite: Suite,
    *,
    sample: int = 0,
    finished: Callable[[Sequence[Played]], None] = lambda _: None,
) -> list[Played]:
    """Play so many cases side by side as the backend answers at once, the next as soon as one ends.

    A backend that answers in batches has full ones, and one that answers singly plays each conversation through, so
    that every prompt goes on from the one before.

    Args:
        finished: told which cases have just ended.
    """
    waiting = deque(cases)
    games: list[_Game] = []
    running: list[_Game] = []
    while running or waiting:
        while waiting and len(running) < backend.batch_size:
            running.append(_start(waiting.popleft(), suite, sample))
            games.append(running[-1])
        for game, reply in zip(running, backend.generate([game.request for game in running]), strict=True):
            game.take(reply)
        finished([game.played() for game in running if game.is_over])
        running = [game for game in running if not game.is_over]
    return [game.played() for game in games]


def _encodable(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Calls that a tokenizer takes: half a surrogate pair ("\\ud83d") becomes a question mark."""
    text = json.dumps([[call.name, dict(call.arguments)] for call in calls], ensure_ascii=False)
    clean = json.loads(text.encode("utf-8", "replace"))
    return tuple(ToolCall(name, arguments) for name, arguments in clean)


def _start(case: Case, suite: Suite, sample: int) -> _Game:
    assert case.episode is not None, "only cases with an episode are played"
    tools = suite.tools_for(case)
    world = World(case.episode, tools, suite.simulators, case.today)
    return _Game(case, world, Request(case.messages, tools, case.today, sample))


@dataclass(frozen=True)
class EpisodeScore:
    """`turn` is the index of the reply that decided, the last one's where all went well."""

    score: Score
    turn: int


def score_episode(case: Case, turns: Sequence[Turn], tools: Sequence[Tool], difference: str) -> EpisodeScore:
    """Score a transcript with at least one turn; `difference` is what the world's final state lacks.

    In each reply the first rule that applies decides:

    1. unparseable: cut off, a call that cannot be read, or neither text nor calls where text was due
    2. no_call: text while steps are left
    3. ignored_error: a failed call once more, unchanged; or, right after a failure, a call that relied on success
    4. premature_call: a call of a step that has to wait for an earlier step's result
    5. wrong_order: a call of a later step that need not wait, but comes before an earlier one
    6. extra_call, wrong_tool, schema_violation, missing_argument, wrong_argument: as in `matching.match`

    A transcript that follows the script to the end but leaves another state behind is wrong_argument.
    """
    assert case.episode is not None, "only cases with an episode are scored here"
    assert turns, "a case that was played has a turn"
    judge = _Judge(case.episode.needs_success, {tool.name: tool for tool in tools})
    for number, phase in enumerate(case.episode.phases):
        judge.begin(phase)
        for index, turn in enumerate(turns):
            if turn.phase == number and (score := judge.score(turn)):
                return EpisodeScore(Score(score.outcome, f"reply {index + 1}: {score.explanation}"), index)
    last = len(turns) - 1
    if judge.is_unfinished or turns[last].reply.calls:
        limit = f"the limit of {case.episode.max_turns} replies was reached"
        return EpisodeScore(Score(Outcome.NO_CALL if judge.is_unfinished else Outcome.EXTRA_CALL, limit), last)
    if difference:
        return EpisodeScore(Score(Outcome.WRONG_ARGUMENT, f"final state: {difference}"), last)
    return EpisodeScore(Score(Outcome.CORRECT), last)


@dataclass
class _Judge:
    """Keeps, while it reads the transcript, which calls are still due."""

    needs_success: tuple[str, ...]
    tools: dict[str, Tool]
    steps: tuple[Step, ...] = ()
    due: list[list[ExpectedCall]] = field(default_factory=list)  # per step
    done: list[ToolCall] = field(default_factory=list)
    failed: list[ToolCall] = field(default_factory=list)
    just_failed: list[ToolCall] = field(default_factory=list)

    def begin(self, phase: Phase) -> None:
        self.steps = phase.steps
        self.due = [list(step.calls) for step in phase.steps]
        self.just_failed = []

    @property
    def is_unfinished(self) -> bool:
        return any(due and not step.is_optional for step, due in zip(self.steps, self.due, strict=True))

    def score(self, turn: Turn) -> Score | None:
        """What is wrong with a reply, None when nothing is."""
        if not turn.generation.is_complete:
            return Score(Outcome.UNPARSEABLE, f"does not end within {turn.generation.tokens} tokens")
        if broken := score_form(turn.reply, is_text_due=not self.is_unfinished):
            return broken
        if not turn.reply.calls:
            return self._score_text()
        score = self._score_calls(turn.reply.calls)
        self.just_failed = [result.call for result in turn.results if result.is_error]
        self.failed += self.just_failed
        self.done += [result.call for result in turn.results if not result.is_error]
        return score

    def _score_text(self) -> Score | None:
        if not self.is_unfinished:
            return None
        step = next(index for index, due in enumerate(self.due) if due and not self.steps[index].is_optional)
        after = f" after {_shown(self.just_failed)} failed" if self.just_failed else ""
        return Score(Outcome.NO_CALL, f"stops{after}; still due: {', '.join(call.name for call in self.due[step])}")

    def _score_calls(self, calls: Sequence[ToolCall]) -> Score | None:
        window = self._reachable_steps()
        wanted = [(step, call) for step in window for call in self.due[step]]
        pairs = pair_up(wanted, calls, lambda one, got: fits(one[1], got, self.tools))
        if len(pairs) < len(calls):
            other = [call for index, call in enumerate(calls) if index not in set(pairs.values())]
            left = [call for index, (_, call) in enumerate(wanted) if index not in pairs]
            return self._score_mismatch(other, left, window)
        # For each step, the place of each of its calls in the reply, None for those that are not there.
        places: dict[int, list[int | None]] = {step: [] for step in window}
        for index, (step, _) in enumerate(wanted):
            places[step].append(pairs.get(index))
        if score := self._score_order(places):
            return score
        last = max(step for step in window if any(place is not None for place in places[step]))
        for step in window:
            is_past = self.steps[step].is_optional and step < last
            left = [call for call, place in zip(self.due[step], places[step], strict=True) if place is None]
            self.due[step] = [] if is_past else left
        return None

    def _reachable_steps(self) -> list[int]:
        """Steps whose calls may stand in the next reply: the first unfinished one, and those that need not wait."""
        window: list[int] = []
        for index, due in enumerate(self.due):
            if not due:
                continue
            may_skip = not window or self.steps[window[-1]].is_optional
            if window and self.steps[index].waits and not may_skip:
                break
            window.append(index)
        return window

    def _score_order(self, places: dict[int, list[int | None]]) -> Score | None:
        """All calls of the reply are wanted ones; `places` holds, by step, where in the reply each stands."""
        for later, of_later in places.items():
            there = [place for place in of_later if place is not None]
            for earlier, of_earlier in places.items() if there else ():
                if earlier >= later or (self.steps[earlier].is_optional and not any(p is not None for p in of_earlier)):
                    continue
                first, second = _named(self.due[earlier]), _named(self.due[later])
                if self.steps[later].waits:
                    return Score(Outcome.PREMATURE_CALL, f"{second} must wait for the result of {first}")
                if any(place is None or place > min(there) for place in of_earlier):
                    return Score(Outcome.WRONG_ORDER, f"{second} comes before {first}")
        return None

    def _score_mismatch(
        self, calls: Sequence[ToolCall], left: Sequence[ExpectedCall], window: Sequence[int]
    ) -> Score | None:
        """`calls` are none of the wanted ones that could be made now; `left` are those of them that were not made."""
        surplus = Counter(call.name for call in calls) - Counter(wanted.name for wanted in left)
        later = [call for step, due in enumerate(self.due) if step not in window for call in due]
        for call in calls:
            if _is_among(call, self.failed) and not _is_among(call, self.done):
                return Score(Outcome.IGNORED_ERROR, f"{_shown([call])} failed before and is called again unchanged")
            is_later = any(fits(wanted, call, self.tools) for wanted in later) or (
                bool(surplus[call.name]) and any(wanted.name == call.name for wanted in later)
            )
            if self.just_failed and (is_later or call.name in self.needs_success):
                failed = _shown(self.just_failed)
                return Score(Outcome.IGNORED_ERROR, f"goes on with {_shown([call])} although {failed} failed")
            if is_later:
                waits_for = _named([wanted for step in window for wanted in self.due[step]])
                return Score(Outcome.PREMATURE_CALL, f"{_shown([call])} must wait for the result of {waits_for}")
        if surplus:
            return self._score_surplus(calls, left, surplus)
        return score_arguments(calls, left, self.tools)

    def _score_surplus(
        self, calls: Sequence[ToolCall], left: Sequence[ExpectedCall], surplus: Counter[str]
    ) -> Score | None:
        shown = _shown([call for call in calls if surplus[call.name]])
        missing = Counter(wanted.name for wanted in left) - Counter(call.name for call in calls)
        if missing:
            return Score(Outcome.WRONG_TOOL, f"wanted {', '.join(missing.elements())}, got {shown}")
        again = [call for call in calls if _is_among(call, self.done)]
        return Score(Outcome.EXTRA_CALL, f"{_shown(again)} made once more" if again else f"not asked for: {shown}")


def _is_among(call: ToolCall, others: Sequence[ToolCall]) -> bool:
    return any(is_same_call(call, other) for other in others)


def _named(calls: Sequence[ExpectedCall]) -> str:
    return ", ".join(call.name for call in calls)


def _shown(calls: Sequence[ToolCall]) -> str:
    return ", ".join(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})" for call in calls)
