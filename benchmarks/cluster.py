"""Compare a local Ray cluster of three nodes with one process: equal rows, loss of a node, cost per row.

    python -m benchmarks.cluster [--questions 2000] [--traces 8]

The miniature teacher generates the same traces five times: in this process; with one engine on the cluster, to measure
the added cost per row; with three engines, while one of three nodes is removed; and twice in halves, started on one
side, killed, and finished on the other. All tables must be byte-identical.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, save
from rlt_data import CountdownSettings, make_countdown
from tests.killing import command, environment, table_bytes

POLL_SECONDS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--traces", type=int, default=8)
    arguments = parser.parse_args()

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "num_cpus": 2, "include_dashboard": False})
    folder = Path(tempfile.mkdtemp())
    try:
        for _ in range(2):
            cluster.add_node(**size)
        cluster.wait_for_nodes()
        questions = folder / "questions.jsonl"
        make_countdown(CountdownSettings(out=str(questions), rows=arguments.questions))
        rows = _measure(cluster, questions, folder, arguments.traces)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder)
    print_table(rows)
    alone, engine = (row["seconds, first row to last"] for row in rows[:2])
    count = arguments.questions * arguments.traces
    cost = {"milliseconds a row more": 1e3 * (engine - alone) / count, "share of a row": engine / alone - 1}
    print_table([cost])
    save("cluster", {"settings": vars(arguments), "rows": rows, **cost}, "ray")


def _measure(cluster: Any, questions: Path, folder: Path, traces: int) -> list[dict[str, Any]]:
    def generate(name: str, *more: Any) -> list[str]:
        options = ("--teacher", "nano", "--n", str(traces), *map(str, more))
        return command("generate", "--in", questions, "--out", folder / name, *options)

    def on_cluster(engines: int) -> tuple[Any, ...]:
        return "--ray", cluster.address, "--engines", engines

    total = traces * len(questions.read_text().splitlines())
    alone = _Watched(generate("alone"), folder / "alone")
    rows = [{"run": "this process", **alone.to_end()}]

    def check_and_remove(name: str) -> None:
        assert table_bytes(folder / name, "traces") == table_bytes(folder / "alone", "traces"), name
        shutil.rmtree(folder / name)

    one = _Watched(generate("one", *on_cluster(1)), folder / "one")
    rows.append({"run": "one engine on the cluster", **one.to_end()})
    check_and_remove("one")
    three = _Watched(generate("three", *on_cluster(3)), folder / "three")
    three.wait_for(total // 3)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    rows.append({"run": "three engines, a node taken away after a third", **three.to_end()})
    check_and_remove("three")
    for name, first, second in (("there", (), on_cluster(2)), ("back", on_cluster(2), ())):
        killed = _Watched(generate(name, *first), folder / name)
        killed.wait_for(total // 2)
        killed.process.kill()
        killed.process.wait()
        finished = _Watched(generate(name, *second), folder / name).to_end()
        rows.append(
            {"run": f"begun {'on the cluster' if first else 'here'}, killed at half, finished there", **finished}
        )
        check_and_remove(name)
    return rows


class _Watched:
    """A running command and the number of its rows on disk."""

    def __init__(self, arguments: list[str], run: Path) -> None:
        self.process = subprocess.Popen(
            arguments, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._run = run
        self._resumed = run.exists()
        self._start = time.monotonic()

    def wait_for(self, rows: int) -> None:
        import pyarrow.parquet as pq

        while True:
            assert self.process.poll() is None, "ended too early"
            files = [*self._run.glob("journal/traces/*/*.parquet"), *self._run.glob("traces/*.parquet")]
            try:
                if sum(pq.read_metadata(file).num_rows for file in files) >= rows:
                    return
            except FileNotFoundError:  # just merged
                pass
            time.sleep(POLL_SECONDS)

    def to_end(self) -> dict[str, Any]:
        """Wait for the end; for a resumed run, whose first rows exist already, measure only the total time."""
        if self._resumed:
            assert self.process.wait() == 0
            return {"seconds": time.monotonic() - self._start, "seconds, first row to last": None}
        while not [*self._run.glob("journal/traces/*/*.parquet"), *self._run.glob("traces/*.parquet")]:
            assert self.process.poll() is None
            time.sleep(POLL_SECONDS)
        first = time.monotonic()
        assert self.process.wait() == 0
        seconds = time.monotonic() - first
        return {"seconds": time.monotonic() - self._start, "seconds, first row to last": seconds}


if __name__ == "__main__":
    main()
