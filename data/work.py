"""The first pass over every source: parts of files to shards on disk, by several processes, to be gone on with later.

Which shards there are, and what is in them, depends on the files and the settings alone. How many processes wrote
them, in which order, and how often they were killed on the way, does not show.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

from data.config import GENERATED, DataConfig
from data.fit import CountTokens
from data.groups import Categories
from data.progress import Progress
from data.rejected import Rejected
from data.screen import Screen, Screened
from data.shards import has_shard, write_shard
from data.sources import Part, iter_parts, read_part, read_source
from tinydispatch.tools import Conversation, Tool

logger = logging.getLogger(__name__)

# Below this, starting processes takes longer than doing the work here.
_MIN_BYTES_FOR_PROCESSES = 1 << 24
_SYNTH_SHARD_ROWS = 512
# A process that dies without reason is replaced so many times, as long as shards are written in between.
_RESTARTS = 3


_DIED = (
    "a process of the data stage was killed, most often for want of memory (data.workers sets how many there are); "
    "what is done is kept, and the same command goes on from there"
)


class WorkerDiedError(RuntimeError):
    """A process of the data stage was killed; what was finished is kept."""


@dataclass(frozen=True)
class Job:
    """What every process needs to know, made once."""

    config: DataConfig
    seed: int
    case_texts: Sequence[str]
    count_tokens: CountTokens | None
    default_tools: Sequence[Tool]
    tool_pool: Sequence[Tool]
    categories: Sequence[Categories | None]  # of each source's tools, where it has held-out groups
    folder: Path

    def screen(self) -> Screen:
        """The checks of this job."""
        return Screen(
            self.config,
            seed=self.seed,
            case_texts=self.case_texts,
            count_tokens=self.count_tokens,
            tool_pool=self.tool_pool,
            categories=self.categories,
        )


@dataclass(frozen=True)
class Task:
    """One shard to write: a part of the source with this index."""

    shard: int
    source_index: int
    part: Part


def write_shards(job: Job, progress: Progress) -> list[tuple[int, ...]]:
    """Write every shard that is not there yet; returns the shards' numbers for each source, in reading order.

    Raises:
        DataFileError: a file cannot be read as a whole.
        WorkerDiedError: processes were killed again and again, most often for want of memory.
    """
    for _ in range(_RESTARTS):
        done = len(list(job.folder.glob("*.meta")))
        try:
            return _write_missing(job, progress)
        except WorkerDiedError as error:
            # Whatever killed it may pass; a row that kills every process that reads it does not.
            if len(list(job.folder.glob("*.meta"))) == done:
                raise
            logger.warning("%s; starting new ones", error)
            progress.restart()
    return _write_missing(job, progress)


def _write_missing(job: Job, progress: Progress) -> list[tuple[int, ...]]:
    numbers = count()
    shards: list[list[int]] = []
    with _Runner(job, _n_workers(job.config), progress) as runner:
        for index, source in enumerate(job.config.sources):
            shards.append([])
            if isinstance(source, GENERATED):
                rows = read_source(source, seed=job.seed, default_tools=job.default_tools)
                while batch := list(islice(rows, _SYNTH_SHARD_ROWS)):
                    shards[-1].append(next(numbers))
                    runner.write_here(shards[-1][-1], index, batch)
                continue
            for part in iter_parts(source):
                shards[-1].append(next(numbers))
                runner.submit(Task(shards[-1][-1], index, part))
        runner.finish()
    return [tuple(each) for each in shards]


def _n_workers(config: DataConfig) -> int:
    """Processes worth starting; 1 means that the work is done in this one."""
    n_bytes = sum(
        file.stat().st_size
        for source in config.sources
        if not isinstance(source, GENERATED) and source.path is not None
        for file in ([source.path] if source.path.is_file() else source.path.rglob("*"))
        if file.is_file()
    )
    if n_bytes < _MIN_BYTES_FOR_PROCESSES:
        return 1
    return config.workers or len(os.sched_getaffinity(0))


class _Runner:
    """Runs tasks here or in a pool, never with more of them waiting than keep the processes busy."""

    def __init__(self, job: Job, n_workers: int, progress: Progress) -> None:
        self._job = job
        self._progress = progress
        self._screen: Screen | None = None
        self._waiting: dict[Future[int], int] = {}
        self._limit = 2 * n_workers + 2
        self._pool: ProcessPoolExecutor | None = None
        if n_workers > 1:
            # Spawned and not forked: a fork copies the locks of whatever threads torch and tokenizers have running.
            self._pool = ProcessPoolExecutor(n_workers, get_context("spawn"), _start_worker, (job,))

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, task: Task) -> None:
        """Have a part turned into its shard, unless it is there already."""
        if has_shard(self._job.folder, task.shard):
            self._progress.skip(task.part.n_bytes)
        elif self._pool is None:
            self._progress.add(write_part(self._job, self._here(), task), task.part.n_bytes)
        else:
            while len(self._waiting) >= self._limit:
                self._collect()
            try:
                self._waiting[self._pool.submit(_work, task)] = task.part.n_bytes
            except BrokenProcessPool as error:
                raise WorkerDiedError(_DIED) from error

    def write_here(self, shard: int, source_index: int, rows: Sequence[Conversation | Rejected]) -> None:
        """Write a shard of rows that exist already."""
        if not has_shard(self._job.folder, shard):
            _write(self._job, shard, self._here().screen(rows, source_index))
            self._progress.add(len(rows), 0)

    def finish(self) -> None:
        """Wait for everything submitted."""
        while self._waiting:
            self._collect()

    def _here(self) -> Screen:
        self._screen = self._screen or self._job.screen()
        return self._screen

    def _collect(self) -> None:
        done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
        for future in done:
            n_bytes = self._waiting.pop(future)
            try:
                self._progress.add(future.result(), n_bytes)
            except BrokenProcessPool as error:
                raise WorkerDiedError(_DIED) from error


def write_part(job: Job, screen: Screen, task: Task) -> int:
    """Read, check and write one part; returns the number of rows read."""
    source = job.config.sources[task.source_index]
    assert not isinstance(source, GENERATED)
    rows = list(read_part(source, task.part, job.default_tools))
    _write(job, task.shard, screen.screen(rows, task.source_index))
    return len(rows)


def _write(job: Job, shard: int, rows: Sequence[Screened]) -> None:
    write_shard(job.folder, shard, [row.record for row in rows], (row.line for row in rows if row.record.has_line))


@dataclass
class _Worker:
    """What a worker process was started with."""

    job: Job
    screen: Screen


_worker: _Worker | None = None


def _start_worker(job: Job) -> None:
    global _worker
    _worker = _Worker(job, job.screen())
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A parent that was killed cannot stop its processes, and they would wait for it forever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(task: Task) -> int:
    assert _worker is not None
    return write_part(_worker.job, _worker.screen, task)
