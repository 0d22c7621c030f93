"""Data sets of the Hugging Face Hub, fetched to local files and then read like any others."""

from __future__ import annotations

from pathlib import Path

from data.config import GENERATED, SourceConfig
from data.sources.files import DataFileError


def fetched(source: SourceConfig) -> SourceConfig:
    """The source with `path` set to a local copy and `revision` to the commit; local sources come back as they are.

    Raises:
        DataFileError: the data set, or a file that the source names, cannot be fetched.
    """
    if isinstance(source, GENERATED) or source.hub is None:
        return source
    # Imported here: sources of local files need no network library.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                source.hub, repo_type="dataset", revision=source.revision, allow_patterns=list(source.files)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DataFileError(
            f"Hub data set '{source.hub}' (revision {source.revision or 'main'}) cannot be fetched: {error}; "
            "fetch it elsewhere and give its folder as 'path'"
        ) from error
    found = [file for pattern in source.files for file in folder.rglob(pattern)]
    if not found:
        raise DataFileError(f"Hub data set '{source.hub}' has no file that matches {', '.join(source.files)}")
    # A snapshot lies in a folder named by its commit.
    return source.model_copy(update={"path": folder, "revision": folder.name})
