"""What can go wrong on the user's side before or while a model trains; each message says what to do."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the value."""


class ModelNotFoundError(ValueError):
    """A model that is neither a usable local directory nor fetchable; the message says how to give a local one."""


class TokenizerError(ValueError):
    """A tokenizer or chat template that cannot be trained with; the message names the model and the reason."""


class PromptMismatchError(TokenizerError):
    """A conversation whose trained turn does not begin with the prompt that a server renders for that turn."""


class TrainingDataError(ValueError):
    """Training data that leaves nothing to train on; the message says why rows were dropped."""


class PackingError(ConfigError):
    """A model whose conversations would see each other in a packed row; the message says by how much."""


class PreflightError(ConfigError):
    """A run that cannot work, found before its first step; the message lists every reason."""


class ResumeError(ValueError):
    """Checkpoints that belong to other settings or other data than the run that wants to continue them."""


class TrainingDivergedError(ValueError):
    """The loss is no longer a number; the message names the step and what to change."""


class CheckpointWriteError(ValueError):
    """A checkpoint that could not be written, as on a full disk; the message names the last whole one."""


class TrainingInterrupted(SystemExit):
    """Training stopped on a signal after saving a checkpoint.

    A SystemExit, so that a script which does not catch it still ends with the shell's code for that signal:
    128 + number, which is 130 for SIGINT and 143 for SIGTERM.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number
        self.message = message

    def __str__(self) -> str:
        return self.message
