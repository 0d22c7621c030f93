"""Saved prompt states: what was computed once for a set of tools is kept, in memory and on disk.

A state is kept with the ids it stands for. Whatever a new prompt shares with a saved one from the start can be used, so
a new day, which changes the date after the tools, still finds the tools.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

_LOG = logging.getLogger(__name__)

_MAGIC = b"TDPC0002"
_KEY_FILE, _KEY_BYTES = "prefix.key", 32
_SUFFIX = ".prefix"
_N_IDS = struct.Struct("<I")
_DIGEST_BYTES = 16
_MAX_IDS = 1 << 20

DEFAULT_MEMORY_BYTES = 256 << 20
DEFAULT_DISK_BYTES = 512 << 20


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many items two sequences share at their start."""
    n_items = min(len(left), len(right))
    differing = np.flatnonzero(np.asarray(left[:n_items]) != np.asarray(right[:n_items]))
    return int(differing[0]) if len(differing) else n_items


class PrefixCache:
    """States by the ids they stand for, the least recently used dropped first.

    Args:
        owner: identifies the model file, its template and the cache's layout; states of other owners are not looked at.
        folder: where states are kept, between starts too; None keeps them in memory. What is written is not held in
            memory besides: the system does that as long as it has room. A folder that cannot be written, or in which
            others than the user may write, is reported once and done without.
        memory_bytes: of states that are in no file.
    """

    def __init__(
        self,
        owner: bytes,
        folder: Path | None = None,
        *,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        disk_bytes: int = DEFAULT_DISK_BYTES,
    ) -> None:
        self._owner = hashlib.blake2b(owner, digest_size=_DIGEST_BYTES).hexdigest()
        self._folder, self._memory_bytes, self._disk_bytes = folder, memory_bytes, disk_bytes
        self._states: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        # Shared with the thread that writes: only operations that Python does in one step, and no name is sure to stay.
        self._files: dict[tuple[int, ...], Path] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._key = b""
        if folder is not None:
            self._folder = folder if self._is_ours(folder) else None
        if self._folder is not None:
            self._list_files(self._folder)

    def find(self, prompt: Sequence[int], n_held: int) -> tuple[tuple[int, ...], bytes] | None:
        """The ids and the state that share most with the prompt's start, if that is more than `n_held` ids."""
        self._let_go()
        while True:
            shared = {ids: shared_prefix(ids, prompt) for ids in {*self._states, *self._files}}
            best = max(shared, key=lambda ids: (shared[ids], ids in self._states), default=None)
            if best is None or shared[best] <= n_held:
                return None
            state = self._load(best)
            if state is not None:
                return best, state

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether a state of exactly these ids is kept."""
        return tuple(ids) in self._states or tuple(ids) in self._files

    def put(self, ids: Sequence[int], state: bytes) -> None:
        """Keep a state; the file is written in the background."""
        key = tuple(ids)
        self._let_go()
        self._keep_in_memory(key, state)
        if self._folder is not None:
            self._writer = self._writer or ThreadPoolExecutor(1, "prefix-cache")
            self._writer.submit(self._write, self._folder, key, state)

    def drop(self, ids: Sequence[int]) -> None:
        """Forget a state that turned out to be unusable, and delete its file."""
        self._states.pop(tuple(ids), None)
        path = self._files.pop(tuple(ids), None)
        if path is not None:
            _LOG.warning("%s: the saved prompt state is not usable and was deleted", path)
            _delete(path)

    def close(self) -> None:
        """Wait until everything is written; a second call does nothing."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)
            self._writer = None
            self._let_go()

    def _is_ours(self, folder: Path) -> bool:
        """Whether nobody else can have put a file there; what a state says is taken for what the model has read."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = folder.stat()
            if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
                problem = "others may write there (run: chmod go-w), or it is somebody else's"
                _LOG.warning("%s: prompt states cannot be kept there: %s", folder, problem)
                return False
            self._key = _secret(folder / _KEY_FILE)
        except OSError as error:
            _LOG.warning("%s: prompt states cannot be kept there: %s", folder, error.strerror)
            return False
        return True

    def _load(self, ids: tuple[int, ...]) -> bytes | None:
        if ids in self._states:
            self._states.move_to_end(ids)
            return self._states[ids]
        path = self._files.get(ids)
        if path is None:  # dropped for a newer one meanwhile
            return None
        try:
            with path.open("rb") as stream:
                head = stream.read(_head_bytes(len(ids)))
                state = stream.read()
            state, digest = state[:-_DIGEST_BYTES], state[-_DIGEST_BYTES:]
            if not hmac.compare_digest(digest, _keyed(self._key, head, state)):
                self.drop(ids)
                return None
            # The time of last use, by which the oldest is dropped.
            os.utime(path)
        except OSError:  # another process has dropped it
            self._files.pop(ids, None)
            return None
        return state

    def _let_go(self) -> None:
        """Of what has been written since."""
        for ids in [ids for ids in self._states if ids in self._files]:
            del self._states[ids]

    def _keep_in_memory(self, ids: tuple[int, ...], state: bytes) -> None:
        self._states[ids] = state
        self._states.move_to_end(ids)
        while len(self._states) > 1 and sum(map(len, self._states.values())) > self._memory_bytes:
            self._states.popitem(last=False)

    def _list_files(self, folder: Path) -> None:
        for path in folder.glob(f"{self._owner}-*{_SUFFIX}"):
            ids = _read_ids(path)
            if ids is None:
                _LOG.warning("%s: a damaged prompt state was deleted", path)
                _delete(path)
            else:
                self._files[ids] = path

    def _write(self, folder: Path, ids: tuple[int, ...], state: bytes) -> None:
        name = hashlib.blake2b(_packed(ids), digest_size=_DIGEST_BYTES).hexdigest()
        path = folder / f"{self._owner}-{name}{_SUFFIX}"
        try:
            # Written beside its place and moved there: a reader sees all of it or none.
            descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(_head(ids))
                    stream.write(state)
                    stream.write(_keyed(self._key, _head(ids), state))
                Path(temporary).replace(path)
            except BaseException:
                _delete(Path(temporary))
                raise
            self._files[ids] = path
            self._evict(folder, path)
        except OSError as error:
            _LOG.warning("%s: prompt states cannot be kept there: %s", folder, error.strerror)
            self._folder = None

    def _evict(self, folder: Path, newest: Path) -> None:
        found = []
        for path in folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._disk_bytes or path == newest:
                break
            _delete(path)
            for ids in [ids for ids, file in list(self._files.items()) if file == path]:
                self._files.pop(ids, None)
            total -= size


def _secret(path: Path) -> bytes:
    """The key of a folder's states, made when there is none; whoever cannot read it forges none."""
    with contextlib.suppress(FileExistsError), _new(path) as stream:
        stream.write(secrets.token_bytes(_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:  # cut off by a crash; what was kept under it is lost
        path.unlink(missing_ok=True)
        return _secret(path)
    return key


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _keyed(key: bytes, head: bytes, state: bytes) -> bytes:
    digest = hashlib.blake2b(head, key=key, digest_size=_DIGEST_BYTES)
    digest.update(state)
    return digest.digest()


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _packed(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def _head(ids: Sequence[int]) -> bytes:
    body = _MAGIC + _N_IDS.pack(len(ids)) + _packed(ids)
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _head_bytes(n_ids: int) -> int:
    return len(_MAGIC) + _N_IDS.size + 4 * n_ids + _DIGEST_BYTES


def _read_ids(path: Path) -> tuple[int, ...] | None:
    """A file's ids, None when its head is damaged; the state itself carries a checksum of its own."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_MAGIC) + _N_IDS.size)
            if len(start) != len(_MAGIC) + _N_IDS.size or not start.startswith(_MAGIC):
                return None
            (n_ids,) = _N_IDS.unpack_from(start, len(_MAGIC))
            if n_ids > _MAX_IDS:
                return None
            rest = stream.read(4 * n_ids + _DIGEST_BYTES)
    except OSError:
        return None
    ids = tuple(np.frombuffer(rest[: 4 * n_ids // 4 * 4], dtype="<i4").tolist()) if len(rest) >= 4 * n_ids else ()
    return ids if start + rest == _head(ids) else None
