from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.config import DataConfig, GroupConfig, ToolBenchSource
from data.groups import GroupAssigner, HeldoutGroup, read_categories
from data.prepare import prepare
from data.sources.files import DataFileError
from data.store import read_conversations
from tinydispatch.tools import Conversation, Tool

Weather = Callable[..., Conversation]
CATEGORIES = {f"tool_{c}{i}": (f"Category{c}",) for c in range(40) for i in range(3)}
SHARES = GroupConfig(queries=Path("x"), tool_share=0.1, category_share=0.1, instruction_share=0.1)


def tools(*names: str) -> tuple[Tool, ...]:
    return tuple(Tool(f"look_for_{name}", "", {"type": "object"}) for name in names)


def dialogues(weather: Weather) -> dict[str, list[Conversation]]:
    """One-tool, one-category and mixed dialogues over 120 tools."""
    found: dict[str, list[Conversation]] = {"G1": [], "G2": [], "G3": []}
    for c in range(40):
        for i in range(3):
            mine = f"tool_{c}{i}"
            other = [f"tool_{c}{(i + 1) % 3}", f"tool_{(c + 1) % 40}{i}"]
            for level, names in (("G1", [mine]), ("G2", [mine, other[0]]), ("G3", [mine, other[1]])):
                found[level].append(weather(tools=tools(*names), dialogue_id=f"{level}-{mine}"))
    return found


def sides(weather: Weather) -> dict[str, list[tuple[str | None, Conversation]]]:
    assigner = GroupAssigner(SHARES, CATEGORIES)
    return {level: [(assigner.side(c), c) for c in rows] for level, rows in dialogues(weather).items()}


def test_each_level_has_the_groups_of_tooleval_and_no_others(weather: Weather) -> None:
    groups = {level: {str(side) for side, _ in rows} - {"train", "None"} for level, rows in sides(weather).items()}
    assert groups["G1"] == {"G1_instruction", "G1_tool", "G1_category"}
    assert groups["G2"] == {"G2_instruction", "G2_category"}
    assert groups["G3"] == {"G3_instruction"}


def test_training_sees_no_tool_or_category_that_a_group_calls_unseen(weather: Weather) -> None:
    rows = [row for level in sides(weather).values() for row in level]
    trained = {tool.name for side, row in rows if side == "train" for tool in row.tools}
    categories = {CATEGORIES[name.removeprefix("look_for_")][0] for name in trained}
    for side, row in rows:
        names = [tool.name for tool in row.tools]
        if side == HeldoutGroup.G1_TOOL:
            assert not trained & set(names)
        if side in (HeldoutGroup.G1_CATEGORY, HeldoutGroup.G2_CATEGORY):
            assert any(CATEGORIES[name.removeprefix("look_for_")][0] not in categories for name in names)
        if side is None:
            assert set(names) - trained


def test_raising_a_share_only_takes_dialogues_out_of_training(weather: Weather) -> None:
    more = GroupAssigner(SHARES.model_copy(update={"tool_share": 0.3, "instruction_share": 0.3}), CATEGORIES)
    for side, row in (row for level in sides(weather).values() for row in level):
        if more.side(row) == "train":
            assert side == "train"


def test_the_folder_decides_the_level_where_it_is_known(weather: Weather) -> None:
    config = SHARES.model_copy(update={"instruction_share": 0.999_999, "tool_share": 0.0, "category_share": 0.0})
    assigner = GroupAssigner(config, CATEGORIES)
    row = weather(tools=tools("tool_00"), metadata={"group": "G3_answer"})
    assert assigner.side(row) == HeldoutGroup.G3_INSTRUCTION
    assert assigner.side(weather(tools=tools("tool_00"))) == HeldoutGroup.G1_INSTRUCTION


def test_categories_are_read_under_the_names_that_dialogues_use(tmp_path: Path) -> None:
    apis = [{"tool_name": "2Captcha  Solver!", "category_name": "Tools"}, {"tool_name": "x"}, 3]
    (tmp_path / "G1_query.json").write_text(json.dumps([{"api_list": apis}, {"no": 1}]), "utf-8")
    assert read_categories(tmp_path) == {"get_2captcha_solver": ("Tools",)}
    (tmp_path / "G1_query.json").write_text("[]", "utf-8")
    with pytest.raises(DataFileError, match="no query file"):
        read_categories(tmp_path)


def test_real_answers_are_held_out_under_their_groups(toolbench_dir: Path, tmp_path: Path) -> None:
    folder = toolbench_dir / "toolbench" / "data_example"
    groups = GroupConfig(queries=folder / "instruction", tool_share=0.0, category_share=0.0, instruction_share=0.5)
    source = ToolBenchSource(kind="toolbench", path=folder / "answer", groups=groups)
    done = prepare(DataConfig(sources=(source,)), seed=0, out_dir=tmp_path, case_texts=[], count_tokens=None)
    held = [str(row.metadata["heldout_group"]) for row in read_conversations(done.heldout_path)]
    assert held
    assert list(done.card.by_group) == ["G1", "G2", "G3"]
    assert sum(done.card.by_group.values()) == done.card.kept
    assert {name: done.card.by_side[name] for name in set(held)} == {name: held.count(name) for name in held}
    assert set(held) <= {"G1_instruction", "G2_instruction", "G3_instruction"}


@pytest.mark.parametrize(
    ("share", "reached", "group"),
    [("tool_share", 0.317, HeldoutGroup.G1_TOOL), ("category_share", 0.123, HeldoutGroup.G1_CATEGORY)],
)
def test_what_is_held_out_stays_so_in_every_release(
    weather: Weather, share: str, reached: float, group: HeldoutGroup
) -> None:
    none = {"tool_share": 0.0, "category_share": 0.0, "instruction_share": 0.0}
    row = weather(tools=tools("ado_stock"))
    for value, side in ((reached, group), (reached - 0.002, "train")):
        config = SHARES.model_copy(update={**none, share: value})
        assert GroupAssigner(config, {"ado_stock": ("Sports",)}).side(row) == side
