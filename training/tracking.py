"""Weights & Biases where the user is logged in and it can be reached; never a question, never a wait."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from transformers import TrainerCallback

from training.config import RunConfig, TrackingConfig, WandbMode

logger = logging.getLogger(__name__)

_DEFAULT_HOST = "https://api.wandb.ai"
_REACH_TIMEOUT_S = 3.0
# Beside the files that wandb itself keeps in the run's folder.
_RUN_ID = Path("wandb") / "run_id"


@contextmanager
def tracking(config: TrackingConfig, run_dir: Path, *, is_continued: bool = False) -> Iterator[list[str]]:
    """Set tracking up for one training; yields the trainer's `report_to` (["wandb"] or []).

    Args:
        is_continued: record into the run that a stopped training has begun, instead of a new one.
    """
    mode = wandb_mode(config)
    if mode is None:
        yield []
        return
    settings = {"WANDB_MODE": mode, "WANDB_PROJECT": config.project, "WANDB_DIR": str(run_dir), "WANDB_SILENT": "true"}
    if int(os.environ.get("RANK", "0")) == 0:  # the only process that records
        begun = _remembered(run_dir) if is_continued else None
        settings["WANDB_RUN_ID"] = os.environ.get("WANDB_RUN_ID") or begun or secrets.token_hex(4)
        settings["WANDB_RESUME"] = "allow"
        _remember(run_dir, settings["WANDB_RUN_ID"])
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


def upload_files(
    config: TrackingConfig, run_dir: Path, name: str, files: Sequence[Path], metadata: Mapping[str, Any]
) -> bool:
    """Add exported files as one artifact of type "model" to the run that was recorded while training.

    Offline they are kept for `wandb sync`, by reference and not as a copy. A failure is a warning: the files are there.

    Returns:
        whether an artifact was recorded.
    """
    mode = wandb_mode(config)
    if mode is None:
        return False
    import wandb  # here, because importing it takes two seconds that runs without tracking need not wait

    run_id = _remembered(run_dir)
    try:
        with wandb.init(
            project=config.project,
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(run_dir),
            mode=mode,
            settings=wandb.Settings(silent=True),
        ) as run:
            artifact = wandb.Artifact(f"{name}-gguf", type="model", metadata=dict(metadata))
            for file in files:
                artifact.add_file(str(file), name=file.name, policy="immutable")
            run.log_artifact(artifact)
    except (wandb.Error, OSError, ValueError) as error:
        logger.warning("Weights & Biases did not take %s: %s", ", ".join(file.name for file in files), error)
        return False
    return True


def _remember(run_dir: Path, run_id: str) -> None:
    path = run_dir / _RUN_ID
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run_id, "utf-8")


def _remembered(run_dir: Path) -> str | None:
    path = run_dir / _RUN_ID
    return path.read_text("utf-8").strip() or None if path.is_file() else None


class RecordSettings(TrainerCallback):  # type: ignore[misc]
    """Gives a recorded run the whole recipe, beside the trainer's own options."""

    def __init__(self, run: RunConfig) -> None:
        self._settings = run.model_dump(mode="json")

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        import wandb  # here, because importing it takes two seconds that runs without tracking need not wait

        if wandb.run is not None:
            wandb.run.config.update({"recipe": self._settings}, allow_val_change=True)


def wandb_mode(config: TrackingConfig) -> Literal["online", "offline"] | None:
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
