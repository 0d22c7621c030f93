from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval.matching import Outcome
from eval.results import CaseResult, EvalResult
from export.bundle import BundleError, BundleInput, check_bundle, write_bundle
from export.choice import Verdict
from export.errors import ExportError
from scripts import bundle as script
from scripts.push_to_hub import main as push_main
from scripts.push_to_hub import push
from tests.fixtures_gguf import tiny_export
from tinydispatch.bundled import bundled_tools


def _result(model: str, *verdicts: bool) -> EvalResult:
    cases = tuple(
        CaseResult(f"c{n}", "tool_selection", "hi", (), "", Outcome.CORRECT if good else Outcome.NO_CALL, "", 0.1, 3)
        for n, good in enumerate(verdicts)
    )
    return EvalResult("core", "abc123", model, ("tool_selection",), cases)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that ended: its GGUF files, their report and its results."""
    folder = tmp_path / "runs" / "nano"
    source = tiny_export().files[0].path.parent
    shutil.copytree(source, folder / "gguf")
    for path in list((folder / "gguf").iterdir()):
        path.rename(path.with_name(path.name.replace("tiny", "nano")))
    report = folder / "gguf" / "nano-export.json"
    report.write_text(report.read_text("utf-8").replace("tiny-", "nano-"), "utf-8")
    for model in ("base", "checkpoint", "gguf-f16", "gguf-q8_0"):
        _result(model, model != "base", False).save(folder / "eval")
    return folder


@pytest.fixture
def contents(run_folder: Path) -> BundleInput:
    return BundleInput(
        name="nano",
        report=run_folder / "gguf" / "nano-export.json",
        default="nano-q8_0.gguf",
        verdicts={"q8_0": Verdict(40, 9, 0, 0.004), "f16": Verdict(40, 1, 2, 1.0)},
        tools=bundled_tools(),
        base="someone/some-base",
        licence="apache-2.0",
        recipe={"method": "full"},
        results=[_result("checkpoint", True, True, False)],
        data=None,
    )


def test_a_bundle_holds_everything_and_its_manifest_every_hash(contents: BundleInput, tmp_path: Path) -> None:
    folder = write_bundle(contents, tmp_path / "bundle")
    names = {path.name for path in folder.iterdir()}
    files = {"nano-f16.gguf", "nano-q8_0.gguf", "README.md", "Modelfile", "tools.json"}
    assert names == files | {"manifest.json"}
    manifest = check_bundle(folder)
    assert set(manifest["files"]) == files
    assert manifest["default"] == "nano-q8_0.gguf"
    assert len(json.loads((folder / "tools.json").read_text("utf-8"))) == len(bundled_tools())
    assert "FROM ./nano-q8_0.gguf" in (folder / "Modelfile").read_text("utf-8")


def test_the_card_says_what_was_measured_on_how_many_cases(contents: BundleInput, tmp_path: Path) -> None:
    card = (write_bundle(contents, tmp_path / "bundle") / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "\nbase_model: someone/some-base\n" in card
    assert "\nlicense: apache-2.0\n" in card
    assert "| checkpoint | 2/3 | 2/3 (21% to 94%) |" in card
    assert "+0 −9 of 40, p = 0.00: **significantly worse**" in card
    assert "+2 −1 of 40, p = 1.00 |" in card


def test_a_card_without_results_or_licence_says_so(contents: BundleInput, tmp_path: Path) -> None:
    bare = replace(contents, results=[], verdicts={}, licence=None, base="weights/here/")
    card = (write_bundle(bare, tmp_path / "bundle") / "README.md").read_text("utf-8")
    assert "Not evaluated." in card
    assert "not evaluated |" in card
    assert "license:" not in card
    assert "base_model:" not in card


def test_a_new_bundle_replaces_the_old_one_and_nothing_else(contents: BundleInput, tmp_path: Path) -> None:
    folder = write_bundle(contents, tmp_path / "bundle")
    write_bundle(replace(contents, name="again"), folder)
    assert check_bundle(folder)["name"] == "again"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("", "utf-8")
    with pytest.raises(BundleError, match="is not empty and no bundle"):
        write_bundle(contents, tmp_path / "precious")


def test_a_file_that_changed_since_its_verification_is_not_bundled(contents: BundleInput, tmp_path: Path) -> None:
    path = contents.report.parent / "nano-f16.gguf"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"nano-f16\.gguf: changed since it was verified"):
        write_bundle(contents, tmp_path / "bundle")
    path.unlink()
    with pytest.raises(BundleError, match=r"nano-f16\.gguf: missing"):
        write_bundle(contents, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_is_not_whole_is_refused_by_file(contents: BundleInput, tmp_path: Path) -> None:
    folder = write_bundle(contents, tmp_path / "bundle")
    (folder / "notes.txt").write_text("", "utf-8")
    with pytest.raises(BundleError, match=r"notes\.txt: not in the manifest"):
        check_bundle(folder)
    (folder / "notes.txt").unlink()
    (folder / "README.md").write_text("other words", "utf-8")
    with pytest.raises(BundleError, match=r"README\.md: changed"):
        check_bundle(folder)
    (folder / "README.md").unlink()
    with pytest.raises(BundleError, match=r"README\.md: missing"):
        check_bundle(folder)
    with pytest.raises(BundleError, match=r"manifest\.json: no such file"):
        check_bundle(tmp_path / "nowhere")


class _PlaybackHub:
    def __init__(self, error: OSError | None = None) -> None:
        self.error = error
        self.calls: list[dict[str, object]] = []

    def create_repo(self, repo_id: str, **options: object) -> None:
        if self.error:
            raise self.error
        self.calls.append({"repo_id": repo_id, **options})

    def upload_folder(self, **options: object) -> None:
        self.calls.append(options)


def test_a_push_sends_exactly_what_the_manifest_lists(contents: BundleInput, tmp_path: Path) -> None:
    folder = write_bundle(contents, tmp_path / "bundle")
    hub = _PlaybackHub()
    manifest = check_bundle(folder)
    push(hub, folder, "me/nano", manifest, is_public=False)
    made, sent = hub.calls
    assert (made["repo_id"], made["private"]) == ("me/nano", True)
    patterns = sent["allow_patterns"]
    assert isinstance(patterns, list)
    assert set(patterns) == {path.name for path in folder.iterdir()}


def test_a_refusal_of_the_hub_is_one_line(contents: BundleInput, tmp_path: Path) -> None:
    folder = write_bundle(contents, tmp_path / "bundle")
    with pytest.raises(ExportError, match="me/nano: no network"):
        push(_PlaybackHub(OSError("no network")), folder, "me/nano", check_bundle(folder), is_public=True)


def test_a_dry_run_shows_the_plan_and_needs_no_account(
    contents: BundleInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(contents, tmp_path / "bundle")
    assert push_main([str(folder), "me/nano", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "me/nano (private)" in printed
    assert "nano-q8_0.gguf" in printed
    assert "dry run: nothing was sent" in printed


def test_publishing_needs_a_licence_and_a_sound_name(
    contents: BundleInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(replace(contents, licence=None), tmp_path / "bundle")
    assert push_main([str(folder), "me/nano", "--public", "--dry-run"]) == 2
    assert "'licence' is null" in capsys.readouterr().err
    assert push_main([str(folder), "nano", "--dry-run"]) == 2
    assert "'nano' names no repository" in capsys.readouterr().err


def test_the_script_bundles_a_finished_run_and_offers_its_smallest_good_file(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--config", "nano", "--licence", "apache-2.0", f"runs_dir={run_folder.parent}"]) == 0
    assert "push_to_hub" in capsys.readouterr().out
    manifest = check_bundle(run_folder / "bundle")
    assert manifest["default"] == "nano-q8_0.gguf"
    card = (run_folder / "bundle" / "README.md").read_text("utf-8")
    assert "| gguf-q8_0 | 1/2 |" in card
    assert "+0 −0 of 2, p = 1.00" in card


def test_a_significantly_worse_file_is_marked_and_not_offered_although_it_is_smaller(run_folder: Path) -> None:
    good, worse = (True,) * 20, (True,) * 10 + (False,) * 10
    for model, verdicts in (("base", worse), ("checkpoint", good), ("gguf-f16", good), ("gguf-q8_0", worse)):
        _result(model, *verdicts).save(run_folder / "eval")
    assert script.main(["--config", "nano", f"runs_dir={run_folder.parent}"]) == 0
    folder = run_folder / "bundle"
    assert check_bundle(folder)["default"] == "nano-f16.gguf"
    assert "FROM ./nano-f16.gguf" in (folder / "Modelfile").read_text("utf-8")
    card = (folder / "README.md").read_text("utf-8")
    assert "+0 −10 of 20, p = 0.00: **significantly worse**" in card
    assert "Take **nano-f16.gguf**" in card
    assert "nano-q8_0.gguf --" not in card, "a command that runs the worse file"


def test_a_run_without_an_export_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--config", "nano", f"runs_dir={tmp_path}"]) == 2
    assert "nano-export.json: no such file; export first" in capsys.readouterr().err
