"""What is handed on: a folder with the GGUF files, the tools, a Modelfile, a model card, and a hash of each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.card import DataCard
from eval.results import EvalResult
from export.card import CardFile, CardInput, model_card
from export.choice import Verdict
from export.errors import ExportError
from export.export import sha256_of
from export.ollama import TemplateError, modelfile
from tinydispatch import formats
from tinydispatch.ggml.header import GgufHeader, read_header
from tinydispatch.tools import Tool

MANIFEST = "manifest.json"
_CARD, _TOOLS, _MODELFILE = "README.md", "tools.json", "Modelfile"
# llama.cpp and what is built on it knows no graph for these; neither does Ollama.
_OURS_ALONE = ("opt",)


class BundleError(ExportError):
    """A bundle that cannot be made or is not whole; the message names the file."""


@dataclass(frozen=True)
class BundleInput:
    """What a bundle is made of.

    `report` is the export's `<name>-export.json`; `default` the file to offer first; `verdicts` are by quantization,
    empty where the files were not evaluated. `licence` is None when nobody has said it.
    """

    name: str
    report: Path
    default: str
    verdicts: Mapping[str, Verdict]
    tools: Sequence[Tool]
    base: str
    licence: str | None
    recipe: Mapping[str, str]
    results: Sequence[EvalResult]
    data: DataCard | None


def write_bundle(contents: BundleInput, folder: Path) -> Path:
    """Write the folder, whole or not at all; one that is there is replaced. GGUF files are linked where possible.

    Returns:
        `folder`.

    Raises:
        BundleError: no export report, a GGUF file that changed since it was verified, or a folder that is no bundle.
    """
    entries = _verified_files(contents.report)
    if contents.default not in {Path(entry["path"]).name for entry in entries}:
        raise BundleError(f"{contents.report}: holds no file {contents.default}")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: is not empty and no bundle; name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _fill(partial, contents, entries)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_bundle(folder: Path) -> Mapping[str, Any]:
    """The manifest of a bundle whose every file is there and unchanged, with none beside them.

    Raises:
        BundleError: it is not so; the message names the first file.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        listed = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; make a bundle with `python -m scripts.bundle`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a bundle's manifest: {error!r}") from error
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {MANIFEST}
    for name in sorted(found ^ listed.keys()):
        raise BundleError(f"{folder / name}: {'not in the manifest' if name in found else 'missing'}")
    for name, expected in listed.items():
        if sha256_of(folder / name) != expected:
            raise BundleError(f"{folder / name}: changed since the bundle was made")
    return manifest


def _verified_files(report: Path) -> list[dict[str, Any]]:
    """The report's entries, after a look at each file."""
    try:
        entries: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))["files"]
    except FileNotFoundError:
        raise BundleError(f"{report}: no such file; export first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{report}: not an export's report: {error!r}") from error
    for entry in entries:
        path = report.parent / Path(entry["path"]).name  # the run folder may have been moved
        if not path.is_file():
            raise BundleError(f"{path}: missing; export again")
        if sha256_of(path) != entry["sha256"]:
            raise BundleError(f"{path}: changed since it was verified; export again")
        entry["path"] = str(path)
    return entries


def _fill(folder: Path, contents: BundleInput, entries: Sequence[Mapping[str, Any]]) -> None:
    for entry in entries:
        _link(Path(entry["path"]), folder / Path(entry["path"]).name)
    header = read_header(folder / contents.default)
    is_ours_alone = header.architecture in _OURS_ALONE
    note = None if is_ours_alone else _write_modelfile(folder, contents, header)
    tools = [tool.to_openai() for tool in contents.tools]
    (folder / _TOOLS).write_text(json.dumps(tools, indent=2, ensure_ascii=False) + "\n", "utf-8")
    files = tuple(_card_file(entry, contents) for entry in entries)
    card = CardInput(
        name=contents.name,
        files=files,
        default=contents.default,
        architecture=header.architecture,
        runs_in_llama_cpp=not is_ours_alone,
        modelfile_note=note,
        tools=contents.tools,
        base=contents.base,
        licence=contents.licence,
        recipe=contents.recipe,
        results=contents.results,
        data=contents.data,
    )
    (folder / _CARD).write_text(model_card(card), "utf-8")
    _write_manifest(folder, contents, header)


def _write_modelfile(folder: Path, contents: BundleInput, header: GgufHeader) -> str | None:
    """None, or why there is no Modelfile."""
    template = str(header.metadata.get("tokenizer.chat_template", ""))
    n_ctx = header.metadata.get(f"{header.architecture}.context_length", 2048)
    try:
        text = modelfile(contents.default, template, contents.tools, min(int(n_ctx), 4096))
    except TemplateError as error:
        return f"Its chat template cannot be written in Ollama's language: {error}."
    (folder / _MODELFILE).write_text(text, "utf-8")
    return None


def _card_file(entry: Mapping[str, Any], contents: BundleInput) -> CardFile:
    checked = entry["verification"]
    return CardFile(
        name=Path(entry["path"]).name,
        n_bytes=entry["n_bytes"],
        max_difference=checked["max_difference"],
        mean_kl=checked["mean_kl"],
        top1_agreement=checked["top1_agreement"],
        verdict=contents.verdicts.get(entry["quantization"]),
    )


def _write_manifest(folder: Path, contents: BundleInput, header: GgufHeader) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    value = {
        "name": contents.name,
        "default": contents.default,
        "architecture": header.architecture,
        "template_hash": formats.template_hash(str(header.metadata.get("tokenizer.chat_template", ""))),
        "base": contents.base,
        "licence": contents.licence,
        "tools": [tool.name for tool in contents.tools],
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
