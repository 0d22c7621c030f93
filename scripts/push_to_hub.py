"""`python -m scripts.push_to_hub runs/nano/bundle USER/NAME`: a bundle to the Hugging Face Hub.

The repository is private unless `--public` is given. `--dry-run` checks the bundle and says what would be sent.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from export.bundle import MANIFEST, check_bundle
from export.errors import ExportError


class PushError(ExportError):
    """A bundle that cannot be sent; the message says what to do."""


class Hub(Protocol):
    """The two calls of `huggingface_hub.HfApi` that are made."""

    def create_repo(self, repo_id: str, *, private: bool, repo_type: str, exist_ok: bool) -> object:
        """Make the repository, unless it is there."""
        ...

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, repo_type: str, commit_message: str, allow_patterns: list[str]
    ) -> object:
        """Send files in one commit."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when the bundle or the account is not in order."""
    arguments = _parser().parse_args(argv)
    try:
        manifest = _checked(arguments.bundle, arguments.repository, is_public=arguments.public)
        print(_plan(manifest, arguments.bundle, arguments.repository, is_public=arguments.public))
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        push(_hub(), arguments.bundle, arguments.repository, manifest, is_public=arguments.public)
    except ValueError as error:
        print(f"push_to_hub: {error}", file=sys.stderr)
        return 2
    print(f"https://huggingface.co/{arguments.repository}")
    return 0


def push(hub: Hub, folder: Path, repository: str, manifest: Mapping[str, Any], *, is_public: bool) -> None:
    """Send a checked bundle in one commit: its manifest and exactly the files that this lists.

    Raises:
        PushError: the Hub refused, or cannot be reached.
    """
    names = [*manifest["files"], MANIFEST]
    try:
        hub.create_repo(repository, private=not is_public, repo_type="model", exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message=f"{manifest['name']}: {len(names)} files",
            allow_patterns=names,
        )
    except OSError as error:  # what the Hub's client raises for both
        raise PushError(f"{repository}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.push_to_hub", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a folder that scripts.bundle wrote")
    parser.add_argument("repository", metavar="USER/NAME")
    parser.add_argument("--public", action="store_true", help="anybody may download it; needs a licence in the bundle")
    parser.add_argument("--dry-run", action="store_true", help="send nothing")
    return parser


def _checked(folder: Path, repository: str, *, is_public: bool) -> Mapping[str, Any]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise PushError(f"{repository!r} names no repository; it looks like USER/NAME")
    manifest = check_bundle(folder)
    if is_public and manifest.get("licence") is None:
        raise PushError(f"{folder / MANIFEST}: 'licence' is null; make the bundle again with --licence to publish it")
    return manifest


def _plan(manifest: Mapping[str, Any], folder: Path, repository: str, *, is_public: bool) -> str:
    files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    lines = [f"{folder} → {repository} ({'public' if is_public else 'private'})"]
    lines += [f"{file['bytes']:>14,}  {file['sha256'][:16]}  {name}" for name, file in sorted(files.items())]
    return "\n".join([*lines, f"{sum(file['bytes'] for file in files.values()):>14,}  bytes"])


def _hub() -> Hub:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise PushError("no account: run `hf auth login`, or set HF_TOKEN to a token that may write")
    hub: Hub = HfApi()
    return hub


if __name__ == "__main__":
    sys.exit(main())
