"""Files as others write them, and what the data card says about what is in them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.prepare import PreparedData, prepare
from scripts import data_shapes

TOOL = {
    "name": "send",
    "description": "Send",
    "parameters": {
        "type": "object",
        "properties": {"to": {"type": "string"}, "how": {"type": "string", "enum": ["mail", "post"]}},
        "required": ["to"],
    },
}


def row(text: str, **arguments: Any) -> dict[str, Any]:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "send", "arguments": arguments}}]}
    return {"messages": [{"role": "user", "content": text}, call], "tools": [TOOL, {**TOOL, "name": "idle"}]}


def prepared(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> PreparedData:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    sources = [{"kind": "openai_jsonl", "path": str(path)}]
    config = DataConfig.model_validate_json(json.dumps({"sources": sources, "eval_fraction": 0, **settings}))
    return prepare(config, seed=0, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)


def test_every_shape_is_read_or_rejected_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    assert data_shapes.main([]) == 0
    assert "expected" not in capsys.readouterr().out


ROWS = (
    row("mail it to jo.doe@corp-mail.com", to="jo.doe@corp-mail.com", how="mail"),
    row("send the letter to Ann", to="Ann"),
    row("send the letter to Ann", to="Ann", how="post"),
    row("send it to my boss please", to="Zebulon"),
)


def test_the_card_says_who_said_what(tmp_path: Path) -> None:
    truth = prepared(tmp_path, *ROWS, guards={"reject_contradictions": False}).card.truth
    assert truth["calls"] == {"send": 4}
    assert truth["never_called"] == ["idle"]
    assert truth["different_answers"]["requests"] == 1
    assert truth["said_by_nobody"] == {
        "values": 1,
        "places": [{"row": "rows.jsonl:4", "argument": "send.to", "value": "zebulon"}],
    }
    assert truth["personal"] == {"email": {"values": 1, "rows": 1, "places": ["rows.jsonl:1"]}}
    how, to = truth["arguments"]
    assert (how["argument"], how["present"], how["distinct"]) == ("how", 0.5, 2)
    assert (how["found"], how["derivable"]) == (0.5, 0.5)  # "mail" is said, "post" the schema lists
    assert (to["present"], to["found"], to["derivable"]) == (1.0, 0.75, 0.0)
    for name in ("data_card.md", "data_card.html"):
        assert "found in the request" in (tmp_path / "run" / name).read_text()


@pytest.mark.parametrize("policy", ["mask", {"email": "mask", "card": "drop"}])
def test_personal_data_is_masked_alike_in_request_and_call(tmp_path: Path, policy: Any) -> None:
    made = prepared(tmp_path, *ROWS, personal_data=policy)
    text = made.train_path.read_text()
    assert text.count("user1@example.com") == 2
    assert "corp-mail" not in text + (tmp_path / "run" / "data_card.json").read_text()
    assert made.card.repairs == {"personal_data_masked": 1}


def test_personal_data_is_dropped_and_not_shown(tmp_path: Path) -> None:
    made = prepared(tmp_path, *ROWS, personal_data="drop")
    assert made.card.rejected == {"personal_data": 1, "contradictory": 2}
    assert "corp-mail" not in (tmp_path / "run" / "data_card.json").read_text()


def test_what_comes_from_a_private_file_is_private(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch(0o600)
    made = prepared(tmp_path, *ROWS)
    files = [made.train_path, made.heldout_path, *(tmp_path / "run").glob("data_card.*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "run" / "data").stat().st_mode) == 0o700
