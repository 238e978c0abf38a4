"""Writing a report: its content, its errors, and that it is reproducible."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlt_data.reporting.overview import overview
from rlt_data.reporting.report import ReportSummary, report
from rlt_data.settings import ReportSettings, parse_settings
from rlt_data.statistics import stats
from rlt_data.storage.columns import MEANINGS
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.made_runs import distilled, drop_part, make_run, ranked, trace


def reported(run: RunFolder | Path, **keys: object) -> ReportSummary:
    path = run.path if isinstance(run, RunFolder) else run
    return report(parse_settings(ReportSettings, {"in": str(path), **keys}))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = make_run(tmp_path / "run", [trace(q, i, i - 0.5) for q in "abc" for i in range(2)])
    ranked(run)
    return run


def test_the_same_run_gives_the_same_file(run: RunFolder) -> None:
    one, other = reported(run, out="one.html"), reported(run, out="other.html")
    assert one.out.read_bytes() == other.out.read_bytes()
    assert (one.traces, one.all_traces, one.questions, one.size) == (6, 6, 3, one.out.stat().st_size)


def test_the_page_loads_nothing(run: RunFolder) -> None:
    text = reported(run).out.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:,)""", text) and "@import" not in text
    assert "default-src 'none'" in text and "unsafe-eval" not in text and str(Path.cwd()) not in text


def test_the_overview_has_the_numbers_of_stats(run: RunFolder) -> None:
    figures, text = stats(run), overview({"run": run})
    cells = [re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<t[dh].*?>.*?</t[dh]>", text, re.S)]

    def cell(name: str, value: object) -> str:
        if isinstance(value, float):
            return f"{value:.1%}" if name == "well_formed" else f"{value:g}" if "tokens" in name else f"{value:,.3f}"
        return str(value) if str(value).startswith("r_") else str(value).replace("_", " ")

    for row in figures.buckets.iter_rows(named=True):
        wanted = [cell(name, value) for name, value in row.items()]
        assert any(cells[at : at + len(wanted)] == wanted for at in range(len(cells))), wanted
    for row in figures.terms.filter(figures.terms["mean"].is_not_null()).iter_rows(named=True):
        wanted = [cell(row["term"], value) for value in row.values()]
        assert any(cells[at : at + len(wanted)] == wanted for at in range(len(cells))), wanted
    text = re.sub("<span.*?>|</span>", "", text)
    cards = dict(re.findall(r"<dt>\s*(.*?)\s*</dt><dd>(.*?)</dd>", text.partition('id="glossary"')[0]))
    assert cards["traces"] == "6" and cards["mean reward"] == "0.000" and cards["well formed"] == "100.0%"
    assert "in the data set" not in cards


def test_tokens_are_counted_in_whole_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, thought_tokens=1234), trace("a", 1, thought_tokens=1235)])
    row = overview({"run": run}).partition(">thought tokens<")[2].partition("</tr>")[0]
    assert re.findall(r'<td class="num">(.*?)</td>', row)[::6] == ["1,234.5", "1,235"]  # mean, max


def test_terms_are_explained_where_they_are_shown(run: RunFolder) -> None:
    tables, glossary = overview({"run": run}), overview({"run": run}).partition('id="glossary"')[2]
    for term in ("reward", "r_ss", "r_kl", "rank", "bucket"):
        assert f"<dt>{term}</dt><dd>{MEANINGS[term]}</dd>" in glossary
    for term in ("r_ss", "r_kl", "bucket", "kl_max"):
        meaning, name = MEANINGS[term], term.replace("kl_", "kl ") if term[0] == "k" else term
        assert f'data-meaning="{meaning}" aria-description="{meaning}">{name}<' in tables
    assert f'<td class="meaning">{MEANINGS["penalty"]}</td>' in tables


def test_a_limit_is_reported(rlt: Rlt, run: RunFolder) -> None:
    result = rlt("report", run.path, "--limit", 3)
    assert "2 of 6 traces (--limit)" in result.output
    assert "--per-token" in result.output
    [note] = re.findall(r'<p class="note">(.*?)</p>', Path("report.html").read_text(), re.S)
    assert re.findall(r"\d+ of \d+", note) == ["2 of 6", "1 of 3"]


def test_runs_without_scores_or_traces(rlt: Rlt, tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", [trace("a", 0, 1.0)])
    drop_part(bare, "scores", 0)
    assert reported(bare).traces == 1
    RunFolder(tmp_path / "empty").record("generate", {"settings": {}})
    assert "rlt-data generate" in rlt("report", tmp_path / "empty", code=5).output


def test_mistakes(rlt: Rlt, run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [trace("z", 0, 1.0)])
    (tmp_path / "folder").mkdir()
    for options, code, message in [
        (["nothing"], 5, "nothing: no such run folder"),
        ([run.path, "--against", "nothing"], 5, "nothing: no such run folder"),
        ([run.path, "--against", run.path], 2, f"--against: {run.path}"),
        ([run.path, "--against", other.path], 2, "--against"),
        ([run.path, "--limit", 0], 2, "--limit: must be greater than or equal to 1 (got 0)"),
        ([run.path, "--out", tmp_path / "folder"], 7, "folder"),
        ([run.path, "--out", tmp_path / "none" / "there" / "report.html"], 0, "report.html: all 6 traces"),
        ([run.path, "--out", "s3://bucket/report.html"], 2, "--out: "),
    ]:
        assert message in rlt("report", *options, code=code).output, options
    assert not list((tmp_path / "folder").iterdir())


def test_runs_of_the_same_name_are_shown_by_path(run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "elsewhere" / "run", [trace("a", 0, 1.0)])
    text = reported(run, against=str(other.path)).out.read_text()
    assert f'"{run.path}", "{other.path}"' in text


def test_scores_with_different_settings_give_a_warning(run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [trace("a", 0, 1.0)])
    run.record("score", {"depends_on": {"lambda": 3.0, "student": "x", "teacher": "t"}})
    other.record("score", {"depends_on": {"lambda": 1.0, "student": "x", "teacher": "u"}})
    text = " ".join(overview({"one": run, "other": other}).split())
    assert re.findall(r'<p class="note warn">[^<]*\((.*?)\)', text) == ["lambda"]


def test_local_paths_are_redacted(run: RunFolder) -> None:
    settings = {"teacher": "/home/me/models/teacher", "url": ["http://10.0.0.1:8000/v1"], "n": 2}
    run.record("generate", {"settings": settings, "models": {"teacher": {
        "name": "/home/me/models/teacher", "dtype": "float32", "weights": "0a"}}})  # fmt: skip
    text = overview({"run": run})
    assert "teacher (float32, 0a)" in text and "/home/me" not in text and "10.0.0.1" not in text


def test_the_page_shows_how_the_data_set_was_selected(run: RunFolder) -> None:
    assert "Selection of the data set" not in overview({"run": run})
    summary = distilled(run, where="origin <> '<b>' OR reward < 0", select="all")
    text = overview({"run": run}).partition("Selection of the data set")[2].partition("</section>")[0]
    rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", text, re.S)][1:]
    assert rows == [
        ["well-formed", "6", "6", "3", "0", ""],
        ["origin &lt;&gt; &#39;&lt;b&gt;&#39; OR reward &lt; 0", "6", "3", "3", "3", "a/1, b/1, c/1"],
    ]
    assert summary.rows == 3 and "contaminated: not computed" in text
