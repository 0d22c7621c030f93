"""A backend on a suite: generate, parse, match, count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.backends import Backend, Failure, Generation, Request, open_backend
from eval.cases import Case, Suite
from eval.config import EvalConfig
from eval.matching import Outcome, Score, match
from eval.results import CaseResult, EvalResult
from tinydispatch.formats import parse_reply
from tinydispatch.tools import Role, Tool


def evaluate(backend: Backend, suite: Suite, *, model_name: str, progress: bool = True) -> EvalResult:
    """Every case of the suite, once, in order.

    A case for which the backend has no reply is unscored: neither passed nor failed.
    """
    results: list[CaseResult] = []
    for batch in _batches(suite.cases, backend.batch_size, f"{model_name} on {suite.name}", progress):
        requests = [Request(case.messages, suite.tools_for(case), case.reference_date) for case in batch]
        replies = backend.generate(requests)
        results += [
            _case_result(case, reply, request.tools)
            for case, reply, request in zip(batch, replies, requests, strict=True)
        ]
    return EvalResult(suite.name, suite.fingerprint, model_name, suite.categories, tuple(results))


def evaluate_model(
    model: str | Path,
    suites: Iterable[Suite],
    config: EvalConfig,
    *,
    model_name: str,
    folder: Path | None = None,
    progress: bool = True,
) -> list[EvalResult]:
    """Load a model once, run it on each suite, and save each result into `folder` as soon as it is there.

    Raises:
        BackendError: the model cannot be loaded.
    """
    results = []
    with open_backend(model, config) as backend:
        for suite in suites:
            result = evaluate(backend, suite, model_name=model_name, progress=progress)
            if folder is not None:
                result.save(folder)
            results.append(result)
    return results


def score_generation(generation: Generation, case: Case, tools: Sequence[Tool]) -> Score:
    """The verdict on a reply. One that was cut off never passes: a server would have nothing to act on."""
    if not generation.is_complete:
        return Score(Outcome.UNPARSEABLE, f"the reply does not end within {generation.tokens} tokens")
    return match(parse_reply(generation.text), case, tools)


def _case_result(case: Case, reply: Generation | Failure, tools: Sequence[Tool]) -> CaseResult:
    prompt = next((message.content for message in reversed(case.messages) if message.role is Role.USER), "")
    expected = tuple(call.to_json() for call in case.expected)
    if isinstance(reply, Failure):
        return CaseResult(case.id, case.category, prompt, expected, None, None, reply.reason, None, None)
    score = score_generation(reply, case, tools)
    return CaseResult(
        id=case.id,
        category=case.category,
        prompt=prompt,
        expected=expected,
        got=reply.text,
        outcome=score.outcome,
        # A reply may spell half a surrogate pair ("\ud83d"), which neither a file nor a terminal takes.
        explanation=score.explanation.encode("utf-8", "backslashreplace").decode(),
        latency_s=round(reply.latency_s, 4),
        tokens=reply.tokens,
    )


def _batches(cases: Sequence[Case], size: int, title: str, progress: bool) -> Iterator[Sequence[Case]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(title, total=len(cases))
        for start in range(0, len(cases), size):
            batch = cases[start : start + size]
            yield batch
            bar.advance(task, len(batch))
