"""Fixtures: tiny real models, the command line, and the shared test data where it is."""

from __future__ import annotations

import os

# Before torch is imported: two threads on two busy cores make tiny models many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import Result
from typer.testing import CliRunner

from rlt_data.cli.main import app
from tests.tiny_models import make_tiny

Rlt = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep fingerprints of passing models out of the user's cache; converted gemma stays there, it takes a while."""
    from rlt_data.engines import models

    own = tmp_path_factory.mktemp("cache")
    shared = models.cache_folder()
    own.joinpath("models").symlink_to(shared / "models", target_is_directory=True)
    (shared / "models").mkdir(parents=True, exist_ok=True)
    os.environ["RLT_DATA_CACHE"] = str(own)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny model once: tiny(kind, seed)."""
    folder = tmp_path_factory.mktemp("models")

    def make(kind: str = "chat", seed: int = 0) -> Path:
        path = folder / f"{kind}-{seed}"
        return path if path.exists() else make_tiny(path, kind, seed)

    return make


@pytest.fixture
def rlt() -> Rlt:
    """Run a command line and check its exit code: rlt("score", "--in", run, code=0)."""

    def run(*arguments: Any, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
        return result

    return run


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Six short questions with solutions."""
    rows = [
        {"id": f"q{i}", "question": f"What is {i} times {i + 2}?", "solution": f"{i} * {i + 2} = {i * (i + 2)}."}
        for i in range(3, 9)
    ]
    return write_jsonl(tmp_path / "problems.jsonl", rows)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test data: real questions and the oracle of the authors' reward code."""
    folder = Path(os.environ.get("RLT_DATA_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("the shared test data is not here (RLT_DATA_SHARED names its folder)")
    return folder


@pytest.fixture
def read() -> Callable[[Path, str], pl.DataFrame]:
    """Read a table of a run as a user would."""
    return lambda run, table: pl.read_parquet(run / table / "*.parquet")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test in a folder of its own, where default run folders land."""
    monkeypatch.chdir(tmp_path)
    yield
