"""What writes the replies that are scored: a transformers checkpoint, a GGUF file, or a recording."""

from __future__ import annotations

from pathlib import Path

from eval.backends.base import Backend, BackendError, Failure, Generation, Request
from eval.backends.playback import PlaybackBackend
from eval.config import EvalConfig

__all__ = ["Backend", "BackendError", "Failure", "Generation", "PlaybackBackend", "Request", "open_backend"]


def open_backend(model: str | Path, config: EvalConfig) -> Backend:
    """The backend for `model`: a .gguf file, or a checkpoint directory or hub id for transformers.

    Neither torch nor llama.cpp is loaded before a model needs it.

    Raises:
        BackendError: the model cannot be loaded; the message names it and says what to do.
    """
    if str(model).endswith(".gguf"):
        from eval.backends.gguf import GgufBackend

        return GgufBackend.load(Path(model), config)
    from eval.backends.checkpoint import CheckpointBackend

    return CheckpointBackend.load(model, config)
