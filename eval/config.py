"""The `eval` section of a run's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EvalConfig(BaseModel):
    """What a run is measured on and how replies are generated; decoding is greedy unless a temperature is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Shipped names, or paths of folders with suite.json and cases.jsonl.
    suites: tuple[str, ...] = Field(default=("core",), min_length=1)
    # Three parallel e-mails fit twice; a reply that does not end within it counts as unparseable.
    max_new_tokens: int = Field(default=384, ge=1)
    # Prompts generated for at once by the transformers backend, without `constrained`; the GGUF backend takes one at a
    # time. null: as many as a GPU's free memory holds at `n_ctx` positions each, and 8 on a CPU.
    batch_size: int | None = Field(default=None, ge=1)
    # Positions of the GGUF backend's cache, prompt and reply together; fewer where the model has fewer.
    n_ctx: int = Field(default=4096, ge=1)
    # Of GGUF files and checkpoints: replies follow the tools' schemas, as in service; false measures the bare model
    # (of a checkpoint `batch_size` prompts at once).
    constrained: bool = True
    # Of the transformers backend; "auto" takes a GPU when there is one.
    device: str = "auto"
    # Above 0 replies are sampled (endpoints only), each case `samples` times with seeds from `seed` on.
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    samples: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    # Of the endpoint backend: "chat" leaves prompt, grammar and parsing to the server; "completions" sends prompts that
    # are rendered here by the template that llama.cpp's server tells, and so measures its bare model.
    endpoint_api: Literal["chat", "completions"] = "chat"
    # Requests at a time, patience with one of them, further attempts after the first.
    endpoint_concurrency: int = Field(default=4, ge=1)
    endpoint_timeout_s: float = Field(default=120.0, gt=0.0)
    endpoint_retries: int = Field(default=3, ge=0)
    # A folder that keeps each answer, so that a second run asks only for what is missing; empty it when another
    # model answers at the same address.
    endpoint_cache: Path | None = None

    @model_validator(mode="after")
    def _samples_need_a_temperature(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples={self.samples} at temperature 0 would be the same reply; set a temperature")
        return self
