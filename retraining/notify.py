"""Tells whoever wants to know how a run ended; that nobody could be told never changes how it ended."""

from __future__ import annotations

import json
import logging
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from retraining.config import HookConfig
from retraining.ledger import RunRecord

logger = logging.getLogger(__name__)

_TIMEOUT_S = 30.0


def notify(hooks: Sequence[HookConfig], run: RunRecord, champion: str | None) -> int:
    """Call every hook that asked for runs that end like this one; returns how many were reached."""
    news = {
        "run": run.id,
        "state": str(run.state),
        "reason": run.reason,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "host": run.host,
        "champion": champion,
        # What chat services show of a webhook's message.
        "text": f"tinydispatch retraining {run.id}: {run.state}. {run.reason}",
    }
    wanted = [hook for hook in hooks if run.state in hook.on]
    return sum(_reached(hook, news) for hook in wanted)


def _reached(hook: HookConfig, news: dict[str, Any]) -> bool:
    body = json.dumps(news, ensure_ascii=False).encode()
    try:
        if hook.command is not None:
            subprocess.run(hook.command, input=body, check=True, capture_output=True, timeout=_TIMEOUT_S)
            return True
        assert hook.webhook is not None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(hook.webhook, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return True
    except (OSError, subprocess.SubprocessError, urllib.error.URLError) as error:
        # The address may hold a secret: it is not repeated.
        logger.warning("nobody was told by %s: %s", "command" if hook.command else "webhook", type(error).__name__)
        return False
