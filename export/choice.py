"""Which of a run's files is offered first: the smallest that is not measurably worse than its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.metrics import compare
from eval.results import EvalResult, load_result

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Verdict:
    """A file against its checkpoint, on the `n` cases that both were scored on, by McNemar's exact test."""

    n: int
    only_checkpoint: int
    only_file: int
    p_value: float

    @property
    def is_worse(self) -> bool:
        """Whether it loses more cases than it gains, by more than chance explains."""
        return self.only_checkpoint > self.only_file and self.p_value < _SIGNIFICANT


@dataclass(frozen=True)
class Choice:
    """The verdict on each file, and which file to offer; None where every file is worse."""

    verdicts: Mapping[str, Verdict]
    default: str | None

    @property
    def marked(self) -> tuple[str, ...]:
        """The files that are significantly worse."""
        return tuple(name for name, verdict in self.verdicts.items() if verdict.is_worse)


def judge(checkpoint: Sequence[EvalResult], file: Sequence[EvalResult]) -> Verdict:
    """Compare results on the same suites; a case that either was not scored on counts for neither.

    Raises:
        ValueError: the two were not evaluated on the same suites.
    """
    if [result.suite_fingerprint for result in checkpoint] != [result.suite_fingerprint for result in file]:
        raise ValueError("a file and its checkpoint can only be compared on the same suites, in the same version")
    first, second = _verdicts(checkpoint), _verdicts(file)
    scored = [case for case in first if first[case] is not None and second.get(case) is not None]
    found = compare({case: first[case] for case in scored}, {case: second[case] for case in scored})
    return Verdict(len(scored), found.only_first, found.only_second, found.p_value)


def choose(
    checkpoint: Sequence[EvalResult], files: Mapping[str, Sequence[EvalResult]], sizes: Mapping[str, int]
) -> Choice:
    """Judge each file by name; `sizes` are bytes.

    Raises:
        ValueError: a file was evaluated on other suites than the checkpoint.
    """
    verdicts = {name: judge(checkpoint, results) for name, results in files.items()}
    good = [name for name, verdict in verdicts.items() if not verdict.is_worse]
    return Choice(verdicts, min(good, key=lambda name: sizes[name], default=None))


def choose_file(eval_folder: Path, suites: Sequence[str], files: Mapping[str, Path]) -> tuple[Path, list[str]]:
    """The file to offer and what to say about those that are worse, from the results in a run's `eval/` folder.

    Args:
        suites: names as in the result files.
        files: by quantization, the most exact first; the first is offered where all are worse.
    """
    checkpoint = [load_result(eval_folder / f"{suite}-checkpoint.json") for suite in suites]
    results = {name: [load_result(eval_folder / f"{suite}-gguf-{name}.json") for suite in suites] for name in files}
    choice = choose(checkpoint, results, {name: path.stat().st_size for name, path in files.items()})
    lines = []
    for name in choice.marked:
        verdict = choice.verdicts[name]
        lines.append(
            f"{files[name]} is significantly worse than its checkpoint: of {verdict.n} cases it fails "
            f"{verdict.only_checkpoint} that the checkpoint passes and passes {verdict.only_file} that it fails "
            f"(McNemar's exact p = {verdict.p_value:.3f})"
        )
    return files[choice.default] if choice.default is not None else next(iter(files.values())), lines


def _verdicts(results: Sequence[EvalResult]) -> dict[str, bool | None]:
    # Two suites may use the same id.
    return {f"{result.suite}/{case}": verdict for result in results for case, verdict in result.verdicts().items()}
