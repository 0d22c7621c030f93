"""`serve [MODEL.gguf]`: the model behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydispatch.cli import tools as tools_command
from tinydispatch.cli.model import DEFAULT_NAME, add_context, add_model, model_file
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.folders import cache_folder
from tinydispatch.redaction import load_redactor
from tinydispatch.server.keys import load_keys
from tinydispatch.server.settings import Limits, ServerSettings
from tinydispatch.tools import Tool

if TYPE_CHECKING:  # they need the packages that `run` looks for
    from tinydispatch.layers.policy import StackSettings
    from tinydispatch.server.holder import ModelHolder
    from tinydispatch.server.stacks import StackModels

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_LIMITS = Limits()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Serves one model to OpenAI clients until SIGTERM or Ctrl-C, then finishes what it took. "
        "Logs are JSON lines on stderr. docs/serving.md says more."
    )
    add_model(parser)
    parser.add_argument(
        "--stack",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a stack of models and tools (such as configs/stack.yaml) under a name of its own; may be repeated",
    )
    parser.add_argument("--registry", type=Path, metavar="DIR", help="serve its champion, and each one that follows")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--model-name",
        help="the name that clients ask for (default: the file's without .gguf; of the default model, and with "
        f"--registry, where the file's changes with each champion: {DEFAULT_NAME})",
    )
    parser.add_argument(
        "--keys-file", type=Path, help="API keys, one a line, read again when changed; $TINYDISPATCH_API_KEYS adds"
    )
    parser.add_argument("--allow-anybody", action="store_true", help="listen beyond this machine without a key")
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let scripts of web pages from there read answers (https://app.example, or * for any); may be repeated",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse parameters that are unknown; they are else ignored with a warning"
    )
    parser.add_argument(
        "--ui", action="store_true", help="a page at /ui to try the model, and to correct it with --dispatch-log"
    )
    tools_command.add_source(parser)
    parser.add_argument(
        "--date", type=dt.date.fromisoformat, help="what 'today' means where a request does not say (default: today)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    add_context(parser)
    parser.add_argument("--no-cache", action="store_true", help="keep no prompt states on disk")
    _add_limits(parser.add_argument_group("limits of one request"))
    log = parser.add_argument_group("dispatch log")
    log.add_argument("--dispatch-log", type=Path, metavar="DIR", help="write every answer there, for retraining")
    log.add_argument("--redaction-rules", type=Path, metavar="FILE", help="JSON; adds to the built-in rules")
    _add_challenger(parser.add_argument_group("a challenger beside the model (docs/serving.md); needs --dispatch-log"))
    log.add_argument("--keep-days", type=int, help="delete older files of the dispatch log (default: keep all)")


def _add_challenger(group: Any) -> None:
    group.add_argument(
        "--shadow", type=Path, metavar="FILE", help="a GGUF file that is asked the same; disagreements are logged"
    )
    shares = "a GGUF file that answers 5, 25, then 100 %% of the dialogues, and goes by itself if it does worse"
    group.add_argument("--canary", type=Path, metavar="FILE", help=shares)
    group.add_argument(
        "--canary-answers", type=int, default=200, metavar="N", help="answers before its next step (default: 200)"
    )


def _add_limits(group: Any) -> None:
    group.add_argument("--max-body-bytes", type=int, default=_LIMITS.max_body_bytes, help="default: %(default)s")
    group.add_argument("--max-tools", type=int, default=_LIMITS.max_tools, help="default: %(default)s")
    group.add_argument("--max-new-tokens", type=int, default=_LIMITS.max_new_tokens, help="default: %(default)s")
    waiting = "requests that wait while one is computed; more are answered 429 (default: %(default)s)"
    group.add_argument("--max-waiting", type=int, default=_LIMITS.max_waiting, help=waiting)
    most = "open connections; of more, the longest idle one is closed (default: %(default)s)"
    group.add_argument("--max-connections", type=int, default=_LIMITS.max_connections, help=most)
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
    from tinydispatch.server.run import bind, run_server

    _check_source(arguments)
    configure_logging()
    tools = tools_command.read_source(arguments)
    settings = _settings(arguments, tools)
    files = _stack_files(arguments.stack, settings.model_name)
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
    path = None if registry else model_file(arguments.model, arguments.quantization)
    sockets = bind(settings.host, settings.port)
    serving = Serving(load(path), path.stem) if path else open_champion(registry, load)
    holder = ModelHolder(serving, max_waiting=settings.limits.max_waiting)
    rollout = _rollout(arguments, load, log)
    stacks = _stacks(arguments, holder, files)
    with RegistryWatcher(registry, load, holder) if registry else contextlib.nullcontext():
        run_server(holder, settings, log, sockets, rollout, stacks)
    return 0


def _stack_files(paths: Sequence[Path], model_name: str) -> list[StackSettings]:
    """The stacks' files, read before a model is loaded."""
    from tinydispatch.layers.policy import load_stack

    files = [load_stack(path) for path in paths]
    names = [model_name, *(file.name for file in files)]
    for path, file in zip(paths, files, strict=True):
        if names.count(file.name) > 1:
            raise ValueError(f"{path}: name: '{file.name}' is served already; served: {', '.join(names)}")
    return files


def _stacks(arguments: argparse.Namespace, holder: ModelHolder, files: Sequence[StackSettings]) -> StackModels | None:
    """The stacks by their names; one that names no dispatch model of its own takes turns with the server's."""
    if not files:
        return None
    from tinydispatch.layers.stack import open_stack
    from tinydispatch.server.logs import log
    from tinydispatch.server.stacks import HeldDispatcher, StackModels

    opened = {}
    try:
        for file in files:
            more: dict[str, Any] = {"reference_date": arguments.date} if arguments.date else {}
            own = file.dispatch != "default"
            opened[file.name] = open_stack(file, None if own else lambda _: HeldDispatcher(holder), **more)
            for line in opened[file.name].left_out:
                log("not offered", stack=file.name, operation=line)
    except BaseException:
        for stack in opened.values():
            stack.close()
        holder.close()
        raise
    return StackModels(opened)


def _rollout(arguments: argparse.Namespace, load: Callable[[Path], Dispatcher], log: DispatchLog | None) -> Any:
    from tinydispatch.server.holder import Serving
    from tinydispatch.server.rollout import STATE_FILE, Canary, Shadow

    path = arguments.shadow or arguments.canary
    if path is None or log is None:
        return None
    with path.open("rb") as stream:
        name = f"{path.stem}-{hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"
    if arguments.shadow:
        return Shadow(lambda: Serving(load(path), name), name, log)
    return Canary(
        Serving(load(path), name),
        arguments.dispatch_log / STATE_FILE,
        log,
        step_answers=arguments.canary_answers,
        max_waiting=arguments.max_waiting,
    )


def _check_source(arguments: argparse.Namespace) -> None:
    if arguments.registry and (arguments.model or arguments.quantization):
        raise ValueError("--registry DIR names the model: give neither a file nor --quantization with it")
    if arguments.shadow and arguments.canary:
        raise ValueError("--shadow and --canary: give one of the two; a canary that answers is no longer a shadow")
    for option in ("shadow", "canary"):
        path = getattr(arguments, option)
        if path is not None and not path.is_file():
            raise ValueError(f"--{option} {path}: no such file")
        if path is not None and arguments.dispatch_log is None:
            raise ValueError(f"--{option} needs --dispatch-log DIR: what it finds is written there")
    if arguments.canary_answers < 1:
        raise ValueError(f"--canary-answers {arguments.canary_answers}: must be at least 1")


def _settings(arguments: argparse.Namespace, tools: tuple[Tool, ...] | None) -> ServerSettings:
    limits = Limits(
        max_body_bytes=arguments.max_body_bytes,
        max_tools=arguments.max_tools,
        max_new_tokens=arguments.max_new_tokens,
        max_waiting=arguments.max_waiting,
        max_connections=arguments.max_connections,
        request_timeout_s=arguments.timeout,
    )
    return ServerSettings(
        model_name=arguments.model_name or (arguments.model.stem if arguments.model else DEFAULT_NAME),
        host=arguments.host,
        port=arguments.port,
        keys=load_keys(arguments.keys_file),
        limits=limits,
        tools=tools,
        allows_anybody=arguments.allow_anybody,
        is_strict=arguments.strict,
        cors_origins=tuple(arguments.cors),
        has_ui=arguments.ui,
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
