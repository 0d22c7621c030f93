"""Cases played for real: model → simulator → model, until the model stops or the limit of turns is reached."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eval.backends import Backend, Failure, Generation, Request
from eval.cases import Case, Suite
from eval.world import ToolResult, World
from tinydispatch.formats import ParsedReply, parse_reply
from tinydispatch.tools import Message, Role, ToolCall


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

    def take(self, generation: Generation | Failure) -> None:
        """The model's reply: run its calls, or go on to the user's next message."""
        if isinstance(generation, Failure):
            self.failure, self.is_over = generation, True
            return
        reply = (
            parse_reply(generation.text, self.request.tools) if generation.is_complete else ParsedReply(generation.text)
        )
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
    finished: Callable[[int], None] = lambda _: None,
) -> list[Played]:
    """Play so many cases side by side as the backend answers at once, the next as soon as one ends.

    A backend that answers in batches has full ones, and one that answers singly plays each conversation through, so
    that every prompt goes on from the one before.

    Args:
        finished: told how many cases have just ended.
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
        finished(sum(game.is_over for game in running))
        running = [game for game in running if not game.is_over]
    return [Played(game.case, tuple(game.turns), game.failure, game.world.difference()) for game in games]


def _encodable(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Calls that a tokenizer takes: half a surrogate pair ("\\ud83d") becomes a question mark."""
    text = json.dumps([[call.name, dict(call.arguments)] for call in calls], ensure_ascii=False)
    clean = json.loads(text.encode("utf-8", "replace"))
    return tuple(ToolCall(name, arguments) for name, arguments in clean)


def _start(case: Case, suite: Suite, sample: int) -> _Game:
    assert case.episode is not None, "only cases with an episode are played"
    tools = suite.tools_for(case)
    world = World(case.episode, tools, suite.simulators, case.reference_date)
    return _Game(case, world, Request(case.messages, tools, case.reference_date, sample))
