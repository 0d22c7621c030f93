"""What a run did, step by step: OpenTelemetry spans where its SDK is installed, JSONL where a file is named.

Spans hold names, counts, times and reasons. What users wrote, arguments and results stand in them only on request.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

_KEPT = 10_000


@dataclass
class Span:
    """One step. `attributes` may be added to until it ends; `start_s` is Unix time."""

    name: str
    trace: str
    id: str
    parent: str
    start_s: float
    attributes: dict[str, Any] = field(default_factory=dict)
    duration_ms: float = 0.0
    otel: Any = None

    def set(self, **attributes: Any) -> None:
        """Add attributes; None is left out."""
        self.attributes.update({key: value for key, value in attributes.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """One line of a trace file."""
        return {
            "trace": self.trace,
            "span": self.id,
            "parent": self.parent,
            "name": self.name,
            "start_s": round(self.start_s, 6),
            "duration_ms": round(self.duration_ms, 3),
            "attributes": self.attributes,
        }


class Tracer:
    """Writes spans when they end. Safe for use from several threads.

    Args:
        path: a JSONL file to append to; None writes none.
        has_content: whether users' words, arguments and results are recorded.
        is_otel: None sends spans to OpenTelemetry where its SDK is installed; the application configures where they go.
    """

    def __init__(self, path: Path | None = None, *, has_content: bool = False, is_otel: bool | None = None) -> None:
        self.has_content = has_content
        self.spans: deque[Span] = deque(maxlen=_KEPT)  # the last ones
        self._lock = threading.Lock()
        self._otel = _otel_tracer() if is_otel is not False else None
        if is_otel and self._otel is None:
            raise ValueError("OpenTelemetry is not installed: pip install 'tinydispatch[otel]'")
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    @contextmanager
    def span(self, name: str, parent: Span | None = None, **attributes: Any) -> Iterator[Span]:
        """A step that lasts as long as the block."""
        found = Span(
            name,
            parent.trace if parent else uuid.uuid4().hex,
            uuid.uuid4().hex[:16],
            parent.id if parent else "",
            time.time(),
        )
        found.set(**attributes)
        found.otel = self._start_otel(name, parent)
        started = time.perf_counter()
        try:
            yield found
        except BaseException as error:
            found.set(error=type(error).__name__)
            raise
        finally:
            found.duration_ms = 1000 * (time.perf_counter() - started)
            self._end(found)

    def content(self, value: Any) -> Any:
        """The value where content is recorded, else None."""
        return value if self.has_content else None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start_otel(self, name: str, parent: Span | None) -> Any:
        if self._otel is None:
            return None
        from opentelemetry.trace import set_span_in_context

        # Without a parent of ours, the application's own current span is the parent.
        context = set_span_in_context(parent.otel) if parent is not None and parent.otel is not None else None
        return self._otel.start_span(f"tinydispatch.{name}", context=context)

    def _end(self, span: Span) -> None:
        if span.otel is not None:
            for key, value in span.attributes.items():
                plain = value if isinstance(value, str | bool | int | float) else json.dumps(value, default=str)
                span.otel.set_attribute(f"tinydispatch.{key}", plain)
            span.otel.end()
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps(span.to_json(), ensure_ascii=False, default=str) + "\n")
                self._file.flush()
            self.spans.append(span)


def tree(spans: Sequence[Span]) -> list[str]:
    """Spans as lines for people, each below what it belongs to, in the order in which they began."""
    by_parent: dict[str, list[Span]] = {}
    known = {span.id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_s):
        by_parent.setdefault(span.parent if span.parent in known else "", []).append(span)
    lines: list[str] = []

    def add(span: Span, head: str, below: str) -> None:
        lines.append(f"{head}{_told(span)}  [{span.duration_ms:.0f} ms]")
        children = by_parent.get(span.id, [])
        for child in children:
            is_last = child is children[-1]
            add(child, below + ("└─ " if is_last else "├─ "), below + ("   " if is_last else "│  "))

    for span in by_parent.get("", []):
        add(span, "", "")
    return lines


def _told(span: Span) -> str:
    """One span in words."""
    has = span.attributes
    if span.name == "run":
        cost = f", cost {has['cost']:.6g}" if has.get("cost") else ""
        return f"run: {has.get('state')}; {_count(has, 'replies')}, {_count(has, 'calls')}{cost}"
    if span.name == "hand_up":
        reasons = [str(reason) for reason in has.get("reasons", [])]
        details = has.get("details") or [""] * len(reasons)
        why = "; ".join(
            f"{reason}: {detail}" if detail else reason for reason, detail in zip(reasons, details, strict=True)
        )
        return f"{has.get('from')} hands up to {has.get('to')} ({why})"
    if span.name == "tool":
        arguments = has.get("arguments") or {}
        call = f"{has.get('tool')}({', '.join(f'{key}={_short(value)}' for key, value in arguments.items())})"
        notes = [f"{name} {has[name]}" for name in ("node",) if has.get(name)]
        notes += ["agreed to by a person"] if has.get("agreed") else []
        notes += ["made before, its result of then"] if has.get("is_replayed") else []
        notes += [f"{has['attempts']} attempts"] if has.get("attempts", 0) > 1 else []
        end = (
            _short(has.get("result"), 200)
            if has.get("status") == "done"
            else f"{has.get('status')}: {has.get('error')}"
        )
        return f"{call}{' (' + ', '.join(notes) + ')' if notes else ''} → {end}"
    if span.name == "plan":
        return "plan: " + ", ".join(f"{name} {state}" for name, state in (has.get("ends") or {}).items())
    if span.name == "repair":
        return f"the plan is sent back: {'; '.join(map(str, has.get('problems', [])))}"
    if "failure" in has:
        return f"{span.name}: no reply: {has['failure']}"
    sure = f", confidence {has['confidence']:.2f}" if has.get("confidence") is not None else ""
    said = ", ".join(f"{name}(…)" for name in has.get("calls") or []) or _words(has.get("text") or "")
    return f"{span.name}: {said}  ({has.get('prompt_tokens', 0)} + {has.get('completion_tokens', 0)} tokens{sure})"


def _count(attributes: Mapping[str, Any], name: str) -> str:
    number = attributes.get(name, 0)
    return f"{number} {name if number != 1 else {'replies': 'reply', 'calls': 'call'}[name]}"


def _words(text: str) -> str:
    """What a layer said; a plan is told by its calls' names."""
    try:
        calls = [f"{call['tool']}(…)" for call in json.loads(text)["calls"]]
    except (ValueError, TypeError, KeyError):
        return _short(text, 300)
    return f"a plan of {', '.join(calls)}"


def _short(value: Any, most: int = 80) -> str:
    text = " ".join(json.dumps(value, ensure_ascii=False, default=str).split())
    return text if len(text) <= most else f"{text[:most]}…"


def _otel_tracer() -> Any:
    try:
        import opentelemetry.sdk.trace  # noqa: F401 (the API alone comes with other packages and records nothing)
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("tinydispatch")
