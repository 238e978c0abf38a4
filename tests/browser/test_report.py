"""The report in a real browser."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from rlt_data.cli.main import app
from rlt_data.storage.run import RunFolder
from tests.browser.conftest import Shown, reported
from tests.made_runs import make_run, ranked, trace

Show = Callable[..., Shown]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of two nano teachers on the same questions, scored with --per-token."""
    folder = tmp_path_factory.mktemp("runs")

    def rlt(*arguments: object) -> None:
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        assert done.exit_code == 0, done.output

    problems = folder / "problems.jsonl"
    rlt("countdown", "make", "--out", problems, "--rows", 8, "--operators", "+-*", "--most", 3, "--largest", 14)
    paths = []
    for teacher in ("nano", "nano-teacher-warm"):
        run = folder / f"by-{teacher}"
        rlt("generate", "--teacher", teacher, "--in", problems, "--n", 4, "--max-tokens", 64, "--out", run)
        rlt("score", "--in", run, "--student", "nano", "--per-token", "--temperature", 0.7)
        rlt("rank", "--in", run)
        paths.append(run)
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(runs[0], tmp_path_factory.mktemp("page") / "report.html")


def table(run: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(run / name / "*.parquet")


def test_it_opens_from_a_file_without_requests(shown: Show, page: Path) -> None:
    window = shown(page)
    window.press("t", "j", "Enter")
    window.page.wait_for_selector(".trace")
    assert window.requests == [page.as_uri()] and window.complaints == []
    assert "fetch" not in window.run("document.querySelector('meta[http-equiv]').content")
    assert "connect-src 'none'" in window.run("document.querySelector('meta[http-equiv]').content")


def test_the_overview_has_statistics_and_plots(shown: Show, page: Path, runs: tuple[Path, Path]) -> None:
    window = shown(page)
    cards = dict(zip(window.texts(".cards dt"), window.texts(".cards dd"), strict=True))
    rewards = table(runs[0], "scores")["reward"]
    assert cards["traces"] == "32" and cards["mean reward"] == f"{rewards.mean():.3f}"
    assert "tokens/s, generate" in cards
    assert window.texts("figcaption b") == [
        "Reward distribution", "Reward by rank", "Reward by length", "r_ss", "solution logprob mean",
        "solution logprob min", "r_kl", "kl mean", "kl max",
    ]  # fmt: skip
    assert all(box["width"] > 200 for box in (each.bounding_box() for each in window.page.locator("svg").all()))
    assert window.page.locator("td").count() > 80


def test_search_sort_and_filters(shown: Show, page: Path, runs: tuple[Path, Path]) -> None:
    scores = table(runs[0], "scores").join(table(runs[0], "ranks").select("trace_id", "bucket"), on="trace_id")
    window = shown(page)
    window.press("t")
    assert window.count == "32 of 32"
    window.page.select_option("#bucket", "2")
    assert window.count == f"{scores.filter(bucket=2).height} of 32"
    window.press("Escape")
    window.page.click("#reset")
    window.wait_for_count("32 of 32")
    window.page.select_option("#kind", "good")
    assert window.count == f"{scores['well_formed'].sum()} of 32"
    window.page.click("#reset")
    middle = float(scores["reward"].median())  # type: ignore[arg-type]
    window.page.select_option("#term", "reward")
    window.page.fill("#low", str(middle))
    assert window.count == f"{(scores['reward'] >= middle).sum()} of 32"
    window.page.fill("#low", "")
    window.page.select_option("#sort", "reward")
    best = f"{scores['reward'].max():.3f}"
    assert window.texts(".item .figure b")[0] == best
    window.page.click("#direction")
    assert window.texts(".item .figure b")[0] == f"{scores['reward'].min():.3f}"
    window.press("/")
    window.wait("document.activeElement.id", "search")
    completion = table(runs[0], "traces")["completion"][5]
    piece = completion.removesuffix("</explanation>").strip()[-20:]
    window.page.keyboard.type(piece.upper())  # case does not count
    wanted = table(runs[0], "traces")["completion"].str.contains(piece, literal=True).sum()
    window.wait_for_count(f"{wanted} of 32")
    assert window.complaints == []


def test_a_question_has_all_its_traces_side_by_side(shown: Show, page: Path, runs: tuple[Path, Path]) -> None:
    window = shown(page)
    window.press("t", "j", "j", "Enter")
    window.page.wait_for_selector(".trace")
    boxes = [each.bounding_box() for each in window.page.locator(".trace").all()]
    assert len(boxes) == 4 and len({box["y"] for box in boxes if box}) == 1
    assert window.texts(".trace h3") == ["rank 1", "rank 2", "rank 3", "rank 4"]
    assert window.page.locator(".trace.chosen").count() == 1
    window.press("s")
    boxes = [each.bounding_box() for each in window.page.locator(".trace").all()]
    assert len({box["x"] for box in boxes if box}) == 1
    before = window.texts(".problem .text")
    window.press("]")
    window.wait(f"document.querySelector('.problem .text').textContent !== {before[0]!r}")
    window.press("[")
    window.wait("document.querySelector('.problem .text').textContent", before[0])
    window.press("Escape")
    assert window.run("document.activeElement.id") == "list"


def test_tokens_are_coloured_by_kl_and_log_prob(shown: Show, page: Path, runs: tuple[Path, Path]) -> None:
    window = shown(page)
    window.press("t", "j", "Enter")
    window.page.wait_for_selector(".trace.chosen .k", state="attached")
    key = window.run("location.hash").removeprefix("#trace=")
    [score] = table(runs[0], "scores").filter(trace_id=key).to_dicts()

    def tokens(part: int) -> list[tuple[list[Any], str]]:
        script = f"[...document.querySelectorAll('.trace.chosen .body > .text')[{part}].querySelectorAll('.k')]"
        return [tuple(each) for each in window.run(f"{script}.map((e) => [e.token.values, e.className])")]

    thought = tokens(0)
    assert len(thought) == len(score["thought_logprobs"])
    for ((_, logprob), (_, kl)), *_ in thought:
        assert logprob is not None and kl is not None
    worst = max(range(len(thought)), key=lambda k: score["thought_kl"][k])
    level = min(6, int(score["thought_kl"][worst] / 0.75 + 0.34))
    assert thought[worst][1] == (f"k h{level}" if level else "k")
    missed = min(range(len(score["solution_logprobs"])), key=lambda k: score["solution_logprobs"][k])
    solution = tokens(1)
    assert abs(solution[missed][0][0][1] / 100 - score["solution_logprobs"][missed]) < 0.0051
    window.page.locator(".trace.chosen .k").nth(worst).hover()
    tip = window.page.locator("#tip").inner_text()
    assert f"log-prob {round(100 * score['thought_logprobs'][worst]) / 100:.2f}" in tip
    assert f"KL {round(100 * score['thought_kl'][worst]) / 100:.2f}" in tip
    window.press("c")
    assert window.page.locator(".switch button[aria-pressed=true]").inner_text() == "log-prob"
    window.press("c")
    assert window.page.locator(".trace.chosen .k").count() == 0


def test_without_a_teacher_only_log_probs_are_shown(shown: Show, runs: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["score", "--in", str(runs[0]), "--student", "nano-teacher", "--teacher", "none", "--per-token",
              "--out", str(tmp_path / "alone")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    window = shown(reported(tmp_path / "alone", tmp_path / "alone.html"))
    window.press("t", "j", "Enter")
    window.page.wait_for_selector(".trace .k", state="attached")
    assert window.texts(".switch button") == ["log-prob", "plain"]
    assert window.texts(".switch [aria-pressed=true]") == ["log-prob"]
    assert window.texts(".trace h3")[0].startswith("sample")  # not ranked
    assert window.complaints == []


def test_two_runs_are_compared(shown: Show, runs: tuple[Path, Path], tmp_path: Path) -> None:
    window = shown(reported(runs[0], tmp_path / "against.html", against=str(runs[1])))
    assert window.texts(".source h2") == ["by-nano", "by-nano-teacher-warm"]
    both = [table(run, "scores") for run in runs]
    best = [each.group_by("question_id", maintain_order=True).agg(pl.col("reward").max())["reward"] for each in both]
    ahead, behind = (best[0] > best[1]).sum(), (best[0] < best[1]).sum()
    assert "mean r_ss" in window.texts(".comparison th")
    assert window.texts(".comparison strong") == ["8", str(ahead), str(behind)]
    window.press("t", "j", "Enter")
    window.page.wait_for_selector(".trace")
    assert window.texts(".trace .chip.s0, .trace .chip.s1") == ["by-nano", "by-nano-teacher-warm"] * 4
    window.page.select_option("#source", "1")
    assert window.count == "32 of 64"


def test_on_a_phone(shown: Show, page: Path) -> None:
    window = shown(page, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    for place in ("overview", "traces"):
        window.run(f"location.hash = '{place}'")
        assert window.run("document.documentElement.scrollWidth") <= 390
    window.page.tap(".item >> nth=3")
    window.page.wait_for_selector(".trace")
    assert not window.page.locator("#list").is_visible()
    assert window.run("document.documentElement.scrollWidth") <= 390
    window.page.tap(".back")
    assert window.page.locator("#list").is_visible()


def test_light_and_dark(shown: Show, page: Path) -> None:
    script = "getComputedStyle(document.body).backgroundColor"
    light, dark = shown(page), shown(page, color_scheme="dark")
    assert light.run(script) != dark.run(script)
    plot = "getComputedStyle(document.querySelector('svg text')).fill"
    assert light.run(plot) != dark.run(plot)
    colour = light.run(script)
    light.press("d")
    assert light.run(script) == dark.run(script) != colour
    light.page.reload()
    light.page.wait_for_selector("html[data-ready]")
    assert light.run(script) == dark.run(script)  # remembered


def test_keys_are_explained(shown: Show, page: Path) -> None:
    window = shown(page)
    window.press("?")
    assert window.page.locator("dialog").is_visible() and window.page.locator("dialog kbd").count() > 10
    window.press("Escape")
    assert not window.page.locator("dialog").is_visible()
    for _ in range(3):
        window.press("Tab")
    assert window.run("document.activeElement.id") == "tab-traces"


# Many traces


def large_run(folder: Path, tokens: int) -> RunFolder:
    """Make 10,000 traces of 625 questions, with random words and values, which compress no better than real ones."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(random.choice(letters, random.integers(2, 9))) for _ in range(5000)]

    def row(question: int, sample: int) -> dict[str, Any]:
        chosen = [words[k] + " " for k in random.integers(0, len(words), tokens)]
        offsets = np.cumsum([0, *map(len, chosen[:-1])]).tolist()
        logprobs, kl = -random.exponential(0.6, tokens), random.normal(0.3, 0.8, tokens)
        return trace(
            f"{question * 7919 % 100_000:05d}", sample, (question * 31 + sample * 17) % 997 / 100,
            completion="".join(chosen) + f"{question} {sample}.<|end_of_explanation|>",
            thought_offsets=offsets, thought_logprobs=logprobs, kl_offsets=offsets, thought_kl=kl,
        )  # fmt: skip

    parts = [range(first, min(625, first + 256)) for first in (0, 256, 512)]
    run = make_run(folder, *([row(question, sample) for question in part for sample in range(16)] for part in parts))
    ranked(run)
    return run


@pytest.mark.slow
def test_ten_thousand_traces_stay_smooth(shown: Show, tmp_path: Path) -> None:
    run = large_run(tmp_path / "large", int(os.environ.get("RLT_DATA_TOKENS", "300")))
    began = time.monotonic()
    page = reported(run.path, tmp_path / "large.html")
    written = time.monotonic() - began
    began = time.monotonic()
    window = shown(page)
    opened = time.monotonic() - began
    window.press("t")
    assert window.count == "10,000 of 10,000"
    script = """([id, value]) => {
      const began = performance.now();
      const node = document.getElementById(id);
      node.value = value;
      node.dispatchEvent(new Event("input"));
      document.getElementById("list").getBoundingClientRect();
      return performance.now() - began;
    }"""
    filters = [("bucket", "3"), ("bucket", ""), ("term", "reward"), ("low", "5"), ("high", "7.5"), ("sort", "reward")]
    slowest = max(window.page.evaluate(script, list(each)) for each in filters)
    rewards = [(question * 31 + sample * 17) % 997 / 100 for question in range(625) for sample in range(16)]
    assert window.count == f"{sum(5 <= reward <= 7.5 for reward in rewards):,} of 10,000"
    window.page.click("#reset")
    began = time.monotonic()
    window.page.fill("#search", "77 3.")
    window.wait_for_count("6 of 10,000")
    first = time.monotonic() - began
    began = time.monotonic()
    window.page.fill("#search", "7 3.")
    window.wait_for_count("62 of 10,000")
    again = time.monotonic() - began
    began = time.monotonic()
    window.page.click(".item")
    window.page.wait_for_selector(".trace .k", state="attached")
    question = time.monotonic() - began
    print(f"{page.stat().st_size / 2**20:.1f} MiB written in {written:.1f} s; opened in {opened:.2f} s")
    print(f"slowest filter {slowest:.0f} ms; first search {first:.2f} s, next {again:.2f}, a question {question:.2f}")
    assert opened < 3 and slowest < 200
    assert window.complaints == []


# Hostile texts

_HOSTILE = [
    "<script>window.pwned = 1; alert(1)</script>",
    "</script><script>window.pwned = 1</script><!--",
    "<img src=x onerror='window.pwned = 1'><svg onload=alert(1)>",
    "[click](javascript:window.pwned=1) <a href='javascript:window.pwned=1'>here</a>",
    "\u202eright to left\u202c \u2066isolate \u200f\u200b\ufeff\x00\x1b[31m",
    "x" * 1_000_000,
    "<style>* { display: none }</style><base href='https://example.com/'><meta http-equiv=refresh content=0>",
    "a\u0301" * 500 + "\U0001f600\U0001f468\u200d\U0001f469 \ud7ff\ue000\uffff",
    "{{ 7 * 7 }} ${window.pwned = 1} `",
]


def test_nothing_in_a_trace_can_run(shown: Show, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    rows = []
    for number, text in enumerate(_HOSTILE):
        pieces = list(range(0, min(len(text), 5000), 3))
        rows.append(
            trace(
                f"q{number}", 0, float(number), completion=f"{text}<|end_of_explanation|>", source_id=text[:300],
                thought_offsets=pieces, thought_logprobs=[-1.5] * len(pieces),
                kl_offsets=pieces, thought_kl=[2.5] * len(pieces),
            )
        )  # fmt: skip
    run = make_run(tmp_path / name, rows)
    questions = pl.DataFrame(run.read("questions", 0)).with_columns(
        pl.Series("question", _HOSTILE),
        pl.Series("solution", list(reversed(_HOSTILE))),
        pl.Series("source_id", _HOSTILE),
    )
    run.write_part("questions", 0, questions.to_arrow().cast(run.read("questions", 0).schema))
    ranked(run)
    (Path(str(run.path)) / "errors.jsonl").write_text(
        '{"key": "k", "step": "score", "reason": "<script>window.pwned = 1</script> \\ud800", "attempts": 1}\n'
    )
    run.record("generate", {"settings": {"n": 1, "format": "</script><script>window.pwned=1</script>"}})
    page = reported(run.path, tmp_path / "hostile.html")
    window = shown(page)
    assert name in window.page.title() and "<script>window.pwned" in window.page.locator("#view-overview").inner_text()
    window.press("t")
    for number, text in enumerate(_HOSTILE):
        window.run(f"location.hash = 'trace=q{number}/0'")
        window.page.wait_for_selector(f"#trace-q{number}\\/0")
        shown_text = window.page.locator(".trace .body > .text").first.text_content() or ""
        if text.isascii() and text.isprintable() and len(text) < 5000:
            assert text in shown_text
    window.run("location.hash = 'trace=q4/0'")
    window.page.wait_for_selector("#trace-q4\\/0")
    assert "⟨U+202E⟩" in (window.page.locator(".trace .body > .text").first.text_content() or "")
    window.page.fill("#search", "<script>")
    window.wait("/^[1-8] of 9$/.test(document.getElementById('count').textContent)")
    assert window.run("window.pwned") is None
    assert window.requests == [page.as_uri()] and window.complaints == []
    assert window.run("document.querySelectorAll('script:not([type])').length") == 1
