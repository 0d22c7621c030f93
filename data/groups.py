"""ToolBench's six held-out groups: instructions, tools and whole categories that training has not seen.

G1 dialogues offer the APIs of one tool, G2 those of several tools of one category, G3 those of several categories.
Which tools and categories are held out is decided by a hash of their names, so more data later moves none of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from data.config import GroupConfig
from data.sources.files import DataFileError, data_files, iter_rows
from data.sources.toolbench_tools import standard_name
from data.split import Split
from tinydispatch.tools import Conversation

# Tool → the categories that it is listed under.
Categories = Mapping[str, tuple[str, ...]]

_LINK = "_for_"


class HeldoutGroup(StrEnum):
    """The groups of ToolEval, under its own names."""

    G1_INSTRUCTION = "G1_instruction"
    G1_TOOL = "G1_tool"
    G1_CATEGORY = "G1_category"
    G2_INSTRUCTION = "G2_instruction"
    G2_CATEGORY = "G2_category"
    G3_INSTRUCTION = "G3_instruction"


class GroupAssigner:
    """Decides the side of each dialogue; holds ToolBench's tools with their categories."""

    def __init__(self, config: GroupConfig, categories: Categories) -> None:
        self._config = config
        self._categories = categories

    def side(self, conversation: Conversation) -> str | None:
        """`train`, the name of a held-out group, or None where the dialogue is fit for neither.

        A dialogue that offers a held-out tool or category is in no case trained on. It is a test of unseen tools where
        its level has such a group, and left out otherwise (G3, and tools in G2).
        """
        tools = self._tools_of(conversation)
        categories = {category for tool in tools for category in self._categories.get(tool, ())}
        level = self.level(conversation)
        if any(_is_drawn("category", name, self._config.category_share) for name in categories):
            return {1: HeldoutGroup.G1_CATEGORY, 2: HeldoutGroup.G2_CATEGORY}.get(level)
        if any(_is_drawn("tool", name, self._config.tool_share) for name in tools):
            return HeldoutGroup.G1_TOOL if level == 1 else None
        if _is_drawn("instruction", conversation.dialogue_id, self._config.instruction_share):
            return (HeldoutGroup.G1_INSTRUCTION, HeldoutGroup.G2_INSTRUCTION, HeldoutGroup.G3_INSTRUCTION)[level - 1]
        return str(Split.TRAIN)

    def level(self, conversation: Conversation) -> int:
        """1, 2 or 3: as the raw answer's folder says (`G2_answer`), else by what the dialogue offers."""
        if (known := level_of_folder(str(conversation.metadata.get("group", "")))) is not None:
            return known
        tools = self._tools_of(conversation)
        if len(tools) <= 1:
            return 1
        return 2 if set.intersection(*(set(self._categories.get(tool, ())) for tool in tools)) else 3

    def _tools_of(self, conversation: Conversation) -> set[str]:
        return {tool for tool in map(self._tool_of, (tool.name for tool in conversation.tools)) if tool}

    def _tool_of(self, api: str) -> str:
        """`stock_for_ado_stock` → `ado_stock`: the longest known tool that the name ends in, else the last part."""
        parts = api.split(_LINK)
        for start in range(1, len(parts)):
            if (tool := _LINK.join(parts[start:])) in self._categories:
                return tool
        return parts[-1] if len(parts) > 1 else ""


def level_of_folder(name: str) -> int | None:
    """`G2_answer` → 2."""
    match = re.match(r"G([123])(?:_|$)", name)
    return int(match[1]) if match else None


def _is_drawn(kind: str, name: str, share: float) -> bool:
    digest = hashlib.sha256(f"{kind}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def read_categories(folder: Path) -> Categories:
    """The categories of every tool that an `api_list` of the query files below the folder names.

    Raises:
        DataFileError: a file cannot be read, or none names a category.
    """
    found: dict[str, set[str]] = {}
    for file in data_files(folder):
        for row in iter_rows(file):
            listed = row.value.get("api_list") if isinstance(row.value, Mapping) else None
            for api in listed if isinstance(listed, list) else ():
                tool, category = _names(api)
                if tool and category:
                    found.setdefault(standard_name(tool), set()).add(category)
    if not found:
        raise DataFileError(f"{folder}: no query file with 'category_name' and 'tool_name' in its 'api_list'")
    return {tool: tuple(sorted(categories)) for tool, categories in found.items()}


def _names(api: Any) -> tuple[str, str]:
    names = (api.get("tool_name"), api.get("category_name")) if isinstance(api, Mapping) else (None, None)
    return str(names[0] or ""), str(names[1] or "")
