from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from data import work
from data.config import DataConfig, OpenAIJsonlSource, SynthSource, ToolBenchSource
from data.prepare import PreparedData, prepare
from data.progress import Progress
from data.sources import files
from data.split import sampled
from data.work import WorkerDiedError

_CHECKOUT = Path(__file__).resolve().parents[2]


def row(index: int) -> dict[str, Any]:
    call = {"function": {"name": "get_weather", "arguments": {"location": f"Town{index}"}}}
    request = {"role": "user", "content": f"what is the weather like in Town{index % 150}"}
    wrong = {"function": {"name": "get_weather", "arguments": {"colour": "red"}}}
    return {"messages": [request, {"role": "assistant", "tool_calls": [wrong if index % 7 == 0 else call]}]}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts out of a small file, and processes worth starting for it."""
    monkeypatch.setattr(files, "PIECE_BYTES", 2000)
    monkeypatch.setattr("data.sources._PART_BYTES", 1000)
    monkeypatch.setattr(work, "_MIN_BYTES_FOR_PROCESSES", 1)


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(i) for i in range(200)] + ["nonsense"]), "utf-8")
    return path


def towns_of(count: int, folder: Path) -> Path:
    """A file of so many dialogues, each about a town with its number."""
    rows = []
    for place in range(count):
        call = {"name": "get_weather", "arguments": {"location": f"Town {place}"}}
        shown = [{"role": "user", "content": f"weather in town {place}, please"}]
        rows.append({"messages": [*shown, {"role": "assistant", "tool_calls": [call]}]})
    path = folder / "towns.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run(path: Path, out: Path, workers: int) -> PreparedData:
    source = OpenAIJsonlSource(kind="openai_jsonl", path=path)
    config = DataConfig(sources=(source,), eval_fraction=0.1, workers=workers)
    return prepare(config, seed=0, out_dir=out, case_texts=[], count_tokens=None)


def contents(prepared: PreparedData) -> tuple[bytes, ...]:
    folder = prepared.train_path.parents[1]
    return tuple(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@pytest.mark.usefixtures("small_pieces")
def test_one_process_and_two_write_the_same_bytes(rows_path: Path, tmp_path: Path) -> None:
    alone, together = (run(rows_path, tmp_path / str(workers), workers) for workers in (1, 2))
    assert contents(alone) == contents(together)
    assert alone.card.read == 201
    assert alone.card.rejected["schema_violation"] == 29
    assert alone.card.rejected["malformed_row"] == 1


@pytest.mark.usefixtures("small_pieces")
def test_killed_half_way_it_goes_on_from_the_last_whole_shard(
    rows_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from data import sources, work
        from data.config import DataConfig, OpenAIJsonlSource
        from data.prepare import prepare
        from data.sources import files
        files.PIECE_BYTES, sources._PART_BYTES = 2000, 1000
        done, write = [], work.write_shard
        def write_some(*arguments):
            if len(done) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(write(*arguments))
        work.write_shard = write_some
        source = OpenAIJsonlSource(kind="openai_jsonl", path=Path({str(rows_path)!r}))
        config = DataConfig(sources=(source,), eval_fraction=0.1, workers=1)
        prepare(config, seed=0, out_dir=Path("run"), case_texts=[], count_tokens=None)
    """
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    written: list[int] = []
    write = work.write_shard
    monkeypatch.setattr(work, "write_shard", lambda *a: (written.append(a[1]), write(*a)))
    resumed = run(rows_path, tmp_path / "run", 1)
    assert written[0] == 5
    assert written == list(range(5, len(written) + 5))
    assert contents(resumed) == contents(run(rows_path, tmp_path / "fresh", 1))
    assert not (tmp_path / "run" / "data" / ".work").exists()


def test_other_settings_do_not_go_on_from_what_the_first_ones_left(rows_path: Path, tmp_path: Path) -> None:
    stale = tmp_path / "run" / "data" / ".work" / "0123456789abcdef"
    stale.mkdir(parents=True)
    (stale / "000000.meta").write_bytes(b"nothing that could be read")
    assert run(rows_path, tmp_path / "run", 1).card.read == 201
    assert not stale.exists()


def test_max_rows_takes_rows_of_the_whole_file_and_whole_dialogues_first(tmp_path: Path) -> None:
    """A file sorted by topic: its beginning says nothing of its end."""
    path = towns_of(400, tmp_path)
    source = OpenAIJsonlSource(kind="openai_jsonl", path=path, max_rows=100)
    config = DataConfig(sources=(source,), eval_fraction=0.1, near_duplicate_threshold=None)
    done = prepare(config, seed=0, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)
    text = done.train_path.read_text("utf-8") + done.heldout_path.read_text("utf-8")
    towns = sorted(int(town) for town in re.findall(r'"location":"Town (\d+)"', text))
    assert done.card.read == len(towns) == 100
    assert 15 <= sum(town < 100 for town in towns) <= 35
    assert 15 <= sum(town >= 300 for town in towns) <= 35
    assert done.card.heldout > 2


def test_a_dialogue_is_sampled_as_a_whole() -> None:
    dialogues = [f"dialogue {row // 4}" for row in range(400)]
    chosen = sampled(dialogues, 40)
    assert chosen is not None
    assert len(chosen) == 40
    assert len({dialogues[row] for row in chosen}) == 10
    assert sampled(dialogues, 400) is None
    longer = sampled([*dialogues, *(f"new {row}" for row in range(40))], 40)
    assert longer is not None
    assert len(chosen & longer) >= 24


@pytest.mark.parametrize(("weight", "low", "high"), [(0.5, 70, 130), (1.0, 200, 200), (2.5, 470, 530)])
def test_a_weight_says_how_often_a_conversation_is_trained(tmp_path: Path, weight: float, low: int, high: int) -> None:
    source = SynthSource(kind="synth", count=60)
    path = towns_of(200, tmp_path)
    weighted = OpenAIJsonlSource(kind="openai_jsonl", path=path, weight=weight)
    config = DataConfig(sources=(weighted, source), eval_fraction=0, near_duplicate_threshold=None)
    done = prepare(config, seed=0, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)
    lines = done.train_path.read_text("utf-8").splitlines()
    towns = [line for line in lines if "Town " in line]
    assert low <= len(towns) <= high
    card = done.card
    assert len(lines) == card.train + card.repeated
    assert card.rejected.get("left_out_by_weight", 0) == 200 - len(set(towns))
    assert card.sources[1].kept == 60  # the other source stays as it is


def test_max_rows_joins_none_beyond(tmp_path: Path) -> None:
    calls = [{"name": "get_weather", "arguments": {"location": place}} for place in ("Oslo", "Rome")]
    shown: list[dict[str, Any]] = [{"role": "user", "content": "weather in Oslo, then in Rome"}]
    rows = []
    for call in calls:
        rows.append({"messages": [*shown, {"role": "assistant", "tool_calls": [call]}]})
        shown += [{"role": "assistant", "tool_calls": [call], "weight": 0}]
        shown += [{"role": "tool", "name": "get_weather", "content": "sun"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), "utf-8")
    for limit, expected in ((1, (1, 1, 0)), (2, (2, 1, 1))):
        source = OpenAIJsonlSource(kind="openai_jsonl", path=path, max_rows=limit)
        config = DataConfig(sources=(source,), eval_fraction=0)
        card = prepare(config, seed=0, out_dir=tmp_path / str(limit), case_texts=[], count_tokens=None).card
        assert (card.read, card.train, card.joined) == expected


def test_a_file_of_nothing_but_rejected_rows_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[1, {}, [], null, {"conversations": 3}]', "utf-8")
    source = ToolBenchSource(kind="toolbench", path=tmp_path / "rows.json")
    with pytest.raises(ValueError, match="none of the 5 rows"):
        prepare(DataConfig(sources=(source,)), seed=0, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)


def test_progress_says_rows_share_and_time_left() -> None:
    progress = Progress(4_000_000)
    progress.skip(1_000_000)
    progress.add(500, 1_000_000)
    line = progress.line()
    progress.close()
    assert line.startswith("500 rows, ")
    assert "50% of 4 MB" in line
    assert line.endswith("left")


@pytest.mark.usefixtures("small_pieces")
def test_a_process_that_dies_is_replaced_as_long_as_shards_are_written(
    rows_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(run(rows_path, tmp_path / "fresh", 1))
    write, written = work.write_shard, []

    def die_after_two(*arguments: Any) -> None:
        if len(written) in (2, 4):
            written.append(None)
            raise WorkerDiedError("killed")
        written.append(write(*arguments))

    monkeypatch.setattr(work, "write_shard", die_after_two)
    assert contents(run(rows_path, tmp_path / "run", 1)) == expected


@pytest.mark.usefixtures("small_pieces")
def test_a_row_that_kills_every_process_ends_the_stage_and_keeps_what_is_done(
    rows_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = work.write_shard

    def die_at_third(folder: Path, number: int, *rest: Any) -> None:
        if number == 3:
            raise WorkerDiedError("killed")
        write(folder, number, *rest)

    monkeypatch.setattr(work, "write_shard", die_at_third)
    with pytest.raises(WorkerDiedError):
        run(rows_path, tmp_path / "run", 1)
    assert len(list((tmp_path / "run").glob("data/.work/*/*.meta"))) == 3
