"""Weights & Biases where the user is logged in and it can be reached; never a question, never a wait."""

from __future__ import annotations

import logging
import netrc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from training.config import TrackingConfig, WandbMode

logger = logging.getLogger(__name__)

_DEFAULT_HOST = "https://api.wandb.ai"
_REACH_TIMEOUT_S = 3.0


@contextmanager
def tracking(config: TrackingConfig, run_dir: Path) -> Iterator[list[str]]:
    """Set tracking up for one training; yields the trainer's `report_to` (["wandb"] or [])."""
    mode = wandb_mode(config)
    if mode is None:
        yield []
        return
    settings = {"WANDB_MODE": mode, "WANDB_PROJECT": config.project, "WANDB_DIR": str(run_dir), "WANDB_SILENT": "true"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield ["wandb"]
    finally:
        _finish()
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def wandb_mode(config: TrackingConfig) -> str | None:
    """ "online", "offline", or None for not at all; WANDB_MODE and WANDB_DISABLED in the environment are obeyed."""
    asked = os.environ.get("WANDB_MODE", "")
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1"}
    if config.wandb is WandbMode.OFF or asked in {"disabled", "dryrun"} or disabled:
        return None
    if config.wandb is WandbMode.OFFLINE or asked == "offline":
        return "offline"
    if not _is_logged_in():
        return None
    if not _is_reachable():
        logger.warning("Weights & Biases cannot be reached: logging offline; `wandb sync` uploads it later")
        return "offline"
    return "online"


def _host() -> str:
    return os.environ.get("WANDB_BASE_URL", _DEFAULT_HOST)


def _is_logged_in() -> bool:
    """A key in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(_host()).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _is_reachable() -> bool:
    """Whether the host takes connections: wandb itself would wait for a minute and a half before it gives up."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    url = urlsplit(_host())
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        with socket.create_connection((url.hostname or "", port), timeout=_REACH_TIMEOUT_S):
            return True
    except OSError:
        return False


def _finish() -> None:
    """Close the run, so that what the pipeline prints afterwards is not recorded as training output."""
    import wandb  # here, because importing it takes two seconds that runs without tracking need not wait

    if wandb.run is not None:
        wandb.finish()
