"""What is exported and how far a file may differ from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tinydispatch.ggml.mixtures import Quantization as Quantization


class OptGraph(StrEnum):
    """Which architecture an OPT file names.

    GPT2 runs in stock llama.cpp, for models with layer norms before attention; OPT runs in ours alone, for all. AUTO
    takes GPT2 where it can be.
    """

    AUTO = "auto"
    GPT2 = "gpt2"
    OPT = "opt"


class Tolerance(BaseModel):
    """How far a file's logits may lie from the checkpoint's, over every position of the verification prompts.

    Differences are counted in standard deviations of the checkpoint's logits: a file that computes something else has
    about 1 in `max_mean_difference`, and several in `max_difference`, however flat or wide its logits are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_difference: float = Field(gt=0)
    max_mean_kl: float = Field(gt=0)  # nats, checkpoint against file
    max_mean_difference: float = Field(default=0.5, gt=0)
    min_top1_agreement: float = Field(ge=0, le=1)


class ExportConfig(BaseModel):
    """The `export` section of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantizations: tuple[Quantization, ...] = Field(default=(Quantization.F16, Quantization.Q8_0), min_length=1)
    opt_graph: OptGraph = OptGraph.AUTO
    # Each limit is a few times the worst that was measured on good files (docs/benchmarks/export.md): trained nano,
    # random OPT at full size, and random tiny models of every family, whose flat logits are the hardest case.
    # 32 bits: 0.0002 and 0.0003 % of a deviation; 0.002 and 0.03 % where llama.cpp looks GELU up in a 16-bit table.
    f32: Tolerance = Tolerance(
        max_difference=0.02, max_mean_kl=1e-6, max_mean_difference=0.001, min_top1_agreement=0.99
    )
    # 16 bits: 0.08 and 0.3 %; 0.1 and 3 % (KL 7e-5) where weights moved by less than 16 bits hold (decisions/007).
    f16: Tolerance = Tolerance(max_difference=0.5, max_mean_kl=5e-4, max_mean_difference=0.01, min_top1_agreement=0.98)
    # 8 bits: 0.6 and 3 % on nano, 2.0 and 9 % on random linear attention.
    q8_0: Tolerance = Tolerance(max_difference=2.0, max_mean_kl=0.03, max_mean_difference=0.1, min_top1_agreement=0.75)
    # How often a mixture of four to six bits agrees on the best token says little where all are nearly equal, as in
    # a model with random weights. Whether it still passes the cases is what decides about it.
    q5_k_m: Tolerance = Tolerance(max_difference=4.0, max_mean_kl=0.2, max_mean_difference=0.25, min_top1_agreement=0.0)
    q4_k_m: Tolerance = Tolerance(max_difference=5.0, max_mean_kl=0.5, max_mean_difference=0.5, min_top1_agreement=0.0)
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
        return {quantization: getattr(self, quantization.value) for quantization in Quantization}
