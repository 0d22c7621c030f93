"""Messages and tools in, calls out: the object that an application holds."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tinydispatch.calibration import Calibration, calibration_path, load_calibration
from tinydispatch.confidence import CallConfidence, call_confidences, reply_confidence
from tinydispatch.decoding.greedy import Listener
from tinydispatch.decoding.reply import ToolChoice, checked_grammar
from tinydispatch.engine import Engine, EngineOptions, MakeGrammar, Timings, TokenCounts, TokenLogprob, WrittenToken
from tinydispatch.folders import stamp
from tinydispatch.formats import (
    UnparsedToolCall,
    default_chat_template,
    parse_reply,
    template_hash,
    with_reference_date,
)
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.ggml.state import fingerprint
from tinydispatch.prefix_cache import PrefixCache
from tinydispatch.tools import CallViolation, Message, Role, Tool, ToolCall, check_calls

DEFAULT_MAX_NEW_TOKENS = 384

_LOG = logging.getLogger(__name__)


class ModelChangedError(RuntimeError):
    """The model file was written into while it was in use; what it would answer now is anybody's guess."""


@dataclass(frozen=True)
class Dispatch:
    """What the model decided: calls, a text reply, or both.

    `violations` lists the calls that name no offered tool or break its schema; they stand in `calls` too. `unparsed`
    is what looked like a call and could not be read. `is_complete` is False when the reply was cut off: a call that was
    cut stands in `unparsed` and never in `calls`.

    `confidence` is the calibrated probability that the reply is right; `confidences` are those of its calls and their
    parts. `is_confident` is False where the confidence lies below the threshold: such a reply should be handed up. It
    is None while nothing was calibrated: then the confidence is the model's own belief, and there is no threshold.

    `logprobs` are those of the reply's tokens, as they were written, where they were asked for. `written` are the
    tokens themselves, each with its probability, or without one where the grammar forced it.
    """

    calls: tuple[ToolCall, ...]
    reply: str
    violations: tuple[CallViolation, ...]
    unparsed: tuple[UnparsedToolCall, ...]
    is_complete: bool
    timings: Timings
    tokens: TokenCounts
    confidence: float = 1.0
    confidences: tuple[CallConfidence, ...] = ()
    is_confident: bool | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    written: tuple[WrittenToken, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether the reply was complete and every call in it can be made as it stands."""
        return self.is_complete and not self.violations and not self.unparsed


class Dispatcher:
    """A model with the tools it may call; consecutive calls reuse the state of the prompt they share.

    Not safe for use from two threads at once. Use it as a context manager, or call `close`.

    Args:
        model: a GGUF file, which the dispatcher then owns and closes, or a loaded runtime, which it does not.
        tools: offered to every call that brings none of its own.
        reference_date: "today" for relative dates; None takes the day of each call.
        options: which of the engine's techniques are used; all of them unless said otherwise.
        cache: a folder that keeps the state of tool prompts between starts; None keeps them in memory only. What it
            holds for `tools` is loaded at once.
        calibration: how probabilities become confidences; None takes the one beside the model file, if there is one and
            it was fitted to that very file.

    Raises:
        GgufError: the file is damaged or foreign.
        GrammarError: a tool's schema cannot be expressed as a grammar; names the tool and the place.
    """

    def __init__(
        self,
        model: Path | Runtime,
        tools: Sequence[Tool],
        reference_date: dt.date | None = None,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        options: EngineOptions | None = None,
        cache: Path | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        self.tools = tuple(tools)
        self.reference_date = reference_date
        self.max_new_tokens = max_new_tokens
        self._is_owner = isinstance(model, Path)
        self._runtime = open_model(model, n_ctx, threads) if isinstance(model, Path) else model
        try:
            self.calibration = calibration or _calibration_beside(self._runtime)
            self._engine = Engine(self._runtime, options, PrefixCache(_cache_owner(self._runtime), cache))
            self._engine.prepare(self.tools)
            if cache is not None:
                self._engine.warm_up(with_reference_date((), reference_date or dt.date.today()), self.tools)
        except BaseException:
            self.close()
            raise

    def dispatch(
        self,
        messages: Sequence[Message] | str,
        *,
        tools: Sequence[Tool] | None = None,
        choice: ToolChoice = ToolChoice.AUTO,
        is_parallel: bool = True,
        max_new_tokens: int | None = None,
        listener: Listener | None = None,
        reference_date: dt.date | None = None,
        n_alternatives: int | None = None,
        owner: str = "",
    ) -> Dispatch:
        """The calls or the reply to a conversation; a string is one user message.

        Args:
            tools: offered in place of the dispatcher's own.
            choice: whether the reply may call, must, or must not. To have one certain tool called, offer it alone.
            is_parallel: False ends the reply after its first call.
            listener: hears the bytes of each token as it is decided, and ends the reply by returning False.
            reference_date: "today" for this conversation, in place of the dispatcher's own; a system message that
                states the day wins over both.
            n_alternatives: how many alternatives `logprobs` names for each token; None leaves `logprobs` out.
            owner: whose words these are: what was kept of another's is neither used nor counted.

        Raises:
            ValueError: there are no messages, the prompt does not fit the context, a tool's schema cannot be expressed
                as a grammar, or the grammar failed while decoding.
            ModelChangedError: the model file was written into since it was opened.
        """
        self._check_file()
        offered = self.tools if tools is None else tools
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise ValueError(f"max_new_tokens={limit}: must be at least 1")
        conversation = (Message(Role.USER, messages),) if isinstance(messages, str) else tuple(messages)
        if not conversation:
            raise ValueError("nothing to dispatch: there are no messages")
        dated = with_reference_date(conversation, reference_date or self.reference_date or dt.date.today())
        completion = self._engine.complete(
            dated,
            offered,
            limit,
            choice=choice,
            is_parallel=is_parallel,
            listener=listener,
            n_alternatives=n_alternatives,
            owner=owner,
        )
        parsed = parse_reply(completion.text, offered)
        confidence = self.calibration.reply(reply_confidence(completion.choices, has_calls=bool(parsed.calls)))
        return Dispatch(
            calls=parsed.calls,
            reply=parsed.content,
            violations=tuple(check_calls(parsed.calls, offered)),
            unparsed=parsed.unparsed,
            is_complete=completion.is_complete,
            timings=completion.timings,
            tokens=completion.tokens,
            confidence=confidence,
            confidences=tuple(map(self.calibration.of_call, call_confidences(completion.text, completion.choices))),
            is_confident=confidence >= self.calibration.threshold if self.calibration.is_fitted else None,
            logprobs=completion.logprobs,
            written=completion.written,
        )

    def continue_text(
        self,
        text: str,
        *,
        max_new_tokens: int | None = None,
        listener: Listener | None = None,
        n_alternatives: int | None = None,
        owner: str = "",
    ) -> Dispatch:
        """What follows a text as it stands, in `reply`: no template, no tools, no grammar, no date.

        Raises:
            ValueError: the text is empty or does not fit the context.
        """
        self._check_file()
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        completion = self._engine.continue_text(
            text, limit, listener=listener, n_alternatives=n_alternatives, owner=owner
        )
        return Dispatch(
            (), completion.text, (), (), completion.is_complete, completion.timings, completion.tokens,
            logprobs=completion.logprobs, written=completion.written,
        )  # fmt: skip

    def prepare(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice = ToolChoice.AUTO,
        *,
        is_parallel: bool = True,
        make: MakeGrammar = checked_grammar,
    ) -> None:
        """Compile the grammar of these tools for a later `dispatch`; safe while another thread dispatches.

        Args:
            make: compiles it, in another process perhaps.

        Raises:
            GrammarError: it cannot be compiled; names the tool and the place.
        """
        self._engine.prepare(tools, choice, is_parallel=is_parallel, make=make)

    def forget_replies(self) -> None:
        """Guess from earlier replies no more; only the time of the next ones changes."""
        self._engine.forget_replies()

    def _check_file(self) -> None:
        """The file's pages are the model's memory: a file put in its place is no harm, one that was altered is."""
        if isinstance(self._runtime, GgufModel) and (before := self._runtime.header.stamp):
            now = stamp(self._runtime.path)
            if now[:2] == before[:2] and now != before:
                raise ModelChangedError(
                    f"{self._runtime.path}: was written into while in use: start again, and replace model files instead"
                )

    def close(self) -> None:
        """Finish writing kept states, and free the model if the dispatcher opened it; a second call does nothing."""
        if hasattr(self, "_engine"):
            self._engine.close()
        if self._is_owner:
            self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _calibration_beside(runtime: Runtime) -> Calibration:
    if not isinstance(runtime, GgufModel) or not (path := calibration_path(runtime.path)).is_file():
        return Calibration()
    found = load_calibration(path)
    if found.model not in ("", model_fingerprint(runtime)):
        _LOG.warning("%s: fitted to another model file and not used; run scripts.calibrate_dispatch again", path)
        return Calibration()
    return found


def model_fingerprint(runtime: Runtime) -> str:
    """Tells one model file's weights and template from another's, whatever its name; "" for what is no file."""
    return fingerprint(runtime.header, "calibration").hex() if isinstance(runtime, GgufModel) else ""


def _cache_owner(runtime: Runtime) -> bytes:
    """What a kept state belongs to: a model file's content and template, the size of the context, what computes it."""
    template = template_hash(runtime.chat_template or default_chat_template())
    model = fingerprint(runtime.header, runtime.computed_by) if isinstance(runtime, GgufModel) else b""
    file = runtime.header.stamp[2:] if isinstance(runtime, GgufModel) else ()
    return model + f"{template} {runtime.n_ctx} {file}".encode()
