"""Fixtures: tiny real models, the command line, and the authors' rewards."""

from __future__ import annotations

import os
from pathlib import Path

# Nothing is cached in the user's home. Libraries read these variables when they are imported.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache" / "tests")
os.environ["XDG_CONFIG_HOME"] = str(Path(__file__).parents[1] / ".cache" / "tests" / "config")
os.environ["HF_HOME"] = str(Path(__file__).parents[1] / ".cache" / "tests" / "huggingface")
# Before torch is imported: two threads on two busy cores make tiny models many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import polars as pl
import pytest
from click.testing import Result
from typer.testing import CliRunner

from rlt_data.cli.main import app
from tests.permissions import permissions_apply
from tests.tiny_models import make_tiny

Rlt = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cache fingerprints of models for one session; a converted Gemma stays in .cache, because converting is slow."""
    cache = tmp_path_factory.mktemp("cache")
    converted = Path(os.environ["XDG_CACHE_HOME"], "models")
    converted.mkdir(parents=True, exist_ok=True)
    cache.joinpath("models").symlink_to(converted, target_is_directory=True)
    os.environ["RLT_DATA_CACHE"] = str(cache)


@pytest.fixture(scope="session", autouse=True)
def _no_unusable_gpu() -> None:
    """Hide a GPU that PyTorch cannot use, because commands refuse to run next to it."""
    import torch

    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes each tiny model once: tiny(kind, seed)."""
    folder = tmp_path_factory.mktemp("models")

    def make(kind: str = "chat", seed: int = 0) -> Path:
        path = folder / f"{kind}-{seed}"
        return path if path.exists() else make_tiny(path, kind, seed)

    return make


@pytest.fixture
def rlt() -> Rlt:
    """Return a function that runs a command and checks its exit code: rlt("score", "--in", run, code=0)."""

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
def oracle() -> Path:
    """Rewards that the authors' released code computed, with the two models it used (tests/data/oracle/README.md)."""
    return Path(__file__).parent / "data" / "oracle"


@pytest.fixture
def read() -> Callable[[Path, str], pl.DataFrame]:
    """Return a function that reads a table of a run as a user would: read(run, "traces")."""
    return lambda run, table: pl.read_parquet(run / table / "*.parquet")


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """Limit the size of files: with largest_file(500), writes of this process beyond 500 bytes fail as on a full disk.

    Only the error number differs (EFBIG instead of ENOSPC), and no file system has to be mounted.
    """

    import resource  # which Windows lacks

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def file_modes() -> Iterator[None]:
    """Apply file permissions to root too."""
    with permissions_apply():
        yield


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend that models run on a GPU, and return the number of new models alive whenever its cache is emptied."""
    import torch
    from transformers import PreTrainedModel

    def models() -> list[int]:
        whole = (thing for thing in gc.get_objects() if issubclass(type(thing), PreTrainedModel))
        return [id(model) for model in whole if model.base_model is not model]

    gc.collect()
    before, alive = models(), list[int]()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(len({*models()} - {*before})))
    return alive


def examples(number: int) -> int:
    """Return the number of examples for hypothesis, which `make test-all` multiplies."""
    return number * int(os.environ.get("RLT_DATA_EXAMPLES", "1"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test in its temporary folder, so that default run folders are created there."""
    monkeypatch.chdir(tmp_path)
    yield
