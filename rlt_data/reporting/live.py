"""How far a run is, for whoever looks on: nothing is asked of the process that works, only of the run's files."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from rlt_data.steps.registry import STEPS
from rlt_data.storage.errorlog import failures
from rlt_data.storage.run import RunFolder, content_hash
from rlt_data.storage.schemas import TABLE_OF_STEP

#: Columns that count the tokens of a row.
_TOKENS = {"traces": "completion_tokens", "scores": "student_tokens", "answers": "completion_tokens"}
#: Seconds that throughput is taken over.
_WINDOW = 60.0
#: Seconds without new rows after which a step counts as stopped.
_QUIET = 20.0
_NEWEST = 12
_SNIPPET = 120


class Watch:
    """Looks at a run again and again.

    Args:
        path: the run folder, or its URL.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._counted: dict[tuple[str, int], tuple[Any, int, int]] = {}
        self._seen: dict[str, deque[tuple[float, int, int]]] = {step: deque() for step in TABLE_OF_STEP}
        self._changed: dict[str, float] = {}

    def now(self) -> dict[str, Any]:
        """Return what the page shows of the run at the moment.

        Returns:
            ``stamp``, which changes with the run; ``steps``: for each that has begun its name, done and failed rows,
            total, ``tokens_per_second`` and ``seconds_left`` (null while nothing moves) and ``state`` in words;
            ``newest``: key and beginning of the traces that were written last.
        """
        run = RunFolder.existing(self._path)
        failed = Counter(entry["step"] for entry in failures(run))
        steps = [self._step(run, step, failed[step]) for step in TABLE_OF_STEP if run.step(step)]
        stamp = content_hash(run.info, [each["done"] for each in steps], run.parts("ranks"))
        return {"stamp": stamp, "steps": steps, "newest": _newest(run)}

    def _step(self, run: RunFolder, step: str, failed: int) -> dict[str, Any]:
        done, tokens = self._count(run, TABLE_OF_STEP[step])
        if "traces" in STEPS[step].reads:
            total = self._count(run, "traces")[0]
        else:
            total = self._count(run, "questions")[0] * int(run.step(step).get("settings", {}).get("n", 1))
        now = time.monotonic()
        seen = self._seen[step]
        if not seen or seen[-1][1:] != (done, tokens):
            self._changed[step] = now if seen else now - _age(run, step)
        seen.append((now, done, tokens))
        while now - seen[0][0] > _WINDOW:
            seen.popleft()
        before, rows, sampled = seen[0]
        seconds = now - before
        quiet = now - self._changed[step]
        moves = done > rows and quiet < _QUIET
        owed = max(total - done - failed, 0)
        state = "done" if not owed else "at work" if quiet < _QUIET else f"no new row for {_duration(quiet)}"
        return {
            "step": step,
            "done": done,
            "failed": failed,
            "total": total,
            "tokens_per_second": (tokens - sampled) / seconds if moves and owed else None,
            "seconds_left": owed * seconds / (done - rows) if moves and owed else None,
            "state": state,
        }

    def _count(self, run: RunFolder, table: str) -> tuple[int, int]:
        """Return rows and tokens of a table; a part whose files are as before is not read again."""
        column = _TOKENS.get(table, "question_id")
        rows = tokens = 0
        for part in run.parts(table):
            files = run.part_state(table, part)
            if self._counted.get((table, part), (None,))[0] != files:
                read = run.read(table, part, [column])
                total = pl.DataFrame(read)[column].sum() or 0 if table in _TOKENS else 0
                self._counted[table, part] = files, len(read), int(total)
            rows += self._counted[table, part][1]
            tokens += self._counted[table, part][2]
        return rows, tokens


def _age(run: RunFolder, step: str) -> float:
    """Return how many seconds ago a step wrote its last rows; 0 where that cannot be seen."""
    written = run.last_written(TABLE_OF_STEP[step])
    return max(0.0, time.time() - written[0][1]) if written else 0.0


def _newest(run: RunFolder) -> list[dict[str, Any]]:
    newest: list[dict[str, Any]] = []
    try:
        for file, _ in run.last_written("traces"):
            rows = pq.read_table(file, columns=["trace_id", "completion"])
            newest += reversed(rows.slice(max(0, len(rows) - _NEWEST)).to_pylist())
            if len(newest) >= _NEWEST:
                break
    except FileNotFoundError:
        pass  # merged meanwhile; the next look finds the part
    return [
        {"trace_id": row["trace_id"], "text": " ".join(row["completion"][: 2 * _SNIPPET].split())[:_SNIPPET]}
        for row in newest[:_NEWEST]
    ]


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )
