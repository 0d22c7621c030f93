"""`python -m scripts.retrain` with stand-ins for the pipeline's commands and for the model."""

import json
import os
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from retraining.lock import run_lock
from scripts import retrain
from tests.retraining.fakes_site import STAGES, Site, fake_answer, fake_evaluator
from tinydispatch.calibration import Calibration, calibration_path, load_calibration
from tinydispatch.registry import read_champion


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(retrain, "evaluator", fake_evaluator)
    monkeypatch.setattr(retrain, "answer", fake_answer)
    return Site(tmp_path)


class _Checker(HTMLParser):
    """Counts open tags, and collects addresses that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe") or any(name in ("src", "href") for name, _ in attrs):
            self.fetched.append(tag)


def test_three_runs_in_a_row_promote_refuse_and_skip(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    start = site.folder / "start.gguf"
    start.write_text("untrained")
    assert site.run("adopt", str(start)) == retrain.EXIT_OK
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run() == retrain.EXIT_OK
    first = site.champion()
    assert first.startswith("good")

    site.log("poison one", "poison two")
    assert site.run() == retrain.EXIT_REFUSED
    assert site.champion() == first
    out = capsys.readouterr().out
    assert "loss one_call: " in out, out
    assert "loss overall: lost" in out
    assert site.journal() == [*STAGES, *STAGES]

    assert site.run() == retrain.EXIT_OK
    assert "skipped: 0 new records" in capsys.readouterr().out
    assert site.journal() == [*STAGES, *STAGES], "nothing was trained"
    assert [news["state"] for news in site.news()] == ["promoted", "refused"]

    assert site.run("rollback") == retrain.EXIT_OK
    assert site.champion() == "untrained"
    assert site.run("history") == retrain.EXIT_OK
    out = capsys.readouterr().out
    assert all(word in out for word in ("rolled_back", "refused", "skipped", "adopt", "rollback", "champion: adopted-"))
    page = (site.registry / "index.html").read_text()
    checker = _Checker()
    checker.feed(page)
    assert checker.fetched == []
    assert "tool_selection" in page
    assert "rolled back" in page


def test_everything_that_a_run_leaves_is_its_owners_alone(site: Site) -> None:
    mask = os.umask(0o022)
    try:
        site.log("weather in Graz", "weather in Graz tomorrow")
        assert site.run() == retrain.EXIT_OK
        assert os.umask(0o022) == 0o022, "what the process does afterwards is its own affair"
    finally:
        os.umask(mask)
    made = [site.registry / "runs", *site.registry.rglob("*")]
    found = {str(path.relative_to(site.registry)): stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}
    names = {path.name for path in made}
    assert {"decision.json", "pool.jsonl", "train.log", "checkpoint", "model.gguf", "ledger.sqlite"} <= names


def test_the_decision_lies_with_the_run_and_with_the_promoted_model(site: Site) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run() == retrain.EXIT_OK
    (decision,) = site.registry.glob("runs/*/decision.json")
    champion = read_champion(site.registry)
    assert champion is not None
    assert champion.details["decision"] == json.loads(decision.read_text())
    assert champion.run_id == decision.parent.name
    assert load_calibration(calibration_path(champion.path)).threshold == 0.7, "a promotion carries its calibration"


def test_the_calibration_is_made_on_the_suite_and_for_the_error_that_the_gate_names(site: Site) -> None:
    told = site.folder / "told"
    command = json.dumps(
        [
            "{python}",
            "-c",
            f"import sys; open({str(told)!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit('told')",
            "{calibration_suite}",
            "{calibration_max_error}",
            "{gguf}",
        ]
    )
    site.log("weather in Graz", "weather in Graz tomorrow")
    settings = ("gate.calibration_suite=unseen_tools", "gate.calibration_max_error=0.07")
    assert site.run(f"stages.calibrate={{command: {command}}}", *settings) == retrain.EXIT_FAILED
    suite, error, file = told.read_text().split()
    assert (suite, error) == ("unseen_tools", "0.07")
    assert Path(file).read_text().startswith("good")
    assert read_champion(site.registry) is None, "nothing is promoted without a calibration"


def test_an_adopted_model_brings_the_calibration_that_lies_beside_it(site: Site) -> None:
    start = site.folder / "start.gguf"
    start.write_text("untrained")
    Calibration(threshold=0.6).save(calibration_path(start))
    assert site.run("adopt", str(start)) == retrain.EXIT_OK
    champion = read_champion(site.registry)
    assert champion is not None
    assert load_calibration(calibration_path(champion.path)).threshold == 0.6


def test_a_run_that_cannot_be_told_from_the_champion_is_inconclusive_and_its_records_are_kept(site: Site) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run() == retrain.EXIT_OK
    first = site.champion()
    site.log("weather in Rome", "weather in Rome tomorrow")
    assert site.run("gate.suites=[own_tools]") == retrain.EXIT_INCONCLUSIVE
    assert site.champion() == first
    assert site.news()[-1]["state"] == "inconclusive"
    site.log("weather in Lyon", "weather in Lyon tomorrow")
    assert site.run() == retrain.EXIT_OK
    pools = sorted(site.registry.glob("runs/*/intake/pool.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.read_text().count("\n") for path in pools] == [2, 4, 6]


def asked(site: Site, run: int = -1) -> list[str]:
    """The suites that the challenger of a run was asked."""
    folder = sorted(site.registry.glob("runs/*/gate"), key=lambda path: path.stat().st_mtime_ns)[run]
    return sorted(path.name.removesuffix("-challenger.json") for path in folder.glob("*-challenger.json"))


def test_more_cases_are_made_while_they_do_not_suffice_and_no_longer(site: Site) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    few = ("gate.suites=[own_tools]", "gate.generated=5", "gate.rounds=3", "gate.best_of_weeks=0")
    assert site.run(*few) == retrain.EXIT_OK
    assert asked(site) == ["generated", "own_tools"], "the first champion has nobody to be compared with"
    site.log("weather in Rome", "weather in Rome tomorrow")
    assert site.run(*few) == retrain.EXIT_INCONCLUSIVE
    assert asked(site) == ["generated", "generated-2", "generated-3", "own_tools"]
    site.log("poison one", "poison two")
    assert site.run(*few) == retrain.EXIT_REFUSED
    assert "generated-3" not in asked(site), "a refusal needs no more cases"


def test_a_challenger_is_compared_with_the_best_of_the_last_weeks_too(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run() == retrain.EXIT_OK
    worse = site.folder / "worse.gguf"
    worse.write_text("untrained")
    assert site.run("adopt", str(worse)) == retrain.EXIT_OK
    site.log("poison one", "poison two")
    assert site.run() == retrain.EXIT_REFUSED
    assert "loss_on_best" in capsys.readouterr().out
    site.log("weather in Rome", "weather in Rome tomorrow", "poison three")
    assert site.run("gate.best_of_weeks=0", "intake.after_refusal=keep") == retrain.EXIT_OK


def test_the_gate_asks_what_production_corrected_and_the_run_does_not_train_on_it(site: Site) -> None:
    right = {"correction": {"calls": [{"name": "get_weather", "arguments": {"location": "Rome"}}]}}
    site.log(*(f"weather in place {i}" for i in range(10)), **right)
    assert site.run() == retrain.EXIT_OK
    assert "production" in asked(site)
    (pool,) = site.registry.glob("runs/*/intake/pool.jsonl")
    assert pool.read_text().count("\n") == 8


def test_a_champion_whose_file_was_damaged_is_no_opponent(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    site.run()
    champion = read_champion(site.registry)
    assert champion is not None
    champion.path.write_text("x" * champion.n_bytes)
    site.log("weather in Rome", "weather in Rome tomorrow")
    assert site.run() == retrain.EXIT_FAILED
    assert "SHA-256" in capsys.readouterr().out


def test_a_file_that_is_not_the_exported_one_is_not_judged(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    swap = (
        "import pathlib, runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__'); "
        "[path.write_text('swapped') for path in pathlib.Path(sys.argv[2]).glob('gguf/*.gguf')]"
    )
    script = str(Path(__file__).parent / "fake_stage.py")
    command = json.dumps(["{python}", "-c", swap, script, "export", "{run_dir}"])
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run(f"stages.export={{command: {command}}}") == retrain.EXIT_FAILED
    assert "not the file that its export report describes" in capsys.readouterr().out


def test_refused_data_is_not_trained_on_again(site: Site) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    site.run()
    site.log("poison one", "poison two")
    assert site.run() == retrain.EXIT_REFUSED
    site.log("weather in Lyon", "weather in Lyon tomorrow")
    assert site.run() == retrain.EXIT_OK
    pools = sorted(site.registry.glob("runs/*/intake/pool.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.read_text().count("\n") for path in pools] == [2, 4, 4]
    assert "poison" not in pools[-1].read_text()


def test_a_model_that_does_not_answer_its_self_test_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain, "answer", lambda _path, _test: (False, 0))
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run() == retrain.EXIT_REFUSED
    assert read_champion(site.registry) is None
    monkeypatch.setattr(retrain, "answer", lambda _path, _test: (True, 0))
    site.log("weather in Rome", "weather in Rome tomorrow")
    assert site.run("gate.self_test_must_call=true") == retrain.EXIT_REFUSED
    site.log("weather in Lyon", "weather in Lyon tomorrow")
    assert site.run() == retrain.EXIT_OK


def test_a_stage_that_fails_is_reported_and_resumed(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    broken = ["{python}", "-c", "raise SystemExit('no space left')"]
    assert site.run(f"stages.train={{command: {json.dumps(broken)}}}") == retrain.EXIT_FAILED
    assert "no space left" in capsys.readouterr().out
    assert site.news()[0]["state"] == "failed"
    assert site.run() == retrain.EXIT_OK
    assert site.journal() == [*STAGES]


def test_a_registry_that_is_locked_ends_the_command_with_its_own_status(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_lock(site.registry / "lock"):
        assert site.run() == retrain.EXIT_LOCKED
        assert site.run("rollback") == retrain.EXIT_LOCKED
    assert "another run is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gate.max_los=0.1"], "unknown key 'gate.max_los'; did you mean 'max_loss'?"),
        (["base=nowhere.yaml"], "no configuration 'nowhere.yaml'"),
        (["intake.sources.0.path=nowhere.jsonl"], "set 'intake.sources.0.path' to where the data is"),
        (["gate.suites=[nowhere]"], "no suite 'nowhere'"),
        (["gate.floors={core: {speed: 0.5}}"], "gate.floors.core.speed"),
        (["intake.max_share_per_source=0.5"], "max_share_per_source 0.5 of 1 source(s) can never add up"),
        (["overrides=[training.learning_rat=1]"], "did you mean 'learning_rate'?"),
        (["rollback"], "no champion before the first"),
        (["adopt"], "name the GGUF file"),
        (["adopt", "nowhere.gguf"], "nowhere.gguf: no such file"),
    ],
)
def test_bad_input_stops_before_any_work_with_one_line(
    words: list[str], message: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert site.run(*words) == retrain.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (site.registry / "runs" / "journal").exists()
