"""What can stop a retraining run; each message says what happened and what to do."""

from __future__ import annotations


class RetrainError(ValueError):
    """Something that the user has to change: a setting, a file, a registry that holds something else."""


class StepFailedError(RuntimeError):
    """A stage that failed for good after its attempts; the run keeps its complete stages."""


class BudgetExceededError(Exception):
    """A stage that took longer than its budget. No RuntimeError: it may arise anywhere, and nobody should catch it."""


class CommandFailedError(RuntimeError):
    """A stage's command that ended with another status than 0; the message names its log."""


class LockHeldError(RuntimeError):
    """Another run is at work in the same registry; the message says which process on which host."""
