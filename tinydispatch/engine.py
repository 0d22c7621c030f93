"""From a conversation to the model's reply: prompt, kept prefixes, greedy decoding under the tools' grammar."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import llguidance
import numpy as np

from tinydispatch.decoding.constraint import Constraint, Free, GrammarConstraint, Mask
from tinydispatch.decoding.greedy import Choice, Decoding, GreedyDecoder, Listener
from tinydispatch.decoding.lookup import lookup
from tinydispatch.decoding.recall import Recall, Trail
from tinydispatch.decoding.rehearsal import rehearse
from tinydispatch.decoding.reply import CallFormat, ReplyShape, ToolChoice, call_format, checked_grammar
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.decoding.tokens import can_force, token_table, token_texts
from tinydispatch.formats import CALL_START
from tinydispatch.ggml.runtime import Logits, Runtime
from tinydispatch.ggml.state import StateError
from tinydispatch.prefix_cache import PrefixCache, shared_prefix
from tinydispatch.prompt import PromptEncoder
from tinydispatch.tools import Message, Role, Tool

_MAX_GRAMMARS = 32
# Makes the grammar of a reply; `checked_grammar`, or one that does so elsewhere.
MakeGrammar = Callable[[Sequence[Tool], ReplyShape, CallFormat], str]
# Below this many ids, loading or saving a state costs more than computing them.
_WORTH_A_STATE = 32
# Logits that are held at a time while logprobs are looked up; each is as wide as the vocabulary.
_LOGPROB_ROWS = 32
# What a prompt that is too long should leave for a reply, and how many tools the message about it names.
_SHORT_REPLY, _MOST_NAMED = 64, 5


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
class TokenLogprob:
    """What one id spells, the logarithm of its probability among the allowed ids, and the likeliest of those.

    An id that was left no choice has 0. `alternatives` holds as many as were asked for, or as were allowed.
    """

    data: bytes
    logprob: float
    alternatives: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class WrittenToken:
    """What one id spells, and how likely it was among the allowed ones; None where the grammar forced it."""

    data: bytes
    probability: float | None


@dataclass(frozen=True)
class Completion:
    """A reply's text without its end token; `is_complete` is False when the token limit or a listener cut it off.

    `choices` are the ids that the model chose, in order, each with its probability among the allowed ones. `logprobs`
    are those of all ids, where they were asked for. `written` are all ids, the forced ones too.
    """

    text: str
    is_complete: bool
    timings: Timings
    tokens: TokenCounts
    choices: tuple[Choice, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    written: tuple[WrittenToken, ...] = ()


@dataclass
class _Reply:
    """One reply that is being written, and what it needs. `shared` gives what other prompts like it begin with."""

    prompt: Sequence[int]
    constraint: Constraint
    max_new_tokens: int
    listener: Listener | None
    trail: Trail | None = None
    opening: Sequence[int] = ()
    shared: Callable[[], list[int]] | None = None
    ids: list[int] = field(default_factory=list)

    def limited_listener(self, limit: int) -> Listener | None:
        """The listener, which hears no more than `limit` ids."""
        listener = self.listener
        if listener is None:
            return None
        n_heard = 0

        def hear(data: bytes) -> bool:
            nonlocal n_heard
            n_heard += 1
            return n_heard <= limit and listener(data)

        return hear


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
        self._grammars_lock = threading.Lock()
        self._recalls: OrderedDict[tuple[str, ToolChoice, bool, str], Recall] = OrderedDict()
        self._tools: tuple[Sequence[Tool], str] = ((), "[]")
        # Ids that stand before a kept state's own and tell whose it is.
        self._owner, self._salt = "", tuple[int, ...]()
        self._encoder = PromptEncoder(runtime)
        self._tails: dict[bytes, list[int]] = {}
        self._texts = token_texts(runtime)
        if self.options.is_constrained:
            self._table = token_table(runtime, self._texts)
            self._can_force = self.options.forces_ids and can_force(runtime)
        # Where the call marker is ordinary text, it is several choices, one evaluation each if they are not guessed.
        opening = runtime.tokenize(f'{CALL_START}{{"name": "', parse_special=True)
        self._call_opening = opening if len(runtime.tokenize(CALL_START, parse_special=True)) > 1 else []

    def prepare(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice = ToolChoice.AUTO,
        *,
        is_parallel: bool = True,
        make: MakeGrammar = checked_grammar,
    ) -> None:
        """Compile the grammar of these tools, so that what is wrong with one is said before anything is decoded.

        Safe while another thread decodes: nothing but the grammar is touched.

        Raises:
            GrammarError: a schema cannot be expressed; names the tool and the place.
            ValueError: the model's template writes calls in another form than the reader of replies knows.
        """
        if self.options.is_constrained:
            self._compiled(tools, choice, is_parallel, make)

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
        n_alternatives: int | None = None,
        owner: str = "",
    ) -> Completion:
        """The most likely reply to `messages`, which carry their reference date already.

        Args:
            is_parallel: False ends the reply after its first call.
            listener: hears the bytes of each id as it is decided, and ends the reply by returning False.
            n_alternatives: how many alternatives `logprobs` names for each id; None leaves `logprobs` out, which
                otherwise cost a second evaluation of the reply.
            owner: whose words these are: what was kept of another's is neither used nor counted.

        Raises:
            PromptTooLongError: the prompt does not fit the context.
            GrammarError: a schema cannot be expressed as a grammar, or the grammar failed in the middle of the reply.
            ValueError: the template cannot render the conversation.
        """
        started = time.perf_counter()
        constraint = self._constraint(tools, choice, is_parallel)
        prompt = self._encoder.encode(messages, tools)
        self._belongs_to(owner)
        recall = self._recall(tools, choice, is_parallel) if self.options.recalls else None
        trail = recall.trail() if recall is not None else None
        opening = self._call_opening if tools and self.options.n_draft_ids and choice is not ToolChoice.NONE else []
        reply = _Reply(
            prompt,
            constraint,
            max_new_tokens,
            listener,
            trail=trail,
            opening=opening,
            shared=lambda: self._opening(messages, tools),
        )
        try:
            completion = self._write(reply, started)
        except GrammarError as error:
            # Before a name is written it may be the fault of any tool.
            raise GrammarError(
                error.tool or ", ".join(each.name for each in tools), error.path, error.problem
            ) from None
        except PromptTooLongError as error:
            raise PromptTooLongError(f"{error}{self._advice(len(prompt), tools, max_new_tokens)}") from None
        if n_alternatives is None:
            return completion
        again = self._constraint(tools, choice, is_parallel)
        return replace(completion, logprobs=self._logprobs(reply, again, n_alternatives))

    def continue_text(
        self,
        text: str,
        max_new_tokens: int,
        *,
        listener: Listener | None = None,
        n_alternatives: int | None = None,
        owner: str = "",
    ) -> Completion:
        """What most likely follows a text as it stands, without template, tools or grammar.

        Special tokens that are spelled out in `text` are those tokens. The other arguments are `complete`'s.

        Raises:
            PromptTooLongError: the text does not fit the context.
            ValueError: the text is empty.
        """
        started = time.perf_counter()
        prompt = self.runtime.tokenize(text, parse_special=True)
        if not prompt:
            raise ValueError("there is no text to continue")
        self._belongs_to(owner)
        reply = _Reply(prompt, Free(), max_new_tokens, listener)
        completion = self._write(reply, started)
        if n_alternatives is None:
            return completion
        return replace(completion, logprobs=self._logprobs(reply, Free(), n_alternatives))

    def _write(self, reply: _Reply, started: float) -> Completion:
        prompt, constraint = reply.prompt, reply.constraint
        room = self.runtime.n_ctx - len(prompt)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt of {len(prompt)} tokens does not fit the context of {self.runtime.n_ctx}, which the reply "
                f"shares: it is {1 - room} too long; shorten the conversation, offer fewer tools or raise n_ctx "
                "(--context)"
            )
        limit = min(reply.max_new_tokens, room)
        n_draft = self.options.n_draft_ids
        drafter = (lambda ids: lookup(prompt, ids, n_draft)) if n_draft else None
        decoder = GreedyDecoder(
            self.runtime, self._texts, constraint, drafter, reply.limited_listener(limit), reply.trail, reply.opening
        )
        forced, guess = decoder.start(room)
        prefill_started = time.perf_counter()
        n_cached, rows = self._prefill(reply, forced, guess)
        decode_started = time.perf_counter()
        decoding = decoder.run(guess, rows, limit)
        ended = time.perf_counter()
        timings = Timings(
            prefill_ms=1000 * (decode_started - prefill_started),
            decode_ms=1000 * (ended - decode_started),
            total_ms=1000 * (ended - started),
            grammar_ms=1000 * constraint.seconds,
            forced_ms=1000 * decoding.seconds_forced,
            chosen_ms=1000 * decoding.seconds_chosen,
        )
        # Forced ids are taken together and may lead past the limit.
        reply.ids = decoding.ids[:limit]
        return self._completion(decoding, reply, timings, n_cached)

    def _advice(self, n_prompt: int, tools: Sequence[Tool], max_new_tokens: int) -> str:
        """Which tools cost how much of a prompt that is too long, and which to leave out."""
        if not tools:
            return ""
        costs = self.tool_tokens(tools)
        ranked = sorted(costs, key=lambda name: -costs[name])
        excess = n_prompt + min(max_new_tokens, _SHORT_REPLY) - self.runtime.n_ctx
        dropped: list[str] = []
        while excess > 0 and len(dropped) < len(ranked):
            dropped.append(ranked[len(dropped)])
            excess -= costs[dropped[-1]]
        largest = ", ".join(f"{name} {costs[name]}" for name in ranked[:_MOST_NAMED])
        text = f". Of the prompt {sum(costs.values())} tokens are its {len(costs)} tools, the largest: {largest}"
        if excess > 0:
            return f"{text}. Without any tool it would still be too long"
        named = ", ".join(dropped[:_MOST_NAMED])
        others = len(dropped) - _MOST_NAMED
        return f"{text}. Without {named}{f' and the next {others}' if others > 0 else ''} a short reply fits"

    def tool_tokens(self, tools: Sequence[Tool]) -> dict[str, int]:
        """How many tokens of a prompt each tool costs, by its name."""
        asked = [Message(Role.USER, "?")]
        alone = {tool.name: len(self._encoder.encode(asked, [tool])) for tool in tools}
        # What introduces the tools, whichever they are.
        twice = [tools[0], replace(tools[0])]
        frame = 2 * alone[tools[0].name] - len(self._encoder.encode(asked, twice))
        return {name: max(1, n_tokens - frame) for name, n_tokens in alone.items()}

    def _completion(self, decoding: Decoding, reply: _Reply, timings: Timings, n_cached: int) -> Completion:
        return Completion(
            text=b"".join(self._texts[token] for token in reply.ids).decode("utf-8", "replace"),
            is_complete=decoding.is_complete,
            timings=timings,
            tokens=TokenCounts(
                prompt=len(reply.prompt),
                cached=n_cached,
                generated=min(len(reply.ids) + decoding.is_complete, reply.max_new_tokens),
                forced=min(decoding.n_forced, len(reply.ids)),
                drafted=decoding.n_drafted,
                accepted=decoding.n_accepted,
            ),
            choices=tuple(decoding.choices),
            written=self._written(decoding, reply.ids),
        )

    def _written(self, decoding: Decoding, ids: Sequence[int]) -> tuple[WrittenToken, ...]:
        chosen = iter(decoding.choices)
        return tuple(
            WrittenToken(self._texts[token], None if is_forced else next(chosen).probability)
            for token, is_forced in zip(ids, decoding.are_forced, strict=False)
        )

    def _logprobs(self, reply: _Reply, constraint: Constraint, n_alternatives: int) -> tuple[TokenLogprob, ...]:
        """Evaluates the reply once more, with a constraint that has seen nothing of it yet."""
        runtime, ids = self.runtime, reply.ids
        if not ids:
            return ()
        runtime.truncate(len(reply.prompt) - 1)
        unread = [*reply.prompt[len(runtime.cached_ids) :], *ids[:-1]]
        n_skipped = len(unread) - len(ids)
        if n_skipped > 0:
            runtime.decode(unread[:n_skipped])
        found: list[TokenLogprob] = []
        rows: list[Logits] = []
        n_free = 0  # ids from here on are not forced
        for place, token in enumerate(ids):
            if not rows:
                start = n_skipped + place
                rows = list(runtime.decode_all(unread[start : start + _LOGPROB_ROWS]))
            logits = rows.pop(0)
            if place >= n_free:
                n_free = place + len(constraint.take_forced())
            if place < n_free:
                found.append(self._forced_logprob(token, n_alternatives))
                continue
            found.append(self._logprob(token, logits, constraint.mask(), n_alternatives))
            constraint.take(token)
            n_free = place + 1
        return tuple(found)

    def _forced_logprob(self, token: int, n_alternatives: int) -> TokenLogprob:
        data = self._texts[token]
        return TokenLogprob(data, 0.0, ((data, 0.0),) if n_alternatives else ())

    def _logprob(self, token: int, logits: Logits, mask: Mask | None, n_alternatives: int) -> TokenLogprob:
        allowed = np.arange(len(logits)) if mask is None else np.flatnonzero(mask)
        values = logits[allowed].astype(np.float64)
        peak = values.max()
        values -= peak + np.log(np.exp(values - peak).sum())
        likeliest = np.argsort(-values, kind="stable")[:n_alternatives]
        alternatives = tuple((self._texts[allowed[index]], float(values[index])) for index in likeliest)
        return TokenLogprob(self._texts[token], float(values[np.flatnonzero(allowed == token)[0]]), alternatives)

    def _constraint(self, tools: Sequence[Tool], choice: ToolChoice, is_parallel: bool) -> Constraint:
        matcher = self._matcher(tools, choice, is_parallel=is_parallel)
        if matcher is None:
            return Free()
        return GrammarConstraint(matcher, self.runtime, can_force=self._can_force, tails=self._tails)

    def _matcher(self, tools: Sequence[Tool], choice: ToolChoice, *, is_parallel: bool) -> llguidance.LLMatcher | None:
        if not self.options.is_constrained:
            return None
        # The copy shares what the lexer has learned with the one that is kept.
        return self._compiled(tools, choice, is_parallel, checked_grammar).deep_copy()

    def _compiled(
        self, tools: Sequence[Tool], choice: ToolChoice, is_parallel: bool, make: MakeGrammar
    ) -> llguidance.LLMatcher:
        shape = ReplyShape(choice, is_parallel, self.options.key_order, self._can_force)
        key = (self._tools_key(tools), shape)
        with self._grammars_lock:
            if (known := self._grammars.get(key)) is not None:
                self._grammars.move_to_end(key)
                return known
        matcher = llguidance.LLMatcher(self._table, make(tools, shape, call_format(self.runtime.chat_template)))
        with self._grammars_lock:
            self._grammars[key] = matcher
            while len(self._grammars) > _MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        return matcher

    def _tools_key(self, tools: Sequence[Tool]) -> str:
        known, text = self._tools  # read once: another thread may put others in their place
        if known is not tools:
            text = json.dumps([tool.to_openai() for tool in tools])
            self._tools = (tools, text)
        return text

    def _belongs_to(self, owner: str) -> None:
        """Leave what another owner's last prompt has left in the runtime; kept states are found by their owner's salt.

        Whoever could use another's state would read that other's prompt, token by token, from counts and times.
        """
        if owner != self._owner:
            self.runtime.truncate(0)
            digest = hashlib.blake2b(owner.encode(), digest_size=8, person=b"prefix").digest()
            self._owner, self._salt = owner, tuple(np.frombuffer(digest, "<i4").tolist()) if owner else ()

    def _recall(self, tools: Sequence[Tool], choice: ToolChoice, is_parallel: bool) -> Recall:
        key = (self._tools_key(tools), choice, is_parallel, self._owner)
        recall = self._recalls.setdefault(key, Recall())
        self._recalls.move_to_end(key)
        while len(self._recalls) > _MAX_GRAMMARS:
            self._recalls.popitem(last=False)
        return recall

    def forget_replies(self) -> None:
        """Guess from earlier replies no more, as at the start."""
        self._recalls.clear()

    def _prefill(self, reply: _Reply, forced: Sequence[int], guess: Sequence[int]) -> tuple[int, Logits]:
        """How many ids came from a kept state, and the logits after prompt and forced ids and after each guess."""
        runtime, prompt = self.runtime, reply.prompt
        # The last id is decoded in any case: the cache keeps keys and values, not logits.
        n_held = shared_prefix(runtime.cached_ids, prompt[:-1]) if self.options.reuses_prefix else 0
        n_held = self._load_prefix(prompt[:-1], n_held)
        runtime.truncate(n_held)
        n_held = len(runtime.cached_ids)
        done = self._save_prefix(prompt, n_held, reply.shared) if reply.shared is not None else n_held
        ids = [*prompt[done:], *forced, *guess]
        return n_held, runtime.decode_all(ids, len(ids) - len(guess) - 1)

    def _load_prefix(self, prompt: Sequence[int], n_held: int) -> int:
        while self.prefixes is not None and len(prompt) - n_held >= _WORTH_A_STATE:
            found = self.prefixes.find([*self._salt, *prompt], len(self._salt) + n_held + _WORTH_A_STATE)
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

    def _save_prefix(self, prompt: Sequence[int], n_held: int, shared: Callable[[], list[int]]) -> int:
        """Evaluate and keep what every conversation with these tools begins with; how many ids are evaluated then."""
        if self.prefixes is None or len(prompt) - n_held < _WORTH_A_STATE:
            return n_held
        common = shared_prefix(prompt[:-1], shared())
        key = [*self._salt, *prompt[:common]]
        if common - n_held < _WORTH_A_STATE or self.prefixes.holds(key):
            return n_held
        self.runtime.decode(prompt[n_held:common])
        self.prefixes.put(key, self.runtime.save_state())
        return common

    def _opening(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """The ids of a conversation that has the same system message and nothing else in common."""
        system = [message for message in messages[:1] if message.role is Role.SYSTEM]
        return self._encoder.encode([*system, Message(Role.USER, "\u2603")], tools)

    def close(self) -> None:
        """Wait until kept states are written; the runtime stays open."""
        if self.prefixes is not None:
            self.prefixes.close()
