"""Reading, filtering and saving traces in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from rlt_data.storage.run import RunFolder
from tests.browser.conftest import Shown, reported
from tests.made_runs import distilled, make_run, ranked, table, trace

Show = Callable[..., Shown]


def text(question: str, sample: int) -> str:
    return f"Explanation {sample} of {question} has <b>words</b> & more."


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of 30 questions with 6 traces each, in which sample 4 is the best and then 5, 0, 1, 2, 3."""
    offsets = [0, 12, 14]

    def row(question: str, sample: int) -> dict[str, object]:
        return trace(
            question, sample, float(-((sample - 4) % 6)), completion=f"{text(question, sample)}<|end_of_explanation|>",
            thought_offsets=offsets, thought_logprobs=[-1.0, -3.0, -0.1],
            kl_offsets=offsets, thought_kl=[2.0, 4.5, -2.0],
            solution_offsets=[0, 2], solution_logprobs=[-2.0, -4.0], meta=json.dumps({"author": f"<i>{sample}</i>"}),
        )  # fmt: skip

    run = make_run(tmp_path / "my run", [row(f"q{number:02d}", sample) for number in range(30) for sample in range(6)])
    ranked(run)
    distilled(run, select="top:2")
    return run


@pytest.fixture
def window(shown: Show, run: RunFolder, tmp_path: Path) -> Shown:
    window = shown(reported(run.path, tmp_path / "report.html"))
    window.press("t")
    return window


def test_the_list_groups_traces_by_question_the_best_first(window: Shown) -> None:
    assert window.texts(".group")[:2] == ["source of q00 What is q00?", "source of q01 What is q01?"]
    assert window.texts(".item .snippet")[:7] == [text("q00", k) for k in (4, 5, 0, 1, 2, 3)] + [text("q01", 4)]
    assert window.texts(".item .labelled")[:4] == ["rank 1", "reward 0", "rank 2", "reward -1"]
    window.page.click("#direction")
    assert window.texts(".item .snippet")[:2] == [text("q00", 3), text("q00", 2)]
    window.page.select_option("#sort", "reward")
    assert window.texts(".group") == [] and window.texts(".item .snippet")[0] == f"source of q00 {text('q00', 4)}"
    window.page.select_option("#sort", "order")
    assert window.texts(".item .snippet")[:2] == [f"source of q00 {text('q00', k)}" for k in (0, 1)]


def test_a_long_list_draws_only_the_rows_in_sight(window: Shown) -> None:
    height = window.run("document.getElementById('rows').offsetHeight")
    assert height == 180 * 76 + 30 * 34
    window.run(f"document.getElementById('list').scrollTop = {height}")
    window.wait("[...document.querySelectorAll('.item .snippet')].at(-1).textContent", text("q29", 3))
    assert window.page.locator(".item").count() < 30
    boxes = sorted((box["y"], box["height"]) for each in window.page.locator(".item, .group").all()
                   if (box := each.bounding_box()))  # fmt: skip
    assert all(one[0] + one[1] == other[0] for one, other in zip(boxes, boxes[1:], strict=False))


def test_the_keyboard_works_after_a_click(window: Shown, run: RunFolder) -> None:
    window.page.click("#tab-overview")
    window.page.click("#tab-traces")  # the link keeps the focus
    window.press("j", "j", "Enter")
    window.page.wait_for_selector(".trace.chosen")
    assert window.run("location.hash") == "#trace=q00/5"
    window.page.click("#direction")
    window.press("k", "Enter")
    window.wait("location.hash", "#trace=q00/0")


def test_the_data_set_is_a_filter(window: Shown, run: RunFolder) -> None:
    assert dict(zip(window.texts(".cards dt"), window.texts(".cards dd"), strict=True))["in the data set"] == "60"
    window.page.select_option("#kind", "in")
    assert window.count == "60 of 180"
    assert window.texts(".item .snippet")[:3] == [text("q00", 4), text("q00", 5), text("q01", 4)]
    assert set(window.texts(".item .chip")) == {"in the data set"}
    window.page.select_option("#kind", "out")
    assert window.count == "120 of 180" and window.texts(".item .chip") == []


def test_a_range_needs_a_number(window: Shown) -> None:
    assert window.page.locator("#low").is_disabled()
    window.page.select_option("#term", "reward")
    window.page.fill("#low", "-1")
    assert window.count == "60 of 180"


def test_a_question_has_buttons_for_all_its_traces(window: Shown) -> None:
    window.page.set_viewport_size({"width": 960, "height": 700})
    window.run("location.hash = 'trace=q03/3'")
    window.page.wait_for_selector(".trace.chosen")
    assert window.texts(".ranks button") == [f"rank {k} -{k - 1}.00".replace("-0", "0") for k in range(1, 7)]
    left = window.page.locator(".detail").bounding_box()["x"]
    assert window.page.locator("#trace-q03\\/4").bounding_box()["x"] < left  # the best trace is out of sight
    window.page.click(".ranks button >> nth=0")
    window.wait("location.hash", "#trace=q03/4")
    box = window.page.locator(".trace.chosen").bounding_box()
    assert box["x"] >= left and window.texts(".trace.chosen h3") == ["rank 1"]
    assert window.page.locator(".ranks [aria-current=true]").inner_text().startswith("rank 1")


def test_numbers_colours_and_origin_are_labelled(window: Shown) -> None:
    window.press("j", "Enter")
    window.page.wait_for_selector(".trace.chosen .k")
    assert window.texts(".trace.chosen .chip") == ["in the data set", "finish reason: stop"]
    assert window.texts(".trace.chosen .worst .label") == ["largest KL"]
    assert window.texts(".trace.chosen .legend")[0].split() == "likelier for the student for the teacher".split()
    assert window.texts(".trace.chosen .legend")[1].split() == ["likely", "unlikely"]
    assert window.texts(".trace.chosen .origin dd") == ["q00/4", "<i>4</i>"]
    classes = "[...document.querySelectorAll('.trace.chosen .k')].map((e) => e.className)"
    assert window.run(classes) == ["k h3", "k h6", "k c3", "k u3", "k u5"]
    window.press("c")
    assert window.texts(".trace.chosen .worst .label") == ["lowest log-prob"]
    assert window.run(classes) == ["k u1", "k u4", "k", "k u3", "k u5"]


def test_a_trace_is_copied(shown: Show, run: RunFolder, tmp_path: Path) -> None:
    window = shown(reported(run.path, tmp_path / "report.html"), permissions=["clipboard-read", "clipboard-write"])
    window.press("t", "j", "j", "Enter")
    window.page.wait_for_selector(".trace.chosen .k")
    window.press("y")
    window.wait("document.querySelector('.chosen .copy').textContent", "Copied")
    assert window.run("navigator.clipboard.readText()") == text("q00", 5)


def test_a_trace_is_selected_if_it_cannot_be_copied(window: Shown) -> None:
    window.run("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('denied')); }")
    window.press("j", "Enter")
    window.page.wait_for_selector(".trace.chosen .k")
    window.page.click(".chosen .copy")
    window.wait("document.querySelector('.chosen .copy').textContent", "Press Ctrl+C")
    assert window.run("getSelection().toString()").strip() == text("q00", 4)


def test_the_filtered_traces_are_saved(window: Shown, run: RunFolder, rlt: Callable[..., object]) -> None:
    window.page.select_option("#kind", "in")
    window.page.select_option("#bucket", "2")
    assert window.count == "30 of 180"
    saved = []
    for button in ("#save-jsonl", "#save-ids"):
        with window.page.expect_download() as download:
            window.page.click(button)
        saved.append(Path(download.value.path()))
        assert download.value.suggested_filename == {0: "my_run-traces.jsonl", 1: "my_run-ids.txt"}[len(saved) - 1]
    ids = [f"q{number:02d}/5" for number in range(30)]
    assert saved[1].read_text().splitlines() == ids
    rows = [json.loads(line) for line in saved[0].read_text().splitlines()]
    assert [row["trace_id"] for row in rows] == ids
    tables = [table(run, name).filter(trace_id="q07/5").to_dicts()[0] for name in ("traces", "scores", "ranks")]
    [row] = [row for row in rows if row["trace_id"] == "q07/5"]
    for name in ("question_id", "sample_index", "finish_reason", "meta", "reward", "kl_max", "rank", "bucket", "value"):
        assert row[name] == next(each[name] for each in tables if name in each), name
    assert (row["question"], row["solution"], row["answer"]) == ("What is q07?", "It is q07.", "q07")
    assert row["explanation"] == text("q07", 5) and row["in_data_set"] is True
    assert window.complaints == [] and len(window.requests) <= 2  # the page, and the file that it made
    again = run.path.parent / "again"
    (run.path.parent / "saved.jsonl").write_bytes(saved[0].read_bytes())
    rlt("check", run.path.parent / "saved.jsonl")
    rlt(
        "score",
        "--in",
        run.path.parent / "saved.jsonl",
        "--student",
        "nano-student",
        "--teacher",
        "none",
        "--out",
        again,
    )
    texts = pl.read_parquet("again/traces/*.parquet")["completion"]
    assert len(texts) == 30 and texts.str.starts_with("Explanation 5 of q").all()


def test_terms_are_explained_to_mouse_keyboard_and_finger(shown: Show, run: RunFolder, tmp_path: Path) -> None:
    page = reported(run.path, tmp_path / "report.html")
    tip = "document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent"
    window = shown(page)
    window.page.hover("th .term >> text=r_kl")
    assert "lower is better" in window.run(tip)
    window.page.focus(".cards .term >> nth=0")
    assert "one explanation of how to get" in window.run(tip)
    phone = shown(page, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    phone.run("location.hash = 'trace=q00/4'")
    phone.page.wait_for_selector(".trace.chosen .k")
    phone.page.tap(".trace.chosen .terms .labelled >> nth=1")
    assert phone.run(tip).startswith("r_kl: how surprising")
    phone.page.tap(".trace.chosen .k >> nth=1")
    assert "KL 4.50" in phone.run(tip)


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_plots_and_numbers_fit(shown: Show, run: RunFolder, tmp_path: Path, width: int) -> None:
    window = shown(reported(run.path, tmp_path / "report.html"), viewport={"width": width, "height": 900})
    inside = """(outer, inner) => [...document.querySelectorAll(inner)].every((node) => {
      const [a, b] = [node.getBoundingClientRect(), node.closest(outer).getBoundingClientRect()];
      return a.left >= b.left && a.right <= b.right && a.width > 0;
    })"""
    assert window.run(f"({inside})('figure', 'figure svg')") and window.run(f"({inside})('.panel', '.panel dd')")
    smallest = window.run(
        "Math.min(...[...document.querySelectorAll('figure svg text')].map((e) => e.getBoundingClientRect().height))"
    )
    assert smallest > 9
    bottom = window.run("document.querySelector('.facts').getBoundingClientRect().bottom")
    assert bottom < 740 and window.run("document.documentElement.scrollWidth") <= width
