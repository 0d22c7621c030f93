from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.prepare import load_prepared
from scripts import prepare_data
from tinydispatch.tools import Conversation


@pytest.fixture
def config_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run over four rows, with a stand-in for the tokenizer: one token a letter of the request."""

    def count_letters(conversation: Conversation) -> int:
        return len(conversation.messages[0].content)

    monkeypatch.setattr(prepare_data, "resolve_model", lambda model: Path(model.path))
    monkeypatch.setattr(prepare_data, "token_counter", lambda _: count_letters)
    monkeypatch.setattr(prepare_data, "case_texts_by_suite", lambda: {"mine": ["Say something nice"]})
    reply = {"role": "assistant", "content": "Hello."}
    requests = ["say something nice!", "say something", "word " * 20, "good morning"]
    rows = [{"messages": [{"role": "user", "content": request}, reply]} for request in requests]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"runs_dir: {tmp_path / 'runs'}\nmodel: {{path: somewhere}}\n"
        f"data:\n  sources: [{{kind: openai_jsonl, path: {tmp_path / 'rows.jsonl'}}}]\n"
        "  eval_fraction: 0.0\n  max_length_tokens: 50\n",
        "utf-8",
    )
    return path


def test_the_data_stage_runs_by_itself_and_prints_what_became_of_the_rows(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_data.main(["--config", str(config_path)]) == 0
    prepared = load_prepared(config_path.parent / "runs" / "mine")
    assert prepared is not None
    assert prepared.card.rejected == {"evaluation_overlap": 1, "too_long": 1}
    assert prepared.card.overlaps == {"mine": 1}
    printed = capsys.readouterr().out
    assert "4 rows read: 2 for training, 0 held out" in printed
    assert str(prepared.train_path) in printed


def test_settings_can_be_changed_on_the_command_line(config_path: Path) -> None:
    assert prepare_data.main(["--config", str(config_path), "data.max_length_tokens=200", "name=other"]) == 0
    prepared = load_prepared(config_path.parent / "runs" / "other")
    assert prepared is not None
    assert prepared.card.train == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.0.path=/no/such/file.jsonl", "/no/such/file.jsonl: no such file"),
        ("data.eval_fractoin=0.1", "eval_fraction"),
        ("data.tools=/no/such/tools.json", "/no/such/tools.json: cannot be read"),
    ],
)
def test_what_the_user_has_to_change_is_one_line_and_exit_code_2(
    config_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert prepare_data.main(["--config", str(config_path), override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
