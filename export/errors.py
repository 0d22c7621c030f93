"""What can stop an export; each message names the checkpoint or file and what to do."""

from __future__ import annotations


class ExportError(ValueError):
    """A checkpoint that cannot be exported."""


class UnsupportedArchitectureError(ExportError):
    """An architecture, or a variant of one, that has no GGUF export yet."""


class UnsupportedTokenizerError(ExportError):
    """A tokenizer that llama.cpp would not reproduce token by token."""


class VerificationError(ExportError):
    """A written file that does not compute what its checkpoint computes."""
