"""Cases answered while training goes on: pass rate per category beside the loss, and the failed cases to look at."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from eval.backends.checkpoint import CheckpointBackend
from eval.cases import Case, Suite
from eval.evaluate import evaluate
from eval.results import EvalResult
from eval.suites import load_suite
from training.config import PassRateConfig
from training.packing import plain_attention
from training.sharding import is_sharded

# The trainer's hooks all have these parameters, used or not.
# ruff: noqa: ARG002

logger = logging.getLogger(__name__)

LOG_NAME = "pass_rate_log.jsonl"
_BATCH = 4  # prompts at once; training's own memory is in use beside it


class PassRate(TrainerCallback):  # type: ignore[misc]
    """Greedy answers to the same few cases every so many steps; appends counts and failures to a file of the run.

    Generation draws no random number and leaves the model as it was, so the training is the same with it or without.
    """

    def __init__(self, config: PassRateConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path) -> None:
        """Raises:
        SuiteError: there is no such suite.
        """
        assert config.every_steps is not None
        self._every, self._max_new_tokens = config.every_steps, config.max_new_tokens
        self._suite = few_of_each(load_suite(config.suite), config.max_cases)
        self._tokenizer, self._path = tokenizer, run_dir / LOG_NAME
        self._failures: list[list[Any]] = []

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what a resumed run will measure again."""
        if is_sharded():
            logger.warning("training.pass_rate has no effect: a model spread over processes does not generate here")
        if state.is_world_process_zero and self._path.exists():
            lines = self._path.read_text("utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
            self._path.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def on_step_end(
        self, args: Arguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step % self._every or is_sharded() or not state.is_world_process_zero:
            return
        result = answered(getattr(model, "module", model), self._tokenizer, self._suite, self._max_new_tokens)
        tallies = {"overall": result.overall, **result.by_category}
        counts = {name: {"hits": tally.hits, "total": tally.total} for name, tally in tallies.items() if tally.total}
        failed = [case for case in result.cases if not case.is_correct]
        row = {
            "step": state.global_step,
            "suite": self._suite.name,
            "counts": counts,
            "failed": [{"id": case.id, "outcome": case.outcome, "got": case.got} for case in failed],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=True) + "\n")
        self._failures += [
            [state.global_step, c.id, c.prompt, json.dumps(c.expected), c.got, c.outcome] for c in failed
        ]
        _to_wandb(state.global_step, counts, self._failures)


def few_of_each(suite: Suite, max_cases: int) -> Suite:
    """At most `max_cases` cases, the first ones of each category in turn."""
    by_category: dict[str, list[Case]] = defaultdict(list)
    for case in suite.cases:
        by_category[case.category].append(case)
    rounds = zip(*(_padded(cases, max_cases) for cases in by_category.values()), strict=True)
    chosen = [case for cases in rounds for case in cases if case is not None][:max_cases]
    return replace(suite, cases=tuple(chosen))


def _padded(cases: list[Case], length: int) -> list[Case | None]:
    return [*cases[:length], *[None] * (length - len(cases))]


def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, max_new_tokens: int
) -> EvalResult:
    """The suite's cases by a model in training, which is put back as it was."""
    was_training, own_generation, use_cache = model.training, model.generation_config, model.config.use_cache
    try:
        model.config.use_cache = True
        with plain_attention(model), torch.no_grad():
            backend = CheckpointBackend(model, tokenizer, max_new_tokens=max_new_tokens, batch_size=_BATCH)
            return evaluate(backend, suite, model_name="training", progress=False)
    finally:
        model.generation_config, model.config.use_cache = own_generation, use_cache
        model.train(was_training)


def _to_wandb(step: int, counts: dict[str, dict[str, int]], failures: list[list[Any]]) -> None:
    """Rates and a table of the failed cases, where a run is being recorded."""
    import wandb  # here, because importing it takes two seconds that runs without tracking need not wait

    if wandb.run is None:
        return
    rates = {f"pass_rate/{name}": count["hits"] / count["total"] for name, count in counts.items()}
    columns = ["step", "case", "prompt", "expected", "got", "outcome"]
    wandb.log({**rates, "failed_cases": wandb.Table(columns=columns, data=failures), "train/global_step": step})
