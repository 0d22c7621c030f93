"""The page of an evaluation: what it shows, that nothing in a reply gets out of its place, and its filter."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from eval.backends import Failure, PlaybackBackend
from eval.backends.playback import Recorded
from eval.cases import Suite
from eval.evaluate import evaluate, size_on_disk
from eval.matching import REMEDY, Outcome
from eval.page import evaluation_page, write_page
from eval.report import PUBLISHED
from eval.results import CaseResult, EvalResult, load_result
from eval.suites import load_suite
from scripts import evaluate as evaluate_script
from tests.eval.gold_answers import gold_calls
from tinydispatch.formats import render_calls

DEV = load_suite("dev")
GOLD: Mapping[str, str] = {prompt: render_calls(calls) or "What?" for prompt, calls in gold_calls(DEV).items()}
EVIL = """</pre><script>document.title = "owned"</script><img src=x onerror='document.title="owned"'>&amp;"'"""


def run(name: str, replies: Mapping[str, Recorded] | None = None, suite: Suite = DEV) -> EvalResult:
    return evaluate(PlaybackBackend({**GOLD, **(replies or {})}), suite, model_name=name, progress=False)


def failing(count: int, reply: Recorded = "No idea.") -> dict[str, Recorded]:
    """One reply to the first `count` requests that want a call."""
    return {case.prompt: reply for case in [case for case in DEV.cases if case.expected][:count]}


class Elements(html.parser.HTMLParser):
    """Every element with its attributes, and the text of what carries a given class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def cases(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == "details"]


def test_each_case_that_a_model_failed_is_there_with_what_was_wanted_and_why() -> None:
    page = evaluation_page([run("a", failing(3)), run("b", failing(1))])
    cases = Elements(page).cases()
    assert [case["data-outcomes"] for case in cases] == ["no_call no_call", "no_call correct", "no_call correct"]
    assert {case["data-suite"] for case in cases} == {"dev"}
    wanted = next(case for case in DEV.cases if case.expected)
    assert f"<pre>{wanted.prompt}</pre>" in page
    assert wanted.expected[0].name in page
    assert "No idea." in page
    assert "117/120" in page
    assert "119/120" in page
    assert REMEDY[Outcome.NO_CALL].split(";")[0] in page
    assert "B − A = +1.7 points" in page
    assert "only A passes 0, only B passes 2" in page


def test_links_of_cells_lead_to_the_cases_that_they_count() -> None:
    page = evaluation_page([run("a", failing(3)), run("b", failing(1))])
    links = [attributes["href"] for tag, attributes in Elements(page).found if tag == "a"]
    category = next(case for case in DEV.cases if case.expected).category
    assert f"#suite=dev&category={category}&model=0" in links
    assert "#suite=dev&model=1&outcome=no_call" in links


def test_nothing_in_a_reply_or_a_name_becomes_markup() -> None:
    replies = failing(1, EVIL)
    result = replace(run("a", replies), model_name=EVIL, suite=f"s {EVIL}", categories=(*DEV.categories, EVIL))
    elements = Elements(evaluation_page([result, run("b", replies)])).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert "img" not in {tag for tag, _ in elements}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


def test_the_page_allows_no_script_but_its_own_and_asks_for_no_other_file() -> None:
    page = evaluation_page([run("a", failing(1))])
    policy = next(attributes for tag, attributes in Elements(page).found if "http-equiv" in attributes)
    assert re.search(r"default-src 'none'; .*script-src 'sha256-[A-Za-z0-9+/=]{44}'$", policy["content"] or "")
    assert not re.search(r"https?://|src=|@import|url\(", page)


def test_a_rate_over_unscored_cases_has_no_number_of_cases_and_no_colour() -> None:
    page = evaluation_page([run("a", failing(2, Failure("no room")))])
    assert "118<small> +2 not scored</small>" in page
    assert "118/120" not in page
    assert page.count('class="seg o-unscored" style="flex:2"') == 1
    assert "no room" in page


def test_models_on_versions_of_a_suite_are_not_compared() -> None:
    page = evaluation_page([run("a"), replace(run("b"), suite_fingerprint="0")])
    assert "not compared: the results are on different versions" in page


def test_published_figures_stand_in_a_table_of_their_own() -> None:
    page = evaluation_page([replace(run("a"), suite="toolbench")])
    ours, _, theirs = page.partition('class="reference"')
    assert "77.55 %" not in ours
    assert "77.55 %" in theirs
    assert "Not comparable" in theirs
    assert all(len(row) == len(table.columns) for table in PUBLISHED.values() for row in table.rows.values())


def test_costs_stand_beside_the_rates(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"0" * 1_200_000)
    (tmp_path / "checkpoint" / "tokenizer.json").write_text("{}")
    size = size_on_disk(tmp_path / "checkpoint")
    result = replace(run("a"), size_bytes=size)
    assert size_on_disk("http://localhost:1/v1#m") is None
    assert "<td>1.2 MB</td>" in evaluation_page([result])
    assert load_result(result.save(tmp_path)) == result


def test_tokens_are_counted_by_reply() -> None:
    case = run("a").cases[0]
    played = replace(case, tokens=30, transcript=({"role": "assistant"}, {"role": "tool"}, {"role": "assistant"}))
    result = replace(run("a"), cases=(replace(case, tokens=12), played, replace(case, tokens=None)))
    assert result.tokens_per_reply == 14
    assert replace(result, cases=()).tokens_per_reply is None


def test_half_a_character_does_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    case = replace(run("a").cases[0], outcome=Outcome.NO_CALL, got="\ud83d", explanation="\ud83d")
    page = write_page([replace(run("a"), cases=(case,))], tmp_path / "deep" / "page.html")
    assert "\\ud83d" in page.read_text("utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_an_evaluation_leaves_its_page_and_saved_results_make_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: PlaybackBackend({**GOLD, **failing(1)}))
    assert evaluate_script.main(["a.gguf", "--suite", "dev", "--out", str(tmp_path)]) == 0
    assert len(Elements((tmp_path / "report.html").read_text("utf-8")).cases()) == 1
    other = tmp_path / "other.html"
    assert evaluate_script.main(["page", str(tmp_path / "dev-a.json"), "--out", str(other)]) == 0
    assert other.read_bytes() == (tmp_path / "report.html").read_bytes()
    assert evaluate_script.main(["page", str(tmp_path / "absent.json"), "--out", str(other)]) == 2
    assert "absent.json: cannot be read" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "count"),
    [("", 5), ("#model=1", 2), ("#suite=dev&model=0&text=nosuchword", 0), ("#change=lost", 0), ("#change=won", 3)],
)
def test_a_browser_runs_the_filter_without_errors_and_no_planted_script(
    tmp_path: Path, address: str, count: int
) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = write_page([run("a", failing(5, EVIL)), run("b", failing(2, EVIL))], tmp_path / "page.html")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"file://{page}{address}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert f"{count} of 5 shown" in done.stdout
    shown = [case for case in Elements(done.stdout).cases() if "hidden" not in case]
    assert len(shown) == count
    assert "<title>Evaluation: a, b</title>" in done.stdout
    assert "CONSOLE" not in done.stderr, "neither an error of the page's own script nor a script that was blocked"


def test_a_case_without_a_difference_has_no_empty_one() -> None:
    case = CaseResult("x", "c", "Hi", (), "", Outcome.EXTRA_CALL, "", 0.0, 0)
    page = evaluation_page([EvalResult("own", "0", "m", ("c",), (case,))])
    assert "no call, but text" in page
    assert "(nothing)" in page
    assert "difference</span>" not in page
