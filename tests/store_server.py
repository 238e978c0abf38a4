"""An S3 server for tests, which other processes on this machine can use too."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

#: Environment variables for a process, in addition to the server's URL: no lookup of credentials, and no retries.
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
    """An S3 server whose content survives :meth:`stop` and :meth:`start`."""

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
    """Run a server with a bucket named bucket, which the S3 libraries of this process use."""
    server = StoreServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files().makedirs("bucket", exist_ok=True)  # an earlier server in this process may have left it
        yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def files() -> s3fs.S3FileSystem:
    """Return the file system of the store, without cached listings."""
    return s3fs.S3FileSystem(use_listings_cache=False)


def fetched(url: str, folder: Path) -> Path:
    """Download a run folder from the store."""
    files().get(url, str(folder), recursive=True)
    return folder


def sent(folder: Path, url: str) -> str:
    """Upload a run folder to the store."""
    files().put(str(folder), url, recursive=True)
    return url
