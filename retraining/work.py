"""What the stages do: the project's own pipeline, each part as a command of its own, on the run's data.

A stage that trains or loads torch runs in another process: it can be stopped at its budget, and a crash in it is its
own. Comparing runs here, one file after the other, so that both are measured alike.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.card import DataCard
from data.config import OpenAIJsonlSource
from data.split import Split
from eval.cases import Suite
from eval.results import EvalResult
from eval.suites import load_case_texts, load_suite
from retraining.cases import HELD, generated_suite, production_suite
from retraining.config import RetrainConfig, StageConfig
from retraining.engine import sha256_of
from retraining.errors import RetrainError
from retraining.gate import Judged, Verdict, decide
from retraining.intake import POOL, counted_runs, earlier_runs, take_in
from retraining.ledger import Ledger, SwitchKind
from retraining.process import run_command
from retraining.registry import beside_model, best_champion, install, switch
from retraining.stages import Done, RunState, Stage, Step, StepContext, Stop
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.calibration import calibration_path, load_calibration
from tinydispatch.registry import SelfTest, champion_id, check_answers, read_champion, read_model, verify_file
from training.config import RunConfig, dump_run_config, load_run_config

ROOT = Path(__file__).resolve().parents[1]
CONFIG, DECISION = "run.yaml", "decision.json"
_COMMANDS: dict[Stage, tuple[str, ...]] = {
    Stage.PREPARE: ("{python}", "train.py", "--config", "{config}", "--until", "prepare"),
    Stage.TRAIN: ("{python}", "train.py", "--config", "{config}", "--until", "train"),
    Stage.EVALUATE: (
        "{python}", "-m", "scripts.evaluate", "--config", "{config}", "{run_dir}/checkpoint", "--out", "{run_dir}/eval",
    ),
    Stage.EXPORT: ("{python}", "-m", "scripts.export_gguf", "--config", "{config}"),
    Stage.CALIBRATE: (
        "{python}", "-m", "scripts.calibrate_dispatch", "{gguf}", "--suite", "{calibration_suite}",
        "--max-error", "{calibration_max_error}",
    ),
}  # fmt: skip
_STATE_OF = {Verdict.REFUSE: RunState.REFUSED, Verdict.INCONCLUSIVE: RunState.INCONCLUSIVE}
# Stages that fetch something: a Hub data set, a base model.
_NETWORK_ATTEMPTS = {Stage.INTAKE: 4, Stage.PREPARE: 4}

Evaluate = Callable[[Path, Sequence[Suite], str, Path], list[EvalResult]]
SelfTester = Callable[[Path, SelfTest], tuple[bool, int]]


@dataclass(frozen=True)
class Work:
    """The stages' work for one registry. `evaluate` and `answer` run a GGUF file; tests put others in their place."""

    config: RetrainConfig
    base: RunConfig
    ledger: Ledger
    evaluate: Evaluate
    answer: SelfTester

    @property
    def runs_dir(self) -> Path:
        """Where every run has its folder."""
        return (self.config.registry / "runs").absolute()

    def steps(self) -> list[Step]:
        """All stages in their order."""
        work = {
            Stage.INTAKE: self.intake,
            Stage.PREPARE: self.prepare,
            Stage.TRAIN: self.train,
            Stage.EVALUATE: self.evaluate_checkpoint,
            Stage.EXPORT: self.export,
            Stage.VERIFY: self.verify,
            Stage.COMPARE: self.compare,
            Stage.CALIBRATE: self.calibrate,
            Stage.PROMOTE: self.promote,
        }
        return [self._step(stage, work[stage]) for stage in Stage]

    def intake(self, context: StepContext) -> Done:
        """New records, or the end of the run."""
        tools = load_tools(self.base.data.tools) if self.base.data.tools is not None else bundled_tools()
        return take_in(
            context.folder / "intake",
            self.config.intake,
            earlier_runs(self.ledger, self.runs_dir, self.config.intake.after_refusal),
            default_tools=tools,
            case_texts=[*load_case_texts(), *_own_case_texts(self.config.gate.suites)],
            seed=self.base.seed,
        )

    def prepare(self, context: StepContext) -> Done:
        """The data stage of `train.py`, over the base run's sources and the pool."""
        config = self.run_config(context.run_id)
        path = context.folder / CONFIG
        partial = path.with_suffix(".yaml.partial")
        partial.write_text(dump_run_config(config), "utf-8")
        partial.replace(path)
        self._command(Stage.PREPARE, context)
        card = DataCard.read_json(context.folder / "data_card.json")
        data = tuple(context.folder / "data" / f"{split}.jsonl" for split in Split)
        return Done((path, *data), {"train": card.train, "heldout": card.heldout, "rejected": dict(card.rejected)})

    def train(self, context: StepContext) -> Done:
        """Training and, after LoRA, merging; killed on the way, it goes on from its own last checkpoint."""
        self._command(Stage.TRAIN, context)
        # After LoRA the adapter is what was trained: the export merges it anew.
        name = "adapter" if self.base.training.method.has_adapter else "checkpoint"
        return Done(tuple(_files(context.folder / name)))

    def evaluate_checkpoint(self, context: StepContext) -> Done:
        """Pass rates before quantization, for the record: what the gate judges is the file."""
        self._command(Stage.EVALUATE, context)
        return Done(tuple(_files(context.folder / "eval")))

    def export(self, context: StepContext) -> Done:
        """GGUF files whose logits agree with the checkpoint's."""
        self._command(Stage.EXPORT, context)
        return Done(tuple(_files(context.folder / "gguf")))

    def verify(self, context: StepContext) -> Done:
        """The file is the one that the export checked, and it answers."""
        path = self._challenger(context)
        report = json.loads((path.parent / f"{context.run_id}-export.json").read_text("utf-8"))
        stated = {Path(file["path"]).name: file["sha256"] for file in report["files"]}
        digest = sha256_of(path)
        if stated.get(path.name) != digest:
            raise RetrainError(f"{path}: not the file that its export report describes")
        is_usable, n_calls = self.answer(path, self.self_test())
        if not is_usable or (self.config.gate.self_test_must_call and not n_calls):
            reason = f"does not answer its self-test '{self.config.gate.self_test}' with anything that can be used"
            return Done((), {"sha256": digest}, Stop(RunState.REFUSED, f"{path.name}: {reason}"))
        return Done((), {"sha256": digest, "n_bytes": path.stat().st_size})

    def compare(self, context: StepContext) -> Done:
        """The gate: all files on the same cases, one after the other in this process; more where they are too few."""
        gate, folder = self.config.gate, context.folder / "gate"
        files = self._candidates(context)
        suites = [load_suite(name) for name in gate.suites]
        if (held := production_suite(context.folder / "intake" / HELD, self.config.intake.held_gates)) is not None:
            suites.append(held)
        n_asked = 0
        results: dict[str, list[EvalResult]] = {role: [] for role in files}
        for number in range(1, gate.looks + 1):
            train = context.folder / "data" / f"{Split.TRAIN}.jsonl"
            seed = f"{context.run_id} {number}"
            made = generated_suite(self.base.data, seed, gate.generated, suites, train)
            suites += [made] if made is not None else []
            for role, (_, path, _) in files.items():
                results[role] += self.evaluate(path, suites[n_asked:], role, folder)
            n_asked = len(suites)
            judged = {role: Judged(name, size, results[role]) for role, (name, _, size) in files.items()}
            decision = decide(judged["challenger"], judged.get("champion"), gate, judged.get("best"))
            if not decision.wants_cases or made is None:
                break
        evidence = decision.save(context.folder / DECISION)
        stop = None if decision.verdict is Verdict.PROMOTE else Stop(_STATE_OF[decision.verdict], decision.reason)
        medians = {result.suite: result.median_latency_s for result in results["challenger"]}
        known: dict[str, Any] = {
            "verdict": str(decision.verdict),
            "is_promotion": decision.verdict is Verdict.PROMOTE,
            "reason": decision.reason,
            "champion": decision.champion,
        }
        return Done((evidence, *_files(folder)), {**known, **decision.evidence, "median_latency_s": medians}, stop)

    def _candidates(self, context: StepContext) -> dict[str, tuple[str, Path, int]]:
        """Who is compared, by role: a name, the file, and its size."""
        found = {}
        best = self.best(context.run_id)
        for role, model_id in (("champion", self.opponent(context.run_id)), ("best", best)):
            if model_id is not None:
                model = read_model(self.config.registry, model_id)
                verify_file(model)
                found[role] = (model.id, model.path, model.n_bytes)
        path = self._challenger(context)
        return {**found, "challenger": (context.run_id, path, path.stat().st_size)}

    def calibrate(self, context: StepContext) -> Done:
        """How far the file's confidences can be believed; the answer goes into the registry with the file."""
        self._command(Stage.CALIBRATE, context)
        path = calibration_path(self._challenger(context))
        return Done((path,), {"threshold": load_calibration(path).threshold})

    def promote(self, context: StepContext) -> Done:
        """Into the registry, verified once more there, and then into service."""
        path = self._challenger(context)
        model = install(
            self.config.registry,
            path,
            sha256=context.results[Stage.VERIFY]["sha256"],
            run_id=context.run_id,
            self_test=self.self_test(),
            details={"decision": json.loads((context.folder / DECISION).read_text("utf-8"))},
            beside=beside_model(path),
        )
        check_answers(model, lambda test: self.answer(model.path, test))
        switch(self.config.registry, self.ledger, SwitchKind.PROMOTE, model, context.run_id)
        reason = f"{model.id} is champion: {context.results[Stage.COMPARE]['reason']}"
        return Done((), {"model": model.id}, Stop(RunState.PROMOTED, reason))

    def self_test(self) -> SelfTest:
        """What the model must answer here, and later in every server that takes it up."""
        gate, tools = self.config.gate, self.base.data.tools
        offered = load_tools(tools) if tools is not None else None
        return SelfTest(gate.self_test, tools=offered, must_call=gate.self_test_must_call)

    def opponent(self, run_id: str) -> str | None:
        """The champion that the run is up against: the one before it, once it has been promoted itself."""
        for each in self.ledger.switches():
            if each.run_id == run_id and not each.is_done and champion_id(self.config.registry) == each.model_id:
                return each.previous
        champion = read_champion(self.config.registry)
        return champion.id if champion is not None else None

    def best(self, run_id: str) -> str | None:
        """The best champion of the last weeks, where that is another than the opponent."""
        weeks, opponent = self.config.gate.best_of_weeks, self.opponent(run_id)
        if not weeks or opponent is None:
            return None
        prints = {name: load_suite(name).fingerprint for name in self.config.gate.suites}
        since = dt.datetime.now(dt.UTC) - dt.timedelta(weeks=weeks)
        return best_champion(self.config.registry, self.ledger, prints, since, opponent)

    def run_config(self, run_id: str) -> RunConfig:
        """The base run under another name, with the pool among its sources and the gate's suites and file."""
        pool = OpenAIJsonlSource(kind="openai_jsonl", path=self.runs_dir / run_id / "intake" / POOL)
        base = self.base
        data = base.data.model_copy(update={"sources": (*base.data.sources, pool)})
        quantizations = tuple(dict.fromkeys([*base.export.quantizations, self.config.gate.quantization]))
        return base.model_copy(
            update={
                "name": run_id,
                "runs_dir": self.runs_dir,
                "data": data,
                "eval": base.eval.model_copy(update={"suites": self.config.gate.suites}),
                "export": base.export.model_copy(update={"quantizations": quantizations}),
            }
        )

    def _inputs(self, stage: Stage) -> Callable[[str], Any]:
        base, config = self.base.model_dump(mode="json"), self.config
        parts: dict[Stage, Any] = {
            Stage.INTAKE: config.intake.model_dump(mode="json"),
            Stage.PREPARE: [base["data"], base["seed"], base["model"]],
            Stage.TRAIN: [base["model"], base["training"]],
            Stage.EVALUATE: [base["eval"], config.gate.suites],
            Stage.EXPORT: [base["export"], config.gate.quantization],
            Stage.VERIFY: [config.gate.self_test, config.gate.self_test_must_call],
            Stage.COMPARE: config.gate.model_dump(mode="json"),
            Stage.CALIBRATE: [config.gate.calibration_suite, config.gate.calibration_max_error],
            Stage.PROMOTE: None,
        }
        if stage is Stage.INTAKE:
            # A run that lies half done builds on what an earlier one took in, unless that was rolled back since.
            return lambda _run_id: [parts[stage], counted_runs(self.ledger, config.intake.after_refusal)]
        if stage is Stage.COMPARE:
            prints = [load_suite(name).fingerprint for name in config.gate.suites]
            return lambda run_id: [parts[stage], prints, self.opponent(run_id), self.best(run_id)]
        return lambda _run_id: parts[stage]

    def _step(self, stage: Stage, work: Callable[[StepContext], Done]) -> Step:
        settings = self.config.stages.get(stage, StageConfig())
        budget = None if settings.budget_minutes is None else 60 * settings.budget_minutes
        attempts = settings.attempts or _NETWORK_ATTEMPTS.get(stage, 1)
        return Step(stage, work, self._inputs(stage), budget, attempts, settings.backoff_s)

    def _command(self, stage: Stage, context: StepContext) -> None:
        words = self.config.stages.get(stage, StageConfig()).command or _COMMANDS[stage]
        gate = self.config.gate
        places = {
            "python": sys.executable,
            "config": str(context.folder / CONFIG),
            "run_dir": str(context.folder),
            "gguf": str(self._challenger(context)),
            "calibration_suite": gate.calibration_suite,
            "calibration_max_error": str(gate.calibration_max_error),
        }
        run_command(
            [word.format(**places) for word in words],
            log=context.folder / "logs" / f"{stage}.log",
            marker=str(self.runs_dir),
            folder=ROOT,
            deadline=context.deadline,
        )

    def _challenger(self, context: StepContext) -> Path:
        return context.folder / "gguf" / f"{context.run_id}-{self.config.gate.quantization}.gguf"


def load_base(config: RetrainConfig) -> RunConfig:
    """The base run's settings.

    Raises:
        ConfigError: of its file, or of `overrides`.
    """
    return load_run_config(config.base, config.overrides)


def _own_case_texts(suites: Sequence[str]) -> list[str]:
    """What users say in suites that are not shipped: their cases are kept out of training as well."""
    return [text for name in suites for case in load_suite(name).cases for text in case.user_texts]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.endswith(".partial"))
