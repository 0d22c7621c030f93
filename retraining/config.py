"""Everything that decides a retraining run, as one frozen, typed tree; YAML is its spelling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from data.config import GuardConfig, SourceConfig
from export.config import Quantization
from retraining.stages import RunState, Stage
from training.config import CONFIGS_DIR, Section
from training.errors import ConfigError
from training.yaml_config import apply_override, explain, read_yaml


class AfterRefusal(StrEnum):
    """Whether the records of a refused run are trained on again by the next one."""

    SET_ASIDE = "set_aside"
    KEEP = "keep"


class IntakeConfig(Section, GuardConfig):
    """Where new records come from and which of them become training data; the rest goes into quarantine."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    min_new: int = Field(default=50, ge=1)  # fewer than so many records that count: nothing is trained
    # Of the records that this run trains on beyond the base run's own sources; 1 sets no limit.
    max_share_per_source: float = Field(default=1.0, gt=0, le=1)
    # Further rules of what is replaced before anything is written, as the server's log takes them
    # (tinydispatch/redaction.py); the built-in ones always apply.
    redaction: Path | None = None
    after_refusal: AfterRefusal = AfterRefusal.SET_ASIDE
    # Of the new records of production that a person or a larger model labelled, the latest share become cases of the
    # gate. No run trains on them while they are; after so many gates they become training data. 0 holds none out.
    held_share: float = Field(default=0.2, ge=0, lt=1)
    held_gates: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.max_share_per_source * len(self.sources) < 1:
            raise ValueError(
                f"max_share_per_source {self.max_share_per_source:g} of {len(self.sources)} source(s) can never add up "
                "to a whole; raise it"
            )
        return self


class GateConfig(Section):
    """What a challenger has to hold to become champion; `None` sets no limit."""

    suites: tuple[str, ...] = Field(default=("core", "dev", "unseen_tools"), min_length=1)
    # Cases that nobody has seen before: made anew for each run by the base run's generated sources (`synth`,
    # `phrases`). While the cases do not suffice as many again are made, up to `rounds` times in all.
    generated: int = Field(default=400, ge=0)
    rounds: int = Field(default=4, ge=1)
    quantization: Quantization = Quantization.Q8_0  # the file that is judged, and promoted
    # The largest loss on the champion, as a share of the cases: on all, and in a category. Both have to be shown.
    max_loss: float = Field(default=0.03, gt=0, lt=1)
    max_category_loss: float = Field(default=0.10, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # of each one-sided bound
    refusal_risk: float = Field(default=0.05, gt=0, lt=1)  # to refuse an equal model, over all comparisons
    min_category_cases: int = Field(default=100, ge=1)  # smaller categories are judged with others of their kind
    best_of_weeks: int = Field(default=12, ge=0)  # the best champion of so many weeks is an opponent, too; 0: none is
    # Suite → category or "overall" → least pass rate.
    floors: dict[str, dict[str, float]] = Field(default_factory=dict)
    # What the first champion, which has nothing to be compared with, must reach: its pass rate, and invalid replies.
    first_min_rate: float = Field(default=0.5, ge=0, le=1)
    first_max_invalid: float = Field(default=0.02, ge=0, le=1)
    max_invalid_excess: float = Field(default=0.005, ge=0, lt=1)  # invalid replies beyond the champion's
    max_median_latency_ms: float | None = Field(default=None, gt=0)
    max_latency_ratio: float | None = Field(default=None, gt=0)  # challenger's median over the champion's
    max_bytes: int | None = Field(default=None, ge=1)
    # What the promoted file's confidences are fitted on, so that a server knows which replies to hand up.
    calibration_suite: str = "dev"
    calibration_max_error: float = Field(default=0.1, gt=0, lt=1)  # of the replies above the threshold
    self_test: str = Field(default="What's the weather in Oslo tomorrow?", min_length=1)
    self_test_must_call: bool = False

    @property
    def looks(self) -> int:
        """How often a run is decided about at most: once more after each round of generated cases."""
        return self.rounds if self.generated else 1


class StageConfig(Section):
    """How long a stage may take, how often it is tried, and what runs it.

    `command` replaces the stage's own (prepare, train, evaluate, export and calibrate have one); `{config}` stands for
    the run's YAML file, `{run_dir}` for its folder, `{gguf}` for the challenger's file, `{python}` for this one's
    interpreter.
    """

    budget_minutes: float | None = Field(default=None, gt=0)
    attempts: int | None = Field(default=None, ge=1)
    backoff_s: float = Field(default=10.0, ge=0)
    command: tuple[str, ...] | None = Field(default=None, min_length=1)


class HookConfig(Section):
    """Who is told: a command gets the news as JSON on its standard input, a webhook by POST."""

    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    webhook: str | None = Field(default=None, pattern=r"^https?://")
    on: tuple[RunState, ...] = (RunState.PROMOTED, RunState.REFUSED, RunState.INCONCLUSIVE, RunState.FAILED)

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        if (self.command is None) == (self.webhook is None):
            raise ValueError("give either 'command' or 'webhook'")
        return self


class RetrainConfig(Section):
    """One registry, and the run that is repeated for it with what production taught since."""

    registry: Path = Path("registry")
    base: str  # a run's YAML file, or its name in configs/
    overrides: tuple[str, ...] = ()  # of the base run, "training.max_steps=100"
    intake: IntakeConfig
    gate: GateConfig = GateConfig()
    stages: dict[Stage, StageConfig] = Field(default_factory=dict)
    notify: tuple[HookConfig, ...] = ()
    cost_per_hour: float = Field(default=0.0, ge=0)  # of this machine, in any currency, for the page
    max_failures: int = Field(default=3, ge=1)  # a run that failed so often is given up
    keep_runs: int = Field(default=3, ge=1)  # checkpoints of older ones are deleted; champions never are


def load_retrain_config(path_or_name: str, overrides: Sequence[str] = ()) -> RetrainConfig:
    """Read the settings from a file, or by name from `configs/`; `overrides` are `gate.significance=0.1`.

    Raises:
        ConfigError: no such file, an unknown key, or a value of the wrong type; every finding is listed.
    """
    candidates = [Path(path_or_name), CONFIGS_DIR / path_or_name, CONFIGS_DIR / f"{path_or_name}.yaml"]
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        raise ConfigError(f"no configuration '{path_or_name}': neither a file nor one of configs/")
    tree = read_yaml(path)
    changed = {apply_override(tree, override): override for override in overrides}
    try:
        return RetrainConfig.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise explain(error, RetrainConfig, tree, str(path), changed) from error
