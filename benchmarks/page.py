"""The page of large runs: what report takes, and what a look of view takes, first and afterwards.

    python -m benchmarks.page [--rows 10000 1000000] [--words 60]

The runs are those of benchmarks.ranking, ranked. Opening and filtering the page in a browser is measured by the tests
(make test-browser).
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
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="traces")
    parser.add_argument("--words", type=int, default=60, help="of a text")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            run = Path(name) / "run"
            make_run(run, size // TRACES, TRACES, arguments.words, seed=0)
            rank(parse_settings(RankSettings, {"in": str(run)}))
            measured = measure(command("report", run, "--out", run / "report.html"), Path(name))
            watch = Watch(str(run))
            looks = [_seconds(watch) for _ in range(4)]
            rows.append(
                {
                    "traces": size,
                    "report, seconds": measured.seconds,
                    "peak MB": measured.megabytes,
                    "file, MiB": (run / "report.html").stat().st_size / 2**20,
                    "first look, seconds": looks[0],
                    "a later look": max(looks[1:]),
                }
            )
    print_table(rows)
    save("page", {"settings": vars(arguments), "rows": rows})


def _seconds(watch: Watch) -> float:
    began = time.perf_counter()
    watch.now()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
