"""What writes the replies that are scored: a transformers checkpoint, a GGUF file, a server, or a recording."""

from __future__ import annotations

from pathlib import Path

from eval.backends.base import Backend, BackendError, Failure, Generation, Request
from eval.backends.playback import PlaybackBackend
from eval.config import EvalConfig

__all__ = [
    "Backend",
    "BackendError",
    "Failure",
    "Generation",
    "PlaybackBackend",
    "Request",
    "is_endpoint",
    "open_backend",
]


def is_endpoint(model: str | Path) -> bool:
    """Whether `model` is the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def open_backend(model: str | Path, config: EvalConfig) -> Backend:
    """The backend for `model`: an endpoint's address, a .gguf file, a checkpoint directory, or a hub id.

    An address is "http://host:port/v1#model". Neither torch nor llama.cpp is loaded before a model needs it.

    Raises:
        BackendError: the model cannot be loaded; the message names it and says what to do.
    """
    if is_endpoint(model):
        from eval.backends.endpoint import EndpointBackend

        return EndpointBackend.load(str(model), config)
    if config.temperature > 0:
        raise BackendError(f"model '{model}': eval.temperature={config.temperature:g} is for endpoints; leave it at 0")
    if str(model).endswith(".gguf"):
        from eval.backends.gguf import GgufBackend

        return GgufBackend.load(Path(model), config)
    from eval.backends.checkpoint import CheckpointBackend

    return CheckpointBackend.load(model, config)
