"""What becomes of each row, as the first pass leaves it on disk: small records to decide by, beside the lines to write.

A shard is two files: `000012.rows` holds conversations, one a line; `000012.meta` holds one record for each row read,
in order. The second is renamed into place last, so a shard that has it is whole, whenever the process was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from data.guards import Claim
from data.rejected import Rejected, RejectReason

_META, _ROWS = ".meta", ".rows"


class Record(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """One row read. With a `reason` it is rejected; otherwise it may be kept, if no other row stands against it."""

    row_id: str
    reason: str = ""
    detail: str = ""
    sample: str = ""
    about: str = ""  # of a rejected row: the evaluation text that it shares
    side: str = ""  # "train", "heldout", or the held-out group
    category: str = ""
    group: str = ""  # of ToolBench: G1, G2 or G3, where it is known
    calls: int = 0
    tools: int = 0
    length: int = 0
    dialogue_id: str = ""
    repairs: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()  # how it was made to fit
    augmented: tuple[str, ...] = ()
    key: bytes = b""  # equal for equal rows
    own: int = 0  # the state after its only trained turn, 0 where a longer row cannot stand for it
    turns: tuple[tuple[int, int], ...] = ()  # (message index, state) of each assistant turn that is not trained
    text: str = ""  # the request, for near-duplicates
    bands: tuple[bytes, ...] = ()
    has_line: bool = False
    claim: Claim | None = None  # of a row that may be kept

    @classmethod
    def of_rejected(cls, rejected: Rejected) -> Record:
        """The record of a row that is rejected by itself."""
        return cls(rejected.row_id, str(rejected.reason), rejected.detail, rejected.sample, rejected.about)

    def rejected(self) -> Rejected:
        """The rejection that this record states."""
        return Rejected(RejectReason(self.reason), self.detail, self.row_id, self.sample, self.about)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


def write_shard(folder: Path, number: int, records: Sequence[Record], lines: Iterable[str]) -> None:
    """Write a shard; seen as a whole or not at all."""
    _write(folder / f"{number:06}{_ROWS}", b"".join(line.encode() + b"\n" for line in lines))
    _write(folder / f"{number:06}{_META}", _encoder.encode(records))


def has_shard(folder: Path, number: int) -> bool:
    """Whether the shard was written by an earlier run."""
    return (folder / f"{number:06}{_META}").exists()


def read_records(folder: Path, number: int) -> list[Record]:
    """The records of one shard."""
    return _decoder.decode((folder / f"{number:06}{_META}").read_bytes())


def read_with_lines(folder: Path, number: int) -> Iterator[tuple[Record, bytes]]:
    """Records with the lines that they have (without a line break); b"" for the others."""
    with (folder / f"{number:06}{_ROWS}").open("rb") as lines:
        for record in read_records(folder, number):
            yield record, next(lines).rstrip(b"\n") if record.has_line else b""


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(path.suffix + ".part")
    with part.open("wb") as stream:
        stream.write(data)
        # Renamed before its bytes are on disk, a file could be empty after a power cut and still look whole.
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
