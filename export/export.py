"""A checkpoint becomes GGUF files that have proved to compute the same."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from export.checkpoint import open_checkpoint
from export.config import ExportConfig, Quantization
from export.convert import write_gguf
from export.errors import ExportError, VerificationError
from export.prompts import TOKENIZER_TEXTS, verification_prompts
from export.verify import LogitComparison, Reference, compare_logits, reference_logits, tokenizer_mismatches
from export.vocabulary import load_tokenizer, read_vocabulary
from tinydispatch import formats
from tinydispatch.ggml.open import open_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedFile:
    """A GGUF file that passed its verification."""

    path: Path
    quantization: Quantization
    n_bytes: int
    sha256: str
    verification: LogitComparison


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
    references = reference_logits(checkpoint.path, tokenizer, texts, config.max_verification_tokens)
    files = []
    for quantization in config.quantizations:
        path = out_dir / f"{name}-{quantization}.gguf"
        partial = path.with_suffix(".gguf.partial")
        logger.info("writing and verifying %s", path)
        try:
            write_gguf(checkpoint, vocabulary, partial, name, quantization, config)
            verification = _verify(partial, tokenizer, references, texts, config, quantization)
            file = ExportedFile(path, quantization, partial.stat().st_size, sha256_of(partial), verification)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        files.append(file)
    template_hash = formats.template_hash(vocabulary.chat_template)
    n_texts = len(texts) + len(TOKENIZER_TEXTS)
    report = ExportReport(checkpoint.path, checkpoint.architecture, template_hash, n_texts, tuple(files))
    _write_report(out_dir / f"{name}-export.json", report)
    return report


def _verify(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    references: Sequence[Reference],
    texts: Sequence[str],
    config: ExportConfig,
    quantization: Quantization,
) -> LogitComparison:
    if not references:
        raise ExportError("the verification prompts hold no token")
    n_ctx = max(len(reference.ids) for reference in references)
    with open_model(path, n_ctx) as model:
        mismatches = tokenizer_mismatches(model, tokenizer, [*TOKENIZER_TEXTS, *texts])
        if mismatches:
            first = mismatches[0]
            raise VerificationError(
                f"{path}: {len(mismatches)} texts are tokenized otherwise than by the checkpoint, "
                f"first {first.text[:80]!r}: {list(first.expected[:12])} became {list(first.actual[:12])}"
            )
        comparison = compare_logits(model, references)
    if excesses := comparison.excesses(config.tolerances[quantization]):
        raise VerificationError(
            f"{path}: does not compute what its checkpoint does: {'; '.join(excesses)}. If the difference is "
            f"acceptable, raise the tolerance under 'export.{quantization}'"
        )
    return comparison


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_report(path: Path, report: ExportReport) -> None:
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
    partial.replace(path)
