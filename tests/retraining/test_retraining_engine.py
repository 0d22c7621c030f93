"""Retries, budgets, resumption, promotion, rollback: the engine and the registry on stages that take no time."""

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retraining.engine import Engine
from retraining.errors import RetrainError, StepFailedError
from retraining.ledger import Ledger, StageRecord, SwitchKind
from retraining.registry import adopt, best_champion, install, rollback, settle, succession, switch
from retraining.stages import Done, RunState, Stage, Step, StepContext, Stop
from tests.retraining.fakes_retraining import digest, fake_steps, run_fake
from tinydispatch.registry import (
    RegisteredModel,
    RegistryError,
    SelfTest,
    champion_id,
    check_answers,
    read_champion,
    read_fallback,
    verify_file,
)


def engine_of(registry: Path, ledger: Ledger, steps: list[Step], waits: list[float] | None = None) -> Engine:
    record = (waits if waits is not None else []).append
    return Engine(ledger, steps, registry / "runs", sleep=record)


def step(stage: Stage, work: Callable[[StepContext], Done], **settings: object) -> Step:
    return Step(stage, work, **settings)  # type: ignore[arg-type]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def test_a_network_stage_is_tried_again_after_growing_waits(tmp_path: Path, ledger: Ledger) -> None:
    calls: list[str] = []

    def flaky(_: StepContext) -> Done:
        calls.append("try")
        if len(calls) < 3:
            raise OSError("no route to host")
        return Done((), {}, Stop(RunState.SKIPPED, "nothing new"))

    waits: list[float] = []
    steps = [step(Stage.INTAKE, flaky, attempts=4, backoff_s=10.0)]
    assert engine_of(tmp_path, ledger, steps, waits).run().state is RunState.SKIPPED
    assert len(calls) == 3
    assert 5 <= waits[0] <= 10 <= waits[1] <= 20
    errors = [each["error"] for each in ledger.attempts(ledger.runs()[0].id)]
    assert errors == ["OSError: no route to host", "OSError: no route to host", None]


def test_a_stage_over_its_budget_fails_at_once_and_is_not_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    def slow(_: StepContext) -> Done:
        time.sleep(30)
        return Done()

    steps = [step(Stage.TRAIN, slow, attempts=5, budget_s=0.1)]
    with pytest.raises(StepFailedError, match=r"longer than its budget of 0\.1 s"):
        engine_of(tmp_path, ledger, steps).run()
    (run,) = ledger.runs()
    assert (run.state, run.failures) == (RunState.FAILED, 1)


def test_a_failed_run_goes_on_next_time_and_is_given_up_after_three_failures(tmp_path: Path, ledger: Ledger) -> None:
    def broken(_: StepContext) -> Done:
        raise RuntimeError("out of memory")

    fakes = fake_steps(tmp_path, ledger)
    steps = [fakes[0], step(Stage.TRAIN, broken)]
    for _ in range(3):
        with pytest.raises(StepFailedError):
            engine_of(tmp_path, ledger, steps).run()
    assert len(ledger.runs()) == 1
    with pytest.raises(StepFailedError):
        engine_of(tmp_path, ledger, steps).run()
    assert len(ledger.runs()) == 2
    assert (tmp_path / "journal").read_text().count("intake begun") == 2


def test_changed_inputs_redo_their_stage_and_what_follows_but_nothing_before(tmp_path: Path, ledger: Ledger) -> None:
    fakes = fake_steps(tmp_path, ledger)
    engine_of(tmp_path, ledger, fakes).run(until=Stage.COMPARE)
    changed = [Step(each.stage, each.work, lambda _: "other") if each.stage is Stage.EXPORT else each for each in fakes]
    assert engine_of(tmp_path, ledger, changed).run().state is RunState.PROMOTED
    begun = (tmp_path / "journal").read_text()
    assert [begun.count(f" {stage} begun") for stage in list(Stage)[:-1]] == [1, 1, 1, 1, 2, 2, 2, 1]


def test_a_file_that_changed_since_its_stage_is_made_again(tmp_path: Path, ledger: Ledger) -> None:
    fakes = fake_steps(tmp_path, ledger)
    run = engine_of(tmp_path, ledger, fakes).run(until=Stage.EXPORT)
    (tmp_path / "runs" / run.id / "train" / "file").write_text("torn")
    assert engine_of(tmp_path, ledger, fakes).run().state is RunState.PROMOTED
    assert (tmp_path / "journal").read_text().count("train begun") == 2


def test_an_interruption_is_no_failure(tmp_path: Path, ledger: Ledger) -> None:
    def stopped(_: StepContext) -> Done:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_of(tmp_path, ledger, [step(Stage.INTAKE, stopped)]).run()
    assert ledger.runs()[0].state is RunState.RUNNING


def test_rollback_goes_back_step_by_step_and_the_run_is_marked(tmp_path: Path) -> None:
    runs = [run_fake(tmp_path) for _ in range(3)]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert rollback(tmp_path, ledger).run_id == runs[1].id
        assert rollback(tmp_path, ledger).run_id == runs[0].id
        with pytest.raises(RetrainError, match="no champion before"):
            rollback(tmp_path, ledger)
        states = [run.state for run in ledger.runs()]
    assert states == [RunState.PROMOTED, RunState.ROLLED_BACK, RunState.ROLLED_BACK]
    champion = read_champion(tmp_path)
    assert champion is not None
    assert champion.run_id == runs[0].id
    later = run_fake(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert [each.run_id for each in succession(ledger.switches())] == [runs[0].id, later.id]
        assert rollback(tmp_path, ledger).run_id == runs[0].id


def test_a_rollback_to_a_damaged_file_is_refused_and_the_champion_stays(tmp_path: Path) -> None:
    first, second = run_fake(tmp_path), run_fake(tmp_path)
    fallback = read_fallback(tmp_path)
    assert fallback is not None
    assert fallback.run_id == first.id
    fallback.path.write_bytes(b"x" * fallback.n_bytes)
    with Ledger(tmp_path / "ledger.sqlite") as ledger, pytest.raises(RegistryError, match="SHA-256"):
        rollback(tmp_path, ledger)
    champion = read_champion(tmp_path)
    assert champion is not None
    assert champion.run_id == second.id


def test_a_rollback_killed_right_after_its_switch_is_settled_by_the_next_command(tmp_path: Path) -> None:
    first, second = run_fake(tmp_path), run_fake(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        before = read_fallback(tmp_path)
        assert before is not None
        switch(tmp_path, ledger, SwitchKind.ROLLBACK, before)  # and here the process dies
        assert [each.is_done for each in ledger.switches()] == [True, True, False]
        settle(tmp_path, ledger)
        assert all(each.is_done for each in ledger.switches())
        assert ledger.run(second.id).state is RunState.ROLLED_BACK
        assert [each.run_id for each in succession(ledger.switches())] == [first.id]


def test_a_promotion_killed_right_after_its_switch_does_not_undo_a_rollback(tmp_path: Path) -> None:
    first = run_fake(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        steps = fake_steps(tmp_path, ledger)

        def killed(context: StepContext) -> Done:
            steps[-1].work(context)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine_of(tmp_path, ledger, [*steps[:-1], step(Stage.PROMOTE, killed)]).run()
        assert rollback(tmp_path, ledger).run_id == first.id
        assert [run.state for run in ledger.runs()] == [RunState.PROMOTED, RunState.ROLLED_BACK]
        assert ledger.resumable(3) is None


def promoted(registry: Path, ledger: Ledger, hits: int) -> str:
    """The id of a champion whose gate counted so many of 100 cases right."""
    run = ledger.begin_run()
    source = registry / "model.gguf"
    source.write_text(run.id)
    model = install(registry, source, sha256=digest(source), run_id=run.id, self_test=SelfTest(), details={})
    rates = {"challenger": {"core": {"overall": {"hits": hits, "total": 100}}}, "champion": None}
    result = {"fingerprints": {"core": "v1"}, "champion": None, "rates": rates}
    attempt = ledger.begin_attempt(run.id, Stage.COMPARE)
    ledger.complete(run.id, attempt, StageRecord(Stage.COMPARE, "", {}, result, 0.0, ""), None)
    number = switch(registry, ledger, SwitchKind.PROMOTE, model, run.id)
    ledger.settle_switch(number, took_place=True)
    ledger.finish_run(run.id, Stop(RunState.PROMOTED, ""))
    return model.id


def test_the_best_champion_of_the_last_weeks_is_the_one_with_the_best_record(tmp_path: Path, ledger: Ledger) -> None:
    long_ago, later = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime.now(dt.UTC) + dt.timedelta(days=1)

    def best(present: str, version: str = "v1", since: dt.datetime = long_ago) -> str | None:
        return best_champion(tmp_path, ledger, {"core": version}, since, present)

    first, second, third = (promoted(tmp_path, ledger, hits) for hits in (90, 85, 80))
    assert best(third) == first
    assert best(third, since=later) is None, "both were replaced longer ago"
    assert best(third, version="v2") is None, "records on other cases say nothing"
    shutil.rmtree(tmp_path / "models" / first)
    assert best(third) == second
    assert best(promoted(tmp_path, ledger, 86)) is None, "the present one is the best"
    assert rollback(tmp_path, ledger).id == third
    assert best(third) == second, "what was rolled back is no measure"


def test_what_a_rollback_leaves_is_nothing_to_fall_back_on(tmp_path: Path) -> None:
    runs = [run_fake(tmp_path) for _ in range(3)]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        rollback(tmp_path, ledger)
    fallback = read_fallback(tmp_path)
    assert fallback is not None
    assert fallback.run_id != runs[2].id


def test_an_adopted_file_is_champion_until_something_is_promoted(tmp_path: Path, ledger: Ledger) -> None:
    source = tmp_path / "mine.gguf"
    source.write_bytes(b"GGUF")
    adopted = adopt(tmp_path, ledger, source, SelfTest())
    assert champion_id(tmp_path) == adopted.id
    run_fake(tmp_path)
    assert rollback(tmp_path, ledger).id == adopted.id


def test_a_file_other_than_the_judged_one_is_not_installed(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF judged")
    judged = digest(source)
    source.write_bytes(b"GGUF swapped")
    with pytest.raises(RegistryError, match="not the file that was judged"):
        install(tmp_path, source, sha256=judged, run_id="run", self_test=SelfTest(), details={})
    assert [path.name for path in (tmp_path / "models").iterdir()] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: model.path.write_bytes(b"short"), "5 bytes"),
        (lambda model: model.path.write_bytes(b"x" * model.n_bytes), "SHA-256"),
        (lambda model: model.path.unlink(), "cannot be read"),
    ],
)
def test_a_damaged_file_does_not_verify(
    damage: Callable[[RegisteredModel], object], message: str, tmp_path: Path
) -> None:
    run_fake(tmp_path)
    champion = read_champion(tmp_path)
    assert champion is not None
    verify_file(champion)
    damage(champion)
    with pytest.raises(RegistryError, match=message):
        verify_file(champion)


@pytest.mark.parametrize(("usable", "calls", "must_call", "passes"), [
    (True, 0, False, True), (True, 0, True, False), (False, 1, False, False), (True, 1, True, True),
])  # fmt: skip
def test_a_self_test_wants_a_usable_reply_and_a_call_where_one_is_due(
    usable: bool, calls: int, must_call: bool, passes: bool, tmp_path: Path
) -> None:
    model = RegisteredModel("m", tmp_path, "", 0, self_test=SelfTest(must_call=must_call))
    if passes:
        check_answers(model, lambda _: (usable, calls))
        return
    with pytest.raises(RegistryError, match="self-test"):
        check_answers(model, lambda _: (usable, calls))


def test_a_card_that_is_none_is_named(tmp_path: Path) -> None:
    run_fake(tmp_path)
    (tmp_path / "champion" / "model.json").write_text(json.dumps({"sha256": "0"}))
    with pytest.raises(RegistryError, match=r"model\.json: no model card: key 'self_test' is missing"):
        read_champion(tmp_path)


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("not a database, but long enough to be looked at as one" * 40)
    with pytest.raises(RetrainError, match=r"ledger\.sqlite"):
        Ledger(tmp_path / "ledger.sqlite")
