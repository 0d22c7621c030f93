"""Where a server finds the model in service: `DIR/champion`, a link to one folder of `DIR/models/`.

`DIR/fallback` links to the champion before it, for a server that starts while the champion's file is damaged.

A model's folder never changes once it has its name: `model.gguf` and `model.json`, which states the file's size and
SHA-256 and the sentence that the model must answer before it may serve. The link is replaced in one step, so whoever
reads it finds the old champion or the new one.

Standard library and this package alone: it runs where the server runs.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinydispatch.tools import Tool

CHAMPION, FALLBACK, MODELS = "champion", "fallback", "models"
MODEL_FILE, MODEL_CARD = "model.gguf", "model.json"


class RegistryError(ValueError):
    """A registry or a model in it that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class SelfTest:
    """A request that the model must answer with a reply that can be used as it stands.

    `tools` is what is on offer, None the bundled eight; `must_call` asks for a call rather than any usable reply.
    """

    text: str = "What's the weather in Oslo tomorrow?"
    reference_date: dt.date = dt.date(2026, 3, 19)
    tools: tuple[Tool, ...] | None = None
    must_call: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it stands in `model.json`."""
        tools = None if self.tools is None else [tool.to_openai() for tool in self.tools]
        date = self.reference_date.isoformat()
        return {"text": self.text, "reference_date": date, "tools": tools, "must_call": self.must_call}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SelfTest:
        """Raises ValueError, TypeError or KeyError where it is not what `to_json` writes."""
        date = dt.date.fromisoformat(value["reference_date"])
        return cls(str(value["text"]), date, _tools(value["tools"]), bool(value["must_call"]))


@dataclass(frozen=True)
class RegisteredModel:
    """A model as its card states it; whether the file agrees is for `verify_file` to say.

    `run_id` is the run that made it, None for one that was brought in. `details` is free for the writer.
    """

    id: str
    folder: Path
    sha256: str
    n_bytes: int
    run_id: str | None = None
    self_test: SelfTest = SelfTest()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The GGUF file, under the model's own folder and not under the link, which may move on."""
        return self.folder / MODEL_FILE

    def to_json(self) -> dict[str, Any]:
        """The card's content."""
        return {
            "sha256": self.sha256,
            "n_bytes": self.n_bytes,
            "run_id": self.run_id,
            "self_test": self.self_test.to_json(),
            "details": dict(self.details),
        }


def champion_id(registry: Path) -> str | None:
    """The id of the model in service; None before the first promotion.

    Raises:
        RegistryError: `champion` is something else than a link into `models/`.
    """
    return _linked(registry / CHAMPION)


def read_champion(registry: Path) -> RegisteredModel | None:
    """The card of the model in service; None before the first promotion.

    Raises:
        RegistryError: the link, or the card that it leads to, cannot be read.
    """
    found = champion_id(registry)
    return None if found is None else read_model(registry, found)


def read_fallback(registry: Path) -> RegisteredModel | None:
    """The card of the model that was champion before; None where there was none.

    Raises:
        RegistryError: as `read_champion`.
    """
    found = _linked(registry / FALLBACK)
    return None if found is None else read_model(registry, found)


def _linked(link: Path) -> str | None:
    try:
        target = link.readlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RegistryError(f"{link}: expected a link to a folder of {MODELS}/: {error.strerror}") from error
    if len(target.parts) != 2 or target.parts[0] != MODELS:
        raise RegistryError(f"{link}: points to {target}, expected a folder of {MODELS}/")
    return target.name


def read_model(registry: Path, model_id: str) -> RegisteredModel:
    """The card of one model.

    Raises:
        RegistryError: there is no such model, or its card is not one.
    """
    folder = registry / MODELS / model_id
    path = folder / MODEL_CARD
    try:
        value = json.loads(path.read_text("utf-8"))
        self_test = SelfTest.from_json(value["self_test"])
        sha256, n_bytes, run_id = str(value["sha256"]), int(value["n_bytes"]), value.get("run_id")
        return RegisteredModel(model_id, folder.absolute(), sha256, n_bytes, run_id, self_test, value["details"])
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise RegistryError(f"{path}: no model card: key {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise RegistryError(f"{path}: no model card: {error}") from error


def verify_file(model: RegisteredModel) -> None:
    """Read the whole file and compare it with its card.

    Raises:
        RegistryError: it is gone, or of another size or content than the card states.
    """
    try:
        n_bytes = model.path.stat().st_size
        if n_bytes != model.n_bytes:
            raise RegistryError(f"{model.path}: {n_bytes} bytes, its card says {model.n_bytes}")
        with model.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RegistryError(f"{model.path}: cannot be read: {error.strerror}") from error
    if digest != model.sha256:
        raise RegistryError(f"{model.path}: its SHA-256 is {digest}, its card says {model.sha256}")


# What `self_test` needs of a reply, as `Dispatch` has it: whether it can be used, and its calls.
Answer = Callable[[SelfTest], tuple[bool, int]]


def check_answers(model: RegisteredModel, answer: Answer) -> None:
    """Ask the model what its card says it can answer.

    Args:
        answer: the self-test → whether the reply can be used as it stands, and how many calls it makes.

    Raises:
        RegistryError: it does not answer, answers with something unusable, or not with a call where one is due.
    """
    try:
        is_usable, n_calls = answer(model.self_test)
    except (ValueError, RuntimeError, OSError) as error:
        raise RegistryError(f"{model.path}: does not answer its self-test: {error}") from error
    if not is_usable or (model.self_test.must_call and n_calls == 0):
        wanted = "a call" if model.self_test.must_call else "a reply that can be used"
        raise RegistryError(f"{model.path}: answers its self-test '{model.self_test.text}' without {wanted}")


def _tools(entries: Sequence[Mapping[str, Any]] | None) -> tuple[Tool, ...] | None:
    if entries is None:
        return None
    # Imported here: JSON schemas take longer to load than all else that reads a registry.
    from tinydispatch.tools import Tool

    return tuple(Tool.from_openai(entry) for entry in entries)
