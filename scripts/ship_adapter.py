"""Makes a run's adapter the default dispatcher's: adapter.safetensors and card.json in tinydispatch/default/.

The card names the hash of each file that merging gives, so that a user's machine can tell that it made the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinydispatch.default.card import ADAPTER_NAME, CARD_NAME, FOLDER, SMOLLM2, Base, Card, ExpectedFile
from tinydispatch.default.fetch import sha256_file
from tinydispatch.default.merge import merge
from tinydispatch.default.safetensors import read_safetensors, safetensors_bytes
from tinydispatch.formats import default_chat_template, template_hash
from tinydispatch.ggml.mixtures import Quantization

_NAME = "tinydispatch-135m"
_FORMS = (Quantization.Q8_0, Quantization.Q4_K_M, Quantization.F16)
_CONFIG_NAME, _WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
# What a merge in numpy does not know, with the value that means "not used".
_UNSUPPORTED: Mapping[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "lora_bias": False,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "trainable_token_indices": None,
}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when adapter and card are in place, 2 for an adapter that cannot be merged."""
    parser = argparse.ArgumentParser(prog="python -m scripts.ship_adapter", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with adapter/")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, help="folder of evaluation results for the card")
    parser.add_argument("--note", action="append", default=[], metavar="KEY=TEXT", help="a line for the card's 'about'")
    arguments = parser.parse_args(argv)
    notes = dict(note.split("=", 1) for note in arguments.note)
    try:
        from training.gguf_base import base_file  # brings torch, which `release` does without

        about = {**_about(arguments.run, arguments.results), **notes}
        card = release(arguments.run / "adapter", base_file(), arguments.out, name=_NAME, about=about)
    except (ValueError, OSError) as error:
        print(f"ship_adapter: {error}", file=sys.stderr)
        return 2
    size = (arguments.out / ADAPTER_NAME).stat().st_size / 1e6
    print(f"{arguments.out / ADAPTER_NAME}: {size:.1f} MB, sha256 {card.adapter_sha256}")
    for form, expected in card.files.items():
        print(f"{form}: {expected.n_bytes / 1e6:.1f} MB, sha256 {expected.sha256}")
    return 0


def release(
    adapter: Path,
    base_file: Path,
    out: Path,
    *,
    name: str,
    base: Base = SMOLLM2,
    about: Mapping[str, Any] | None = None,
) -> Card:
    """Write adapter (its numbers in 16 bits) and card to `out`; the same input gives the same bytes.

    Raises:
        ValueError: the adapter is none that can be merged, or not for this base.
        OSError: `out` cannot be written.
    """
    config = _read_config(adapter / _CONFIG_NAME)
    weights = read_safetensors(adapter / _WEIGHTS_NAME)
    halves = {key: values.astype(np.float16) for key, values in weights.tensors.items()}
    too_large = [key for key, values in halves.items() if not np.isfinite(values).all()]
    if too_large:
        raise ValueError(f"{adapter / _WEIGHTS_NAME}: {too_large[0]!r} holds values that 16-bit floats cannot")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        new, merged = Path(scratch) / ADAPTER_NAME, Path(scratch) / "merged.gguf"
        new.write_bytes(safetensors_bytes(halves, {"base_sha256": base.sha256}))
        card = Card(
            name=name,
            base_sha256=base.sha256,
            adapter_sha256=sha256_file(new),
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            uses_rslora=bool(config.get("use_rslora", False)),
            template_hash=template_hash(default_chat_template()),
            files={},
            about=about or {},
        )
        files = {}
        for form in _FORMS:
            made = merge(base_file, read_safetensors(new), new, card.scale, merged, name, form)
            files[form] = ExpectedFile(made.sha256, made.n_bytes, made.weights_digest)
        card = replace(card, files=files)
        card.save(Path(scratch) / CARD_NAME)
        new.replace(out / ADAPTER_NAME)
        (Path(scratch) / CARD_NAME).replace(out / CARD_NAME)
    return card


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: no adapter there: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: 'peft_type' is {config.get('peft_type')!r}, expected 'LORA'")
    for key, unused in _UNSUPPORTED.items():
        if config.get(key) not in (unused, None):
            raise ValueError(f"{path}: {key!r} is {config[key]!r}, which cannot be merged; train with {unused!r}")
    return dict(config)


def _about(run: Path, results: Path | None) -> dict[str, Any]:
    from scripts.manifest import git_revision, pass_rates

    about: dict[str, Any] = {
        "base": f"SmolLM2-135M-Instruct of {SMOLLM2.requirement}, Apache-2.0",
        "licence": "Apache-2.0",
        "git_revision": git_revision(),
    }
    log = run / "train_log.jsonl"
    if log.is_file():
        steps = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        steps = [step for step in steps if "loss" in step]
        about["training"] = {
            "command": "accelerate launch train.py --config dispatcher.yaml",
            "steps": steps[-1]["step"],
            "packed_tokens": steps[-1].get("num_tokens"),
            "loss_of_the_last_steps": round(float(np.mean([step["loss"] for step in steps[-5:]])), 4),
        }
    card = run / "data_card.json"
    if card.is_file():
        value = json.loads(card.read_text("utf-8"))
        about["data"] = {key: value[key] for key in ("train", "data_hash", "sources") if key in value}
        for source in about["data"].get("sources", []):
            source["path"] = _short(source.get("path"))
    if results is not None:
        about["pass_rates"] = pass_rates(results)
    return about


def _short(path: str | None) -> str | None:
    """A path without what only this machine has: relative to the checkout, or its last part."""
    if path is None or not Path(path).is_absolute():
        return path
    root = Path(__file__).resolve().parents[1]
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else Path(path).name


if __name__ == "__main__":
    sys.exit(main())
