"""A registry with a log and stand-ins for the pipeline's commands and for the model; the rest is the real thing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.cases import Suite
from eval.config import EvalConfig
from eval.matching import Outcome
from eval.results import CaseResult, EvalResult
from scripts import retrain
from tinydispatch.registry import SelfTest, read_champion

STAGES = ("prepare", "train", "evaluate", "export")


def fake_evaluator(_: EvalConfig) -> Callable[[Path, Sequence[Suite], str, Path], list[EvalResult]]:
    """`good` passes every case, `bad` none of the first category, anything else none at all."""

    def evaluate(path: Path, suites: Sequence[Suite], name: str, folder: Path) -> list[EvalResult]:
        content = path.read_text()
        results = []
        for suite in suites:
            cases = []
            for case in suite.cases:
                passes = content.startswith("good") or (
                    content.startswith("bad") and case.category != suite.categories[0]
                )
                wanted = tuple(call.to_json() for call in case.expected)
                outcome = Outcome.CORRECT if passes else Outcome.WRONG_TOOL
                cases.append(CaseResult(case.id, case.category, case.prompt, wanted, "x", outcome, "", 0.05, 3))
            result = EvalResult(suite.name, suite.fingerprint, name, suite.categories, tuple(cases))
            result.save(folder)
            results.append(result)
        return results

    return evaluate


def fake_answer(_: Path, __: SelfTest) -> tuple[bool, int]:
    return True, 1


class Site:
    """A registry with its log and its configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, folder / "registry"
        self.config = folder / "retrain.yaml"
        script = str(Path(__file__).parent / "fake_stage.py")
        commands = {stage: {"command": ["{python}", script, stage, "{run_dir}"]} for stage in STAGES}
        commands["calibrate"] = {"command": ["{python}", script, "calibrate", "{run_dir}"]}
        news = f"import sys; open({str(folder / 'news')!r}, 'a').write(sys.stdin.read() + chr(10))"
        tree = {
            "registry": str(self.registry),
            "base": "nano.yaml",
            "intake": {"sources": [{"kind": "dispatch_log", "path": str(folder / "log.jsonl")}], "min_new": 2},
            "gate": {"generated": 0},
            "stages": commands,
            "notify": [{"command": [sys.executable, "-c", news]}],
            "cost_per_hour": 2.5,
        }
        self.config.write_text(yaml.safe_dump(tree))
        (folder / "log.jsonl").write_text("")

    def log(self, *texts: str, **more: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as stream:
            for number, text in enumerate(texts):
                call = {"name": "get_weather", "arguments": {"location": "Graz"}}
                row = {"messages": [{"role": "user", "content": text}], "calls": [call], "session_id": text}
                stream.write(json.dumps({**row, "time": f"2026-11-01T00:{number:02d}:00Z", **more}) + "\n")

    def run(self, *words: str) -> int:
        return retrain.main([*words, "--config", str(self.config)])

    def news(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "news").read_text().splitlines()]

    def journal(self) -> list[str]:
        return [line.split()[1] for line in (self.registry / "runs" / "journal").read_text().splitlines()]

    def champion(self) -> str:
        found = read_champion(self.registry)
        assert found is not None
        return found.path.read_text()
