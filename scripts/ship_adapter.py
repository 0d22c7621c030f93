"""Makes a run's adapter the default dispatcher's: adapter.safetensors and card.json in tinydispatch/default/.

The card names the hash of each file that merging gives, so that a user's machine can tell that it made the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.manifest import git_revision, pass_rates
from tinydispatch.default.card import ADAPTER_NAME, CARD_NAME, FOLDER, SMOLLM2, Card, ExpectedFile
from tinydispatch.default.fetch import sha256_file
from tinydispatch.default.merge import merge
from tinydispatch.default.safetensors import read_safetensors, safetensors_bytes
from tinydispatch.formats import default_chat_template, template_hash
from tinydispatch.ggml.mixtures import Quantization
from training.gguf_base import base_file

_NAME = "tinydispatch-135m"
_FORMS = (Quantization.Q8_0, Quantization.Q4_K_M, Quantization.F16)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when adapter and card are in place."""
    parser = argparse.ArgumentParser(prog="python -m scripts.ship_adapter", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with adapter/")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, help="folder of evaluation results for the card")
    parser.add_argument("--note", action="append", default=[], metavar="KEY=TEXT", help="a line for the card's 'about'")
    arguments = parser.parse_args(argv)
    ship(arguments.run, arguments.out, arguments.results, dict(note.split("=", 1) for note in arguments.note))
    return 0


def ship(run: Path, out: Path, results: Path | None, notes: dict[str, str]) -> Card:
    """Write both files; the adapter's numbers in 16 bits."""
    folder = run / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    tensors = read_safetensors(folder / "adapter_model.safetensors").tensors
    data = safetensors_bytes({name: values.astype(np.float16) for name, values in tensors.items()}, {})
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as name:
        adapter = Path(name) / ADAPTER_NAME
        adapter.write_bytes(data)
        card = Card(
            name=_NAME,
            base_sha256=SMOLLM2.sha256,
            adapter_sha256=sha256_file(adapter),
            rank=config["r"],
            alpha=config["lora_alpha"],
            uses_rslora=bool(config.get("use_rslora")),
            template_hash=template_hash(default_chat_template()),
            files={},
            about={**_about(run, results), **notes},
        )
        files, base = {}, base_file()
        for form in _FORMS:
            made = merge(base, read_safetensors(adapter), adapter, card.scale, Path(name) / "merged.gguf", _NAME, form)
            files[form] = ExpectedFile(made.sha256, made.n_bytes, made.weights_digest)
        card = Card(**{**vars(card), "files": files})
        card.save(Path(name) / CARD_NAME)
        adapter.replace(out / ADAPTER_NAME)
        (Path(name) / CARD_NAME).replace(out / CARD_NAME)
    print(f"{out}: {len(data) / 1e6:.1f} MB, {len(files)} forms")
    return card


def _about(run: Path, results: Path | None) -> dict[str, Any]:
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
    if results is not None:
        about["pass_rates"] = pass_rates(results)
    return about


if __name__ == "__main__":
    sys.exit(main())
