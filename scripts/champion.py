"""Results of the model that is to be beaten, and whether a new one is worse by more than chance explains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.cases import Suite
from eval.comparison import ComparisonError, difference_lines, pair_runs
from eval.report import label
from eval.results import EvalResult, load_result


class ChampionError(ValueError):
    """A champion that nothing can be compared with; the message says what to give instead."""


class Champion:
    """The champion's results by suite, one or several of them for each."""

    def __init__(self, source: str, results: Sequence[EvalResult]) -> None:
        self._source = source
        self._results = results

    @classmethod
    def load(cls, path: Path, suites: Sequence[Suite], models: Sequence[str]) -> Champion:
        """A run's folder, a folder of result files, or one such file.

        Raises:
            ChampionError: it has no result for one of the suites, none on this version of the suite, or several
                between which the names of `models` do not decide.
            ResultError: a file cannot be read.
        """
        folder = path / "eval" if (path / "eval").is_dir() else path
        files = sorted(folder.glob("*.json")) if folder.is_dir() else [path]
        champion = cls(str(path), [load_result(file) for file in files])
        for suite in suites:
            for model in models:
                found = champion._of(suite.name, model)
                if found.suite_fingerprint != suite.fingerprint:
                    raise ChampionError(
                        f"{path}: '{found.model_name}' was scored on another version of suite '{suite.name}'; "
                        "evaluate it again"
                    )
        return champion

    def _of(self, suite: str, model: str) -> EvalResult:
        """The result to compare `model` with: of the same name where there is one, else the only one."""
        found = [result for result in self._results if result.suite == suite and result.draw in (None, 1)]
        same = [result for result in found if result.model_name == model]
        if len(same or found) != 1:
            names = ", ".join(result.model_name for result in found) or "none"
            raise ChampionError(
                f"{self._source}: results on suite '{suite}': {names}; give the one file to compare '{model}' with"
            )
        return (same or found)[0]

    def losses(self, results: Sequence[EvalResult]) -> list[str]:
        """A line for each result that is worse than the champion's, or cannot be compared with it."""
        lines = []
        for result in results:
            best = self._of(result.suite, result.model_name)
            try:
                runs = pair_runs(best, result)
            except ComparisonError as error:
                lines.append(f"{label(result)} on {result.suite}: {error}")
                continue
            if runs.is_worse:
                lines.append(
                    f"{label(result)} on {result.suite}: worse than {best.model_name} of {self._source}: "
                    + "; ".join(difference_lines(runs))
                )
        return lines
