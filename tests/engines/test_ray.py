"""Steps on a Ray cluster of three nodes, which are processes of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlt_data import CountdownSettings, make_countdown
from rlt_data.engines.ray import Feed
from tests.conftest import Rlt
from tests.killing import command, environment, run_to_end

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=nodes)
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    make_countdown(CountdownSettings(out=str(file), rows=300))
    return file


def generate(questions: Path, run: Path, *more: Any) -> list[str]:
    options = ("--n", "4", "--max-tokens", "60", *map(str, more))
    return command("generate", "--teacher", "nano", "--in", questions, "--out", run, *options)


def score(run: Path, *more: Any) -> list[str]:
    return command("score", "--student", "nano", "--in", run, *map(str, more))


@pytest.fixture(scope="module")
def alone(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a single machine."""
    run = tmp_path_factory.mktemp("alone") / "run"
    run_to_end(generate(questions, run))
    shutil.copytree(run, run.with_name("scored"))
    run_to_end(score(run.with_name("scored")))
    return run


def tables(run: Path) -> dict[str, bytes]:
    assert not (run / "journal").exists()
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.parquet")}


def started(arguments: list[str], run: Path, table: str) -> subprocess.Popen[str]:
    """Start a command, and return when some of its rows are on disk."""
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list((run / "journal" / table).glob("*/*.parquet")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing_but_time(cluster: Any, questions: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(generate(questions, run, "--ray", cluster.address, "--engines", 3), run, "traces")
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert tables(run) == tables(alone)
    cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()


@pytest.mark.slow
@pytest.mark.parametrize("begins", ["here", "on the cluster"])
def test_a_run_starts_on_one_side_and_continues_on_the_other(
    cluster: Any, questions: Path, alone: Path, tmp_path: Path, begins: str
) -> None:
    run = tmp_path / "run"
    sides: list[tuple[Any, ...]] = [(), ("--ray", cluster.address, "--engines", 2)]
    if begins == "on the cluster":
        sides.reverse()
    process = started(generate(questions, run, *sides[0]), run, "traces")
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_to_end(generate(questions, run, *sides[1]))
    assert tables(run) == tables(alone)


@pytest.mark.slow
def test_scores_are_those_of_one_machine(cluster: Any, alone: Path, tmp_path: Path) -> None:
    run = shutil.copytree(alone, tmp_path / "run")
    run_to_end(score(run, "--ray", cluster.address))
    assert tables(run) == tables(alone.with_name("scored"))


def test_batches_are_read_in_order_whatever_order_they_arrive_in() -> None:
    async def read_batches() -> list[list[int] | None]:
        feed = Feed()
        reads = [asyncio.create_task(feed.get(batch_id)) for batch_id in (0, 1, 2)]
        for call in (feed.put(1, [11]), feed.close(2), feed.put(0, [10])):
            await asyncio.sleep(0)
            await call
        first = await asyncio.gather(*reads)
        await feed.drop(0)
        return [*first, await feed.get(0), await feed.get(1)]

    assert asyncio.run(read_batches()) == [[10], [11], None, [], [11]]


@pytest.mark.slow  # Ray gives its processes little time to start
def test_ray_on_this_machine_gives_the_same_run(rlt: Rlt, questions: Path, tmp_path: Path) -> None:
    options = "--teacher", "nano", "--in", questions, "--limit", 12, "--n", 2, "--max-tokens", 12, "--out"
    rlt("generate", *options, "without")
    run_to_end(command("generate", *map(str, options), "with", "--ray", "local", "--engines", "1"))
    assert tables(Path("with")) == tables(Path("without"))


Refused = Callable[..., str]


@pytest.fixture
def refused(questions: Path, tmp_path: Path, rlt: Rlt) -> Refused:
    """Run a command that must fail before it writes a trace, and return what it prints."""

    def generate(*options: Any, code: int) -> str:
        run = tmp_path / "run"
        output = rlt("generate", "--teacher", "nano", "--in", questions, "--out", run, *options, code=code).output
        assert not (run / "traces").exists()
        return output

    return generate


@pytest.mark.slow
def test_more_engines_than_fit_into_the_cluster(cluster: Any, refused: Refused) -> None:
    assert "0 GPUs, 6 CPUs" in refused("--ray", cluster.address, "--engines", 7, code=2)
    # "local" starts another cluster, although this machine has one.
    assert f"0 GPUs, {os.cpu_count()} CPUs" in refused("--ray", "local", "--engines", 10**6, code=2)


def test_mistakes(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ray: " in refused("--engines", 2, code=2)
    assert "--engine" in refused("--ray", "auto", "--engine", "server", "--url", "http://localhost/v1", code=2)
    assert "--ray 127.0.0.1:1" in refused("--ray", "127.0.0.1:1", code=8)
    assert "auto, local" in refused("--ray", "ray://10.0.0.1:10001", code=2)
    monkeypatch.setattr("rlt_data.engines.ray.find_spec", lambda name: None)
    assert "pip install 'rlt-data[ray]'" in refused("--ray", "auto", code=6)
