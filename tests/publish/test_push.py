"""Publishing a run: every way to load it gives the run's rows back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import DatasetCard

from rlt_data.errors import RunFolderError
from rlt_data.settings import PushSettings
from rlt_data.steps.push import PushSummary, push
from rlt_data.store import Run
from tests.hub_server import TOKEN, Fault, File, HubServer
from tests.made_runs import distilled, make_run, ranked, trace

NAME = "tester/data"
RLT = [sys.executable, "-c", "from rlt_data.cli.main import main; main()"]

_LOAD = """
import json, sys
from datasets import load_dataset
for name in sys.argv[2:]:
    for streaming in (False, True):
        rows = list(load_dataset(sys.argv[1], name, split="train", streaming=streaming))
        print(json.dumps([name, rows]))
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(
        tmp_path / "run",
        [*(trace("a", i, float(i)) for i in range(3)), trace("b", 0, 9.0, truncated=True, closed=False)],
        [trace("c", 0, 5.0), trace("c", 1, 6.0, completion="<script>alert(1)</script> ```\n# no heading\n" + END)],
    )
    ranked(run)
    distilled(run)
    return run


END = "<|end_of_explanation|>"


def pushed(run: Run, **settings: Any) -> PushSummary:
    return push(PushSettings(input=str(run.path), repo_id=NAME, **settings))


def loaded(hub: HubServer, tmp_path: Path, *configs: str) -> dict[str, list[dict[str, Any]]]:
    """Load configurations in a process of its own, at once and streaming, which must give the same."""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", _LOAD, NAME, *configs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        name, rows = json.loads(line)
        assert found.setdefault(name, rows) == rows
    return found


def test_every_configuration_comes_back_row_for_row(hub: HubServer, run: Run, tmp_path: Path) -> None:
    summary = pushed(run)
    assert summary.rows == {"default": 2, "rank_01": 2, "rank_02": 2, "rank_03": 1, "traces": 6}
    assert hub.dataset(NAME).private and len(hub.dataset(NAME).history()) == 2
    rows = loaded(hub, tmp_path, *summary.rows)
    local = pl.read_ndjson(Path(str(run.path)) / "dataset" / "train.jsonl", infer_schema_length=None).to_dicts()
    assert rows["default"] == local
    assert [row["trace_id"] for row in rows["rank_02"]] == ["a/1", "c/0"]
    assert [row["trace_id"] for row in rows["traces"]] == ["a/0", "a/1", "a/2", "b/0", "c/0", "c/1"]
    assert [row["rank"] for row in rows["traces"]] == [3, 2, 1, 1, 2, 1]
    assert rows["traces"][0]["question"] == "What is a?" and rows["traces"][0]["reward"] == 0.0


def test_a_second_push_sends_nothing(hub: HubServer, run: Run) -> None:
    first = pushed(run)
    before, asked = dict(hub.uploaded), len(hub.requests)
    again = pushed(run)
    assert again.commit is None and again.head == first.commit and again.plan.nothing
    assert hub.uploaded == before
    assert not [each for each in hub.requests[asked:] if each.startswith(("PUT", "DELETE")) or "/commit/" in each]


def test_a_card_that_is_there_keeps_what_others_wrote(hub: HubServer, run: Run) -> None:
    pushed(run, license="apache-2.0")
    repo = hub.dataset(NAME)
    card = repo.heads["main"].files["README.md"].content.decode()
    theirs = card.replace("---\n", "---\nextra_key: kept\nlanguage: en\n", 1)
    theirs = theirs.replace("configs:\n", "configs:\n- config_name: theirs\n  data_files: x.csv\n")
    theirs = theirs.replace("<!-- rlt-data:begin", "Above.\n\n<!-- rlt-data:begin") + "\nBelow.\n"
    repo.add("main", "edited", repo.heads["main"].files | {"README.md": File(theirs.encode(), lfs=False)})
    distilled(run, select="rank:2")
    pushed(run, title="Another title")
    merged = DatasetCard(repo.heads["main"].files["README.md"].content.decode())
    assert merged.data.to_dict()["extra_key"] == "kept" and merged.data.language == "en"
    assert merged.data.license == "apache-2.0"
    assert {"theirs", "default", "rank_01"} <= {entry["config_name"] for entry in merged.data.to_dict()["configs"]}
    assert "Above." in merged.text and "Below." in merged.text and merged.text.count("rlt-data:begin") == 1
    assert "--select rank:2" in merged.text


def test_texts_of_traces_are_no_markup(hub: HubServer, run: Run) -> None:
    text = pushed(run, dry_run=True).card
    before, found, _ = text.partition("<script>")
    assert found and before.rstrip().endswith("````text")


def test_a_dry_run_changes_nothing(hub: HubServer, run: Run) -> None:
    summary = pushed(run, dry_run=True)
    assert not hub.repos and set(summary.plan.new) == set(summary.sizes)
    assert not [path for path in Path(str(run.path)).iterdir() if path.name.startswith(".push")]


def test_branches_and_pull_requests(hub: HubServer, run: Run) -> None:
    made = pushed(run, revision="second", public=True)
    repo = hub.dataset(NAME)
    assert not repo.private and repo.heads["second"].oid == made.commit and "data" not in str(repo.heads["main"].files)
    pushed(run, create_pr=True)
    assert "README.md" in repo.heads["refs/pr/1"].files and "README.md" not in repo.heads["main"].files


def test_without_a_data_set_there_is_nothing_to_push(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", [trace("a", 0, 1.0)])
    with pytest.raises(RunFolderError, match="nothing is distilled there"):
        pushed(run)


def test_the_token_is_nowhere(hub: HubServer, run: Run, tmp_path: Path) -> None:
    pushed(run)
    texts = [file.content for file in hub.dataset(NAME).heads["main"].files.values()]
    texts += [file.read_bytes() for file in Path(str(run.path)).rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in text for text in texts)


def run_push(hub: HubServer, run: Run, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RLT, "push", "--in", str(run.path), "--repo-id", NAME, *more],
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_push_goes_on_where_it_was(hub: HubServer, run: Run, tmp_path: Path) -> None:
    hub.faults.append(Fault("PUT /upload", "hang", after=3))
    killed = run_push(hub, run, tmp_path)
    assert hub.hanging.wait(60)
    killed.kill()
    killed.communicate()
    there = set(hub.uploaded)
    assert there and "README.md" not in hub.dataset(NAME).heads["main"].files
    out, errors = run_push(hub, run, tmp_path).communicate()
    assert "read back and equal" in out, errors
    assert set(hub.uploaded.values()) == {1} and len(hub.uploaded) > len(there)
    assert len(hub.dataset(NAME).history()) == 2
    assert hub.dataset(NAME).heads["main"].oid in out and TOKEN not in out + errors


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/commit/", 500, 99), "the Hub answers 500 (not now); the same command goes on later"),
        (Fault("POST .*/commit/main", "moved"), "somebody changed main meanwhile"),
        (Fault("create", 401), "does not let this token write there"),
    ],
)
def test_what_the_command_says(hub: HubServer, run: Run, tmp_path: Path, fault: Fault, message: str) -> None:
    hub.faults.append(fault)
    process = run_push(hub, run, tmp_path)
    out, errors = process.communicate()
    assert process.returncode == 9 and message in errors and TOKEN not in out + errors, errors
    hub.faults.clear()
    again = run_push(hub, run, tmp_path)
    out, errors = again.communicate()
    assert again.returncode == 0 and "read back and equal" in out, errors
