"""What is exported and how far a file may differ from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Quantization(StrEnum):
    """Number format of the weight matrices in a GGUF file; vectors stay in 32 bits."""

    F16 = "f16"
    Q8_0 = "q8_0"


class Tolerance(BaseModel):
    """How far a file's logits may lie from the checkpoint's, over every position of the verification prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_logit_difference: float = Field(gt=0)
    max_mean_kl: float = Field(gt=0)  # nats, checkpoint against file
    min_top1_agreement: float = Field(ge=0, le=1)


class ExportConfig(BaseModel):
    """The `export` section of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantizations: tuple[Quantization, ...] = Field(default=(Quantization.F16, Quantization.Q8_0), min_length=1)
    f16: Tolerance = Tolerance(max_logit_difference=0.25, max_mean_kl=1e-3, min_top1_agreement=0.98)
    q8_0: Tolerance = Tolerance(max_logit_difference=5.0, max_mean_kl=0.05, min_top1_agreement=0.8)
    # Prompts are taken until they hold this many tokens: with a vocabulary of 152,000 a token's logits take 0.6 MB.
    max_verification_tokens: int = Field(default=2048, ge=1)

    @field_validator("quantizations")
    @classmethod
    def _each_once(cls, value: tuple[Quantization, ...]) -> tuple[Quantization, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a quantization is listed twice: {', '.join(value)}")
        return value

    @property
    def tolerances(self) -> Mapping[Quantization, Tolerance]:
        """The tolerance of each quantization."""
        return {Quantization.F16: self.f16, Quantization.Q8_0: self.q8_0}
