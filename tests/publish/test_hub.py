"""Uploads to a repository: nothing is sent twice, changes by others are kept, and failures are reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_data.errors import HubError, SettingsError
from rlt_data.publish import hub as hub_module
from rlt_data.publish.hub import MANIFEST, Repository
from rlt_data.publish.push import push as push_folder
from rlt_data.settings import PushSettings
from rlt_data.storage.run import RunFolder
from tests.hub_server import TOKEN, Fault, File, HubServer

NAME = "tester/data"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "files").mkdir()
    names = ["README.md", MANIFEST, *(f"data/default/train-0000{number}.parquet" for number in range(3))]
    paths = {name: tmp_path / "files" / name.replace("/", "-") for name in names}
    for number, (name, path) in enumerate(paths.items()):
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"x": list(range(number * 10))}), path)
        else:
            path.write_text('{"files": []}' if name == MANIFEST else "# Data\n")
    write_manifest(paths)
    return paths


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Skip all pauses, and record their lengths."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def write_manifest(files: dict[str, Path]) -> None:
    files[MANIFEST].write_text(json.dumps({"files": [name for name in files if name != MANIFEST]}))


def push(files: dict[str, Path], **how: object) -> str:
    repository = Repository(NAME, "dataset")
    repository.create(private=True)
    plan = repository.plan(files, repository.head())
    if plan.nothing:
        return str(plan.head)
    return repository.apply(plan, "push", advance=lambda _: None, **how).oid  # type: ignore[arg-type]


def test_files_arrive_once_and_only_what_changed_is_sent(hub: HubServer, files: dict[str, Path]) -> None:
    first = push(files)
    there = hub.dataset(NAME).heads["main"]
    assert there.oid == first and hub.dataset(NAME).private
    assert {path: file.content for path, file in there.files.items() if path in files} == {
        path: file.read_bytes() for path, file in files.items()
    }
    assert set(hub.uploaded.values()) == {1} and len(hub.uploaded) == 3

    assert push(files) == first and set(hub.uploaded.values()) == {1}

    gone = "data/default/train-00000.parquet"
    del files[gone]
    files["README.md"].write_text("# Other\n")
    write_manifest(files)
    push(files)
    last = hub.dataset(NAME).history()[0]
    assert set(last.changed) == {gone, "README.md", MANIFEST} and set(hub.uploaded.values()) == {1}
    assert gone not in last.files and ".gitattributes" in last.files
    read = Repository(NAME, "dataset").rows([path for path in files if path.endswith("parquet")], last.oid)
    assert sorted(read.values()) == [30, 40]


def test_a_pull_request_leaves_the_branch_alone(hub: HubServer, files: dict[str, Path]) -> None:
    Repository(NAME, "dataset").create(private=False)
    before = hub.dataset(NAME).heads["main"].oid
    commit = push(files, create_pr=True)
    assert hub.dataset(NAME).heads["main"].oid == before
    assert hub.dataset(NAME).heads["refs/pr/1"].oid == commit


def test_many_changes_come_in_several_commits(
    hub: HubServer, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_CHANGES_A_COMMIT", 2)
    push(files, create_pr=True)
    commits = hub.dataset(NAME).history("refs/pr/1")[:-1]
    assert [len(commit.changed) for commit in commits] == [1, 2, 2]
    assert commits[0].changed == (MANIFEST,)


#: The kinds of request that a push makes, except the commit.
REQUESTS = {
    "repo": r"GET /api/datasets/tester/data(/revision/|$)",
    "create": r"POST /api/repos/create",
    "commits": r"GET .*/commits/",
    "branch": r"POST .*/branch/",
    "card": r"resolve/.*README.md",
    "tree": r"GET .*/tree/",
    "validate": r"POST /api/validate-yaml",
    "preupload": r"POST .*/preupload/",
    "batch": r"POST .*objects/batch",
    "upload": r"PUT /upload/",
    "rows": r"resolve/.*parquet",
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_transient_errors_are_retried(hub: HubServer, run: RunFolder, kind: str, waits: list[float]) -> None:
    if kind != "create":  # so that an existing card is read
        Repository(NAME, "dataset").create(private=True)
        files = {"README.md": File(b"Theirs.\n", lfs=False)}
        hub.dataset(NAME).add("main", "by somebody", hub.dataset(NAME).heads["main"].files | files)
    hub.faults += [Fault(REQUESTS[kind], how) for how in (429, 500, 503, "cut")]
    settings = PushSettings(input=str(run.path / "dataset"), repo_id=NAME)
    if kind in ("commits", "branch"):
        Repository(NAME, "dataset", "stage").create(private=True, empty=True)
        assert hub.dataset(NAME).heads["stage"].title == "initial commit"
    else:
        push_folder(settings)
        there = hub.dataset(NAME).heads["main"].files
        assert {"data/default/train-00000-of-00001.parquet", MANIFEST} <= there.keys()
        assert kind == "create" or there["README.md"].content.decode().count("Theirs.") == 1
    assert not any(fault.times for fault in hub.faults) and set(hub.uploaded.values()) <= {1}
    known = "|".join([*REQUESTS.values(), "POST .*/commit/main", "GET /api/agent-harnesses"])  # the last by the library
    assert not [line for line in hub.requests if not re.search(known, line)]
    assert kind == "card" or max(waits) >= 7  # Retry-After; the library itself retries a card, and ignores it


@pytest.mark.parametrize("kind", ["preupload", "upload", "repo"])
def test_lasting_errors_are_reported(hub: HubServer, files: dict[str, Path], kind: str, waits: list[float]) -> None:
    Repository(NAME, "dataset").create(private=True)
    hub.faults.append(Fault(REQUESTS[kind], 503, 999))
    with pytest.raises(HubError, match=r"503 \(not now\)"):
        push(files)


@pytest.mark.parametrize("how", [500, 503, "cut", "lost"])
def test_a_commit_is_not_sent_again_and_not_made_twice(
    hub: HubServer, files: dict[str, Path], how: int | str, waits: list[float]
) -> None:
    hub.faults.append(Fault("/commit/", how))
    with pytest.raises(HubError, match="run the same command later") as found:
        push(files)
    assert found.value.exit_code == 9 and not waits
    assert len(hub.dataset(NAME).history()) == (2 if how == "lost" else 1)
    push(files)
    assert len(hub.dataset(NAME).history()) == 2 and set(hub.uploaded.values()) == {1}


def test_a_commit_is_retried_after_429(hub: HubServer, files: dict[str, Path], waits: list[float]) -> None:
    hub.faults.append(Fault("/commit/", 429, 3))
    push(files)
    assert waits == [7.0, 7.0, 7.0] and len(hub.dataset(NAME).history()) == 2


def test_an_upload_reports_progress(hub: HubServer, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_BYTES_AT_A_TIME", 1)
    again = files["README.md"].with_name("again.parquet")
    again.write_bytes(files["data/default/train-00002.parquet"].read_bytes())
    files["data/rank_01/train-00000.parquet"] = again  # the same content, which is sent once
    write_manifest(files)
    repository = Repository(NAME, "dataset")
    repository.create(private=True)
    progress: list[int] = []
    repository.apply(repository.plan(files, repository.head()), "push", advance=progress.append)
    assert sorted(progress) == sorted(file.stat().st_size for file in files.values())
    assert set(hub.uploaded.values()) == {1} and len(hub.uploaded) == 3


def test_a_change_by_somebody_else_is_kept(hub: HubServer, files: dict[str, Path]) -> None:
    Repository(NAME, "dataset").create(private=False)
    hub.faults.append(Fault("POST .*/commit/main", "moved"))
    with pytest.raises(HubError, match="main") as found:
        push(files)
    assert found.value.moved
    push(files)
    assert hub.dataset(NAME).heads["main"].files["notes.txt"].content == b"mine"
    assert set(hub.uploaded.values()) == {1}


def test_offline_mode_fails_without_retries(
    hub: HubServer, files: dict[str, Path], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="tester/data: HF_HUB_OFFLINE is set"):
        push(files)
    assert not waits and not hub.requests


def test_errors_do_not_contain_the_token(
    hub: HubServer, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="--repo-id"):
        Repository("no/such/name", "dataset").create(private=True)
    hub.faults.append(Fault("create", 403))
    with pytest.raises(HubError, match="HF_TOKEN") as found:
        push(files)
    assert TOKEN not in str(found.value)
    with pytest.raises(HubError, match='"license"'):
        Repository(NAME, "dataset").check("---\nlicense: nonsense\n---\n")
    hub.stop()
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(HubError, match="cannot be reached"):
        push(files)
