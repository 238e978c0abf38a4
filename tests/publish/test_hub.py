"""Uploading to a repository: nothing twice, nothing of others lost, and what can go wrong."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_data.errors import HubError, SettingsError
from rlt_data.publish import hub as hub_module
from rlt_data.publish.hub import MANIFEST, Repository
from tests.hub_server import TOKEN, Fault, HubServer

NAME = "tester/data"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "files").mkdir()
    names = ["README.md", MANIFEST, *(f"data/default/train-0000{number}.parquet" for number in range(3))]
    found = {name: tmp_path / "files" / name.replace("/", "-") for name in names}
    for number, (name, place) in enumerate(found.items()):
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"x": list(range(number * 10))}), place)
        else:
            place.write_text('{"files": []}' if name == MANIFEST else "# Data\n")
    write_manifest(found)
    return found


def write_manifest(files: dict[str, Path]) -> None:
    import json

    files[MANIFEST].write_text(json.dumps({"files": [name for name in files if name != MANIFEST]}))


def push(files: dict[str, Path], **how: object) -> str:
    repository = Repository(NAME, "dataset")
    repository.create(private=True)
    plan = repository.plan(files, repository.head())
    if plan.nothing:
        return str(plan.head)
    return repository.apply(plan, "push", advance=lambda _: None, **how)  # type: ignore[arg-type]


def test_files_arrive_once_and_only_what_changed_is_sent(hub: HubServer, files: dict[str, Path]) -> None:
    first = push(files)
    there = hub.dataset(NAME).heads["main"]
    assert there.oid == first and hub.dataset(NAME).private
    assert {path: file.content for path, file in there.files.items() if path in files} == {
        path: place.read_bytes() for path, place in files.items()
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
    made = push(files, create_pr=True)
    assert hub.dataset(NAME).heads["main"].oid == before
    assert hub.dataset(NAME).heads["refs/pr/1"].oid == made


def test_many_changes_come_in_several_commits(
    hub: HubServer, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_CHANGES_A_COMMIT", 2)
    push(files, create_pr=True)
    commits = hub.dataset(NAME).history("refs/pr/1")[:-1]
    assert [len(commit.changed) for commit in commits] == [1, 2, 2]
    assert commits[0].changed == (MANIFEST,)


@pytest.mark.parametrize("fault", [Fault("PUT /upload", 500, 2), Fault("preupload", "cut"), Fault("tree", 429, 1)])
def test_errors_that_pass(
    hub: HubServer, files: dict[str, Path], fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.faults.append(fault)
    push(files)
    assert not fault.times
    assert set(hub.dataset(NAME).heads["main"].files) >= set(files)


def test_what_somebody_else_changed_meanwhile_is_not_lost(hub: HubServer, files: dict[str, Path]) -> None:
    Repository(NAME, "dataset").create(private=False)
    hub.faults.append(Fault("POST .*/commit/main", "moved"))
    with pytest.raises(HubError, match="somebody changed main meanwhile") as found:
        push(files)
    assert found.value.moved
    push(files)
    assert hub.dataset(NAME).heads["main"].files["notes.txt"].content == b"mine"
    assert set(hub.uploaded.values()) == {1}


def test_mistakes_are_told_without_the_token(
    hub: HubServer, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="--repo-id"):
        Repository("no/such/name", "dataset").create(private=True)
    hub.faults.append(Fault("create", 403))
    with pytest.raises(HubError, match="does not let this token write") as found:
        push(files)
    assert TOKEN not in str(found.value)
    files["README.md"].write_text("---\nlicense: [\n---\n")
    with pytest.raises(HubError, match="refuses the card"):
        push(files)
    hub.stop()
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(HubError, match="cannot be reached"):
        push(files)
