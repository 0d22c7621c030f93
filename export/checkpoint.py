"""Opens a Hugging Face checkpoint directory and checks that its graph is one that we can write as GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from export.architectures import FAMILIES
from export.errors import ExportError, UnsupportedArchitectureError
from export.graph import Family


@dataclass(frozen=True)
class Checkpoint:
    """A directory with a supported model; `tensors` tells for each weight its file, and its name there."""

    path: Path
    architecture: str
    config: PretrainedConfig
    tensors: Mapping[str, tuple[Path, str]]

    @property
    def family(self) -> Family:
        """What is known about models of this architecture."""
        return FAMILIES[self.architecture]

    def tensor(self, name: str) -> torch.Tensor:
        """One weight in the checkpoint's own dtype; only this one is read."""
        path, stored = self.tensors[name]
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """One weight's shape, without reading the weight."""
        path, stored = self.tensors[name]
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(stored).get_shape())


def check_architecture(path: Path) -> str:
    """The checkpoint's architecture, read from `config.json` alone, so that a long run can ask before it starts.

    Raises:
        UnsupportedArchitectureError: there is no GGUF export of it yet.
        ExportError: no checkpoint there, or an adapter that was not merged.
    """
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            raise ExportError(f"{path}: holds an adapter; merge it into its base model before exporting")
        raise ExportError(f"{path}: no checkpoint there (no config.json)")
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{file}: not JSON: {error}") from error
    named = value.get("architectures") if isinstance(value, dict) else None
    architecture = str(named[0]) if isinstance(named, list) and named else "a model that names no architecture"
    if architecture not in FAMILIES:
        raise UnsupportedArchitectureError(
            f"GGUF export of {architecture} is not supported yet "
            f"(supported: {', '.join(FAMILIES)}); the checkpoint is at {path}"
        )
    if "quantization_config" in value:
        raise UnsupportedArchitectureError(
            f"{file}: 'quantization_config': the weights are quantized already; export from an unquantized checkpoint"
        )
    return architecture


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint and check every setting and weight that the GGUF graph depends on.

    Raises:
        UnsupportedArchitectureError: the graph cannot be expressed.
        ExportError: files or weights are missing or damaged.
    """
    path = Path(path)
    architecture = check_architecture(path)
    config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    family = FAMILIES[architecture]
    family.check_variant(path, config)
    found = _tensors(path, family)
    _check_tensors(path, config, set(family.tensor_names(config)), set(found))
    return Checkpoint(path, architecture, config, found)


def _tensors(path: Path, family: Family) -> dict[str, tuple[Path, str]]:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ExportError(f"{path}: holds no model*.safetensors; save the model with save_pretrained")
    found: dict[str, tuple[Path, str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = {stored: family.own_name(stored) for stored in opened.keys()}  # noqa: SIM118 (no mapping)
                found.update({name: (file, stored) for stored, name in names.items() if name is not None})
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{file}: damaged or truncated: {error}") from error
    return found


def _check_tensors(path: Path, config: PretrainedConfig, expected: set[str], found: set[str]) -> None:
    # Some savers write the output head beside the embedding that it shares its weights with.
    extra = found - expected - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    for problem, names in (("lacks", expected - found), ("holds unknown", extra)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise ExportError(f"{path}: {problem} {len(names)} weights: {shown}")
