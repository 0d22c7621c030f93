"""`serve MODEL.gguf`: the model behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.util
from pathlib import Path
from typing import Any

from tinydispatch.cli import tools as tools_command
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.folders import cache_folder
from tinydispatch.redaction import load_redactor
from tinydispatch.server.keys import load_keys
from tinydispatch.server.settings import Limits, ServerSettings
from tinydispatch.tools import Tool

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_LIMITS = Limits()
# The file's name changes with each champion; the name that clients ask for does not.
_REGISTRY_NAME = "tinydispatch"


def add_parser(commands: Any) -> None:
    """Add the command's arguments to the program's."""
    serve = commands.add_parser(
        "serve",
        help="answer the OpenAI API's /v1/chat/completions",
        description="Serves one model to OpenAI clients until SIGTERM or Ctrl-C, then finishes what it took. "
        "Logs are JSON lines on stderr. docs/serving.md says more.",
    )
    serve.add_argument("model", type=Path, nargs="?", metavar="MODEL.gguf")
    serve.add_argument("--registry", type=Path, metavar="DIR", help="serve its champion, and each one that follows")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    serve.add_argument(
        "--model-name",
        help=f"the name that clients ask for (default: the file's without .gguf; with --registry: {_REGISTRY_NAME})",
    )
    serve.add_argument(
        "--keys-file", type=Path, help="API keys, one a line, read again when changed; $TINYDISPATCH_API_KEYS adds"
    )
    serve.add_argument("--allow-anybody", action="store_true", help="listen beyond this machine without a key")
    tools_command.add_source(serve)
    serve.add_argument("--date", type=dt.date.fromisoformat, help="what 'today' means (default: the day of each call)")
    serve.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    serve.add_argument("--context", type=int, default=2048, help="tokens of prompt and reply (default: %(default)s)")
    serve.add_argument("--no-cache", action="store_true", help="keep no prompt states on disk")
    _add_limits(serve.add_argument_group("limits of one request"))
    log = serve.add_argument_group("dispatch log")
    log.add_argument("--dispatch-log", type=Path, metavar="DIR", help="write every answer there, for retraining")
    log.add_argument("--redaction-rules", type=Path, metavar="FILE", help="JSON; adds to the built-in rules")
    log.add_argument("--keep-days", type=int, help="delete older files of the dispatch log (default: keep all)")
    serve.set_defaults(run=run)


def _add_limits(group: Any) -> None:
    group.add_argument("--max-body-bytes", type=int, default=_LIMITS.max_body_bytes, help="default: %(default)s")
    group.add_argument("--max-tools", type=int, default=_LIMITS.max_tools, help="default: %(default)s")
    group.add_argument("--max-new-tokens", type=int, default=_LIMITS.max_new_tokens, help="default: %(default)s")
    waiting = "requests that wait while one is computed; more are answered 429 (default: %(default)s)"
    group.add_argument("--max-waiting", type=int, default=_LIMITS.max_waiting, help=waiting)
    group.add_argument(
        "--timeout", type=float, default=_LIMITS.request_timeout_s, metavar="SECONDS", help="default: %(default)g"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'tinydispatch[serve]'")
    from tinydispatch.server.holder import ModelHolder, Serving
    from tinydispatch.server.logs import configure_logging
    from tinydispatch.server.registry_watch import RegistryWatcher, open_champion
    from tinydispatch.server.run import run_server

    _check_source(arguments)
    configure_logging()
    tools = tools_command.read_source(arguments)
    settings = _settings(arguments, tools)
    log = _dispatch_log(arguments)

    def load(path: Path) -> Dispatcher:
        return Dispatcher(
            path,
            tools or (),
            arguments.date,
            n_ctx=arguments.context,
            threads=arguments.threads,
            max_new_tokens=settings.limits.max_new_tokens,
            cache=None if arguments.no_cache else cache_folder(),
        )

    registry = arguments.registry
    serving = open_champion(registry, load) if registry else Serving(load(arguments.model), arguments.model.stem)
    holder = ModelHolder(serving, max_waiting=settings.limits.max_waiting)
    with RegistryWatcher(registry, load, holder) if registry else contextlib.nullcontext():
        run_server(holder, settings, log)
    return 0


def _check_source(arguments: argparse.Namespace) -> None:
    if (arguments.model is None) == (arguments.registry is None):
        raise ValueError("expected either a model file or --registry DIR: serve model.gguf")


def _settings(arguments: argparse.Namespace, tools: tuple[Tool, ...] | None) -> ServerSettings:
    limits = Limits(
        max_body_bytes=arguments.max_body_bytes,
        max_tools=arguments.max_tools,
        max_new_tokens=arguments.max_new_tokens,
        max_waiting=arguments.max_waiting,
        request_timeout_s=arguments.timeout,
    )
    return ServerSettings(
        model_name=arguments.model_name or (arguments.model.stem if arguments.model else _REGISTRY_NAME),
        host=arguments.host,
        port=arguments.port,
        keys=load_keys(arguments.keys_file),
        limits=limits,
        tools=tools,
        allows_anybody=arguments.allow_anybody,
    )


def _dispatch_log(arguments: argparse.Namespace) -> DispatchLog | None:
    if arguments.dispatch_log is None:
        if arguments.redaction_rules is not None or arguments.keep_days is not None:
            raise ValueError("--redaction-rules and --keep-days need --dispatch-log")
        return None
    redactor = load_redactor(arguments.redaction_rules) if arguments.redaction_rules else None
    try:
        return DispatchLog(arguments.dispatch_log, redactor, keep_days=arguments.keep_days)
    except OSError as error:
        raise ValueError(
            f"{arguments.dispatch_log}: the dispatch log cannot be kept there: {error.strerror}"
        ) from error
