"""Whether a model can be exported, as a line of the preflight's table: training knows nothing of export."""

from __future__ import annotations

import logging
from pathlib import Path

from export.checkpoint import check_architecture
from export.errors import ExportError
from training.config import RunConfig
from training.errors import PreflightError
from training.preflight import Check, Verdict

logger = logging.getLogger(__name__)


def gguf_route(run: RunConfig, model_dir: Path) -> Check:
    """Ask the exporter's own table about the model that training starts from."""
    try:
        return Check("GGUF route", Verdict.OK, f"{check_architecture(model_dir)} can be exported")
    except ExportError as error:
        if not run.training.require_gguf:
            return Check("GGUF route", Verdict.WARN, f"{error}; the run stops at export")
        way_out = "set training.require_gguf=false to train and evaluate all the same"
        return Check("GGUF route", Verdict.FAIL, f"{error}; {way_out}")


def require_route(run: RunConfig, model_dir: Path) -> None:
    """The same before any stage begins, because preparing 187,542 rows takes longer than to read a sentence.

    Raises:
        PreflightError: the model cannot be exported, and the run has not said that this is all right.
    """
    check = gguf_route(run, model_dir)
    if check.verdict is Verdict.FAIL:
        raise PreflightError(f"{check.name}: {check.finding}")
    if check.verdict is Verdict.WARN:
        logger.warning("note: %s", check.finding)
