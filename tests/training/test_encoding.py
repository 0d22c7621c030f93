"""Data are encoded once, by as many processes as there are, to a file that is whole or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from data.store import read_conversations, write_conversations
from tests.training.samples import simple_conversation
from training.dataset import EncodedData, build_dataset
from training.encoding import encoded_data
from training.errors import TrainingDataError
from training.tokenizer import load_tokenizer

# Long requests: enough bytes for several processes, and few rows.
_LONG = "on a day that nobody remembers any more, and as nobody wrote it down it is gone, " * 256
_CHILD = """
import sys
from pathlib import Path
from training.encoding import encoded_data
from training.tokenizer import load_tokenizer
if __name__ == "__main__":
    encoded_data(Path(sys.argv[1]), load_tokenizer(Path(sys.argv[2])), 1 << 20, Path(sys.argv[3]), workers=2)
"""


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "train.jsonl"
    write_conversations(path, (simple_conversation(f"{number} {_LONG}") for number in range(120)))
    assert path.stat().st_size > 1 << 22
    return path


def content(data: EncodedData) -> tuple[object, ...]:
    columns = (data.dataset["input_ids"][:], data.dataset["labels"][:])
    return *columns, data.rejected, data.tokens, data.trained_tokens


def test_two_processes_encode_to_the_ids_of_one(
    long_rows: Path, qwen_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    expected = content(build_dataset(read_conversations(long_rows), qwen_tokenizer, 1 << 20))
    for workers in (1, 2):
        found = encoded_data(long_rows, qwen_tokenizer, 1 << 20, tmp_path / str(workers), workers=workers)
        assert content(found) == expected
        assert found.dataset.cache_files  # mapped from the disk, which processes share


def test_what_is_encoded_is_found_again_until_data_template_or_length_change(
    train_path: Path, qwen_dir: Path, tmp_path: Path
) -> None:
    tokenizer, folder = load_tokenizer(qwen_dir), tmp_path / "encoded"
    rows = tmp_path / "train.jsonl"
    rows.write_bytes(train_path.read_bytes())
    first = encoded_data(rows, tokenizer, 2048, folder)
    (made,) = folder.iterdir()
    written = (made / "rows.arrow").stat().st_ino
    rows.touch()  # the content is what counts
    assert content(encoded_data(rows, tokenizer, 2048, folder)) == content(first)
    assert (made / "rows.arrow").stat().st_ino == written
    names = {made.name}
    assert encoded_data(rows, tokenizer, 2047, folder).tokens == first.tokens
    names |= {path.name for path in folder.iterdir()}
    tokenizer.chat_template = f"{tokenizer.chat_template}{{# another #}}"
    encoded_data(rows, tokenizer, 2047, folder)
    names |= {path.name for path in folder.iterdir()}
    write_conversations(rows, [simple_conversation("Oslo")])
    assert len(encoded_data(rows, tokenizer, 2047, folder).dataset) == 1
    names |= {path.name for path in folder.iterdir()}
    assert len(names) == 4
    assert len(list(folder.iterdir())) == 1  # older ones are removed


def test_nothing_is_left_where_encoding_fails(
    train_path: Path, qwen_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(TrainingDataError, match="8 too_long"):
        encoded_data(train_path, qwen_tokenizer, 16, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(encoded_data(train_path, qwen_tokenizer, 16, tmp_path, may_be_empty=True).dataset) == 0


@pytest.mark.slow
def test_killed_in_the_middle_it_leaves_nothing_that_would_be_taken_for_whole(
    long_rows: Path, qwen_dir: Path, qwen_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    script, folder = tmp_path / "child.py", tmp_path / "encoded"
    script.write_text(_CHILD, "utf-8")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(long_rows), str(qwen_dir), str(folder)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(command, cwd=root, env=environment)
    until = time.monotonic() + 120
    while not list(folder.glob("*.partial/rows.arrow")) and time.monotonic() < until and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [path.suffix for path in folder.iterdir()] == [".partial"]
    found = encoded_data(long_rows, qwen_tokenizer, 1 << 20, folder)
    assert len(found.dataset) == 120
    assert [path.suffix for path in folder.iterdir()] == [""]
