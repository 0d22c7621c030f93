"""The model card of a bundle: what the files are, how they were made and measured, and how to run them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.card import DataCard
from eval.metrics import Tally
from eval.results import EvalResult
from export.choice import Verdict
from tinydispatch.tools import Tool

_DATE_COMMAND = (
    'python -c "import datetime; from tinydispatch import formats; '
    'print(formats.reference_date_text(datetime.date.today()))"'
)


@dataclass(frozen=True)
class CardFile:
    """One GGUF file: its logits against the checkpoint's, and on how many cases it differs; None if not evaluated."""

    name: str
    n_bytes: int
    max_difference: float
    mean_kl: float
    top1_agreement: float
    verdict: Verdict | None


@dataclass(frozen=True)
class CardInput:
    """What a card says. `modelfile_note` tells why there is no Modelfile, None where there is one or none can be."""

    name: str
    files: Sequence[CardFile]
    default: str
    architecture: str
    runs_in_llama_cpp: bool
    modelfile_note: str | None
    tools: Sequence[Tool]
    base: str
    licence: str | None
    recipe: Mapping[str, str]
    results: Sequence[EvalResult]
    data: DataCard | None


def model_card(card: CardInput) -> str:
    """The card as Markdown, with the head that the Hub reads."""
    parts = [
        _head(card),
        f"# {card.name}\n\nTurns a sentence into calls of tools, as GGUF. Base model: {card.base}. "
        "It was fine-tuned with tinydispatch.",
        _files(card),
        _use(card),
        _pass_rates(card.results),
        _origin(card),
        _limits(card),
        _licence(card.licence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(card: CardInput) -> str:
    lines = ["pipeline_tag: text-generation", "tags: [gguf, tool-calling, function-calling]"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", card.base):
        lines.append(f"base_model: {card.base}")
    if card.licence is not None:
        lines.append(f"license: {card.licence.lower()}")
    return "\n".join(["---", *lines, "---"])


def _files(card: CardInput) -> str:
    rows = [
        "## Files",
        "",
        "Logits are compared with the checkpoint's in 32 bits, passes by McNemar's exact test on the same cases.",
        "",
        "| file | MB | max \\|Δlogit\\| | mean KL (nats) | best token equal | cases against the checkpoint |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in card.files:
        name = f"**{file.name}**" if file.name == card.default else file.name
        rows.append(
            f"| {name} | {file.n_bytes / 1e6:.1f} | {file.max_difference:.2g} | {file.mean_kl:.1e} "
            f"| {file.top1_agreement:.1%} | {_comparison(file.verdict)} |"
        )
    return "\n".join([*rows, "", f"Take **{card.default}**. `manifest.json` holds the SHA-256 of every file."])


def _comparison(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not evaluated"
    text = f"+{verdict.only_file} −{verdict.only_checkpoint} of {verdict.n}, p = {verdict.p_value:.2f}"
    return f"{text}: **significantly worse**" if verdict.is_worse else text


def _use(card: CardInput) -> str:
    sentence = "what's the weather in Oslo tomorrow?"
    lines = [
        "## Use",
        "",
        "With tinydispatch, which holds the answer to the tools' schemas. On a Raspberry Pi with a 64-bit system too:",
        "`pip install .` in its checkout brings no torch.",
        "",
        "```",
        f'python -m tinydispatch call {card.default} "{sentence}" --tools tools.json',
        "```",
        "",
    ]
    if not card.runs_in_llama_cpp:
        return "\n".join(
            [
                *lines,
                f"llama.cpp, Ollama and LM Studio know no architecture `{card.architecture}`: they refuse these files. "
                "A llama.cpp with the patch in tinydispatch's `export/llama_cpp/` loads them.",
            ]
        )
    lines += [
        "With llama.cpp, Ollama or LM Studio. Send `tools.json` as the request's `tools`, temperature 0, and as the",
        f"system message the date as the model knows it: `{_DATE_COMMAND}`.",
        "",
        "```",
        f"llama-server -m {card.default} --jinja",
        *([] if card.modelfile_note else [f"ollama create {card.name} -f Modelfile && ollama run {card.name}"]),
        f"lms import {card.default}",
        "```",
    ]
    if card.modelfile_note:
        lines += ["", f"There is no Modelfile for Ollama. {card.modelfile_note}"]
    else:
        lines += ["", "Under Ollama the model reads the tools of `tools.json` in their own words, whichever are sent."]
    return "\n".join(lines)


def _pass_rates(results: Sequence[EvalResult]) -> str:
    if not results:
        return "## Pass rates\n\nNot evaluated."
    lines = ["## Pass rates", "", "Strict: the right tools, exactly the right arguments, and nothing else."]
    for suite in dict.fromkeys(result.suite for result in results):
        of_suite = [result for result in results if result.suite == suite]
        categories = list(dict.fromkeys(name for result in of_suite for name in result.categories))
        lines += ["", f"Suite `{suite}`, version `{of_suite[0].suite_fingerprint}`, cases passed:", ""]
        heads = ["model", *(name.replace("_", " ") for name in categories), "overall (95 % interval)"]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for result in of_suite:
            counts = result.by_category
            cells = [_count(counts.get(name, Tally(0, 0))) for name in categories]
            lines.append(_row([result.model_name, *cells, _count(result.overall) + _interval(result.overall)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _count(tally: Tally) -> str:
    return f"{tally.hits}/{tally.total}" + (f" ({tally.unscored} not scored)" if tally.unscored else "")


def _interval(tally: Tally) -> str:
    if tally.interval is None:
        return ""
    low, high = tally.interval
    return f" ({low:.0%} to {high:.0%})"


def _origin(card: CardInput) -> str:
    lines = ["## How it was made", "", "| setting | value |", "| --- | --- |"]
    lines += [_row([name, value]) for name, value in card.recipe.items()]
    if card.data is not None:
        lines += ["", f"Data `{card.data.data_hash}`: {card.data.train:,} conversations for training.", ""]
        lines += ["| source | licence | rows read | kept |", "| --- | --- | --- | --- |"]
        for source in card.data.sources:
            lines.append(_row([source.kind, source.licence, f"{source.read:,}", f"{source.kept:,}"]))
    return "\n".join(lines)


def _limits(card: CardInput) -> str:
    names = ", ".join(f"`{tool.name}`" for tool in card.tools)
    measured = "The pass rates above are all that was measured" if card.results else "Nothing was measured"
    return "\n".join(
        [
            "## Limits",
            "",
            f"- {measured}; other tools, other languages and longer conversations may do worse.",
            f"- The tools in `tools.json`: {names}. The model knows them by what it reads, so others can be offered.",
            "- It knows dates only from the system message, and it was not trained to be safe or truthful in words.",
            "- A call is a proposal: check its arguments before anything that cannot be undone.",
        ]
    )


def _licence(licence: str | None) -> str:
    if licence is None:
        return "## Licence\n\nNot stated. The weights are derived from the base model: its licence decides."
    return f"## Licence\n\n{licence}"
