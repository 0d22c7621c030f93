"""A backend on a suite: generate, parse, match, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.backends import Backend, Failure, Generation, Request, open_backend
from eval.cases import Case, LenientRule, Suite, by_shared_beginning
from eval.config import EvalConfig
from eval.episodes import Played, play, score_episode
from eval.gold import GOLD, gold_backend
from eval.matching import Outcome, Score, match
from eval.results import CaseResult, EvalResult
from tinydispatch.formats import parse_reply
from tinydispatch.tools import Tool

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "merged/*.safetensors")


def evaluate(backend: Backend, suite: Suite, *, model_name: str, sample: int = 0, progress: bool = True) -> EvalResult:
    """Every case of the suite, once; the result has them in the suite's order, whatever order they were asked in.

    A case for which the backend has no reply is unscored: neither passed nor failed.
    """
    with _progress(suite, f"{model_name} on {suite.name}", progress) as advance:
        played = by_shared_beginning((case for case in suite.cases if case.episode), suite)
        results = {
            item.case.id: _played_result(item, suite)
            for item in play(backend, played, suite, sample=sample, finished=advance)
        }
        single = by_shared_beginning((case for case in suite.cases if not case.episode), suite)
        for start in range(0, len(single), backend.batch_size):
            batch = single[start : start + backend.batch_size]
            requests = [Request(case.messages, suite.tools_for(case), case.today, sample) for case in batch]
            for case, reply, request in zip(batch, backend.generate(requests), requests, strict=True):
                results[case.id] = _case_result(case, reply, request.tools, suite.lenient)
            advance(len(batch))
    cases = tuple(results[case.id] for case in suite.cases)
    result = EvalResult(suite.name, suite.fingerprint, model_name, suite.categories, cases)
    return replace(result, lenient_rule=suite.lenient.name) if suite.lenient is not None else result


def evaluate_model(
    model: str | Path,
    suites: Sequence[Suite],
    config: EvalConfig,
    *,
    model_name: str,
    folder: Path | None = None,
    progress: bool = True,
) -> list[EvalResult]:
    """Load a model once, run it on each suite, and save each result into `folder` as soon as it is there.

    The model named "gold" is the suites' own answers, unless there is a folder of that name.
    With `config.samples` above 1 each suite is run that many times, and each draw is a result of its own.

    Raises:
        BackendError: the model cannot be loaded.
    """
    results = []
    size = size_on_disk(model)
    is_gold = model == GOLD and not Path(model).exists()
    with gold_backend(suites) if is_gold else open_backend(model, config) as backend:
        for suite in suites:
            for draw in range(config.samples):
                result = evaluate(backend, suite, model_name=model_name, sample=draw, progress=progress)
                result = replace(result, size_bytes=size, draw=draw + 1 if config.samples > 1 else None)
                if folder is not None:
                    result.save(folder)
                results.append(result)
    return results


def size_on_disk(model: str | Path) -> int | None:
    """Bytes of a GGUF file, or of the weights in a checkpoint's directory; None for what is not on this disk."""
    path = Path(model)
    if path.is_file():
        return path.stat().st_size
    weights = [file for pattern in _WEIGHTS for file in path.glob(pattern)] if path.is_dir() else []
    return sum(file.stat().st_size for file in weights) or None


def score_generation(generation: Generation, case: Case, tools: Sequence[Tool]) -> Score:
    """The verdict on a reply. One that was cut off never passes: a server would have nothing to act on."""
    if not generation.is_complete:
        return Score(Outcome.UNPARSEABLE, f"the reply does not end within {generation.tokens} tokens")
    return match(parse_reply(generation.text, tools), case, tools)


def _case_result(
    case: Case, reply: Generation | Failure, tools: Sequence[Tool], lenient: LenientRule | None
) -> CaseResult:
    blank = _blank(case)
    if isinstance(reply, Failure):
        return replace(blank, explanation=reply.reason)
    score = score_generation(reply, case, tools)
    return replace(
        blank,
        got=_writable(reply.text),
        outcome=score.outcome,
        explanation=_writable(score.explanation),
        latency_s=round(reply.latency_s, 4),
        tokens=reply.tokens,
        is_lenient_pass=reply.is_complete and lenient.passes(case, parse_reply(reply.text, tools)) if lenient else None,
    )


def _played_result(played: Played, suite: Suite) -> CaseResult:
    case, turns = played.case, played.turns
    blank = replace(_blank(case), transcript=tuple(_transcript(played)))
    if played.failure is not None:
        return replace(blank, explanation=f"reply {len(turns) + 1}: {played.failure.reason}")
    found = score_episode(case, turns, suite.tools_for(case), played.difference)
    return replace(
        blank,
        got=_writable(turns[found.turn].generation.text),
        outcome=found.score.outcome,
        explanation=_writable(found.score.explanation),
        latency_s=round(sum(turn.generation.latency_s for turn in turns) / len(turns), 4),
        tokens=sum(turn.generation.tokens for turn in turns),
        is_goal_reached=not played.difference,
    )


def _transcript(played: Played) -> Iterator[dict[str, Any]]:
    assert played.case.episode is not None, "only cases with an episode are played"
    phase = 0
    for turn in played.turns:
        if turn.phase != phase:
            phase = turn.phase
            yield {"role": "user", "content": played.case.episode.phases[phase].user}
        yield {"role": "assistant", "content": _writable(turn.generation.text)}
        for result in turn.results:
            yield {"role": "tool", "name": result.call.name, "content": result.content, "is_error": result.is_error}
    if played.failure is not None:
        yield {"role": "error", "content": played.failure.reason}


def _blank(case: Case) -> CaseResult:
    """A result before the verdict."""
    expected = tuple(call.to_json() for call in case.expected)
    return CaseResult(case.id, case.category, case.prompt, expected, None, None, "", None, None, case.parent)


def _writable(text: str) -> str:
    """A reply may spell half a surrogate pair ("\\ud83d"), which neither a file nor a terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _progress(suite: Suite, title: str, is_shown: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task(title, total=len(suite.cases))
        yield lambda count: bar.advance(task, count)
