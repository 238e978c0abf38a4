"""The report page of large runs: time of report, and time of the first and later requests of view.

    python -m benchmarks.page [--rows 10000 1000000] [--words 60]

The runs come from benchmarks.ranking and are ranked. `make test-browser` measures opening and filtering the page.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.process import measure
from benchmarks.ranking import make_run
from benchmarks.report import print_table, save
from rlt_data.reporting.live import Watch
from rlt_data.settings import RankSettings, parse_settings
from rlt_data.steps.rank import rank
from tests.killing import command

TRACES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="numbers of traces")
    parser.add_argument("--words", type=int, default=60, help="words per text")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            run = Path(name) / "run"
            make_run(run, size // TRACES, TRACES, arguments.words, seed=0)
            rank(parse_settings(RankSettings, {"in": str(run)}))
            measured = measure(command("report", run, "--out", run / "report.html"), Path(name))
            watch = Watch(str(run))
            seconds = [_seconds(watch) for _ in range(4)]
            rows.append(
                {
                    "traces": size,
                    "report, seconds": measured.seconds,
                    "peak MB": measured.megabytes,
                    "file, MiB": (run / "report.html").stat().st_size / 2**20,
                    "first look, seconds": seconds[0],
                    "a later look": max(seconds[1:]),
                }
            )
    print_table(rows)
    save("page", {"settings": vars(arguments), "rows": rows})


def _seconds(watch: Watch) -> float:
    start = time.perf_counter()
    watch.now()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
