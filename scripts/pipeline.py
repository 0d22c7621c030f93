"""All stages of a run, one after the other.

What can be wrong on the user's side is checked first, in seconds: nothing heavy is imported before the settings, the
sources and the model have been found.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from data.prepare import is_private, prepare
from data.sources import check_source
from eval.results import EvalResult
from eval.suites import case_texts_by_suite, load_suite, shapes_by_suite
from scripts.stages import Ledger, Stage
from tinydispatch.folders import owner_only
from training.config import RunConfig, dump_run_config, load_run_config
from training.hub import DEFAULT, resolve_model

logger = logging.getLogger(__name__)

_SENTENCES = (
    "what's the weather in Oslo tomorrow?",
    "Remind me to water the plants on Friday at 6pm and convert 250 euros to yen.",
    'Email ana@example.com with the subject "Slides" and say the slides are ready.',
)
# Preparing 187,542 rows outlasts the half hour that other processes wait by default.
_PATIENCE = dt.timedelta(hours=12)


def run_pipeline(config: str, overrides: Sequence[str], force: Stage | None, until: Stage | None = None) -> int:
    """Run every stage that is not complete, up to `until`, and after the last one print the table of pass rates.

    Returns:
        0; 2 when something that the user has to change stops the run, after one line that says what.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("scripts").setLevel(logging.INFO)
    logging.getLogger("export").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says on import which optional kernels it lacks
    try:
        run = load_run_config(config, overrides)
        for index, source in enumerate(run.data.sources):
            check_source(source, f"data.sources.{index}")
        for suite in run.eval.suites:
            load_suite(suite)
        model_dir = resolve_model(run.model)
        with owner_only(run.run_dir) if is_private(run.data) else nullcontext():
            _Pipeline(run, model_dir, force).run(until)
    except ValueError as error:  # every error of the user's side is one; its message names file, key and value
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last complete stage", file=sys.stderr)
        return 130
    return 0


class _Pipeline:
    def __init__(self, run: RunConfig, model_dir: Path, force: Stage | None) -> None:
        self.run_config, self.model_dir = run, model_dir
        self.folder = run.run_dir
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        self.is_forced = force is not None and list(Stage).index(force) <= list(Stage).index(Stage.TRAIN)
        if self.is_main:  # to fingerprint the files takes as long as to read them, and one process answers for all
            self.ledger = Ledger(run, model_dir)
            if force is not None:
                self.ledger.forget_from(force)

    def run(self, until: Stage | None = None) -> None:
        """Every stage in order. Only training uses more than one process; the others wait or are done."""
        if self.is_main:
            self._announce()
            self._stage(Stage.PREPARE, self._prepare)
        if until is Stage.PREPARE:
            return
        self._train(is_complete=self._ask_main())
        if not self.is_main or until is Stage.TRAIN:
            return
        rest = {
            Stage.EVALUATE: self._evaluate,
            Stage.EXPORT: self._export,
            Stage.EVALUATE_GGUF: self._evaluate_gguf,
        }
        for stage, work in rest.items():
            self._stage(stage, work)
            if stage is until:
                return
        self._report()

    def _announce(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(dump_run_config(self.run_config), "utf-8")
        from scripts.gguf_route import require_route
        from training.hardware import check_machine
        from training.model import check_length
        from training.sharding import check_sharding

        check_machine(self.run_config.training)
        check_sharding(self.run_config.training)
        check_length(self.model_dir, self.run_config.data.max_length_tokens)
        require_route(self.run_config, self.model_dir)

    def _stage(self, stage: Stage, work: Callable[[], None]) -> None:
        if self.ledger.is_complete(stage):
            logger.info("── %s: complete, kept", stage)
            return
        logger.info("── %s", stage)
        with self.ledger.running(stage):
            work()
        self._manifest()

    def _prepare(self) -> None:
        from data.lengths import TokenCounter
        from training.tokenizer import load_tokenizer

        run = self.run_config
        counter = TokenCounter.of(load_tokenizer(self.model_dir))
        prepared = prepare(
            run.data,
            seed=run.seed,
            out_dir=self.folder,
            case_texts=case_texts_by_suite(),
            count_tokens=counter,
            suites=shapes_by_suite(),
        )
        card = prepared.card
        logger.info("%d rows read: %d for training, %d held out", card.read, card.train, card.heldout)
        for reason, count in card.rejected.items():
            logger.info("  %d rejected: %s", count, reason)

    def _ask_main(self) -> bool:
        """Whether training is complete, when the first process has prepared the data; the others wait for it."""
        answer = [self.is_main and self.ledger.is_complete(Stage.TRAIN)]
        if self.processes > 1:
            import torch
            from accelerate import PartialState

            PartialState(timeout=_PATIENCE)
            torch.distributed.broadcast_object_list(answer)
        return answer[0]

    def _train(self, *, is_complete: bool) -> None:
        if is_complete:
            if self.is_main:
                logger.info("── %s: complete, kept", Stage.TRAIN)
            return
        if not self.is_main:
            self._fine_tune()
            return
        self._stage(Stage.TRAIN, self._fine_tune)

    def _fine_tune(self) -> None:
        from scripts.gguf_route import gguf_route
        from training.sft import train

        data, answered = self.folder / "data", [gguf_route(self.run_config, self.model_dir)]
        result = train(
            self.run_config,
            data / "train.jsonl",
            self.folder,
            heldout_path=data / "heldout.jsonl",
            restart=self.is_forced,
            answered=answered,
        )
        if not self.is_main:
            return
        _free_memory()
        if self.run_config.training.method.has_adapter:
            from export.merge import merge_adapter

            with _threads():
                merge_adapter(self.folder / "adapter", self.folder / "checkpoint", self.model_dir)
        logger.info("trained: %s", {name: round(value, 3) for name, value in result.metrics.items()})

    def _evaluate(self) -> None:
        self._measure({**self._starting_points(), "checkpoint": self.folder / "checkpoint"})

    def _starting_points(self) -> dict[str, Path]:
        """What the run starts from, by the name of its row; of the default dispatcher the files that users have."""
        if self.run_config.model.path != DEFAULT:
            return {"base": self.model_dir}
        from tinydispatch.default.model import default_model
        from training.gguf_base import base_in_our_format

        return {"base": base_in_our_format(), "default": default_model()}

    def _evaluate_gguf(self) -> None:
        self._measure({f"gguf-{quantization}": path for quantization, path in self._gguf_files().items()})
        from eval.page import PAGE_NAME, write_page

        write_page(self._results(), self.folder / "eval" / PAGE_NAME)
        from scripts.manifest import pass_rates
        from training.tracking import upload_files

        files = [path for path in self._gguf_files().values() if path.is_file()]
        run = self.run_config
        upload_files(run.tracking, self.folder, run.name, files, {"pass_rates": pass_rates(self.folder / "eval")})

    def _results(self) -> list[EvalResult]:
        """Of every model of the run, by suite."""
        from eval.results import load_result

        suites = [load_suite(name).name for name in self.run_config.eval.suites]
        before = ["base", "default"] if self.run_config.model.path == DEFAULT else ["base"]
        names = [*before, "checkpoint", *(f"gguf-{quantization}" for quantization in self._gguf_files())]
        return [load_result(self.folder / "eval" / f"{suite}-{name}.json") for suite in suites for name in names]

    def _measure(self, models: dict[str, Path]) -> None:
        from eval.evaluate import evaluate_model

        config = self.run_config.eval
        suites = [load_suite(name) for name in config.suites]
        for name, model in models.items():
            evaluate_model(model, suites, config, model_name=name, folder=self.folder / "eval")

    def _export(self) -> None:
        from export.export import export_gguf

        run = self.run_config
        with _threads():
            export_gguf(self.folder / "checkpoint", self.folder / "gguf", run.name, run.export)

    def _gguf_files(self) -> dict[str, Path]:
        run = self.run_config
        return {str(q): self.folder / "gguf" / f"{run.name}-{q}.gguf" for q in run.export.quantizations}

    def _manifest(self) -> None:
        from scripts.manifest import write_manifest

        write_manifest(self.run_config, self.ledger.seconds)

    def _report(self) -> None:
        from rich.console import Console

        from eval.report import print_report
        from export.choice import choose_file

        run, files = self.run_config, self._gguf_files()
        suites = [load_suite(name).name for name in run.eval.suites]
        offered, warnings = choose_file(self.folder / "eval", suites, files)
        _dispatch_examples(offered)
        print("".join(f"warning: {line}\n" for line in warnings), end="")
        print_report(self._results(), Console())
        seconds = self.ledger.seconds
        print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
        print(f"artifacts: {self.folder}/  (manifest.json, data_card.md, checkpoint/, eval/, gguf/)")
        print(f"to look at: {self.folder}/eval/report.html, {self.folder}/data_card.html")
        print(f'try it:    python -m tinydispatch call {offered} "{_SENTENCES[0]}"')


def _free_memory() -> None:
    """Give back what the trainer held: model, optimizer and gradients refer to each other in circles."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _threads() -> Iterator[None]:
    """Every core, where accelerate's launcher left each process one; else as the user has it."""
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not (is_launched and os.environ.get("OMP_NUM_THREADS") == "1"):
        yield
        return
    from training.hardware import all_threads

    with all_threads():
        yield


def _right_calls(today: dt.date) -> list[list[dict[str, Any]]]:
    """The calls that answer each of `_SENTENCES`, as an evaluation case states them."""
    tomorrow, friday = today + dt.timedelta(days=1), today + dt.timedelta(days=(3 - today.weekday()) % 7 + 1)
    ready = {"$match": "one_of", "values": ["the slides are ready", "The slides are ready.", "The slides are ready"]}
    return [
        [{"name": "get_weather", "arguments": {"location": "Oslo", "date": tomorrow.isoformat()}}],
        [
            {"name": "set_reminder", "arguments": {"text": "water the plants", "remind_at": f"{friday}T18:00"}},
            {
                "name": "convert_currency",
                "arguments": {"amount": 250, "from_currency": "EUR", "to_currency": "JPY"},
            },
        ],
        [{"name": "send_email", "arguments": {"to": ["ana@example.com"], "subject": "Slides", "body": ready}}],
    ]


def _dispatch_examples(model: Path) -> None:
    """Answer three sentences; an answer that is wrong is marked as such."""
    from eval.cases import Place, case_from_row
    from eval.matching import match
    from tinydispatch.bundled import bundled_tools
    from tinydispatch.dispatcher import Dispatcher
    from tinydispatch.formats import ParsedReply, render_calls

    today, tools = dt.date.today(), bundled_tools()
    with Dispatcher(model, tools, today) as dispatcher:
        for sentence, calls in zip(_SENTENCES, _right_calls(today), strict=True):
            row = {
                "id": "demo",
                "category": "demo",
                "messages": [{"role": "user", "content": sentence}],
                "expected": {"calls": calls},
            }
            case = case_from_row(row, tools, Place("train.py"))
            answer = dispatcher.dispatch(sentence)
            score = match(ParsedReply(answer.reply, answer.calls, answer.unparsed), case, tools)
            verdict = "" if score.is_correct else f"   WRONG ({score.outcome}: {score.explanation})"
            print(f"\n> {sentence}\n{render_calls(answer.calls) or answer.reply}")
            print(f"  {answer.timings.total_ms:.0f} ms{verdict}")
    print()
