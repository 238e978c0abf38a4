"""Publishing from an S3 store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlt_data.errors import RunFolderError
from rlt_data.publish.push import push
from rlt_data.settings import PushSettings
from rlt_data.storage.run import RunFolder
from tests.hub_server import HubServer
from tests.store_server import files, running_store, sent


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with running_store():
        yield "s3://bucket"


def test_a_run_in_a_store_is_published_like_a_local_one(hub: HubServer, run: RunFolder, bucket: str) -> None:
    url = sent(Path(str(run.path)), f"{bucket}/run")
    for source, name in ((str(run.path), "tester/disk"), (url, "tester/store"), (f"{url}/dataset", "tester/folder")):
        push(PushSettings(input=source, repo_id=name, branch_per_stage=not source.endswith("dataset"), title="Same"))
    disk, store = (
        {
            branch: {path: file.content.replace(name.encode(), b"") for path, file in head.files.items()}
            for branch, head in hub.dataset(name).heads.items()
        }
        for name in ("tester/disk", "tester/store")
    )
    assert disk == store and len(disk) == 4
    folder = hub.dataset("tester/folder").heads["main"].files
    [path] = [path for path in folder if path.endswith(".parquet")]
    assert folder[path].content == disk["main"][path]
    files().rm(f"{url}/dataset/train.jsonl")
    with pytest.raises(RunFolderError, match=r"train\.jsonl: "):
        push(PushSettings(input=url, repo_id="tester/store"))
    with pytest.raises(RunFolderError, match=f"{bucket}/other"):
        push(PushSettings(input=f"{bucket}/other", repo_id="tester/other"))
