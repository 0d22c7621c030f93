"""The `eval` section of a run's configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvalConfig(BaseModel):
    """What a run is measured on and how replies are generated; decoding is always greedy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Shipped names, or paths of folders with suite.json and cases.jsonl.
    suites: tuple[str, ...] = Field(default=("core",), min_length=1)
    # Three parallel e-mails fit twice; a reply that does not end within it counts as unparseable.
    max_new_tokens: int = Field(default=384, ge=1)
    # Prompts generated for at once by the transformers backend; the GGUF backend takes one at a time.
    batch_size: int = Field(default=8, ge=1)
    # Positions of the GGUF backend's cache, prompt and reply together; fewer where the model has fewer.
    n_ctx: int = Field(default=4096, ge=1)
    # Of the transformers backend; "auto" takes a GPU when there is one.
    device: str = "auto"
