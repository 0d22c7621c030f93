"""A challenger beside the champion in one process: a shadow that nobody hears, or a canary that answers a share.

Shadow: the champion answers; the challenger gets the same requests afterwards, while the champion is idle, and where
it would have called otherwise, both answers are logged, for a person to say which is right. Requests wait in a queue of
limited length: what does not fit is dropped and counted, so honest traffic is never held up.

Canary: 5, then 25, then 100 % of the dialogues are answered by the challenger. What goes wrong is counted for both:
calls that cannot be made, tools that returned an error, corrections, escalations. When the challenger does worse than
chance explains, it gets no further request, by itself; what it was asked already is still answered. The state is a
file, so a restart goes on where the server was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.server.errors import ApiError, invalid, wrong_type
from tinydispatch.server.holder import ModelHolder, Serving
from tinydispatch.server.job import Answer, ChatJob
from tinydispatch.server.logs import log
from tinydispatch.server.request import ChatRequest, read_json
from tinydispatch.tools import Message, Role, ToolCall

STATE_FILE = "canary.state"
SHARES = (5, 25, 100)
_MAX_SHADOWED = 64
_MAX_INTERRUPTIONS = 3
_MAX_REMEMBERED = 2_000
_MAX_ERROR_CHARS = 500
_SHADOW_TIMEOUT_S = 120.0
# Of a canary that is equal, each signal is taken for a fault this rarely at one look.
_LEVEL = 0.001
# So many good answers the champion is taken to have given before it gave any here.
_HEAD_START = 20
# A step is left upwards where the canary's share of bad answers is above the champion's by no more than this.
_SLACK = 0.01
_SAVE_S = 1.0
_LABELS = ("tool_error", "correction", "escalation", "corrected_by")
_ARMS = ("champion", "canary")


class Signal(StrEnum):
    """What speaks against an answer."""

    INVALID = "invalid"  # a call that cannot be made, or a reply that was cut off
    TOOL_ERROR = "tool_error"
    CORRECTION = "correction"
    ESCALATION = "escalation"


class Phase(StrEnum):
    """What became of a canary."""

    RUNNING = "running"
    COMPLETED = "completed"  # it answers everything
    ROLLED_BACK = "rolled_back"


@dataclass
class Arm:
    """What one of the two models answered, and how often each signal spoke against it."""

    answers: int = 0
    signals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Signal), 0))

    @property
    def bad(self) -> float:
        """Signals per answer."""
        return sum(self.signals.values()) / self.answers if self.answers else 0.0


@dataclass
class CanaryState:
    """As it stands in the state file; `challenger` names the model that it is about."""

    challenger: str
    phase: Phase = Phase.RUNNING
    step: int = 0
    step_answers: int = 0
    reason: str = ""
    champion: Arm = field(default_factory=Arm)
    canary: Arm = field(default_factory=Arm)

    @property
    def share(self) -> int:
        """Percent of the dialogues that the canary answers."""
        return 0 if self.phase is Phase.ROLLED_BACK else SHARES[self.step]


def fault(champion: Arm, canary: Arm) -> str | None:
    """Why a canary has to go: a signal that speaks against it more often than chance explains (Fisher's exact test)."""
    for signal, count in canary.signals.items():
        before = champion.signals[signal]
        n_before = champion.answers + _HEAD_START
        if count and _chance(count, max(canary.answers, count), before, max(n_before, before)) < _LEVEL:
            return f"{signal}: {count} of {canary.answers} answers, and {before} of {champion.answers} of the champion"
    return None


def _chance(hits: int, total: int, other_hits: int, other_total: int) -> float:
    """How often at least so many of all hits fall on the first, when they fall on any answer alike."""
    all_hits, both = hits + other_hits, total + other_total
    ways = _log_choose(both, all_hits)
    most = min(all_hits, total)
    terms = (_log_choose(total, k) + _log_choose(other_total, all_hits - k) - ways for k in range(hits, most + 1))
    return sum(math.exp(term) for term in terms)


def _log_choose(n: int, k: int) -> float:
    return -math.inf if k > n else math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


class Rollout:
    """What the server asks of a challenger; this one does nothing but remember answers, for feedback on them.

    All methods may be called from any thread.

    Args:
        dispatch_log: gets disagreements and feedback.
    """

    name = ""

    def __init__(self, dispatch_log: DispatchLog | None = None) -> None:
        self._dispatch_log = dispatch_log
        self._remembered: OrderedDict[str, tuple[ChatRequest, Answer, str]] = OrderedDict()
        self._made: OrderedDict[str, str] = OrderedDict()  # what a conversation came to with its calls → reply id
        self._judged: set[tuple[str, Signal]] = set()
        self._lock = threading.Lock()

    def bind(self, holder: ModelHolder, registry: CollectorRegistry) -> None:
        """Called once, by the server: the champion, and where numbers are counted."""
        del registry
        self.holder = holder

    def route(self, request: ChatRequest) -> tuple[ModelHolder, ModelHolder | None]:
        """Who answers a request, and who does where that one breaks."""
        self._hear(request.messages)
        return self.holder, None

    def finished(self, request: ChatRequest, answer: Answer, reply_id: str) -> None:
        """An answer is about to be sent; called in a model's thread."""
        self._remember(request, answer, reply_id)

    def feedback(self, reply_id: str, labels: Mapping[str, Any]) -> bool:
        """What somebody says of an answer: `tool_error`, `correction`, `escalation`; False where nobody knows it."""
        with self._lock:
            found = self._remembered.get(_bare(reply_id))
        if found is None:
            return False
        request, answer, own_id = found
        if self._dispatch_log is not None and request.may_log:
            log_answer(self._dispatch_log, request, answer, own_id, labels)
        for signal in (Signal.TOOL_ERROR, Signal.CORRECTION, Signal.ESCALATION):
            if labels.get(signal):
                self._signal_once(own_id, answer, signal)
        return True

    def close(self) -> None:
        """Nothing more is computed; a second call does nothing."""

    def health(self) -> dict[str, Any]:
        """What `/health` shows of it."""
        return {}

    def signalled(self, serving_id: str, signal: Signal) -> None:
        """Something speaks against an answer of this model."""

    def failed(self, error: BaseException) -> None:
        """The model that `route` chose broke at a request; another one answers it."""

    def _remember(self, request: ChatRequest, answer: Answer, reply_id: str) -> None:
        calls = [part.call for part in answer.calls]
        with self._lock:
            self._remembered[reply_id] = (request, answer, reply_id)
            for part in answer.calls:
                self._remembered[_bare(part.id)] = (request, answer, reply_id)
            if calls:
                self._made[_conversation(request.messages, calls)] = reply_id
            for kept in (self._remembered, self._made):
                while len(kept) > _MAX_REMEMBERED:
                    kept.popitem(last=False)
            if len(self._judged) > 4 * _MAX_REMEMBERED:
                self._judged.clear()

    def _hear(self, messages: Sequence[Message]) -> None:
        """A conversation that goes on brings the results of the calls before: errors count against who made them."""
        end = len(messages)
        while end and messages[end - 1].role is Role.TOOL:
            end -= 1
        failed = next((result.content for result in messages[end:] if is_error(result.content)), None)
        if failed is None:
            return
        with self._lock:
            made = _conversation(messages[: end - 1], messages[end - 1].tool_calls) if end else ""
            found = self._remembered.get(self._made.get(made, ""))
        if found is None:
            return
        request, answer, reply_id = found
        if self._signal_once(reply_id, answer, Signal.TOOL_ERROR) and self._dispatch_log and request.may_log:
            log_answer(self._dispatch_log, request, answer, reply_id, {"tool_error": failed[:_MAX_ERROR_CHARS]})

    def _signal_once(self, reply_id: str, answer: Answer, signal: Signal) -> bool:
        with self._lock:
            if (reply_id, signal) in self._judged:
                return False
            self._judged.add((reply_id, signal))
        self.signalled(answer.serving_id, signal)
        return True


def log_answer(
    dispatch_log: DispatchLog,
    request: ChatRequest,
    answer: Answer,
    reply_id: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """One line of the dispatch log; `extra` is redacted with the rest."""
    dispatch_log.write(
        messages=request.messages,
        tools=request.tools,
        dispatch=answer.dispatch,
        reference_date=answer.reference_date,
        model=answer.serving_id,
        session=request.session,
        client=request.owner,
        reply_id=reply_id,
        extra=extra,
    )


def read_feedback(body: bytes) -> tuple[str, dict[str, Any]]:
    """The body of `/v1/feedback`: an answer's id, or that of one of its calls, and what is said of it.

    Raises:
        ApiError: 400 names the key at fault.
    """
    value = read_json(body)
    if not isinstance(value.get("id"), str) or not value["id"]:
        raise wrong_type("id", "a string", value.get("id"))
    labels = {key: value[key] for key in _LABELS if value.get(key) is not None}
    if strange := sorted(set(value) - {"id", *_LABELS}):
        raise invalid(f"Unknown parameter: '{strange[0]}'. Known are 'id', {', '.join(_LABELS)}.", strange[0])
    if not labels:
        raise invalid(f"Say what became of the answer: one of {', '.join(_LABELS)}.")
    for key in ("correction", "escalation"):
        label = labels.get(key)
        if label is not None and not (isinstance(label, dict) and isinstance(label.get("calls"), list)):
            raise wrong_type(key, "an object with an array 'calls'", label)
    if not isinstance(labels.get("tool_error", ""), str | bool):
        raise wrong_type("tool_error", "a string or a boolean", labels["tool_error"])
    return value["id"], labels


def is_error(content: str) -> bool:
    """Whether a tool's result reads as an error: an object with `error` or `is_error`, or a text that begins so."""
    text = content.strip()
    if text[:5].lower() == "error":
        return True
    if not text.startswith("{"):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(value.get("error") or value.get("is_error") or value.get("isError"))


def _bare(reply_id: str) -> str:
    return reply_id.replace("-", "_").rpartition("_")[2]


def _conversation(messages: Sequence[Message], calls: Sequence[ToolCall]) -> str:
    made = [[call.name, dict(call.arguments)] for call in calls]
    said = [[str(m.role), m.content, [[c.name, dict(c.arguments)] for c in m.tool_calls]] for m in messages]
    return hashlib.sha256(json.dumps([said, made], sort_keys=True).encode()).hexdigest()


def _is_invalid(answer: Answer) -> bool:
    return answer.finish_reason == "length" or bool(answer.dispatch.violations or answer.dispatch.unparsed)


@dataclass(frozen=True)
class _Shadowed:
    request: ChatRequest
    answer: Answer
    reply_id: str
    interruptions: int = 0


class Shadow(Rollout):
    """The challenger answers for the log alone.

    Args:
        load: opens it; called in a thread of the lowest priority, whose threads inherit that.
        challenger: its id in the log.
    """

    name = "shadow"

    def __init__(self, load: Callable[[], Serving], challenger: str, dispatch_log: DispatchLog) -> None:
        super().__init__(dispatch_log)
        self._log: DispatchLog = dispatch_log
        self._load, self._challenger = load, challenger
        self._queue: queue.Queue[_Shadowed | None] = queue.Queue(_MAX_SHADOWED)
        self._stop = threading.Event()
        self._job: ChatJob | None = None
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def bind(self, holder: ModelHolder, registry: CollectorRegistry) -> None:
        """Begins to work."""
        super().bind(holder, registry)
        text = "Requests to the champion: agreed, disagreed, failed, dropped"
        self._counter = Counter("tinydispatch_shadow_requests", text, ["result"], registry=registry)
        for result in ("agreed", "disagreed", "failed", "dropped"):
            self._counter.labels(result)
        self._thread.start()

    def route(self, request: ChatRequest) -> tuple[ModelHolder, ModelHolder | None]:
        """The champion; what the challenger is just computing ends at its next token, and is begun again later."""
        if (job := self._job) is not None:
            job.cancel()
        return super().route(request)

    def finished(self, request: ChatRequest, answer: Answer, reply_id: str) -> None:
        """Queue the request for the challenger, or drop it."""
        super().finished(request, answer, reply_id)
        if request.prompt is None and request.may_log:
            self._put(_Shadowed(request, answer, reply_id))

    def close(self) -> None:
        """What waits is dropped."""
        self._stop.set()
        if (job := self._job) is not None:
            job.cancel()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    def health(self) -> dict[str, Any]:
        """Its id, and how many requests wait for it."""
        return {"shadow": {"id": self._challenger, "waiting": self._queue.qsize()}}

    def _put(self, item: _Shadowed) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._counter.labels("dropped").inc()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # other systems have no priority of a single thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            serving = self._load()
        except (ValueError, RuntimeError, OSError) as error:
            log("shadow cannot be loaded", logging.ERROR, id=self._challenger, reason=str(error))
            self._stop.set()
            return
        log("shadow", id=serving.id)
        try:
            while (item := self._queue.get()) is not None and not self._stop.is_set():
                while (self.holder.is_busy or self.holder.n_waiting) and not self._stop.wait(0.01):
                    pass
                self._compare(serving, item)
        finally:
            serving.dispatcher.close()

    def _compare(self, serving: Serving, item: _Shadowed) -> None:
        request = replace(item.request, reference_date=item.answer.reference_date or item.request.reference_date)
        self._job = job = ChatJob(request, _SHADOW_TIMEOUT_S)
        try:
            answer = job.run(serving)
        except (ApiError, ValueError, RuntimeError) as error:
            self._counter.labels("failed").inc()
            log("shadow failed", logging.WARNING, kind=type(error).__name__)
            return
        finally:
            self._job = None
        if job.is_cancelled:
            if item.interruptions < _MAX_INTERRUPTIONS and not self._stop.is_set():
                self._put(replace(item, interruptions=item.interruptions + 1))
            else:
                self._counter.labels("dropped").inc()
            return
        if _made(answer) == _made(item.answer):
            self._counter.labels("agreed").inc()
            return
        self._counter.labels("disagreed").inc()
        made = [{"name": part.call.name, "arguments": dict(part.call.arguments)} for part in answer.calls]
        challenger = {
            "model": serving.id,
            "calls": made,
            "reply": answer.content or "",
            "confidence": round(answer.dispatch.confidence, 4),
            "is_accepted": answer.dispatch.is_usable,
        }
        log_answer(self._log, item.request, item.answer, item.reply_id, {"challenger": challenger})


def _made(answer: Answer) -> list[tuple[str, str]]:
    return [(part.call.name, json.dumps(dict(part.call.arguments), sort_keys=True)) for part in answer.calls]


class Canary(Rollout):
    """The challenger answers a share of the dialogues.

    Args:
        serving: it is closed with the canary.
        state: the file that outlives a restart; one about another challenger is begun anew.
        step_answers: so many answers of the canary a step wants, before more dialogues are given to it.
        max_waiting: as of the champion.
    """

    name = "canary"

    def __init__(
        self,
        serving: Serving,
        state: Path,
        dispatch_log: DispatchLog | None = None,
        *,
        step_answers: int = 200,
        max_waiting: int = 64,
    ) -> None:
        super().__init__(dispatch_log)
        self._holder = ModelHolder(serving, max_waiting=max_waiting)
        self._path, self._step_answers = state, step_answers
        self.state = read_state(state, serving.id)
        self._change = threading.RLock()
        self._saved = 0.0
        log("canary", id=serving.id, phase=self.state.phase, share=self.state.share)

    def bind(self, holder: ModelHolder, registry: CollectorRegistry) -> None:
        """Numbers by model."""
        super().bind(holder, registry)
        text = "Answers of the champion and the canary"
        self._answers = Counter("tinydispatch_canary_answers", text, ["arm"], registry=registry)
        text = "What spoke against answers of the champion and the canary"
        self._signals = Counter("tinydispatch_canary_signals", text, ["arm", "signal"], registry=registry)
        share = Gauge("tinydispatch_canary_share", "Percent of the dialogues for the canary", registry=registry)
        share.set_function(lambda: self.state.share)

    def route(self, request: ChatRequest) -> tuple[ModelHolder, ModelHolder | None]:
        """The canary for its share of the dialogues, with the champion for what it cannot take or breaks at."""
        super().route(request)
        if not self._is_for_canary(request) or not self._holder.is_working:
            return self.holder, None
        return self._holder, self.holder

    def finished(self, request: ChatRequest, answer: Answer, reply_id: str) -> None:
        """Count the answer."""
        super().finished(request, answer, reply_id)
        with self._change:
            arm = self._arm(answer.serving_id)
            arm.answers += 1
            self._answers.labels(self._name(arm)).inc()
            if arm is self.state.canary:
                self.state.step_answers += 1
        if _is_invalid(answer):
            self.signalled(answer.serving_id, Signal.INVALID)
        self._look()

    def signalled(self, serving_id: str, signal: Signal) -> None:
        """Count it, and take the canary out of service where that is too much."""
        with self._change:
            arm = self._arm(serving_id)
            arm.signals[signal] += 1
            self._signals.labels(self._name(arm), str(signal)).inc()
        self._look()

    def failed(self, error: BaseException) -> None:
        """The canary broke at a request; the champion answers it."""
        log("canary failed", logging.ERROR, exception=error)
        with self._change:
            self.state.canary.answers += 1
        self.signalled(self._holder.serving.id, Signal.INVALID)

    def close(self) -> None:
        """Finish what the canary was asked, and keep the state."""
        self._holder.close()
        with self._change:
            self._save()

    def health(self) -> dict[str, Any]:
        """Its id, phase and share."""
        state = self.state
        shown = {"id": state.challenger, "phase": str(state.phase), "share": state.share}
        return {"canary": shown | ({"reason": state.reason} if state.reason else {})}

    def _is_for_canary(self, request: ChatRequest) -> bool:
        first = next((message.content for message in request.messages if message.role is Role.USER), request.prompt)
        key = f"{self.state.challenger}\n{request.session or first}"
        number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "big")
        return number % 100 < self.state.share

    def _arm(self, serving_id: str) -> Arm:
        return self.state.canary if serving_id == self.state.challenger else self.state.champion

    def _name(self, arm: Arm) -> str:
        return "canary" if arm is self.state.canary else "champion"

    def _look(self) -> None:
        with self._change:
            state = self.state
            if state.phase is not Phase.ROLLED_BACK and (reason := fault(state.champion, state.canary)) is not None:
                state.phase, state.reason = Phase.ROLLED_BACK, reason
                log("canary rolled back", logging.ERROR, id=state.challenger, reason=reason)
                self._save()
            elif (
                state.phase is Phase.RUNNING
                and state.step_answers >= self._step_answers
                and state.canary.bad <= state.champion.bad + _SLACK
            ):
                state.step_answers = 0
                if state.step + 1 < len(SHARES):
                    state.step += 1
                    log("canary goes on", id=state.challenger, share=state.share)
                else:
                    state.phase = Phase.COMPLETED
                    log("canary completed", id=state.challenger)
                self._save()
            elif time.monotonic() - self._saved > _SAVE_S:
                self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        state = self.state
        value = {
            "challenger": state.challenger,
            "phase": state.phase,
            "step": state.step,
            "step_answers": state.step_answers,
            "reason": state.reason,
            "champion": vars(state.champion),
            "canary": vars(state.canary),
        }
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            partial.touch(0o600)
            partial.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
            partial.replace(self._path)
        except OSError as error:
            log("canary's state cannot be kept", logging.ERROR, path=str(self._path), reason=str(error.strerror))


def read_state(path: Path, challenger: str) -> CanaryState:
    """The state of this challenger; a new one where the file is about another, or is not there.

    Raises:
        ValueError: the file is something else; deleting it begins anew.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        if value["challenger"] != challenger:
            return CanaryState(challenger)
        arms = [Arm(int(value[n]["answers"]), {str(s): int(value[n]["signals"][s]) for s in Signal}) for n in _ARMS]
        step = min(int(value["step"]), len(SHARES) - 1)
        phase, reason = Phase(value["phase"]), str(value["reason"])
        return CanaryState(challenger, phase, step, int(value["step_answers"]), reason, *arms)
    except FileNotFoundError:
        return CanaryState(challenger)
    except OSError as error:
        raise ValueError(f"{path}: the canary's state cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no canary's state: {error!r}; delete it to begin anew") from error
