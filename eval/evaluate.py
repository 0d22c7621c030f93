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
from eval.journal import ALONE, Journal, Share, weights_digest
from eval.matching import Outcome, Score, match
from eval.results import CaseResult, EvalResult, result_stem
from tinydispatch.formats import parse_reply
from tinydispatch.tools import Tool

# Settings that decide how fast replies come, and not which.
_NO_PART = {"suites", "batch_size", "device", "samples", "endpoint_cache"} | {
    f"endpoint_{name}" for name in ("concurrency", "timeout_s", "retries")
}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "merged/*.safetensors")


def evaluate(
    backend: Backend,
    suite: Suite,
    *,
    model_name: str,
    sample: int = 0,
    progress: bool = True,
    journal: Journal | None = None,
) -> EvalResult:
    """Every case of the suite, once; the result has them in the suite's order, whatever order they were asked in.

    A case for which the backend has no reply is unscored: neither passed nor failed.

    Args:
        journal: keeps each result as it comes. What it knows is not asked again, and of several processes each asks
            its share; the result of the first one has the cases of all, that of the others their own.
    """
    results: dict[str, CaseResult] = {} if journal is None else dict(journal.known)
    share = ALONE if journal is None else journal.share

    def asked(is_played: bool) -> list[Case]:
        found = by_shared_beginning((case for case in suite.cases if bool(case.episode) is is_played), suite)
        return [case for case in share.of(found) if case.id not in results]

    played, single = asked(is_played=True), asked(is_played=False)
    with _progress(len(played) + len(single), f"{model_name} on {suite.name}", progress) as advance:

        def keep(found: Sequence[CaseResult]) -> None:
            results.update({case.id: case for case in found})
            if journal is not None:
                journal.keep(found)
            advance(len(found))

        play(
            backend,
            played,
            suite,
            sample=sample,
            finished=lambda ended: keep([_played_result(i, suite) for i in ended]),
        )
        for start in range(0, len(single), backend.batch_size):
            batch = single[start : start + backend.batch_size]
            requests = [Request(case.messages, suite.tools_for(case), case.today, sample) for case in batch]
            replies = zip(batch, backend.generate(requests), requests, strict=True)
            keep([_case_result(case, reply, request.tools, suite.lenient) for case, reply, request in replies])
    if journal is not None:
        results = journal.gathered() or results
    cases = tuple(results[case.id] for case in suite.cases if case.id in results)
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
    share: Share = ALONE,
) -> list[EvalResult]:
    """Load a model once, run it on each suite, and save each result into `folder` as soon as it is there.

    The model named "gold" is the suites' own answers, unless there is a folder of that name.
    With `config.samples` above 1 each suite is run that many times, and each draw is a result of its own.
    With a folder an evaluation that was killed goes on where it was: only the cases without a verdict are asked.

    Args:
        share: of several processes that evaluate one model together into `folder`; the first one saves and returns
            the results of all, the others return none.

    Raises:
        BackendError: the model cannot be loaded.
    """
    assert folder is not None or share.count == 1, "processes share their results by files"
    results = []
    size = size_on_disk(model)
    is_gold = model == GOLD and not Path(model).exists()
    measured = {"weights": weights_digest(model), "settings": config.model_dump(mode="json", exclude=_NO_PART)}
    with gold_backend(suites) if is_gold else open_backend(model, config) as backend:
        for suite in suites:
            for sample in range(config.samples):
                draw = sample + 1 if config.samples > 1 else None
                journal = None
                if folder is not None:
                    stem = result_stem(suite.name, model_name, draw)
                    journal = Journal(folder, stem, measured | {"suite": suite.fingerprint}, share)
                    if journal.known and progress and share.number == 0:
                        note = f"{stem}: {len(journal.known)} of {len(suite.cases)} cases are there already"
                        Console(stderr=True).print(note, markup=False, highlight=False)
                is_shown = progress and share.number == 0
                try:
                    result = evaluate(
                        backend, suite, model_name=model_name, sample=sample, progress=is_shown, journal=journal
                    )
                finally:
                    if journal is not None:
                        journal.close()
                if share.number:
                    continue
                result = replace(result, size_bytes=size, draw=draw)
                if folder is not None and journal is not None:
                    result.save(folder)
                    journal.remove()
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
def _progress(count: int, title: str, is_shown: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task(title, total=count)
        yield lambda count: bar.advance(task, count)
