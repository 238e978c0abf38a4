"""Try to break the guarantees of storage: ``make torture`` writes docs/results/faults.json.

Faults: an error or a signal at every third disk call of rank, distill, report, merge and countdown over earlier
results.
Pairs: two concurrent distills into one folder. Parts: a part that is deleted, truncated, swapped or unknown, read by
every command. Flips: single bits of part files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import rlt_data.reporting.report  # noqa: F401 - imported before forking, which must not wait for imports
from rlt_data.cli.main import app
from rlt_data.errors import RltDataError
from rlt_data.settings import CountdownSettings, MergeSettings, ReportSettings
from rlt_data.steps.countdown import make_countdown
from rlt_data.steps.merge import merge
from rlt_data.storage.backends import open_folder
from rlt_data.storage.run import RunFolder
from tests.made_runs import distilled, make_run, ranked, trace
from tests.storage.faults import FAULTS, content_of, every_fault, exit_code, in_child, start_child

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "faults.json"
#: Commands that read a run.
COMMANDS: dict[str, list[str]] = {
    "rank": ["rank", "--in", "RUN"],
    "distill": ["distill", "--in", "RUN"],
    "stats": ["stats", "RUN"],
    "show": ["show", "RUN"],
    "report": ["report", "RUN"],
    "merge": ["merge", "--in", "RUN", "--in", "OTHER", "--out", "merged"],
    "score": ["score", "--in", "RUN", "--student", "nano", "--teacher", "none"],
    "push": ["push", "--in", "RUN", "--repo-id", "me/data", "--dry-run"],
}


def made(folder: Path, parts: int = 3) -> RunFolder:
    """Make a ranked and distilled run of several parts, with texts and values as varied as real ones."""
    draw = random.Random(0)

    def traces(question: str) -> list[dict[str, Any]]:
        texts = [draw.randbytes(draw.randrange(40, 80)).hex() + "<|end_of_explanation|>" for _ in range(3)]
        return [trace(question, sample, draw.random(), completion=text) for sample, text in enumerate(texts)]

    rows = [
        [row for i in range(4) for row in traces(f"q{part}-{i}-{draw.randbytes(draw.randrange(9)).hex()}")]
        for part in range(parts)
    ]
    run = make_run(folder, *rows)
    ranked(run)
    distilled(run)
    return run


def result_of(target: Path) -> str:
    """Return a hash of the output of a step: a file or a folder."""
    content = {target.name: target.read_bytes()} if target.is_file() else content_of(target)
    kept = {name: data for name, data in content.items() if not name.startswith((".", "dataset/."))}
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()


#: Steps that replace an earlier result: the function, and the folder or file that it replaces.
STEPS: dict[str, tuple[Callable[[], object], str]] = {
    "rank": (lambda: ranked(RunFolder("run"), buckets=2), "run"),
    "distill": (lambda: distilled(RunFolder("run"), select="all"), "run/dataset"),
    "report": (lambda: rlt_data.reporting.report.report(ReportSettings(input="run", out="page.html")), "page.html"),
    "countdown": (lambda: make_countdown(CountdownSettings(rows=20, seed=5, out="problems.jsonl")), "problems.jsonl"),
    "merge": (lambda: merge(MergeSettings(input=("run", "other"), out="merged")), "merged"),
}


def _earlier() -> None:
    made(Path("run"))
    made(Path("other"), parts=1)
    rlt_data.reporting.report.report(ReportSettings(input="other", out="page.html"))
    make_countdown(CountdownSettings(rows=10, out="problems.jsonl"))


def faults(step: int = 1, kinds: Iterable[str] = FAULTS) -> dict[str, Any]:
    """Inject every fault at every ``step``-th disk call of each of :data:`STEPS`, or only faults of some kinds.

    Returns:
        For each step: the number of ``faults``, of ``old`` and ``new`` results after them, of ``lost`` results
        (neither), and of runs with files ``left`` after the step has run again.
    """
    outcome: dict[str, Any] = {}
    with _temporary_directory():
        assert in_child(_earlier) == 0
        shutil.copytree(".", "../before", symlinks=True)
        for name, (work, target) in STEPS.items():
            output = Path(target)
            _restore()
            before = result_of(output) if output.exists() else ""
            assert in_child(work) == 0
            after = result_of(output)
            names = set(content_of(Path()))
            counts: Counter[str] = Counter()
            for _ in every_fault(work, _restore, step, kinds):
                counts["faults"] += 1
                in_child(_open)
                result = result_of(output) if output.exists() else ""
                counts["old" if result == before else "new" if result == after else "lost"] += 1
                in_child(work)  # refused for a merge, whose output exists
                counts["left"] += bool(set(content_of(Path())) - names)
            outcome[name] = {key: counts[key] for key in ("faults", "old", "new", "lost", "left")}
    return outcome


def pairs(number: int) -> dict[str, int]:
    """Start two concurrent distills into one folder, and count inconsistent data sets."""
    counts: Counter[str] = Counter()
    with _temporary_directory():
        assert in_child(lambda: made(Path("run"), parts=40)) == 0
        for _ in range(number):
            started = [start_child(partial(distilled, RunFolder("run"), select=rule)) for rule in ("best", "top:2")]
            codes = sorted(map(exit_code, started))
            counts[f"exit codes {codes}"] += 1
            counts["wrong"] += not _consistent(Path("run/dataset"))
    return {"pairs": number, "wrong": 0, **counts}


def _consistent(folder: Path) -> bool:
    description = json.loads((folder / "distill.json").read_text())
    rows = len((folder / "train.jsonl").read_text().splitlines())
    expected = 160 if description["settings"]["select"] == "best" else 320
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return rows == description["counts"]["rows"] == expected and names == {*description["files"], "distill.json"}


def parts() -> dict[str, Any]:
    """Damage a middle part of every table, and list the commands that do not report it in one line."""
    outcome: dict[str, Any] = {"tries": 0, "unreported": []}
    with _temporary_directory():
        assert in_child(_earlier) == 0
        shutil.copytree(".", "../before", symlinks=True)
        for table in ("questions", "traces", "scores", "ranks"):
            for damage in ("deleted", "truncated", "swapped", "unknown"):
                for command, arguments in COMMANDS.items():
                    if command == "rank" and table == "ranks" and damage != "unknown":
                        continue  # it replaces them
                    _restore()
                    _damage(Path("run") / table, damage)
                    words = [{"RUN": "run", "OTHER": "other"}.get(word, word) for word in arguments]
                    outcome["tries"] += 1
                    if in_child(lambda: _reports(words, table)) != 0:  # noqa: B023 - called immediately
                        outcome["unreported"].append(f"{command}: {table} {damage}")
    return outcome


def _damage(folder: Path, damage: str) -> None:
    first, middle = folder / "part-00000.parquet", folder / "part-00001.parquet"
    if damage == "deleted":
        middle.unlink()
    elif damage == "truncated":
        middle.write_bytes(middle.read_bytes()[:-7])
    elif damage == "swapped":
        first.rename(folder / "x")
        middle.rename(first)
        (folder / "x").rename(middle)
    else:
        shutil.copy(middle, folder / "part-00007.parquet")


def _reports(arguments: list[str], table: str) -> None:
    from click.testing import CliRunner
    from typer.main import get_command

    result = CliRunner().invoke(get_command(app), arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 5 and len(errors) == 1 and f"/{table}/part-0000" in errors[0], result.output


def flips(number: int, seed: int = 0) -> dict[str, Any]:
    """Flip single bits of part files, and count the flips that a read does not notice."""
    draw = random.Random(seed)
    outcome = {"flips": number, "unnoticed": 0}
    with _temporary_directory():
        assert in_child(lambda: made(Path("run"))) == 0
        for turn in range(number):
            table = ("questions", "traces", "scores", "ranks")[turn % 4]
            part = Path("run") / table / f"part-0000{draw.randrange(3)}.parquet"
            content = part.read_bytes()
            bit = draw.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            part.write_bytes(flipped)
            try:
                RunFolder("run").read(table, int(part.stem[-5:]))
                outcome["unnoticed"] += 1
            except RltDataError:
                pass
            part.write_bytes(content)
    return outcome


def _open() -> None:
    """Open the files as the next command does."""
    RunFolder.existing("run")
    open_folder(".").recover()


@contextlib.contextmanager
def _temporary_directory() -> Any:
    previous = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "now").mkdir()
        os.chdir(Path(folder) / "now")
        try:
            yield
        finally:
            os.chdir(previous)


def _restore() -> None:
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree("../before", ".", symlinks=True, dirs_exist_ok=True)


def main() -> None:
    """Run all tests, and write the results."""
    results: dict[str, Any] = {"command": "make torture"}
    for name, work in (
        ("faults", lambda: faults(step=3)),
        ("pairs", lambda: pairs(24)),
        ("parts", parts),
        ("flips", lambda: flips(600)),
    ):
        start = time.monotonic()
        results[name] = work()
        print(name, f"{time.monotonic() - start:.0f} s", json.dumps(results[name]), flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.redirect_stderr(io.StringIO()):
        main()
