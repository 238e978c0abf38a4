"""The progress of a running step, read from the files of the run alone."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from rlt_data.steps.makers import makers_of
from rlt_data.steps.registry import STEPS
from rlt_data.storage.data_set import data_set_state
from rlt_data.storage.errorlog import failures
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import TABLE_OF_STEP, content_hash

#: Columns with the number of tokens of a row; null for imported traces.
_TOKENS = {"traces": "completion_tokens", "scores": "student_tokens", "answers": "completion_tokens"}
#: Seconds over which throughput is averaged.
_WINDOW = 60.0
#: Seconds without new rows after which a step counts as stalled.
_STALLED_AFTER = 20.0
_NEWEST = 12
_SNIPPET = 120


class Watch:
    """Tracks the progress of a run.

    Args:
        path: path or URL of the run folder.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._counted: dict[tuple[str, int], tuple[Any, int, int, int]] = {}
        self._history: dict[str, deque[tuple[float, int, int]]] = {step: deque() for step in TABLE_OF_STEP}
        self._last_change: dict[str, float] = {}

    def now(self) -> dict[str, Any]:
        """Return the current progress as JSON for the page.

        Returns:
            ``stamp`` changes whenever the run does. ``steps`` has, for each step that has started, its name, its done,
            failed and total rows, ``tokens_per_second`` and ``seconds_left`` (null without new rows), and its
            ``state`` in words. ``newest`` has key and first characters of the traces that were written last.
        """
        run = RunFolder.existing(self._path)
        failed = Counter(entry["step"] for entry in failures(run))
        steps = [self._step(run, step, failed[step]) for step in TABLE_OF_STEP if run.step(step)]
        stamp = content_hash(run.info, [step["done"] for step in steps], run.parts("ranks"), data_set_state(run))
        return {"stamp": stamp, "steps": steps, "newest": _newest(run)}

    def _step(self, run: RunFolder, step: str, failed: int) -> dict[str, Any]:
        done, tokens, sampled = self._count(run, TABLE_OF_STEP[step])
        if "traces" in STEPS[step].reads:
            total = self._count(run, "traces")[0]
        else:
            makers = makers_of(run.step(step)).values()
            samples = sum(int(maker.get("settings", {}).get("n", 1)) for maker in makers)
            done, total = sampled, self._count(run, "questions")[0] * samples
        now = time.monotonic()
        history = self._history[step]
        if not history or history[-1][1:] != (done, tokens):
            self._last_change[step] = now if history else now - _seconds_since_write(run, step)
        history.append((now, done, tokens))
        while now - history[0][0] > _WINDOW:
            history.popleft()
        window_start, done_before, tokens_before = history[0]
        seconds = now - window_start
        idle = now - self._last_change[step]
        pending = max(total - done - failed, 0)
        has_rate = pending and done > done_before and idle < _STALLED_AFTER
        state = "done" if not pending else "running" if idle < _STALLED_AFTER else f"no new rows for {_duration(idle)}"
        return {
            "step": step,
            "done": done,
            "failed": failed,
            "total": total,
            "tokens_per_second": (tokens - tokens_before) / seconds if has_rate else None,
            "seconds_left": pending * seconds / (done - done_before) if has_rate else None,
            "state": state,
        }

    def _count(self, run: RunFolder, table: str) -> tuple[int, int, int]:
        """Return the number of rows, tokens and sampled rows of a table, reading only parts that have changed."""
        column = _TOKENS.get(table, "question_id")
        rows = tokens = sampled = 0
        for part in run.parts(table):
            files = run.part_state(table, part)
            if self._counted.get((table, part), (None,))[0] != files:
                values = pl.DataFrame(run.read(table, part, [column]))[column]
                total = values.sum() or 0 if table in _TOKENS else 0
                self._counted[table, part] = files, len(values), int(total), values.count()
            rows += self._counted[table, part][1]
            tokens += self._counted[table, part][2]
            sampled += self._counted[table, part][3]
        return rows, tokens, sampled


def _seconds_since_write(run: RunFolder, step: str) -> float:
    """Return how many seconds ago a step wrote its last rows; 0 if unknown."""
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
        pass  # the file was merged into a part meanwhile, which the next call reads
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
