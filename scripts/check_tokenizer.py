"""A model file's tokenizer against its checkpoint's: `python -m scripts.check_tokenizer CHECKPOINT FILE.gguf …`.

Sets of texts, each tokenized by both: the conversations of prepared training data (`--data train.jsonl`), the prompts
of every shipped suite, a torture list, and with `--every-character` all that Unicode has. A text counts as different
when a single id is. Every special token must be one id, and the same.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data.store import read_conversations
from eval.suites import load_suite, shipped_suites
from export.prompts import TOKENIZER_TEXTS
from export.verify import TokenMismatch, tokenizer_mismatches
from tinydispatch import formats
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime
from training.tokenizer import load_tokenizer

_N_MIXED = 2000
_CHARACTERS_A_TEXT = 64


@dataclass(frozen=True)
class TextSet:
    """Texts of one kind: how many, their tokens, and those that the two read differently."""

    name: str
    n_texts: int
    n_tokens: int
    mismatches: tuple[TokenMismatch, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """0: every text alike, 1: not, 2: bad input."""
    arguments = _parser().parse_args(argv)
    is_good = True
    try:
        tokenizer = load_tokenizer(arguments.checkpoint)
        for path in arguments.models:
            with open_model(path, 32) as model:
                print(f"{path}\n{'texts':<24}{'number':>10}{'tokens':>12}{'different':>11}")
                for found in check(
                    model, tokenizer, arguments.data, arguments.limit, has_characters=arguments.every_character
                ):
                    is_good &= not found.mismatches
                    print(f"{found.name:<24}{found.n_texts:>10,}{found.n_tokens:>12,}{len(found.mismatches):>11,}")
                    for mismatch in found.mismatches[:3]:
                        print(f"  {mismatch.text[:60]!r}: {mismatch.expected[:8]} became {mismatch.actual[:8]}")
    except (ValueError, OSError) as error:
        print(f"check_tokenizer: {error}", file=sys.stderr)
        return 2
    return 0 if is_good else 1


def check(
    model: Runtime,
    tokenizer: PreTrainedTokenizerBase,
    data: Path | None = None,
    limit: int = 1000,
    *,
    has_characters: bool = False,
) -> Iterator[TextSet]:
    """The sets one after the other; `limit` is how many of the training conversations are read."""
    template = tokenizer.chat_template
    assert isinstance(template, str), "load_tokenizer sees to it"
    if data is not None:
        yield _compare("training conversations", model, tokenizer, training_texts(data, template, limit))
    yield _compare("evaluation prompts", model, tokenizer, evaluation_prompts(template))
    special = special_tokens(tokenizer)
    yield _compare("torture list", model, tokenizer, torture_texts(special))
    if has_characters:
        yield _compare("every character", model, tokenizer, all_characters())
    # One id each, in whatever company.
    alone = [text for text in special if len(model.tokenize(text, parse_special=True)) != 1]
    mismatches = tuple(TokenMismatch(text, (), tuple(model.tokenize(text, parse_special=True))) for text in alone)
    yield TextSet("special tokens", len(special), len(special), mismatches)


def _compare(name: str, model: Runtime, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> TextSet:
    kept = list(texts)
    n_tokens = sum(len(model.tokenize(text, parse_special=True)) for text in kept)
    return TextSet(name, len(kept), n_tokens, tuple(tokenizer_mismatches(model, tokenizer, kept)))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of all added tokens."""
    return [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]


def training_texts(data: Path, template: str, limit: int) -> Iterator[str]:
    """Conversations as training reads them."""
    for conversation in itertools.islice(read_conversations(data), limit):
        messages = formats.with_reference_date(conversation.messages, conversation.reference_date)
        yield formats.render_prompt(messages, conversation.tools, template, add_generation_prompt=False)


def evaluation_prompts(template: str) -> Iterator[str]:
    """The prompts of every case of the shipped suites."""
    for suite in map(load_suite, shipped_suites()):
        for case in suite.cases:
            messages = formats.with_reference_date(case.messages, case.today)
            yield formats.render_prompt(messages, suite.tools_for(case), template)


def torture_texts(special: Sequence[str]) -> Iterator[str]:
    """Edge cases, and random mixtures of them with special tokens, halves of those, spaces, digits and scripts."""
    yield from TOKENIZER_TEXTS
    draw = random.Random(0)
    odd = (*"'sS \t\n\r0९٣é\u0301\u200dßﬁ\u093c🚀한", "'LL", "  ")
    pieces = [*TOKENIZER_TEXTS, *special, *(text[:-1] for text in special), *odd]
    for _ in range(_N_MIXED):
        yield "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 8)))


def all_characters() -> Iterator[str]:
    """Every character that is assigned in Python's Unicode, among its neighbours, and after a space.

    A combining mark among others is put in order by normalization, and Hugging Face's tables know fewer marks than
    Python's: in 2026 some 98 are put in another order, all younger than Unicode 3.2. These stand alone here.
    """
    everything = map(chr, range(sys.maxunicode + 1))
    known = [character for character in everything if unicodedata.category(character) not in ("Cn", "Cs", "Co")]
    old = unicodedata.ucd_3_2_0
    for start in range(0, len(known), _CHARACTERS_A_TEXT):
        characters = known[start : start + _CHARACTERS_A_TEXT]
        yield "".join(one for one in characters if not unicodedata.combining(one) or old.category(one) != "Cn")
        yield " ".join(characters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_tokenizer", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("models", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--data", type=Path, help="a run's data/train.jsonl")
    parser.add_argument("--limit", type=int, default=1000, help="conversations of it to read (default 1000)")
    parser.add_argument("--every-character", action="store_true", help="all of Unicode as well; takes a minute")
    return parser


if __name__ == "__main__":
    sys.exit(main())
