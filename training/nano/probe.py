"""What nano has learned, skill by skill: `python -m training.nano.probe --model runs/nano-base/final`.

With teacher forcing: every token of the right answer is judged after the right tokens before it, so that one mistake
does not hide what follows. A value counts as right when all its tokens are. This reads fresh conversations of
the generator over invented tools and drills, no evaluation case; it tells what to practise, not how good a model is.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from data.synth.generate import bundled_conversation, disguised_conversation, drill_conversation
from tinydispatch.formats import TURN_START, render_calls
from tinydispatch.tools import Conversation, Role, ToolCall
from training.nano.corpus import conversation_text
from training.nano.network import as_transformers
from training.nano.pretrain import Recipe, new_network

Span = tuple[str, int, int]  # skill, first and last-but-one character in the rendered conversation

_WEEKDAY = re.compile(r"\b(mon|tue|wed|thu|fri|sat|sun)", re.IGNORECASE)


def spans(conversation: Conversation, text: str) -> Iterator[Span]:
    """Where each skill is asked for in the rendered conversation: tool names, values by type, whole replies."""
    at = asked_at = 0
    schemas = {tool.name: tool.parameters.get("properties", {}) for tool in conversation.tools}
    for message in conversation.messages:
        if message.role is Role.USER:
            asked_at = text.index(f"{TURN_START}user\n{message.content}", at)
        if message.role is not Role.ASSISTANT:
            continue
        at = start = text.index(f"{TURN_START}assistant\n", max(at, asked_at)) + len(f"{TURN_START}assistant\n")
        said = text[asked_at:start]
        for call in message.tool_calls:
            yield from _call_spans(call, schemas[call.name], text, at, said)
            at += len(render_calls([call]))
        yield ("reply in words" if message.content else "whole turn of calls"), start, at + len(message.content)


def _call_spans(call: ToolCall, schema: dict[str, Any], text: str, start: int, said: str) -> Iterator[Span]:
    at = text.index(json.dumps(call.name, ensure_ascii=False), start)
    yield "tool name", at, at + len(call.name) + 2
    for key, value in call.arguments.items():
        spelled = json.dumps(value, ensure_ascii=False)
        at = text.index(f'"{key}": {spelled}', at) + len(key) + 4
        yield _skill(schema.get(key, {}), said), at, at + len(spelled)


def _skill(schema: dict[str, Any], said: str) -> str:
    kind = str(schema.get("format") or ("enum" if "enum" in schema else schema.get("type", "any")))
    if kind not in {"date", "local-date-time"}:
        return kind
    for name, pattern in (("next", r"next|week"), ("tomorrow", r"tom+or|tmr"), ("today", r"today|tonight|this ")):
        if re.search(pattern, said, re.IGNORECASE):
            return f"{kind}, said as {name}"
    return f"{kind}, said as {'weekday' if _WEEKDAY.search(said) else 'other'}"


def judge(
    model: Any, tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]
) -> dict[str, tuple[int, int]]:
    """(right, total) for every skill that occurs."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for conversation in conversations:
        text = conversation_text(conversation)
        encoded = tokenizer._tokenizer.encode(text, add_special_tokens=False)
        ids = torch.tensor([encoded.ids[: model.config.max_position_embeddings]])
        with torch.no_grad():
            foretold = model(input_ids=ids, use_cache=False).logits[0, :-1].argmax(-1)
        is_right = [True, *(foretold == ids[0, 1:]).tolist()]
        for skill, first, end in spans(conversation, text):
            judged = [is_right[i] for i, (a, b) in enumerate(encoded.offsets[: len(is_right)]) if a < end and b > first]
            total[skill] += 1
            right[skill] += all(judged)
    return {skill: (right[skill], total[skill]) for skill in sorted(total)}


def load(path: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """A checkpoint folder, or the folder of a training that is still running."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path)
    if (path / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer
    state = torch.load(path / "state-0.pt", weights_only=True)
    network = new_network(Recipe(), tokenizer)
    network.load_state_dict(state["model"])
    print(f"after step {state['step']:,}")
    return as_transformers(network), tokenizer


_SETS: dict[str, Callable[[random.Random], Conversation]] = {
    "drills": lambda rng: drill_conversation(rng, "probe"),
    "invented": lambda rng: disguised_conversation(rng, "probe"),
    "bundled": lambda rng: bundled_conversation(rng, "probe", (1, 3)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for every set and skill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, or the --out of a running pretrain")
    parser.add_argument("--count", type=int, default=60, help="conversations of each set")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, tokenizer = load(arguments.model)
    for name, draw in _SETS.items():
        conversations = [draw(random.Random(f"probe-{name}-{index}")) for index in range(arguments.count)]
        for skill, (right, total) in judge(model, tokenizer, conversations).items():
            print(f"{name:10}{skill:34}{right:5}/{total:<5}{100 * right / total:5.0f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
