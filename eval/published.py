"""Results that others published, as reference beside ours: measured on other cases, or by another rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One table of somebody else's: `metric` says what its figures are, `difference` why ours are not the same.

    `rows` maps each model to its figures, as printed there, in the order of `columns`.
    """

    title: str
    source: str
    metric: str
    difference: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]


_EIGHT_TOOLS = Published(
    title="13 local models on 40 requests to eight tools",
    source="jdhodges.com, I Tested 13 Local LLMs on Tool Calling: March 2026",
    metric="share of 40 cases passed, deterministic; models served by LM Studio, most of them as Q4_K_M",
    difference="its cases and its harness are not public: ours are other requests to tools of the same kind",
    columns=("published pass rate",),
    rows={
        "Qwen3.5 4B": ("97.5 %",),
        "GLM-4.7-Flash": ("95.0 %",),
        "Nemotron Nano 4B": ("95.0 %",),
        "Mistral Nemo 12B": ("92.5 %",),
        "Qwen3 8B": ("85.0 %",),
        "GPT-OSS 20B": ("85.0 %",),
        "Mistral Small 3.2": ("42.5 %",),
        "Hammer 2.1 7B": ("20.0 %",),
        "xLAM-2 8B": ("15.0 %",),
    },
)
_TOOLBENCH = Published(
    title="OPT-350M fine-tuned on ToolBench",
    source="arXiv 2512.15943",
    metric="ToolEval pass rate: a judge model decides whether a whole solution path solves the request",
    difference="ours asks whether the next reply is the held-out one, call by call, and no judge is asked",
    columns=("G1 instruction", "G1 tool", "G1 category", "G2 instruction", "G2 category", "G3 instruction", "all"),
    rows={
        "OPT-350M, one epoch": ("78.5 %", "79.0 %", "74.0 %", "74.5 %", "80.5 %", "80.0 %", "77.55 %"),
        "ToolLLaMA, DFS": ("", "", "", "", "", "", "30.18 %"),
        "ChatGPT, CoT": ("", "", "", "", "", "", "26.00 %"),
    },
)

PUBLISHED: Mapping[str, Published] = {"core": _EIGHT_TOOLS, "toolbench": _TOOLBENCH}
