"""Encoded data on disk: encoded once, by one process and its helpers, and mapped into memory by every process.

`folder/<stem of the file>-<key>/` holds `rows.arrow` and `counts.json`. The key is made of what decides the ids: the
conversations, the tokenizer with its template, the longest length, and the code. A folder gets its name once it is
whole, so a kill leaves nothing that could be taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from data.store import StoreError, decode
from data.work import end_with_parent
from tinydispatch.tools import Conversation
from training.checkpoints import file_sha256
from training.dataset import FEATURES, EncodeCounts, EncodedData, encode_part
from training.errors import TrainingDataError
from training.hardware import n_processes

_Part = tuple[Path, int, Sequence[bytes]]  # lines of a file, the first of them with that number
_Encoded = tuple[pa.RecordBatch, EncodeCounts]

_ROWS, _COUNTS = "rows.arrow", "counts.json"
_PART_BYTES = 1 << 20  # of a file of conversations: some hundreds of them, a second's work
# Below so many bytes, starting processes takes longer than encoding here.
_MIN_BYTES_FOR_PROCESSES = 1 << 22


def encoded_data(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length_tokens: int,
    folder: Path,
    *,
    workers: int | None = None,
    may_be_empty: bool = False,
) -> EncodedData:
    """The conversations of a file as ids and labels, encoded now or by an earlier run. Called by every process.

    Args:
        folder: where it is kept; of several versions of one file the last one.
        workers: processes that encode; None: one for each core. A small file is encoded in this one.
        may_be_empty: whether nothing left is an empty data set instead of an error.

    Raises:
        StoreError, TrainingDataError, TokenizerError: the file, or what is in it, cannot be used.
    """
    names = [""]
    if int(os.environ.get("RANK", "0")) == 0:
        names = [f"{path.stem}-{_key(path, tokenizer, max_length_tokens)}"]
        if not (folder / names[0]).is_dir():
            n_workers = _n_workers(path, workers)
            _write(path, tokenizer, max_length_tokens, folder / names[0], n_workers, may_be_empty)
    if n_processes() > 1:
        PartialState()
        torch.distributed.broadcast_object_list(names)  # the others wait here
    target = folder / names[0]
    if not target.is_dir():
        raise TrainingDataError(f"{target}: the first process wrote it on a disk that this one does not see; runs_dir")
    counts = json.loads((target / _COUNTS).read_text("utf-8"))
    dataset = Dataset.from_file(str(target / _ROWS))
    return EncodedData(dataset, Counter(counts["rejected"]), counts["tokens"], counts["trained_tokens"])


def _key(path: Path, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> str:
    root = Path(__file__).parents[1]
    code = [root / "training" / "dataset.py", root / "data" / "store.py", *sorted(root.glob("tinydispatch/*.py"))]
    parts = [
        file_sha256(path),
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        max_length_tokens,
        version("transformers"),
        [file_sha256(file) for file in code],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _n_workers(path: Path, asked: int | None) -> int:
    if path.is_file() and path.stat().st_size < _MIN_BYTES_FOR_PROCESSES:
        return 1
    return asked or len(os.sched_getaffinity(0))


def _write(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length_tokens: int,
    target: Path,
    workers: int,
    may_be_empty: bool,
) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for older in target.parent.glob(f"{path.stem}-*"):
        shutil.rmtree(older)
    partial.mkdir(parents=True)
    try:
        counts = _encode(path, tokenizer, max_length_tokens, partial / _ROWS, workers)
        counts.check(max_length_tokens, may_be_empty=may_be_empty)
        text = {"rejected": counts.rejected, "tokens": counts.tokens, "trained_tokens": counts.trained_tokens}
        (partial / _COUNTS).write_text(json.dumps(text), "utf-8")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _encode(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int, rows: Path, workers: int
) -> EncodeCounts:
    counts = EncodeCounts()
    bar = tqdm(desc=f"encode {path.name}", unit="row", disable=None)
    with (
        bar,
        pa.OSFile(str(rows), "wb") as file,
        pa.ipc.new_stream(file, FEATURES.arrow_schema) as stream,
        _encoder(tokenizer, max_length_tokens, workers) as encoded,
    ):
        for batch, found in encoded(_parts(path)):
            stream.write_batch(batch)
            counts.add(found)
            bar.update(found.seen)
    with rows.open("rb") as written:
        os.fsync(written.fileno())  # renamed before its bytes are on disk, it could be empty after a power cut
    return counts


def _parts(path: Path) -> Iterator[_Part]:
    try:
        with path.open("rb") as file:
            number = 1
            while lines := file.readlines(_PART_BYTES):
                yield path, number, lines
                number += len(lines)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}; run scripts.prepare_data first") from error


def _conversations(part: _Part) -> Iterator[Conversation]:
    path, first, lines = part
    for number, line in enumerate(lines, first):
        try:
            yield decode(line.decode("utf-8"))
        except (StoreError, UnicodeDecodeError) as error:
            raise StoreError(f"{path}:{number}: {error}") from error


@contextmanager
def _encoder(
    tokenizer: PreTrainedTokenizerBase, max_length_tokens: int, workers: int
) -> Iterator[Callable[[Iterable[_Part]], Iterator[_Encoded]]]:
    """A function that encodes parts and gives them back in their order, here or in a pool of processes."""
    if workers == 1:
        yield lambda parts: (encode_part(_conversations(part), tokenizer, max_length_tokens) for part in parts)
        return
    # Spawned and not forked: a fork copies the locks of whatever threads torch and tokenizers have running.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, max_length_tokens)) as pool:
        try:
            yield lambda parts: _in_order(pool, parts, 2 * workers + 2)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, parts: Iterable[_Part], most_waiting: int) -> Iterator[_Encoded]:
    waiting: deque[Future[_Encoded]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(_work, part))
            if len(waiting) >= most_waiting:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise TrainingDataError(
            "a process that encodes the data was killed, most often for want of memory; data.workers sets how many "
            "there are"
        ) from error


_worker: tuple[PreTrainedTokenizerBase, int] | None = None


def _start_worker(tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> None:
    global _worker
    _worker = tokenizer, max_length_tokens
    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(part: _Part) -> _Encoded:
    assert _worker is not None
    return encode_part(_conversations(part), *_worker)
