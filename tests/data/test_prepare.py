from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data import prepare as stage
from data.card import CardError, DataCard
from data.config import DataConfig, OpenAIJsonlSource
from data.prepare import EmptyDataError, PreparedData, load_prepared, prepare
from data.sources.files import DataFileError
from data.store import read_conversations
from tinydispatch.tools import ToolError

_CHECKOUT = Path(__file__).resolve().parents[2]


def row(place: str, **arguments: Any) -> dict[str, Any]:
    call = {"function": {"name": "get_weather", "arguments": {"location": place, **arguments}}}
    request = {"role": "user", "content": f"what is the weather like in {place}"}
    return {"messages": [request, {"role": "assistant", "tool_calls": [call]}]}


def config_for(path: Path, rows: list[Any], **fields: Any) -> DataConfig:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in rows]
    path.write_text("\n".join(lines), "utf-8")
    return DataConfig(sources=(OpenAIJsonlSource(kind="openai_jsonl", path=path),), **fields)


def run(config: DataConfig, out_dir: Path, case_texts: list[str] | None = None, **fields: Any) -> PreparedData:
    given = {"seed": 0, "count_tokens": None, **fields}
    return prepare(config, out_dir=out_dir, case_texts=case_texts or [], **given)


PLACES = [f"Town{i}" for i in range(60)]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    rows = [row(place) for place in PLACES]
    spoiled = ["not json", {"messages": []}, row("Oslo", colour="red"), row("Town1"), row("Rome")]
    config = config_for(tmp_path / "mine.jsonl", [*rows, *spoiled], eval_fraction=0.2)
    return run(config, tmp_path / "run", ["What is the weather like in Rome?"])


def test_every_row_is_in_one_file_or_counted_under_a_reason(prepared: PreparedData) -> None:
    card = prepared.card
    assert card.read == 65
    assert card.rejected == {
        "duplicate": 1,
        "evaluation_overlap": 1,
        "no_user_turn": 1,
        "not_json": 1,
        "schema_violation": 1,
    }
    train, heldout = list(read_conversations(prepared.train_path)), list(read_conversations(prepared.heldout_path))
    assert (len(train), len(heldout)) == (card.train, card.heldout)
    assert card.read == len(train) + len(heldout) + sum(card.rejected.values())
    assert heldout
    assert Counter(c.calls[0].arguments["location"] for c in train + heldout) == Counter(PLACES)


def test_the_card_on_disk_says_the_same_in_json_and_markdown(prepared: PreparedData) -> None:
    folder = prepared.train_path.parents[1]
    assert DataCard.read_json(folder / "data_card.json") == prepared.card
    text = (folder / "data_card.md").read_text("utf-8")
    for expected in ("65 rows read", "### schema_violation: 1", "mine.jsonl:63", "not stated", prepared.card.data_hash):
        assert expected in text
    assert prepared.card.by_category == {"single_call": 60}
    assert prepared.card.by_tools == {"8": 60}
    assert sum(prepared.card.lengths.buckets.values()) == 60


def test_the_same_input_gives_the_same_bytes(prepared: PreparedData, tmp_path: Path) -> None:
    config = DataConfig(
        sources=(OpenAIJsonlSource(kind="openai_jsonl", path=tmp_path / "mine.jsonl"),), eval_fraction=0.2
    )
    again = run(config, tmp_path / "again", ["What is the weather like in Rome?"], seed=7)
    assert again.card == prepared.card
    assert again.train_path.read_bytes() == prepared.train_path.read_bytes()


def test_prepared_data_is_found_again_unless_it_was_changed(prepared: PreparedData) -> None:
    folder = prepared.train_path.parents[1]
    assert load_prepared(folder) == prepared
    prepared.train_path.write_text(prepared.train_path.read_text("utf-8") + "\n", "utf-8")
    assert load_prepared(folder) is None
    assert load_prepared(folder / "nowhere") is None


def test_rows_longer_than_the_limit_are_counted_and_lengths_are_in_tokens(tmp_path: Path) -> None:
    config = config_for(
        tmp_path / "mine.jsonl", [row("Oslo"), row("Rome")], max_length_tokens=16, eval_fraction=0, fit=()
    )
    lengths = iter([16, 17])
    card = run(config, tmp_path / "run", count_tokens=lambda _: next(lengths)).card
    assert (card.train, card.rejected, card.lengths.unit) == (1, {"too_long": 1}, "tokens")


def test_an_empty_result_lists_the_reasons_and_leaves_no_files(tmp_path: Path) -> None:
    config = config_for(tmp_path / "mine.jsonl", ["nope", row("Oslo", colour="red"), row("Rome", colour="red")])
    with pytest.raises(EmptyDataError, match=r"none of the 3 rows") as caught:
        run(config, tmp_path / "run")
    assert "2 schema_violation (e.g. 'get_weather': colour: unknown parameter 'colour')" in str(caught.value)
    assert "1 not_json" in str(caught.value)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


def test_no_rows_and_all_rows_held_out_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match="no rows at all"):
        run(config_for(tmp_path / "mine.jsonl", []), tmp_path / "run")
    with pytest.raises(EmptyDataError, match=r"data\.eval_fraction"):
        run(config_for(tmp_path / "mine.jsonl", [row("Oslo")], eval_fraction=0.999_999), tmp_path / "run")


def test_own_tools_replace_the_bundled_ones(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "get_weather", "parameters": {"type": "object"}}]), "utf-8")
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}]
    card = run(config_for(tmp_path / "mine.jsonl", rows, tools=tools, eval_fraction=0), tmp_path / "run").card
    assert card.by_tools == {"1": 1}
    with pytest.raises(ToolError, match=r"none\.json"):
        run(config_for(tmp_path / "mine.jsonl", rows, tools=tmp_path / "none.json"), tmp_path / "run")


def test_a_missing_file_fails_before_the_first_source_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = config_for(tmp_path / "mine.jsonl", [row("Oslo")])
    missing = OpenAIJsonlSource(kind="openai_jsonl", path=tmp_path / "none.jsonl")
    monkeypatch.setattr(stage, "read_source", lambda *_, **__: pytest.fail("a source was read"))
    with pytest.raises(DataFileError, match=r"none\.jsonl"):
        run(DataConfig(sources=(*good.sources, missing)), tmp_path / "run")


def test_a_run_that_fails_leaves_the_earlier_result_as_it_was(prepared: PreparedData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps([row("Oslo")])[:-1], "utf-8")
    config = DataConfig(sources=(OpenAIJsonlSource(kind="openai_jsonl", path=broken),))
    with pytest.raises(DataFileError):
        run(config, tmp_path / "run")
    assert load_prepared(tmp_path / "run") == prepared


@pytest.mark.parametrize("moment", ["writing", "committing"])
def test_killed_half_way_it_leaves_nothing_that_looks_complete(tmp_path: Path, moment: str) -> None:
    if moment == "committing":
        run(config_for(tmp_path / "mine.jsonl", [row("Oslo"), row("Rome")]), tmp_path / "run")
    config_for(tmp_path / "mine.jsonl", [row(place) for place in PLACES])
    code = f"""
        import os, signal
        from pathlib import Path
        from data import prepare as stage
        from data.config import DataConfig, OpenAIJsonlSource
        from data.store import ConversationWriter
        def kill(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        moment = {moment!r}
        calls = []
        def kill_second(self):
            calls.append(self.finish().replace(self.path))
            if len(calls) == 2:
                kill()
        if moment == "writing":
            stage._require_training_rows = kill
        else:
            ConversationWriter.commit = kill_second
        source = OpenAIJsonlSource(kind="openai_jsonl", path=Path("mine.jsonl"))
        stage.prepare(DataConfig(sources=(source,)), seed=0, out_dir=Path("run"), case_texts=[], count_tokens=None)
    """
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "data_card.json").exists()
    assert load_prepared(tmp_path / "run") is None
    config = DataConfig(sources=(OpenAIJsonlSource(kind="openai_jsonl", path=tmp_path / "mine.jsonl"),))
    assert load_prepared(run(config, tmp_path / "run").train_path.parents[1]) is not None
    assert list((tmp_path / "run").rglob("*.partial")) == []


def test_a_card_that_is_no_card_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data_card.json"
    for text in ("{", "[]", "{}", '{"sources": [{}]}'):
        path.write_text(text, "utf-8")
        with pytest.raises(CardError, match=r"data_card\.json"):
            DataCard.read_json(path)
