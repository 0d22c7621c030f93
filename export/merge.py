"""Folds a LoRA adapter into its base model, in the base's own number format."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from export.errors import ExportError

# Ordinary ids that every vocabulary has; the check needs some input, not a meaningful one.
_PROBE_IDS = tuple(range(5, 69))


@dataclass(frozen=True)
class MergeReport:
    """The merged model's directory, and how far its logits lie from those of base plus adapter."""

    path: Path
    base: str
    dtype: str
    max_logit_difference: float
    mean_logit_difference: float
    logit_std: float


def merge_adapter(adapter_dir: Path, out_dir: Path, base: str | Path | None = None) -> MergeReport:
    """Write base plus adapter as one checkpoint with the adapter's tokenizer.

    The base is loaded again in the number format of its own files: an adapter trained beside 4-bit weights is merged
    into the unquantized ones (merging into the 4-bit weights moved logits by 2.0 in a probe).

    Args:
        base: overrides the base model that the adapter names.

    Raises:
        ExportError: no adapter there, the base cannot be loaded, or the merged model computes otherwise.
    """
    named = _base_of(adapter_dir) if base is None else str(base)
    model = _load_base(named, adapter_dir)
    tokenizer = _load_tokenizer(adapter_dir, named)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # tokens that training added; the adapter carries their rows
        model.resize_token_embeddings(len(tokenizer))
    adapted = PeftModel.from_pretrained(model, adapter_dir).eval()
    ids = torch.tensor([[token % rows for token in _PROBE_IDS]])
    with torch.no_grad():
        before = adapted(ids).logits.float()
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
        after = merged(ids).logits.float()
    delta, std = (before - after).abs(), float(before.std())
    # Rounding in bfloat16 keeps 8 bits; a merge gone wrong moves logits by their own spread.
    if not float(delta.mean()) <= 0.1 * std:
        raise ExportError(
            f"{adapter_dir}: merged into {named}, logits differ by {float(delta.mean()):.3g} on average "
            f"(their standard deviation is {std:.3g}); the adapter belongs to another base model?"
        )
    _save(merged, tokenizer, out_dir)
    dtype = str(merged.dtype).removeprefix("torch.")
    return MergeReport(out_dir, named, dtype, float(delta.max()), float(delta.mean()), std)


def _base_of(adapter_dir: Path) -> str:
    file = adapter_dir / "adapter_config.json"
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ExportError(f"{file}: no adapter there: {error.strerror}") from error
    except ValueError as error:
        raise ExportError(f"{file}: not JSON: {error}") from error
    name = value.get("base_model_name_or_path") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise ExportError(f"{file}: 'base_model_name_or_path' names no base model; give it explicitly")
    return name


def _load_base(name: str, adapter_dir: Path) -> PreTrainedModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{adapter_dir}: its base model {name!r} cannot be loaded; give a local path. {error}"
        ) from error
    if getattr(model.config, "quantization_config", None) is not None:
        raise ExportError(f"{name}: the base is quantized; merge into its unquantized original")
    loaded: PreTrainedModel = model.to("cpu").eval()
    return loaded


def _load_tokenizer(adapter_dir: Path, base: str) -> PreTrainedTokenizerBase:
    source = adapter_dir if (adapter_dir / "tokenizer_config.json").is_file() else base
    return AutoTokenizer.from_pretrained(source)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path) -> None:
    """All or nothing: a half-written checkpoint would look like a finished one."""
    partial = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if out_dir.exists():
        shutil.rmtree(out_dir)
    partial.rename(out_dir)
