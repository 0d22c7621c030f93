"""`manifest.json`: what a run was made from and what came out, with a hash of every file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from data.card import CardError, DataCard
from eval.results import load_result
from tinydispatch.formats import template_hash
from training.config import RunConfig

_PACKAGES = (
    "tinydispatch",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "gguf",
    "xllamacpp",
)
_UNHASHED = frozenset({"manifest.json", "stages.json", "checkpoints", "encoded", "wandb"})
_ROOT = Path(__file__).resolve().parents[1]


def write_manifest(run: RunConfig, stage_seconds: dict[str, float]) -> Path:
    """Describe the run folder as it is now; whole or not at all.

    Pass rates stand under `pass_rates[suite][model]` as `{"overall" or a category: {"hits": n, "total": n}}`.
    """
    folder = run.run_dir
    value = {
        "name": run.name,
        "seed": run.seed,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _versions(),
        "data_hash": _data_hash(folder),
        "template_hash": _template_hash(folder / "checkpoint"),
        "stage_seconds": stage_seconds,
        "pass_rates": pass_rates(folder / "eval"),
        "files": {name: _sha256(folder / name) for name in _files(folder)},
    }
    path = folder / "manifest.json"
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)
    return path


def pass_rates(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Hits and totals of every result file, by suite, model and category."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = load_result(path)
        counts = {"overall": result.overall, **result.by_category}
        rates = {name: {key: count.to_json()[key] for key in ("hits", "total")} for name, count in counts.items()}
        found.setdefault(result.suite, {})[result.model_name] = rates
    return found


def git_revision() -> str | None:
    """The checkout's commit, with "+changes" when files differ from it; None outside a checkout or without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _data_hash(folder: Path) -> str | None:
    try:
        return DataCard.read_json(folder / "data_card.json").data_hash
    except CardError:
        return None


def _template_hash(checkpoint: Path) -> str | None:
    path = checkpoint / "chat_template.jinja"
    return template_hash(path.read_text("utf-8")) if path.is_file() else None


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith((".part", ".partial")))
    names = (path.relative_to(folder) for path in paths)
    return sorted(str(name) for name in names if name.parts[0] not in _UNHASHED)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
