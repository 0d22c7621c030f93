"""A checkpoint becomes GGUF files that have proved to compute the same."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from export.checkpoint import Checkpoint, open_checkpoint
from export.config import ExportConfig, Quantization
from export.convert import half_weights, write_gguf
from export.errors import ExportError, VerificationError
from export.prompts import TOKENIZER_TEXTS, verification_prompts
from export.verify import (
    LogitComparison,
    Reference,
    compare_logits,
    is_rounding,
    reference_logits,
    tokenizer_mismatches,
)
from export.vocabulary import load_tokenizer, read_vocabulary
from tinydispatch import formats
from tinydispatch.ggml.open import open_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedFile:
    """A GGUF file that passed its verification.

    `rounding` is its comparison with the rounded weights, where those of the checkpoint are too far from 16 bits.
    """

    path: Path
    quantization: Quantization
    n_bytes: int
    sha256: str
    verification: LogitComparison
    rounding: LogitComparison | None = None


@dataclass(frozen=True)
class ExportReport:
    """What an export made; `template_hash` is that of the chat template inside the files."""

    checkpoint: Path
    architecture: str
    template_hash: str
    n_texts: int
    files: tuple[ExportedFile, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, paths as text."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return value


def export_gguf(
    checkpoint_dir: Path,
    out_dir: Path,
    name: str,
    config: ExportConfig,
    prompts: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ExportReport:
    """Write `<name>-<quantization>.gguf` for each quantization, verified, and `<name>-export.json`.

    A file gets its name only after its verification; until then it lies beside it as `.partial`, and is removed
    when anything fails.

    Args:
        prompts: rendered conversations to verify logits on; none takes four built-in ones over the bundled tools.
        tokenizer: instead of the checkpoint's own, for a base model that has no chat template yet.

    Raises:
        UnsupportedArchitectureError: there is no GGUF graph for this model.
        UnsupportedTokenizerError: llama.cpp would tokenize otherwise.
        VerificationError: a written file differs from the checkpoint beyond the tolerance.
        ExportError: the checkpoint is incomplete or damaged.
    """
    checkpoint = open_checkpoint(Path(checkpoint_dir))
    tokenizer = tokenizer or load_tokenizer(checkpoint.path)
    vocabulary = read_vocabulary(checkpoint.path, tokenizer, checkpoint.config.vocab_size)
    texts = tuple(prompts) or verification_prompts(vocabulary.chat_template)
    out_dir.mkdir(parents=True, exist_ok=True)
    logger.info("computing reference logits of %s", checkpoint.path)
    yardstick = _Yardstick(checkpoint, tokenizer, texts, config)
    references = yardstick.references()
    files = []
    for quantization in config.quantizations:
        path = out_dir / f"{name}-{quantization}.gguf"
        partial = path.with_suffix(".gguf.partial")
        logger.info("writing and verifying %s", path)
        try:
            write_gguf(checkpoint, vocabulary, partial, name, quantization, config)
            verification, rounding = _verify(partial, quantization, yardstick, references)
            n_bytes, digest = partial.stat().st_size, sha256_of(partial)
            file = ExportedFile(path, quantization, n_bytes, digest, verification, rounding)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        files.append(file)
    template_hash = formats.template_hash(vocabulary.chat_template)
    n_texts = len(texts) + len(TOKENIZER_TEXTS)
    report = ExportReport(checkpoint.path, checkpoint.architecture, template_hash, n_texts, tuple(files))
    _write_report(out_dir / f"{name}-export.json", report)
    return report


@dataclass(frozen=True)
class _Yardstick:
    """What a file is verified by."""

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    texts: Sequence[str]
    config: ExportConfig

    def references(self, halves: Mapping[str, float] = MappingProxyType({})) -> list[Reference]:
        n_tokens = self.config.max_verification_tokens
        return reference_logits(self.checkpoint.path, self.tokenizer, self.texts, n_tokens, halves)


def _verify(
    path: Path, quantization: Quantization, yardstick: _Yardstick, references: Sequence[Reference]
) -> tuple[LogitComparison, LogitComparison | None]:
    """A file's comparison with its checkpoint and, if it passes by that alone, the one with the rounded weights."""
    if not references:
        raise ExportError("the verification prompts hold no token")
    n_ctx = max(len(reference.ids) for reference in references)
    tolerance, rounding = yardstick.config.tolerances[quantization], None
    with open_model(path, n_ctx) as model:
        mismatches = tokenizer_mismatches(model, yardstick.tokenizer, [*TOKENIZER_TEXTS, *yardstick.texts])
        if mismatches:
            first = mismatches[0]
            raise VerificationError(
                f"{path}: {len(mismatches)} texts are tokenized otherwise than by the checkpoint, "
                f"first {first.text[:80]!r}: {list(first.expected[:12])} became {list(first.actual[:12])}"
            )
        comparison = compare_logits(model, references)
        excesses = comparison.excesses(tolerance)
        if excesses and quantization is Quantization.F16:
            logger.info("%s; comparing with the weights as 16 bits hold them", "; ".join(excesses))
            halves = half_weights(yardstick.checkpoint, yardstick.config)
            rounding = compare_logits(model, yardstick.references(halves))
    if rounding is not None and is_rounding(comparison, rounding, tolerance):
        logger.warning(
            "%s: training moved the weights by less than 16-bit numbers can hold, so this file lies %.2g %% of a "
            "standard deviation from its checkpoint, and %.2g %% from the checkpoint's rounded weights",
            path.with_suffix(""),
            100 * comparison.mean_difference / comparison.logit_std,
            100 * rounding.mean_difference / rounding.logit_std,
        )
        return comparison, rounding
    if excesses:
        raise VerificationError(
            f"{path}: does not compute what its checkpoint does: {'; '.join(excesses)}. If the difference is "
            f"acceptable, raise the tolerance under 'export.{quantization}'"
        )
    return comparison, None


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_report(path: Path, report: ExportReport) -> None:
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
    partial.replace(path)
