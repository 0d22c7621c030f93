"""The data section of a run: which sources, how they are cleaned, what is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Source(_Section):
    """What every source has. `max_rows` reads the first so many rows: files sorted by topic are not sampled evenly."""

    max_rows: int | None = Field(default=None, ge=1)
    licence: str | None = Field(default=None, description="as the data card shall state it")
    revision: str | None = Field(
        default=None, description="e.g. a commit; without it the card states a SHA-256 of the content"
    )


class SynthSource(_Source):
    """Generated conversations for the eight bundled tools and many invented ones."""

    kind: Literal["synth"]
    count: int = Field(ge=1)


class ToolBenchSource(_Source):
    """ToolBench: a file of train rows (JSON, JSONL, Parquet), one raw answer, or a folder of either.

    `keep_thoughts` trains the text before each call too; a dispatcher pays for every token, so it is off.
    """

    kind: Literal["toolbench"]
    path: Path
    keep_thoughts: bool = False
    licence: str | None = "Apache-2.0"


class OpenAIJsonlSource(_Source):
    """One's own examples: chat JSONL with `messages` and, where they differ from `DataConfig.tools`, `tools`."""

    kind: Literal["openai_jsonl"]
    path: Path


SourceConfig = Annotated[SynthSource | ToolBenchSource | OpenAIJsonlSource, Field(discriminator="kind")]


class DataConfig(_Section):
    """Everything that decides what ends up in train.jsonl, apart from the run's seed."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    tools: Path | None = Field(
        default=None, description="JSON file of tools for rows without any; None: the eight bundled"
    )
    eval_fraction: float = Field(default=0.02, ge=0, lt=1, description="share of dialogues held out from training")
    max_length_tokens: int = Field(default=2048, ge=16, description="a longer conversation is rejected, never cut")
    # Below 0.8 the search for candidates (data/near_duplicates.py) would start to miss pairs.
    near_duplicate_threshold: float | None = Field(
        default=0.9, ge=0.8, le=1, description="Jaccard similarity; None: keep all"
    )
