"""The card of a data set: valid metadata, the numbers of stats, explained columns, and texts without markup."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from datasets import Features
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from rlt_data.errors import HubError
from rlt_data.plugins import SHAPES
from rlt_data.publish.card import BEGIN, END, read_card
from rlt_data.publish.markdown import inline, plain
from rlt_data.publish.origins import origins_table
from rlt_data.publish.push import PushSummary, push
from rlt_data.publish.redact import redact_paths
from rlt_data.settings import PushSettings
from rlt_data.statistics import stats
from rlt_data.steps import export_shapes
from rlt_data.steps.export_shapes import ExportShape
from rlt_data.storage import columns
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS
from tests.conftest import Rlt, write_jsonl
from tests.hub_server import File, HubServer
from tests.made_runs import add_signal, distilled, make_run, ranked, table, trace

NAME = "tester/data"
HUB = "https://huggingface.co/datasets/"
EVIL = (
    "a|b `c` \\| ``` \n# boo <script>alert(1)</script> [x](javascript:1) ![i](http://evil/x.png) **b** $y$ &amp; "
    f"{END} \u202e'; rm -rf ~"
)


def pushed(source: RunFolder | str, **settings: Any) -> PushSummary:
    path = source if isinstance(source, str) else str(source.path)
    return push(PushSettings(input=path, repo_id=NAME, **settings))


def edit_card(hub: HubServer, *changes: tuple[str, str]) -> None:
    """Change the card on the Hub, as another person may."""
    repo = hub.dataset(NAME)
    card = repo.heads["main"].files["README.md"].content.decode()
    for old, new in changes:
        assert old in card
        card = card.replace(old, new, 1)
    repo.add("main", "edited", repo.heads["main"].files | {"README.md": File(card.encode(), lfs=False)})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("README.md", b"caf\xe9", r"its README.md is not UTF-8 \(unexpected end of data at byte 3\)"),
        ("rlt-data.json", b"<html>", "its rlt-data.json is not one that push writes"),
        ("rlt-data.json", b'["files"]', "its rlt-data.json is not one that push writes"),
    ],
)
def test_a_damaged_file_on_the_hub_stops_a_push(
    hub: HubServer, run: RunFolder, file: str, content: bytes, message: str
) -> None:
    pushed(run)
    repo = hub.dataset(NAME)
    head = repo.add("main", "edited", repo.heads["main"].files | {file: File(content, lfs=False)})
    with pytest.raises(HubError, match=message):
        pushed(run)
    assert repo.heads["main"] == head


def section(card: str, heading: str) -> str:
    return card.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Read Markdown tables back: the cells of each row by the headings."""
    blocks = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.M):
        head, _, *rows = [[cell.strip(" `") for cell in line[1:-1].split("|")] for line in block.splitlines()]
        blocks.append([dict(zip(head, row, strict=True)) for row in rows])
    return blocks


def number(cell: str) -> float | None:
    return None if cell == "–" else float(cell.replace(",", ""))


def assert_same_figures(shown: list[dict[str, str]], frame: pl.DataFrame) -> None:
    assert len(shown) == len(frame)
    for row, expected in zip(shown, frame.to_dicts(), strict=True):
        assert list(row) == [name.replace("_", " ") for name in expected]
        for cell, value in zip(row.values(), expected.values(), strict=True):
            if isinstance(value, str):
                assert cell == value
            else:
                assert number(cell) == (None if value is None else round(value, 3))


def counted(sentence: str) -> dict[str, float]:
    """Read ``12 traces, 3 scores`` or ``closed 83.3%`` back."""
    pairs = [re.fullmatch(r"(.*?) ?([\d,.]+)%? ?(.*)", part) for part in sentence.rstrip(".").split(", ")]
    return {(pair[1] + pair[3]): float(pair[2].replace(",", "")) for pair in pairs if pair}


@pytest.fixture
def large(tmp_path: Path) -> RunFolder:
    """A run of random numbers, with missing rewards, flawed traces and failed rows."""
    draw = random.Random(0)
    parts = []
    for part in range(3):
        rows = []
        for question in range(400):
            for sample in range(4):
                truncated = draw.random() < 0.1
                reward = None if draw.random() < 0.05 else draw.gauss(-1, 2)
                more = {"truncated": truncated, "closed": not truncated, "r_ss": draw.random()}
                more |= {"thought_tokens": draw.randrange(1, 2000), "completion_tokens": draw.randrange(1, 2000)}
                rows.append(trace(f"{part}-{question}", sample, reward, **more))
        parts.append(rows)
    run = make_run(tmp_path / "large", *parts)
    ranked(run)
    distilled(run)
    run.record("input", {"bad_rows": 5, "duplicates": 1200})
    errors = [{"step": step, "key": str(row), "error": "no"} for row, step in enumerate(("score", "score", "generate"))]
    write_jsonl(tmp_path / "large" / "errors.jsonl", errors)
    return run


def test_every_figure_is_that_of_stats(hub: HubServer, large: RunFolder) -> None:
    card, figures = pushed(large, dry_run=True).card, stats(large)
    text = section(card, "Statistics")
    buckets, terms = tables(text)
    assert_same_figures(buckets, figures.buckets)
    assert_same_figures(terms, figures.terms)
    counts = json.loads((Path(str(large.path)) / "dataset" / "distill.json").read_text())["counts"]
    selection, *sentences = [line for line in text.splitlines() if line and not line.startswith(("|", "!["))]
    assert [number(digits) for digits in re.findall(r"[\d,.]+\d|\d", selection)] == [
        counts["rows"],
        counts["questions"],
        round(counts["mean_thought_tokens"], 1),
    ]
    run, reasons, shares = (line.partition(": ")[2] for line in sentences[:3])
    rows, sampled = run.split("; ")
    assert counted(rows) == figures.rows and counted(sampled) == {"sampled tokens": figures.completion_tokens}
    assert counted(reasons) == figures.finish_reasons
    assert counted(shares) == {flag.replace("_", " "): round(100 * share, 1) for flag, share in figures.shares.items()}
    [left_out] = tables(section(card, "Rows left out"))
    assert [number(row["rows"]) for row in left_out] == [
        5,
        1200,
        *figures.failed.values(),
    ]
    funnel = json.loads((Path(str(large.path)) / "dataset" / "distill.json").read_text())["funnel"]
    applied = [step for step in funnel if not step["note"]]
    assert [step["condition"] for step in applied] == ["well-formed", "--select best"]
    shown = tables(section(card, "Selection"))[0]
    assert [[number(row[name]) for name in ("traces", "left", "questions left")] for row in shown] == [
        [step[name] for name in ("rows_in", "rows_out", "questions_out")] for step in applied
    ]
    assert shown[0]["dropped, for example"].replace("`", "") == ", ".join(applied[0]["examples"])
    assert "- `contaminated`: not computed; rlt-data curate RUN --against FILE" in card
    assert [row["reason"].split()[-1] for row in left_out[2:4]] == list(figures.failed)
    assert figures.failed == {"score": 2, "generate": 1}
    values = table(large, "ranks").filter(pl.col("flaw").is_null(), pl.col("value").is_not_null()).sort("value")
    ends = re.findall(r"<summary>(\w+): reward (.*), (\d+) tokens", card)
    assert ends == [
        (name, f"{row['value']:.3f}", str(row["thought_tokens"]))
        for name, row in (("Best", values.row(-1, named=True)), ("Worst", values.row(0, named=True)))
    ]


def test_the_metadata_are_valid_and_say_what_the_files_hold(hub: HubServer, run: RunFolder, real_plots: None) -> None:
    summary = pushed(run, license="apache-2.0", title="A: *title*")
    files = hub.dataset(NAME).heads["main"].files
    card = DatasetCard(files["README.md"].content.decode())
    card.validate()
    assert card.data.license == "apache-2.0" and card.data.pretty_name == "A: *title*"
    infos = DatasetInfosDict.from_dataset_card_data(card.data)
    assert set(infos) == set(summary.rows)
    for name, info in infos.items():
        paths = [path for path in files if path.startswith(f"data/{name}/")]
        [schema] = {pq.read_schema(io.BytesIO(files[path].content)) for path in paths}
        assert info.features == Features.from_arrow_schema(schema)
        assert sum(split.num_examples for split in info.splits.values()) == summary.rows[name]
        assert info.download_size == sum(len(files[path].content) for path in paths)
    images = re.findall(r"!\[([\w ]+)\]\((plots/[\w-]+\.png)\)", card.text)
    listed = json.loads(files["rlt-data.json"].content)["files"]
    assert len(images) > 2 and all(path in listed and files[path].content[1:4] == b"PNG" for _, path in images)


def test_every_published_column_is_explained(hub: HubServer, run: RunFolder) -> None:
    names = {name for schema in SCHEMAS.values() for name in schema.names}
    # Of the tables of evaluate, which are not published.
    names -= {"answer_id", "correct", "extension", "formatted", "note", "thought_id"}
    exported = {name for shape in SHAPES.built_in for name in ExportShape(shape).schema.names}
    assert names <= columns.MEANINGS.keys() and exported - columns.MEANINGS.keys() <= export_shapes.MEANINGS.keys()
    [default, traces] = tables(section(pushed(run, dry_run=True).card, "Columns"))
    assert [row["column"] for row in default] == ExportShape("messages").schema.names
    assert {"completion", "reward", "rank", "flaw"} <= {row["column"] for row in traces}
    assert all(row["meaning"] for row in [*default, *traces])


def test_added_columns_and_conditions_over_signals_are_explained(hub: HubServer, run: RunFolder) -> None:
    add_signal(run, "contamination", "question", contaminated={"a": True})
    distilled(run, columns=["r_ss", "contaminated"])
    summary = pushed(run)
    default = {row["column"]: row["meaning"] for row in tables(section(summary.card, "Columns"))[0]}
    assert default["r_ss"] == inline(columns.MEANINGS["r_ss"]) and default["contaminated"]
    funnel = {row["condition"]: row for row in tables(section(summary.card, "Selection"))[0]}
    assert (funnel["contaminated"]["traces"], funnel["contaminated"]["left"]) == ("5", "2")
    assert "no decontamination" not in summary.card and "Decontamination finds" in section(summary.card, "Limits")
    files = hub.dataset(NAME).heads["main"].files
    for name, file in files.items():
        if name.startswith(("data/default", "data/rank")):
            rows = pq.read_table(io.BytesIO(file.content)).to_pylist()
            assert {row["question_id"] for row in rows} == {"c"} and all(row["r_ss"] == 0 for row in rows)


def test_a_data_set_that_is_older_than_its_signals_is_refused(rlt: Rlt, hub: HubServer, run: RunFolder) -> None:
    add_signal(run, "contamination", "question", contaminated={"a": True})
    distilled(run)
    add_signal(run, "contamination", "question", contaminated={"c": True})
    errors = rlt("push", run.path, "--repo-id", NAME, code=5).stderr
    assert "is older than the signal_contamination; run rlt-data distill again" in errors


def test_the_first_row_is_shown_as_json(hub: HubServer, run: RunFolder) -> None:
    local = pl.read_ndjson(run.path / "dataset" / "train.jsonl", infer_schema_length=None).to_dicts()
    text = section(pushed(run, dry_run=True).card, "A row")
    assert json.loads(text.split("```json\n")[1].split("\n```")[0]) == local[0] and "cut" not in text


def test_long_texts_in_the_row_are_cut_visibly(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, completion="word " * 2000 + "<|end_of_explanation|>")])
    ranked(run)
    distilled(run)
    text = section(pushed(run, dry_run=True).card, "A row")
    row = json.loads(text.split("```json\n")[1].split("\n```")[0])
    assert "Texts longer than 4,000 characters are cut at `[…]`." in text
    assert row["messages"][-1]["content"].endswith("wor […]") and row["trace_id"] == "a/0"


def test_the_language_is_the_declared_one_or_the_existing_one(hub: HubServer, run: RunFolder, rlt: Rlt) -> None:
    command = "push", run.path, "--repo-id", NAME
    assert "the card names no language; add it with --language" in rlt(*command).stderr
    for options, expected in ((("--language", "en", "--language", "pt-BR"), ["en", "pt-BR"]), ((), ["en", "pt-BR"])):
        assert "names no language" not in rlt(*command, *options).stderr
        card = DatasetCard(hub.dataset(NAME).heads["main"].files["README.md"].content.decode())
        assert card.data.language == expected
    assert "--language: english: must be an ISO 639 code" in rlt(*command, "--language", "english", code=2).stderr


def test_the_size_is_that_of_the_default_configuration(hub: HubServer, large: RunFolder) -> None:
    summary = pushed(large, dry_run=True)
    assert summary.rows["default"] == 1200 and sum(summary.rows.values()) > 10_000 - 1200
    assert DatasetCard(summary.card).data.size_categories == ["1K<n<10K"]
    distilled(large, limit=900)
    assert DatasetCard(pushed(large, dry_run=True).card).data.size_categories == ["n<1K"]


def test_the_tags_say_that_a_teacher_made_the_data(hub: HubServer, run: RunFolder) -> None:
    run.record("generate", {"models": {}})
    tags = DatasetCard(pushed(run, dry_run=True).card).data.tags
    assert {"synthetic", "reasoning", "distillation"} <= set(tags)


def test_only_a_teacher_that_wrote_the_traces_is_named_as_their_author(hub: HubServer, run: RunFolder) -> None:
    model = {"name": "the-teacher", "revision": None, "weights": "0a", "dtype": "float32"}
    for step, said in (("score", False), ("generate", True)):
        run.record(step, {"models": {"teacher": model}})
        distilled(run)
        introduction = pushed(run, dry_run=True).card.split("\n# ")[1].split("\n## ")[0]
        assert ("the-teacher" in introduction) == said


def test_an_existing_card_keeps_what_others_wrote(hub: HubServer, run: RunFolder) -> None:
    pushed(run, license="apache-2.0")
    edit_card(
        hub,
        ("---\n", "---\nextra_key: kept\nlanguage: en\n"),
        ("configs:\n", "configs:\n- config_name: theirs\n  data_files: x.csv\n"),
        (BEGIN, f"Above.\n\n{BEGIN}"),
        (END, f"{END}\nBelow.\n"),
    )
    distilled(run, select="rank:2")
    pushed(run)
    merged = DatasetCard(hub.dataset(NAME).heads["main"].files["README.md"].content.decode())
    assert merged.data.to_dict()["extra_key"] == "kept" and merged.data.language == "en"
    assert merged.data.license == "apache-2.0" and "`apache-2.0`" in section(merged.text, "Licence")
    assert {"theirs", "default", "rank_01"} <= {entry["config_name"] for entry in merged.data.to_dict()["configs"]}
    assert "Above." in merged.text and "Below." in merged.text and merged.text.count(BEGIN) == 1
    assert "--select rank:2" in merged.text
    edit_card(hub, ("language: en", "date: 2026-13-01"))
    with pytest.raises(HubError, match=r"the metadata of its README.md cannot be read: month must be in"):
        pushed(run)
    edit_card(hub, ("date: 2026-13-01", "language: en"), (END, ""))
    with pytest.raises(HubError, match="has <!-- rlt-data:begin --> without <!-- rlt-data:end -->"):
        pushed(run)


def test_ranks_that_no_longer_exist_are_removed(hub: HubServer, run: RunFolder) -> None:
    pushed(run)
    ranked(run, buckets=2)
    distilled(run)
    pushed(run)
    card = DatasetCard(hub.dataset(NAME).heads["main"].files["README.md"].content.decode())
    names = [entry["config_name"] for entry in card.data.to_dict()["configs"]]
    assert names == [entry["config_name"] for entry in card.data.to_dict()["dataset_info"]]
    assert set(names) == {"default", "bucket_1", "bucket_2", "traces"}


def test_the_title_is_the_requested_one_or_the_existing_one(hub: HubServer, run: RunFolder) -> None:
    def shown() -> tuple[str, str]:
        card = DatasetCard(hub.dataset(NAME).heads["main"].files["README.md"].content.decode())
        return str(card.data.pretty_name), re.findall(r"^# (.*)$", card.text, re.M)[0]

    pushed(f"{run.path}/dataset")
    assert shown() == ("data", "data")
    pushed(f"{run.path}/dataset", title="First")
    assert shown() == ("First", "First")
    pushed(f"{run.path}/dataset")
    assert shown() == ("First", "First")
    edit_card(hub, ("pretty_name: First", "pretty_name: Theirs"))
    pushed(f"{run.path}/dataset")
    assert shown() == ("Theirs", "Theirs")
    pushed(f"{run.path}/dataset", title="Second")
    assert shown() == ("Second", "Second")


def test_nothing_in_a_text_is_markup(hub: HubServer, tmp_path: Path) -> None:
    meta = json.dumps({f"{EVIL}.correct": True})
    evil = trace("a", 0, 5.0, completion=EVIL, finish_reason=None, source_id=EVIL, meta=meta, origin=EVIL)
    run = make_run(tmp_path / "run", [evil, trace("a", 1, 1.0, completion=f"{BEGIN}{END}```````", origin="other")])
    model = {"name": EVIL, "revision": EVIL, "weights": EVIL, "dtype": EVIL}
    entry = {
        "settings": {"teacher": EVIL, "temperature": 1.0, "reward": EVIL},
        "models": {"teacher": model, EVIL: model},
    }
    run.record("score", entry | {"versions": {"rlt-data": EVIL, EVIL: EVIL}, "format_hash": EVIL})
    run.record("generate", entry | {"example_prompt": EVIL})
    inputs = [{"name": EVIL, "on_hub": on_hub, "split": EVIL} for on_hub in (True, False)]
    run.record("input", {"traces": True, "inputs": inputs})
    condition = "origin = '{}' OR rank > 0".format(EVIL.replace("'", "''"))
    ranked(run)
    distilled(run, where=condition, per=condition, cap=1)
    pushed(run, title=EVIL, branch_per_stage=True)
    before = {branch: head.oid for branch, head in hub.dataset(NAME).heads.items()}
    pushed(run, branch_per_stage=True)
    assert {branch: head.oid for branch, head in hub.dataset(NAME).heads.items()} == before
    for branch in before:
        content = hub.dataset(NAME).heads[branch].files["README.md"].content
        assert read_card(NAME, content).after == "\n"
        _assert_harmless(content.decode(), plain(EVIL))


def _assert_harmless(card: str, evil: str) -> None:
    headings: list[str] = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.split("---\n", 2)[2]):
        if token.type == "html_block":
            allowed = rf"{BEGIN}|{END}|<details>\n<summary>[\w: .,-]+</summary>|</details>"
            assert re.fullmatch(allowed, token.content.strip())
        for part in token.children or []:
            assert part.type != "html_inline", part.content
            assert str(part.attrs.get("href", "https://arxiv.org")).startswith(("https://arxiv.org", HUB))
            assert str(part.attrs.get("src", "plots/")).startswith("plots/")
        if token.type == "inline":
            said = "".join(part.content for part in token.children or [])
            assert "script" not in said or evil in said.replace("''", "'")  # as text, whole; in conditions quoted
            if "boo" in said and said.startswith(evil):
                headings.append(said)
    assert headings


def test_an_origin_called_unknown_does_not_hide_the_rows_without_one() -> None:
    counts = {"rows": 6, "origins": {"unknown": 2, "a": 1}}
    assert [line.split(" | ")[:2] for line in origins_table(counts, None).splitlines()[-2:]] == [
        ["| unknown", "5 |"],
        ["| a", "1 |"],
    ]


def test_local_paths_become_names() -> None:
    cached = "/home/me/.cache/huggingface/hub/models--org--name/snapshots/0123"
    names = {"/home/me/model": "model", "C:\\models\\x": "x", "s3://bucket/run/": "run", cached: "org/name"}
    assert redact_paths({"a": [*names], "format": {"text": "/x"}, "vllm_url": "http://10.0.0.1"}) == {
        "a": [*names.values()],
        "format": {"text": "/x"},
        "vllm_url": None,
    }
    assert redact_paths({"settings": {"format": "/home/me/own.yaml"}}) == {"settings": {"format": "own.yaml"}}
    assert redact_paths(["org/name", "./x", "a/b/c", 1, None]) == ["org/name", "./x", "a/b/c", 1, None]
