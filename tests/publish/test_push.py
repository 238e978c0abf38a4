"""Publishing a run: each configuration loads with the rows of the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import polars as pl
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfFileSystem

from rlt_data.errors import RunFolderError
from rlt_data.publish.push import PushSummary, push
from rlt_data.publish.tables import STAGES
from rlt_data.settings import PushSettings
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.hub_server import TOKEN, Fault, HubServer, Pull
from tests.killing import command
from tests.made_runs import distilled, drop_part, files_of, make_run, ranked, table, trace

NAME = "tester/data"

_LOAD = """
import json, sys
from datasets import load_dataset
for name in sys.argv[3:]:
    for streaming in (False, True):
        rows = list(load_dataset(sys.argv[1], name, revision=sys.argv[2], split="train", streaming=streaming))
        print(json.dumps([name, rows]))
"""


def pushed(run: RunFolder, **settings: Any) -> PushSummary:
    return push(PushSettings(input=str(run.path), repo_id=NAME, **settings))


def loaded(
    hub: HubServer, tmp_path: Path, *configs: str, revision: str = "main", split: str = "train"
) -> dict[str, list[dict[str, Any]]]:
    """Load configurations, completely and as streams, which must give the same rows."""
    HfFileSystem.clear_instance_cache()
    rows: dict[str, list[dict[str, Any]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        options: dict[str, Any] = {"revision": revision, "split": split, "cache_dir": str(tmp_path / "datasets")}
        for name in configs:
            rows[name] = list(load_dataset(NAME, name, **options))
            assert list(load_dataset(NAME, name, streaming=True, **options)) == rows[name]
    return rows


def loaded_elsewhere(hub: HubServer, tmp_path: Path, *configs: str) -> dict[str, list[dict[str, Any]]]:
    """Load configurations in another process, which finds the Hub by environment variables alone."""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}
    load = [sys.executable, "-c", _LOAD, NAME, "main", *configs]
    result = subprocess.run(load, env=environment, capture_output=True, text=True, check=True)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in result.stdout.splitlines():
        name, rows = json.loads(line)
        assert by_name.setdefault(name, rows) == rows
    return by_name


def test_every_configuration_comes_back_row_for_row(hub: HubServer, run: RunFolder, tmp_path: Path) -> None:
    summary = pushed(run)
    assert summary.rows == {"default": 2, "rank_01": 2, "rank_02": 2, "rank_03": 1, "traces": 6}
    assert hub.dataset(NAME).private and len(hub.dataset(NAME).history()) == 2
    rows = loaded_elsewhere(hub, tmp_path, *summary.rows)
    local = pl.read_ndjson(Path(str(run.path)) / "dataset" / "train.jsonl", infer_schema_length=None).to_dicts()
    assert rows["default"] == local
    assert [row["trace_id"] for row in rows["rank_02"]] == ["a/1", "c/0"]
    assert [row["trace_id"] for row in rows["traces"]] == ["a/0", "a/1", "a/2", "b/0", "c/0", "c/1"]
    assert [row["rank"] for row in rows["traces"]] == [3, 2, 1, 1, 2, 1]
    assert rows["traces"][0]["question"] == "What is a?" and rows["traces"][0]["reward"] == 0.0


def test_every_trace_is_published_with_its_own_kept_columns(hub: HubServer, tmp_path: Path) -> None:
    traces = [
        trace("a", i, 1.0 - i, meta=f'{{"m": "{name}"}}', origin=name, answer=name) for i, name in enumerate("AB")
    ]
    run = make_run(tmp_path / "run", [*traces, trace("b", 0, 2.0)])
    ranked(run)
    distilled(run)
    card = pushed(run).card
    rows = loaded(hub, tmp_path, "default", "rank_02", "traces")
    columns = ("trace_id", "meta", "origin", "answer")
    a, b, c = ("a/0", '{"m": "A"}', "A", "A"), ("a/1", '{"m": "B"}', "B", "B"), ("b/0", None, None, "b")
    for name, expected in {"traces": [a, b, c], "default": [a, c], "rank_02": [b]}.items():
        named = [row | {"answer": row.get("answer", row.get("final_answer"))} for row in rows[name]]
        assert [tuple(row[column] for column in columns) for row in named] == expected
    authors = card.partition("Authors of the explanations")[2].splitlines()[2:7]
    assert authors[0].startswith("| origin | selected rows | traces | ")
    assert [line[: line.index("1 |") + 3] for line in authors[2:]] == ["| A | 1 |", "| B | 0 | 1 |", "| unknown | 1 |"]


def test_a_second_push_sends_nothing(hub: HubServer, run: RunFolder, real_plots: None) -> None:
    first = pushed(run)
    before, asked = dict(hub.uploaded), len(hub.requests)
    again = pushed(run)
    assert again.commit is None and again.head == first.commit and again.plan.nothing
    assert hub.uploaded == before
    later = hub.requests[asked:]
    assert not [line for line in later if line.startswith(("PUT", "DELETE")) or "/commit/" in line]


def test_a_dry_run_changes_nothing(hub: HubServer, run: RunFolder) -> None:
    summary = pushed(run, dry_run=True)
    assert not hub.repos and set(summary.plan.new) == set(summary.sizes)
    assert not [path for path in Path(str(run.path)).iterdir() if path.name.startswith(".push")]


@pytest.mark.parametrize("how", ["refused", "offline", "503", "404"])
def test_a_dry_run_without_the_hub_shows_card_and_files(
    rlt: Rlt, hub: HubServer, run: RunFolder, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    if how == "refused":
        hub.stop()
    elif how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:  # from a proxy that answers every request
        hub.faults.append(Fault(".", int(how), 99))
    said = {"refused": "Hub cannot be reached", "offline": "HF_HUB_OFFLINE"}.get(how, f"the Hub answered {how}")
    summary = pushed(run, dry_run=True, branch_per_stage=True)
    branches = [summary, *summary.stages]
    assert [branch.revision for branch in branches] == ["main", *STAGES]
    assert all(set(branch.plan.unknown) == set(branch.sizes) and not branch.plan.new for branch in branches)
    for source in (run.path, run.path / "dataset"):
        result = rlt("push", "--in", source, "--repo-id", NAME, "--license", "mit", "--dry-run")
        notices = [line for line in result.stderr.splitlines() if NAME in line]
        assert len(notices) == 1 and said in notices[0]
        assert "license: mit" in result.stdout and "# data\n" in result.stdout
        listed = re.findall(r"^(\w+) +[\d,]+ (\S+)$", result.stdout, re.M)
        assert {state for state, _ in listed} == {"unknown"} and ("unknown", "README.md") in listed
    assert not pauses and not hub.repos
    assert not [path for path in Path(str(run.path)).iterdir() if path.name.startswith(".push")]


def test_branches_and_pull_requests(hub: HubServer, run: RunFolder) -> None:
    summary = pushed(run, revision="second", public=True)
    repo = hub.dataset(NAME)
    assert not repo.private and repo.heads["second"].oid == summary.commit
    assert "data" not in str(repo.heads["main"].files)
    pushed(run, create_pr=True)
    assert "README.md" in repo.heads["refs/pr/1"].files and "README.md" not in repo.heads["main"].files


def test_a_pull_request_is_not_opened_twice(rlt: Rlt, hub: HubServer, run: RunFolder) -> None:
    arguments = "push", "--in", run.path, "--repo-id", NAME, "--create-pr"
    hub.faults.append(Fault("/commit/", "lost"))
    assert "run the same command later" in rlt(*arguments, code=9).output
    repo = hub.dataset(NAME)
    repo.pulls = {7: Pull("Push by rlt-data", "other"), 8: Pull("Something else", "main")} | repo.pulls
    repo.heads |= dict.fromkeys(("refs/pr/7", "refs/pr/8"), repo.heads["refs/pr/1"])
    hub.faults += [Fault("GET .*/discussions", how) for how in (503, "cut")]
    printed = " ".join(rlt(*arguments).output.split())
    assert f"/datasets/{NAME}/discussions/1" in printed and repo.heads["refs/pr/1"].oid in printed
    assert set(repo.pulls) == {7, 8, 1}
    assert pushed(run, create_pr=True, license="mit").pull_request == f"{hub.url}/datasets/{NAME}/discussions/2"
    repo.pulls[1].status = "closed"
    assert pushed(run, create_pr=True).commit == repo.heads["refs/pr/3"].oid


def test_an_input_that_cannot_be_published_is_named(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", [trace("a", 0, 1.0)])
    (tmp_path / "other").mkdir()
    for name, message in {
        "bare": "run rlt-data distill",
        "other": "--in takes a run .* folder that distill wrote .* folder of a finished training",
        "missing": "no such folder",
    }.items():
        with pytest.raises(RunFolderError, match=message):
            push(PushSettings(input=str(run.path.parent / name), repo_id=NAME))
    assert not hub.requests


def test_a_distilled_folder_is_a_data_set_of_its_own(hub: HubServer, run: RunFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(Path(str(run.path)) / "dataset", tmp_path / "moved")
    summary = push(PushSettings(input=str(folder), repo_id=NAME))
    assert summary.rows == {"default": 2} and "2 rows from 2 questions" in summary.card
    assert "sampled tokens" not in summary.card and "rank_01" not in summary.card
    local = pl.read_ndjson(folder / "train.jsonl", infer_schema_length=None).to_dicts()
    assert loaded(hub, tmp_path, "default") == {"default": local}
    again = push(PushSettings(input=str(folder), repo_id=NAME))
    assert again.plan.nothing and set(hub.uploaded.values()) == {1}
    shutil.rmtree(folder / "data")
    with pytest.raises(RunFolderError, match=r"\.parquet: "):
        push(PushSettings(input=str(folder), repo_id=NAME))


def test_held_out_questions_are_published_as_the_split_test(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace(f"{q}", i, float(i)) for q in range(10, 20) for i in range(2)])
    ranked(run)
    distilled(run, holdout=3)
    for source in (run.path, run.path / "dataset"):
        summary = push(PushSettings(input=str(source), repo_id=NAME))
        assert summary.rows["default"] == 10
        card = DatasetCard(summary.card)
        assert "| `default` | 10 |" in card.text and "has the 3 rows of 3 randomly drawn questions" in card.text
        assert ("the other configurations contain these questions too" in card.text) == ("rank_01" in summary.rows)
        [info] = [entry for entry in card.data.to_dict()["dataset_info"] if entry["config_name"] == "default"]
        assert {split["name"]: split["num_examples"] for split in info["splits"]} == {"train": 7, "test": 3}
        for split in ("train", "test"):
            local = pl.read_ndjson(run.path / "dataset" / f"{split}.jsonl", infer_schema_length=None).to_dicts()
            assert loaded(hub, tmp_path, "default", split=split) == {"default": local}
    distilled(run)
    pushed(run)
    head = hub.dataset(NAME).heads["main"]
    assert not [path for path in head.files if "/test-" in path]
    [entry, *_] = DatasetCard(head.files["README.md"].content.decode()).data.to_dict()["configs"]
    assert [files["split"] for files in entry["data_files"]] == ["train"]


def test_many_ranks_share_one_configuration(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", i, -float(i)) for i in range(16)], [trace("b", 0, 1.0)])
    ranked(run)
    distilled(run)
    assert len(pushed(run).rows) == 18
    run = make_run(tmp_path / "more", [trace("a", i, -float(i)) for i in range(17)], [trace("b", 0, 1.0)])
    ranked(run)
    distilled(run)
    summary = pushed(run)
    assert summary.rows == {"default": 2, "ranks": 18, "traces": 18}
    rows = loaded(hub, tmp_path, "default", "ranks")
    assert [row["rank"] for row in rows["ranks"]] == [*range(1, 18), 1]
    assert rows["ranks"][0] == rows["default"][0]
    card = DatasetCard(hub.dataset(NAME).heads["main"].files["README.md"].content.decode())
    assert [entry["config_name"] for entry in card.data.to_dict()["configs"]] == ["default", "ranks", "traces"]
    assert "Columns of `default` and of `ranks`:" in card.text and "well-formed traces of all ranks" in card.text
    assert 'best = ranked.filter(lambda row: row["rank"] == 1)' in card.text
    assert not [path for path in hub.dataset(NAME).heads["main"].files if "rank_" in path]


def test_many_buckets_share_one_configuration_with_a_column(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [*(trace(f"{q}", 0, -float(q)) for q in range(10, 44)), trace("z", 0, None)])
    ranked(run, buckets=17)
    distilled(run)
    summary = pushed(run)
    assert summary.rows == {"default": 35, "buckets": 34, "traces": 35}  # a trace without a value is in no bucket
    assert [row["bucket"] for row in loaded(hub, tmp_path, "buckets")["buckets"]] == sorted([*range(1, 18)] * 2)
    assert "Columns of `default` and of `buckets`, which also has `bucket`:" in summary.card
    ranked(run, buckets=2)
    distilled(run)
    assert pushed(run).rows == {"default": 35, "bucket_1": 17, "bucket_2": 17, "traces": 35}


def test_every_stage_has_a_branch_with_its_tables_whole(hub: HubServer, run: RunFolder, tmp_path: Path) -> None:
    settings = {"in": "/home/me/questions.jsonl", "teacher": "/home/me/teacher", "n": 3, "url": "http://10.0.0.1"}
    run.record("generate", {"settings": settings})
    pushed(run, branch_per_stage=True)
    repo = hub.dataset(NAME)
    assert set(repo.heads) == {"main", "generate", "score", "rank"}
    for stage, tables in STAGES.items():
        files = repo.heads[stage].files
        card = DatasetCard(files["README.md"].content.decode())
        paths = [f"data/{kind}/train-{part:05d}-of-00002.parquet" for kind in tables for part in range(2)]
        assert set(files) == {".gitattributes", "README.md", "rlt-data.json", *paths}
        assert [entry["config_name"] for entry in card.data.to_dict()["configs"]] == list(tables)
        for path in paths:
            _, name, file = path.split("/")
            assert files[path].content == Path(f"{run.path}/{name}/part-{file[6:11]}.parquet").read_bytes()
        assert "branch `main`" in card.text and "/home/me" not in str(card)
    card_text = repo.heads["generate"].files["README.md"].content.decode()
    assert "rlt-data generate --in questions.jsonl --teacher teacher --n 3" in card_text
    before = dict(hub.uploaded)
    again = pushed(run, branch_per_stage=True)
    assert hub.uploaded == before and all(summary.commit is None for summary in (again, *again.stages))
    rows = loaded(hub, tmp_path, "traces", "questions", revision="generate")
    assert rows == {name: table(run, name).to_dicts() for name in ("traces", "questions")}

    drop_part(run, "ranks", 1)
    distilled(run)
    pushed(run, branch_per_stage=True)
    assert "data/ranks/train-00000-of-00001.parquet" in repo.heads["rank"].files
    assert "data/ranks/train-00001-of-00002.parquet" not in repo.heads["rank"].files


def test_a_branch_cut_off_at_its_beginning_is_completed(hub: HubServer, run: RunFolder) -> None:
    pushed(run, license="mit")
    repo = hub.dataset(NAME)
    repo.heads["rank"] = repo.heads["main"]
    pushed(run, branch_per_stage=True)
    card = DatasetCard(repo.heads["rank"].files["README.md"].content.decode())
    assert [entry["config_name"] for entry in card.data.to_dict()["configs"]] == ["ranks"]
    assert not [path for path in repo.heads["rank"].files if path.startswith("data/default")]
    assert card.data.license == "mit"


def test_settings_that_do_not_go_together(rlt: Rlt, hub: HubServer, run: RunFolder) -> None:
    for options, said in {
        ("--branch-per-stage", "--create-pr"): "create.pr",
        ("--branch-per-stage", "--revision", "rank"): "--revision: .*rank",
        ("--base-model", "org/name"): "--base-model",
        ("--base-model", "/home/me/model"): "--base-model: .*ORG/NAME",
        ("--trained-on", "rows.jsonl"): "--trained-on: .*ORG/NAME",
        ("--license", "Apache 2.0!"): "--license",
        ("--revision", "my branch"): "--revision",
        ("--revision", "a..b"): "--revision",
        ("--repo-id", "data"): "--repo-id: .*ORG/NAME",
        ("--repo-id", f"{hub.url}/datasets/{NAME}"): "--repo-id: .*ORG/NAME",
        ("--repo-id", "tester/my data"): "--repo-id: .*ORG/NAME",
    }.items():
        output = rlt("push", "--in", run.path, "--repo-id", NAME, *options, code=2).output
        assert re.search(said, output), output
    folder = run.path / "dataset"
    assert "--branch-per-stage" in rlt("push", "--in", folder, "--repo-id", NAME, "--branch-per-stage", code=2).output
    refused = rlt("push", "--in", run.path, "--repo-id", NAME, "--license", "nonsense", code=9).output
    assert '"license"' in refused and not hub.repos
    assert "write tables" not in refused  # which takes long
    nowhere = rlt("push", "--in", run.path, "--repo-id", NAME, "--revision", "refs/pr/5", code=9).output
    assert NAME in nowhere and "refs/pr/5" in nowhere and "--revision" in nowhere and not hub.repos


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else", "hf_é"])
def test_missing_and_wrong_tokens(
    rlt: Rlt, hub: HubServer, run: RunFolder, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    pushed(run)
    before = len(hub.dataset(NAME).commits)
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    output = rlt("push", "--in", run.path, "--repo-id", NAME, "--license", "mit", code=9).output
    assert output.count("error: ") == 1 and "HF_TOKEN" in output and "write tables" not in output
    assert len(hub.dataset(NAME).commits) == before and "somebody" not in output


def test_a_damaged_file_is_named(rlt: Rlt, hub: HubServer, run: RunFolder) -> None:
    [file] = (Path(str(run.path)) / "dataset" / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    for folder in (run.path, run.path / "dataset"):
        output = rlt("push", "--in", folder, "--repo-id", NAME, code=5).output
        assert "error: " in output and ".parquet: " in output
    assert not hub.repos


def test_a_full_disk_changes_nothing(rlt: Rlt, hub: HubServer, run: RunFolder, largest_file: Any) -> None:
    before = files_of(run.path)
    for size in (0, 2048, 3072):  # tables first, then the card
        with largest_file(size):
            output = rlt("push", "--in", run.path, "--repo-id", NAME, code=7).output
        assert output.count("error: ") == 1 and str(run.path) in output
        assert not hub.repos and files_of(run.path) == before and not list(Path(str(run.path)).glob(".push*"))
    rlt("push", "--in", run.path, "--repo-id", NAME)


def test_the_token_is_in_no_file(hub: HubServer, run: RunFolder) -> None:
    pushed(run, branch_per_stage=True)
    texts = [file.content for head in hub.dataset(NAME).heads.values() for file in head.files.values()]
    texts += [file.read_bytes() for file in Path(str(run.path)).rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in text for text in texts)


@pytest.mark.parametrize("request_kind", ["GET /api/datasets", "create", "preupload", "objects/batch", "/commit/"])
def test_a_token_repeated_by_the_server_is_masked(rlt: Rlt, hub: HubServer, run: RunFolder, request_kind: str) -> None:
    hub.faults.append(Fault(request_kind, "echo", 99))
    result = rlt("push", "--in", run.path, "--repo-id", NAME, code=9)
    assert "Bearer ***" in result.output and TOKEN not in result.output


def test_a_killed_push_continues(rlt: Rlt, hub: HubServer, run: RunFolder, tmp_path: Path, real_plots: None) -> None:
    hub.faults.append(Fault("PUT /upload", "hang", after=3))
    killed = subprocess.Popen(
        command("push", "--in", str(run.path), "--repo-id", NAME),
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.hanging.wait(240)
    killed.kill()
    killed.wait()
    there = set(hub.uploaded)
    living = Path(str(run.path)) / ".push-living"
    living.mkdir()
    assert len(list(living.parent.glob(".push-*"))) == 2
    assert there and "README.md" not in hub.dataset(NAME).heads["main"].files
    with filelock.FileLock(living / ".lock"):
        printed = rlt("push", "--in", run.path, "--repo-id", NAME).output
    assert list(living.parent.glob(".push-*")) == [living]
    assert set(hub.uploaded.values()) == {1} and len(hub.uploaded) > len(there)
    assert len(hub.dataset(NAME).history()) == 2
    assert hub.dataset(NAME).heads["main"].oid in printed and TOKEN not in printed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/commit/", 500, 99), "500 (not now); run the same command later"),
        (Fault("POST .*/commit/main", "moved"), "changed main"),
        (Fault("create", 401), "HF_TOKEN"),
    ],
)
def test_errors_of_the_hub_are_reported(rlt: Rlt, hub: HubServer, run: RunFolder, fault: Fault, message: str) -> None:
    hub.faults.append(fault)
    assert message in rlt("push", "--in", run.path, "--repo-id", NAME, code=9).output
    hub.faults.clear()
    printed = rlt("push", "--in", run.path, "--repo-id", NAME).output
    assert hub.dataset(NAME).heads["main"].oid in printed
    assert set(hub.uploaded.values()) == {1}


def test_pairs_are_published_with_the_traces_of_each_rank(
    hub: HubServer, run: RunFolder, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    distilled(run, shape="preference", tokenizer=str(tiny()))
    pushed(run)
    pairs, ranks = loaded(hub, tmp_path, "default", "rank_01").values()
    assert {"prompt", "chosen", "rejected"} <= pairs[0].keys() and {"prompt", "completion"} <= ranks[0].keys()
    best = {row["trace_id"]: row for row in ranks}
    for pair in pairs:
        assert best[pair["trace_id"]]["completion"] == pair["chosen"] + "<|im_end|>" != pair["rejected"] + "<|im_end|>"
