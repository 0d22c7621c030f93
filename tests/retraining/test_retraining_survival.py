"""Killed at any moment, a run goes on; two at once, one works; the champion is a verified file all along."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from retraining.errors import BudgetExceededError, CommandFailedError, LockHeldError
from retraining.ledger import Ledger
from retraining.lock import Holder, boot_id, is_alive, read_holder, run_lock, start_time
from retraining.process import MARKER, run_command, stop_leftovers
from retraining.stages import RunState, Stage
from tests.retraining.fakes_retraining import LOCKED, run_fake
from tinydispatch.registry import read_champion, verify_file

ROOT = Path(__file__).resolve().parents[2]


def start(registry: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.retraining.fakes_retraining", str(registry), str(pause_s)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_attempt(registry: Path, stage: Stage | None = None) -> int:
    """The number of the latest attempt at a stage, or at any; 0 where there was none."""
    try:
        with sqlite3.connect(f"file:{registry / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            where = "" if stage is None else f"WHERE stage = '{stage}'"
            return int(db.execute(f"SELECT coalesce(max(id), 0) FROM attempts {where}").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not there yet


def wait_for_stage(registry: Path, stage: Stage, process: subprocess.Popen[str], before: int = 0) -> bool:
    """Until this process begins the stage; False where it ends without."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if last_attempt(registry, stage) > before:
            return True
        time.sleep(0.002)
    return False


def check_consistent(registry: Path) -> None:
    """What must hold at every moment, whatever was killed."""
    champion = read_champion(registry)
    if champion is not None:
        verify_file(champion)
    with Ledger(registry / "ledger.sqlite") as ledger:
        assert ledger._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        running = [run for run in ledger.runs() if run.state is RunState.RUNNING]
        assert len(running) <= 1
        for run in ledger.runs():
            stages = [record.stage for record in ledger.stages(run.id)]
            assert stages == list(Stage)[: len(stages)], "stages are complete in their order, without holes"
            if run.state is RunState.PROMOTED:
                assert stages == list(Stage)


def check_nothing_done_twice(registry: Path) -> None:
    """A stage that the ledger had as complete was never begun again."""
    begun = Counter((registry / "journal").read_text().split("\n"))
    with Ledger(registry / "ledger.sqlite") as ledger:
        for run in ledger.runs():
            killed = Counter(each["stage"] for each in ledger.attempts(run.id) if each["seconds"] is None)
            for stage in Stage:
                if stage is not Stage.PROMOTE:
                    assert begun[f"{run.id} {stage} begun"] <= killed[stage] + 1


def kill_in(registry: Path, stage: Stage, pause_s: float, chance: random.Random) -> None:
    """Kill a run at a random moment of a stage; a run that is past it is let through, and the next one killed."""
    for _ in range(3):
        before = last_attempt(registry)
        process = start(registry, pause_s)
        if wait_for_stage(registry, stage, process, before):
            time.sleep(chance.uniform(0, pause_s))
            process.kill()
        _, error = process.communicate()
        check_consistent(registry)
        if process.returncode == -signal.SIGKILL:
            return
        assert process.returncode == 0, error
    raise AssertionError(f"no process could be killed in stage {stage}")


@pytest.mark.slow
def test_killed_thirty_times_over_all_stages_every_run_completes_in_the_end(tmp_path: Path) -> None:
    chance = random.Random(20)
    stages = [*Stage, *Stage, *Stage, *chance.choices(list(Stage), k=6)]
    for stage in stages:
        kill_in(tmp_path, stage, 0.15, chance)
    process = start(tmp_path, 0.0)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.strip() == "promoted"
    check_consistent(tmp_path)
    check_nothing_done_twice(tmp_path)
    champion = read_champion(tmp_path)
    assert champion is not None
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert champion.run_id == ledger.runs()[-1].id
        assert all(each.is_done for each in ledger.switches())
        assert all(run.state is RunState.PROMOTED for run in ledger.runs())
        assert len(ledger.runs()) >= 3


def test_a_run_killed_while_training_goes_on_there(tmp_path: Path) -> None:
    process = start(tmp_path, 0.4)
    wait_for_stage(tmp_path, Stage.TRAIN, process)
    process.kill()
    process.communicate()
    check_consistent(tmp_path)
    assert run_fake(tmp_path).state is RunState.PROMOTED
    begun = Counter((tmp_path / "journal").read_text().split("\n"))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        (run,) = ledger.runs()
    assert begun[f"{run.id} intake begun"] == begun[f"{run.id} prepare begun"] == 1
    assert begun[f"{run.id} train begun"] == 2
    check_consistent(tmp_path)


def test_of_two_runs_at_once_one_works_and_the_other_says_who_does(tmp_path: Path) -> None:
    first = start(tmp_path, 0.3)
    wait_for_stage(tmp_path, Stage.INTAKE, first)
    second = start(tmp_path, 0.0)
    _, error = second.communicate(timeout=60)
    assert second.returncode == LOCKED
    assert f"process {first.pid} on " in error
    out, _ = first.communicate(timeout=60)
    assert (first.returncode, out.strip()) == (0, "promoted")


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    process = start(tmp_path, 1.0)
    wait_for_stage(tmp_path, Stage.INTAKE, process)
    process.kill()
    process.communicate()
    holder = read_holder(tmp_path / "lock")
    assert holder is not None
    assert holder.pid == process.pid
    with run_lock(tmp_path / "lock"):
        taken = read_holder(tmp_path / "lock")
        assert taken is not None
        assert taken.pid == os.getpid()
    assert read_holder(tmp_path / "lock") is None


def test_a_holder_on_a_machine_that_cannot_be_asked_keeps_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    there = Holder(1, "elsewhere", "other-boot", "5", "2026-01-01T00:00:00+00:00")
    lock.write_text(json.dumps(vars(there)))
    with pytest.raises(LockHeldError, match="process 1 on elsewhere"), run_lock(lock):
        pass


def test_a_later_process_with_the_same_id_is_not_the_holder() -> None:
    pid = os.getpid()
    assert is_alive(Holder(pid, "here", boot_id(), start_time(pid), ""))
    assert not is_alive(Holder(pid, "here", boot_id(), "1", ""))
    assert not is_alive(Holder(pid, "here", "before the restart", start_time(pid), ""))


def test_a_command_is_stopped_with_all_it_started_when_its_time_is_up(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"]
    with pytest.raises(BudgetExceededError):
        run_command(command, log=tmp_path / "log", marker="m", folder=tmp_path, deadline=time.monotonic() + 1.0)
    deadline = time.monotonic() + 10
    while start_time(int(pid_file.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(int(pid_file.read_text())) == ""


def test_a_command_that_fails_is_quoted_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match=r"status 3(.|\n)*no such tensor"):
        run_command(["sh", "-c", "echo no such tensor; exit 3"], log=tmp_path / "log", marker="m", folder=tmp_path)


def test_what_a_killed_run_left_running_is_stopped_by_the_next(tmp_path: Path) -> None:
    environment = {**os.environ, MARKER: str(tmp_path)}
    orphan = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, MARKER: "another registry"})
    try:
        while MARKER.encode() not in Path(f"/proc/{orphan.pid}/environ").read_bytes():
            time.sleep(0.01)  # between fork and exec it is still a copy of this process
        assert orphan.pid in stop_leftovers(str(tmp_path))
        assert orphan.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
