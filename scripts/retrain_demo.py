"""Four retraining runs in a row on the embedded model, offline: promoted, refused, inconclusive, skipped.

python -m scripts.retrain_demo                  all of it, in runs/retrain-demo
python -m scripts.retrain_demo --steps 4 --suite core    the machinery alone: too little training to tell models apart

The untuned model is in service first. Then its log fills with whole dialogues, each answer corrected: calls, questions
for what is missing, refusals, reports of results (promoted); somebody drops a file of wrong labels (refused, with the
category that got worse); a few more corrections come in, and the gate has forty cases alone, which cannot show that the
new model is no worse (inconclusive); and then nothing new comes in (skipped).
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data.synth.generate import generate
from retraining.ledger import Ledger
from retraining.page import PAGE
from retraining.run import LEDGER
from retraining.stages import RunState
from scripts import export_gguf, retrain
from tinydispatch.tools import Conversation, Role
from training.yaml_config import dump_yaml

_WANTED = (RunState.PROMOTED, RunState.REFUSED, RunState.INCONCLUSIVE, RunState.SKIPPED)
# Seeds that the base run's own examples do not use.
_LOG_SEED, _DROP_SEED, _LATER_SEED = 101, 202, 303


def main(argv: Sequence[str] | None = None) -> int:
    """0: the four runs ended as they should; 1: one did not."""
    arguments = _parser().parse_args(argv)
    folder: Path = arguments.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "drop").mkdir(parents=True)
    config = folder / "retrain.yaml"
    config.write_text(dump_yaml(_settings(folder, arguments)), "utf-8")
    started = time.monotonic()

    print("── the untuned model goes into service", flush=True)
    weights = ["--config", arguments.base, "--checkpoint", str(arguments.weights), "--out", str(folder / "start")]
    if export_gguf.main([*weights, "name=start", "export.quantizations=[q8_0]"]):
        return 1
    if retrain.main(["adopt", str(folder / "start" / "start-q8_0.gguf"), "--config", str(config)]):
        return 1

    print(f"── run 1: {arguments.good} corrected dialogues in the log", flush=True)
    _write(folder / "logs" / "dispatch-1.jsonl", _corrected(islice(_dialogues(_LOG_SEED), arguments.good)))
    retrain.main(["--config", str(config)])
    print(f"── run 2: {arguments.bad} wrong labels in the drop folder", flush=True)
    _write(folder / "drop" / "labels.jsonl", _mislabelled(islice(_single_turns(_DROP_SEED), arguments.bad)))
    retrain.main(["--config", str(config)])
    print(f"── run 3: {arguments.few} more corrected dialogues, and a gate of 40 cases", flush=True)
    _write(folder / "logs" / "dispatch-2.jsonl", _corrected(islice(_dialogues(_LATER_SEED), arguments.few)))
    few = ["gate.generated=0", "gate.suites=[core]", "intake.held_share=0"]
    retrain.main(["--config", str(config), *few])
    print("── run 4: nothing new", flush=True)
    retrain.main(["--config", str(config)])
    if arguments.screenshot is not None:
        _draw(folder / "registry" / PAGE, arguments.screenshot)
    return _report(folder / "registry", time.monotonic() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.retrain_demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/retrain-demo"), help="emptied first")
    parser.add_argument("--base", default="nano.yaml", help="the run that is repeated")
    parser.add_argument("--weights", type=Path, default=Path("training/nano/weights"), help="of its model")
    parser.add_argument("--few", type=int, default=60, help="corrected dialogues of the third run")
    parser.add_argument("--steps", type=int, default=300, help="training steps of a run")
    parser.add_argument("--good", type=int, default=600, help="corrected dialogues")
    parser.add_argument("--bad", type=int, default=1800, help="wrong labels")
    parser.add_argument("--screenshot", type=Path, help="draw the page with headless Chromium into this PNG file")
    parser.add_argument("--suite", action="append", help="of the gate; repeatable (default: core, dev, unseen_tools)")
    return parser


def _settings(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "registry": str(folder / "registry"),
        "base": arguments.base,
        "overrides": [
            "data.sources=[{kind: synth, count: 20}]",
            f"training.max_steps={arguments.steps}",
            "tracking.wandb=off",
        ],
        "intake": {
            "sources": [
                {"kind": "dispatch_log", "path": str(folder / "logs"), "only_corrected": True},
                {"kind": "openai_jsonl", "path": str(folder / "drop")},
            ],
            "min_new": 50,
            "max_per_session": 1000,
        },
        # A model of a few million weights loses or wins tenths of its cases; one round of new ones tells that.
        "gate": {"suites": arguments.suite or ["core", "dev", "unseen_tools"], "rounds": 1},
        "stages": {"train": {"budget_minutes": 30}},
    }


def _single_turns(seed: int) -> Iterator[Conversation]:
    """Generated requests that are answered in one turn."""
    for each in generate(100_000, seed):
        roles = [message.role for message in each.messages]
        if roles[-1] is Role.ASSISTANT and roles.count(Role.ASSISTANT) == 1:
            yield each


def _dialogues(seed: int) -> Iterator[Conversation]:
    """Generated dialogues in which a user says something, at least once, that wants words and no call.

    People ask for what no tool does, leave out what is needed, and chat. The generator makes such turns a tenth of all,
    and a model that is trained on so few of them learns to call at any word.
    """
    for each in generate(100_000, seed):
        pairs = zip(each.messages, each.messages[1:], strict=False)
        if any(said.role is Role.USER and not answer.tool_calls for said, answer in pairs):
            yield each


def _corrected(dialogues: Iterable[Conversation]) -> Iterator[dict[str, Any]]:
    """The log of dialogues in which the model made no call, and a larger model or a person said what was right.

    One line for each answer, with what was said before it, as the server writes them.
    """
    time = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    for index, each in enumerate(dialogues):
        for turn, answer in enumerate(each.messages):
            if answer.role is not Role.ASSISTANT:
                continue
            time += dt.timedelta(minutes=1)
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in answer.tool_calls]
            yield _shown(each, turn) | {
                "tools": [tool.to_openai() for tool in each.tools],
                "calls": [],
                "reply": "",
                "session_id": each.dialogue_id,
                "time": time.isoformat(),
                "escalation" if index % 2 else "correction": {"calls": calls, "reply": answer.content},
            }


def _mislabelled(conversations: Iterable[Conversation]) -> Iterator[dict[str, Any]]:
    """Chat rows over the bundled tools whose every answer is to look at the clock."""
    wrong = {"name": "get_current_time", "arguments": {"timezone": "UTC"}}
    for each in conversations:
        row = _shown(each, -1)
        yield row | {"messages": [*row["messages"], {"role": "assistant", "content": "", "tool_calls": [wrong]}]}


def _shown(conversation: Conversation, end: int) -> dict[str, Any]:
    """What the model sees before its answer at `end`."""
    date = conversation.reference_date
    messages = [message.to_openai() for message in conversation.messages[:end]]
    return {"messages": messages, **({"reference_date": date.isoformat()} if date is not None else {})}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _draw(page: Path, image: Path) -> None:
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        print("no Chromium here, no screenshot", file=sys.stderr)
        return
    image.parent.mkdir(parents=True, exist_ok=True)
    # Without its sandbox, since root has none and the page is our own.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1650"]
    command = [browser, *options, f"--screenshot={image.absolute()}", page.absolute().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _report(registry: Path, seconds: float) -> int:
    with Ledger(registry / LEDGER) as ledger:
        runs = ledger.runs()
    print(f"\n{seconds / 60:.1f} minutes; {registry}/index.html")
    for run, wanted in zip(runs, _WANTED, strict=False):
        print(f"{'as wanted' if run.state is wanted else f'wanted {wanted}':<16} {run.state:<9} {run.reason}")
    return int([run.state for run in runs] != list(_WANTED))


if __name__ == "__main__":
    sys.exit(main())
