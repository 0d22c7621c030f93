"""Everything that decides a retraining run, as one frozen, typed tree; YAML is its spelling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from data.config import SourceConfig
from export.config import Quantization
from retraining.stages import RunState, Stage
from training.config import CONFIGS_DIR, Section
from training.errors import ConfigError
from training.yaml_config import apply_override, explain, read_yaml


class AfterRefusal(StrEnum):
    """Whether the records of a refused run are trained on again by the next one."""

    SET_ASIDE = "set_aside"
    KEEP = "keep"


class IntakeConfig(Section):
    """Where new records come from and which of them become training data."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    min_new: int = Field(default=50, ge=1)  # fewer than so many records that count: nothing is trained
    # Of the records that this run trains on beyond the base run's own sources; 1 sets no limit.
    max_share_per_source: float = Field(default=1.0, gt=0, le=1)
    # More from one session are quarantined: somebody, or a script, says the same thing over and over.
    max_per_session: int = Field(default=50, ge=1)
    # The same for one client's key (`client_id` of a log line): a session's name is the sender's own to make up. None
    # sets no limit, for a server behind a single key.
    max_per_client: int | None = Field(default=None, ge=1)
    # More records than this with the same answer to nearly the same words are quarantined, whoever sent them.
    max_similar: int = Field(default=50, ge=1)
    # A link or address that only senders' own words hold is trained once so many sessions have used it.
    min_sessions_per_address: int = Field(default=2, ge=1)
    # A trained call that sends to an address nobody mentioned is quarantined.
    require_grounded_addresses: bool = True
    # Further rules of what is replaced before anything is written, as the server's log takes them
    # (tinydispatch/redaction.py); the built-in ones always apply.
    redaction: Path | None = None
    after_refusal: AfterRefusal = AfterRefusal.SET_ASIDE

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

    suites: tuple[str, ...] = Field(default=("core",), min_length=1)
    quantization: Quantization = Quantization.Q8_0  # the file that is judged, and promoted
    # A category, or a suite, counts as worse below this p-value of McNemar's exact test.
    significance: float = Field(default=0.05, gt=0, lt=1)
    # Suite → category or "overall" → least pass rate.
    floors: dict[str, dict[str, float]] = Field(default_factory=dict)
    max_invalid_calls: int = Field(default=0, ge=0)
    max_median_latency_ms: float | None = Field(default=None, gt=0)
    max_latency_ratio: float | None = Field(default=None, gt=0)  # challenger's median over the champion's
    max_bytes: int | None = Field(default=None, ge=1)
    self_test: str = Field(default="What's the weather in Oslo tomorrow?", min_length=1)
    self_test_must_call: bool = False


class StageConfig(Section):
    """How long a stage may take, how often it is tried, and what runs it.

    `command` replaces the stage's own (prepare, train, evaluate and export have one); `{config}` stands for the run's
    YAML file, `{run_dir}` for its folder, `{python}` for this interpreter.
    """

    budget_minutes: float | None = Field(default=None, gt=0)
    attempts: int | None = Field(default=None, ge=1)
    backoff_s: float = Field(default=10.0, ge=0)
    command: tuple[str, ...] | None = Field(default=None, min_length=1)


class HookConfig(Section):
    """Who is told: a command gets the news as JSON on its standard input, a webhook by POST."""

    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    webhook: str | None = Field(default=None, pattern=r"^https?://")
    on: tuple[RunState, ...] = (RunState.PROMOTED, RunState.REFUSED, RunState.FAILED)

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
