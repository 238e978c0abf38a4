"""A server that speaks the protocol of S3, for processes on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

#: What a process needs beside the server's address; nothing outside this machine is asked for credentials, and a server
#: that was stopped is not waited for.
KEYS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


class StoreServer:
    """A store; what is in it outlives stopping and starting."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}


@contextmanager
def running_store() -> Iterator[StoreServer]:
    """Run a store with a bucket named bucket; this process's libraries take it for theirs."""
    server = StoreServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files().makedirs("bucket", exist_ok=True)  # an earlier store of this process may have left it
        yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def files() -> s3fs.S3FileSystem:
    """The store's content, as another machine sees it."""
    return s3fs.S3FileSystem(use_listings_cache=False)


def fetched(url: str, folder: Path) -> Path:
    """Copy a run folder from the store to the disk, file by file."""
    files().get(url, str(folder), recursive=True)
    return folder


def sent(folder: Path, url: str) -> str:
    """Copy a run folder from the disk to the store, file by file."""
    files().put(str(folder), url, recursive=True)
    return url
