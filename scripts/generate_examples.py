"""`python -m scripts.generate_examples --tools my_tools.json --phrases my_phrases.yaml --count 2000 --out mine.jsonl`

Examples for one's own tools, from their JSON schemas and a few phrases, as chat JSONL to look at and to edit; a run
makes the same by itself from `{kind: phrases, path: my_phrases.yaml}`. docs/data.md describes the phrase file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data.own_tools import PhraseFileError, generate, load_phrases
from tinydispatch.bundled import load_tools
from tinydispatch.tools import Conversation, ToolError


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 2: the tools or the phrases cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.generate_examples",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tools", type=Path, required=True, help="JSON: tools in OpenAI's shape, or MCP's tools/list")
    parser.add_argument("--phrases", type=Path, required=True, help="YAML: how people ask for each of them")
    parser.add_argument("--count", type=int, default=2000, help="conversations (default: 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    arguments = parser.parse_args(argv)
    try:
        tools = load_tools(arguments.tools)
        spoken = load_phrases(arguments.phrases, tools)
        lines = [
            json.dumps(row_of(conversation), ensure_ascii=False) + "\n"
            for conversation in generate(spoken, tools, arguments.count, arguments.seed)
        ]
    except (ToolError, PhraseFileError) as error:
        print(f"generate_examples: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(lines), "utf-8", newline="\n")
    silent = sorted({tool.name for tool in tools} - {one.tool.name for one in spoken})
    print(f"{arguments.out}: {arguments.count} conversations" + (f"; no phrases for {silent}" if silent else ""))
    return 0


def row_of(conversation: Conversation) -> dict[str, object]:
    """A conversation as the adapter for OpenAI's shape reads it."""
    assert conversation.reference_date is not None, "every generated conversation has its day"
    return {
        "messages": [message.to_openai() for message in conversation.messages],
        "tools": [tool.to_openai() for tool in conversation.tools],
        "reference_date": conversation.reference_date.isoformat(),
        "dialogue_id": conversation.dialogue_id,
        "category": conversation.category,
    }


if __name__ == "__main__":
    sys.exit(main())
