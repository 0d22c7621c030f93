"""From a conversation to the model's reply: prompt, kept prefixes, greedy decoding under the tools' grammar."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import llguidance

from tinydispatch.decoding.constraint import Constraint, Free, GrammarConstraint
from tinydispatch.decoding.greedy import Choice, Decoding, GreedyDecoder, Listener
from tinydispatch.decoding.lookup import lookup
from tinydispatch.decoding.recall import Recall
from tinydispatch.decoding.rehearsal import rehearse
from tinydispatch.decoding.reply import ReplyShape, ToolChoice, call_format, check_grammar, reply_grammar
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.decoding.tokens import can_force, token_table, token_texts
from tinydispatch.formats import CALL_START
from tinydispatch.ggml.runtime import Logits, Runtime
from tinydispatch.ggml.state import StateError
from tinydispatch.prefix_cache import PrefixCache, shared_prefix
from tinydispatch.prompt import PromptEncoder
from tinydispatch.tools import Message, Role, Tool

_MAX_GRAMMARS = 32
# Below this many ids, loading or saving a state costs more than computing them.
_WORTH_A_STATE = 32


class PromptTooLongError(ValueError):
    """A conversation that leaves no room for a reply; the message says how long it is and what to do."""


@dataclass(frozen=True)
class EngineOptions:
    """The engine's techniques, each of which can be switched off; none but the constraint changes a reply.

    `n_draft_ids` is how many ids are guessed from the prompt at a time, 0 for none. `recalls` guesses from earlier
    replies with the same tools. `reuses_prefix` False computes every prompt from its first id. `rehearses` spends up to
    a tenth of a second at the start on the grammar, which is worth it for more than a few calls.
    """

    is_constrained: bool = True
    forces_ids: bool = True
    n_draft_ids: int = 4
    recalls: bool = True
    reuses_prefix: bool = True
    rehearses: bool = True
    key_order: KeyOrder = KeyOrder.SCHEMA


@dataclass(frozen=True)
class Timings:
    """Wall-clock milliseconds: `total_ms` holds rendering and tokenizing besides prefill and decode.

    Of the decoding, `grammar_ms` is spent in the grammar, `forced_ms` on evaluating forced ids, `chosen_ms` on
    evaluating chosen ones and guesses.
    """

    prefill_ms: float
    decode_ms: float
    total_ms: float
    grammar_ms: float = 0.0
    forced_ms: float = 0.0
    chosen_ms: float = 0.0


@dataclass(frozen=True)
class TokenCounts:
    """`prompt` tokens in all, of which `cached` came from a kept state; `generated` with the end token.

    Of the generated, `forced` were left no choice about and `accepted` had been guessed; `drafted` were guessed in all.
    """

    prompt: int
    cached: int
    generated: int
    forced: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Completion:
    """A reply's text without its end token; `is_complete` is False when the token limit or a listener cut it off.

    `choices` are the ids that the model chose, in order, each with its probability among the allowed ones.
    """

    text: str
    is_complete: bool
    timings: Timings
    tokens: TokenCounts
    choices: tuple[Choice, ...] = ()


class Engine:
    """Greedy decoding on one runtime. Not safe for use from two threads at once.

    Args:
        prefixes: keeps the states of tool prompts; None keeps the last prompt's alone.
    """

    def __init__(
        self, runtime: Runtime, options: EngineOptions | None = None, prefixes: PrefixCache | None = None
    ) -> None:
        self.runtime, self.options = runtime, options or EngineOptions()
        self.prefixes = prefixes if self.options.reuses_prefix else None
        self._grammars: OrderedDict[tuple[str, ReplyShape], llguidance.LLMatcher] = OrderedDict()
        self._recalls: OrderedDict[tuple[str, ToolChoice, bool], Recall] = OrderedDict()
        self._tools: tuple[Sequence[Tool], str] = ((), "[]")
        self._encoder = PromptEncoder(runtime)
        self._tails: dict[bytes, list[int]] = {}
        self._texts = token_texts(runtime)
        if self.options.is_constrained:
            self._table = token_table(runtime, self._texts)
            self._can_force = self.options.forces_ids and can_force(runtime)
        # Where the call marker is ordinary text, it is several choices, one evaluation each if they are not guessed.
        opening = runtime.tokenize(f'{CALL_START}{{"name": "', parse_special=True)
        self._call_opening = opening if len(runtime.tokenize(CALL_START, parse_special=True)) > 1 else []

    def prepare(self, tools: Sequence[Tool], choice: ToolChoice = ToolChoice.AUTO, *, is_parallel: bool = True) -> None:
        """Compile the grammar of these tools, so that what is wrong with one is said before anything is decoded.

        Raises:
            GrammarError: a schema cannot be expressed; names the tool and the place.
            ValueError: the model's template writes calls in another form than the reader of replies knows.
        """
        self._constraint(tools, choice, is_parallel)

    def warm_up(self, messages: Sequence[Message], tools: Sequence[Tool]) -> int:
        """Load what is kept of the prompt that begins so, and rehearse the grammar; how many ids are held.

        A first call then finds what a later one would. Without a kept state nothing is evaluated.
        """
        matcher = self._matcher(tools, ToolChoice.AUTO, is_parallel=True)
        if matcher is not None and self.options.rehearses:
            rehearse(matcher, self.runtime, tools, call_format(self.runtime.chat_template))
        return self._load_prefix(self._opening(messages, tools)[:-1], len(self.runtime.cached_ids))

    def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        max_new_tokens: int,
        *,
        choice: ToolChoice = ToolChoice.AUTO,
        is_parallel: bool = True,
        listener: Listener | None = None,
    ) -> Completion:
        """The most likely reply to `messages`, which carry their reference date already.

        Args:
            is_parallel: False ends the reply after its first call.
            listener: hears the bytes of each id as it is decided, and ends the reply by returning False.

        Raises:
            PromptTooLongError: the prompt does not fit the context.
            ValueError: the template cannot render the conversation, or a schema cannot be expressed as a grammar.
        """
        started = time.perf_counter()
        constraint = self._constraint(tools, choice, is_parallel)
        prompt = self._encoder.encode(messages, tools)
        room = self.runtime.n_ctx - len(prompt)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt of {len(prompt)} tokens does not fit the context of {self.runtime.n_ctx}, which the reply "
                "shares: shorten the conversation, offer fewer tools or raise n_ctx"
            )
        n_draft = self.options.n_draft_ids
        drafter = (lambda reply: lookup(prompt, reply, n_draft)) if n_draft else None
        recall = self._recall(tools, choice, is_parallel) if self.options.recalls else None
        trail = recall.trail() if recall is not None else None
        opening = self._call_opening if tools and n_draft and choice is not ToolChoice.NONE else []
        decoder = GreedyDecoder(self.runtime, self._texts, constraint, drafter, listener, trail, opening)
        forced, guess = decoder.start(room)
        prefill_started = time.perf_counter()
        n_cached, rows = self._prefill(prompt, messages, tools, forced, guess)
        decode_started = time.perf_counter()
        decoding = decoder.run(guess, rows, min(max_new_tokens, room))
        ended = time.perf_counter()
        timings = Timings(
            prefill_ms=1000 * (decode_started - prefill_started),
            decode_ms=1000 * (ended - decode_started),
            total_ms=1000 * (ended - started),
            grammar_ms=1000 * constraint.seconds,
            forced_ms=1000 * decoding.seconds_forced,
            chosen_ms=1000 * decoding.seconds_chosen,
        )
        return self._completion(decoding, timings, len(prompt), n_cached)

    def _completion(self, decoding: Decoding, timings: Timings, n_prompt: int, n_cached: int) -> Completion:
        return Completion(
            text=b"".join(self._texts[token] for token in decoding.ids).decode("utf-8", "replace"),
            is_complete=decoding.is_complete,
            timings=timings,
            tokens=TokenCounts(
                prompt=n_prompt,
                cached=n_cached,
                generated=len(decoding.ids) + decoding.is_complete,
                forced=decoding.n_forced,
                drafted=decoding.n_drafted,
                accepted=decoding.n_accepted,
            ),
            choices=tuple(decoding.choices),
        )

    def _constraint(self, tools: Sequence[Tool], choice: ToolChoice, is_parallel: bool) -> Constraint:
        matcher = self._matcher(tools, choice, is_parallel=is_parallel)
        if matcher is None:
            return Free()
        return GrammarConstraint(matcher, self.runtime, can_force=self._can_force, tails=self._tails)

    def _matcher(self, tools: Sequence[Tool], choice: ToolChoice, *, is_parallel: bool) -> llguidance.LLMatcher | None:
        if not self.options.is_constrained:
            return None
        shape = ReplyShape(choice, is_parallel, self.options.key_order, self._can_force)
        key = (self._tools_key(tools), shape)
        if key not in self._grammars:
            form = call_format(self.runtime.chat_template)
            grammar = reply_grammar(tools, shape, form)
            check_grammar(grammar, tools, shape, form)
            self._grammars[key] = llguidance.LLMatcher(self._table, grammar)
            while len(self._grammars) > _MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(key)
        # The copy shares what the lexer has learned with the one that is kept.
        return self._grammars[key].deep_copy()

    def _tools_key(self, tools: Sequence[Tool]) -> str:
        if self._tools[0] is not tools:
            self._tools = (tools, json.dumps([tool.to_openai() for tool in tools]))
        return self._tools[1]

    def _recall(self, tools: Sequence[Tool], choice: ToolChoice, is_parallel: bool) -> Recall:
        key = (self._tools_key(tools), choice, is_parallel)
        recall = self._recalls.setdefault(key, Recall())
        self._recalls.move_to_end(key)
        while len(self._recalls) > _MAX_GRAMMARS:
            self._recalls.popitem(last=False)
        return recall

    def forget_replies(self) -> None:
        """Guess from earlier replies no more, as at the start."""
        self._recalls.clear()

    def _prefill(
        self,
        prompt: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[Tool],
        forced: Sequence[int],
        guess: Sequence[int],
    ) -> tuple[int, Logits]:
        """How many ids came from a kept state, and the logits after prompt and forced ids and after each guess."""
        runtime = self.runtime
        # The last id is decoded in any case: the cache keeps keys and values, not logits.
        n_held = shared_prefix(runtime.cached_ids, prompt[:-1]) if self.options.reuses_prefix else 0
        n_held = self._load_prefix(prompt[:-1], n_held)
        runtime.truncate(n_held)
        n_held = len(runtime.cached_ids)
        done = self._save_prefix(prompt, n_held, messages, tools)
        ids = [*prompt[done:], *forced, *guess]
        return n_held, runtime.decode_all(ids, len(ids) - len(guess) - 1)

    def _load_prefix(self, prompt: Sequence[int], n_held: int) -> int:
        while self.prefixes is not None and len(prompt) - n_held >= _WORTH_A_STATE:
            found = self.prefixes.find(prompt, n_held + _WORTH_A_STATE)
            if found is None:
                return n_held
            ids, state = found
            try:
                self.runtime.load_state(state)
                return shared_prefix(self.runtime.cached_ids, prompt)
            except StateError:
                self.prefixes.drop(ids)
                n_held = shared_prefix(self.runtime.cached_ids, prompt)
        return n_held

    def _save_prefix(
        self, prompt: Sequence[int], n_held: int, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> int:
        """Evaluate and keep what every conversation with these tools begins with; how many ids are evaluated then."""
        if self.prefixes is None or len(prompt) - n_held < _WORTH_A_STATE:
            return n_held
        common = shared_prefix(prompt[:-1], self._opening(messages, tools))
        if common - n_held < _WORTH_A_STATE or self.prefixes.holds(prompt[:common]):
            return n_held
        self.runtime.decode(prompt[n_held:common])
        self.prefixes.put(prompt[:common], self.runtime.save_state())
        return common

    def _opening(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """The ids of a conversation that has the same system message and nothing else in common."""
        system = [message for message in messages[:1] if message.role is Role.SYSTEM]
        return self._encoder.encode([*system, Message(Role.USER, "\u2603")], tools)

    def close(self) -> None:
        """Wait until kept states are written; the runtime stays open."""
        if self.prefixes is not None:
            self.prefixes.close()
