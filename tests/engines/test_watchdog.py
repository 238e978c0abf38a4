"""The watchdog ends runs whose engine hangs in this process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.watchdog import Heartbeat, watched
from rlt_data.errors import EngineError
from tests.conftest import Rlt


def test_a_run_that_hangs_ends_and_the_same_command_continues_it(
    rlt: Rlt, problems: Path, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = "generate", "--teacher", tiny(), "--in", problems, "--n", 4, "--max-tokens", 8, "--batch-size", 8
    arguments += "--out", run
    passes, hidden = [0], CausalModel.hidden

    def hang(model: CausalModel, *arguments: Any) -> Any:
        passes[0] += 1
        if passes[0] == 20:  # in the last batch
            time.sleep(4)
        return hidden(model, *arguments)

    monkeypatch.setattr(CausalModel, "hidden", hang)
    errors = rlt(*arguments, "--stall-timeout", 1, code=8).stderr
    assert "1 s (--stall-timeout)" in errors and "all keys in run.log" in errors
    finished = len(pl.read_parquet(run / "journal" / "traces" / "*" / "*.parquet"))
    assert 0 < finished < 24
    monkeypatch.undo()
    assert f"24 traces ({24 - finished} new)" in rlt(*arguments).stdout


def test_an_engine_that_loses_rows_does_not_end_the_run_well(
    rlt: Rlt, problems: Path, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = "generate", "--teacher", tiny(), "--in", problems, "--n", 4, "--max-tokens", 8, "--out", tmp_path / "run"
    score = "score", "--student", tiny(), "--in", tmp_path / "run"
    for command, method, table in ((generate, "generate", "traces"), (score, "logprobs", "scores")):
        complete = getattr(TransformersEngine, method)
        with monkeypatch.context() as patch:
            patch.setattr(
                TransformersEngine, method, lambda *arguments, method=complete: islice(method(*arguments), 19)
            )
            assert "5 rows" in rlt(*command, code=8).stderr
        assert f"24 {table} (5 new)" in rlt(*command).stdout


def test_a_process_that_hangs_in_another_library_is_ended() -> None:
    script = (
        "import time\nfrom rlt_data.engines import watchdog\nwatchdog.GRACE_SECONDS = 0.5\n"
        "with watchdog.watched([watchdog.Heartbeat()], 1.0, lambda: 'these rows are missing'):\n    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 8
    assert "error: " in ended.stderr and ended.stderr.endswith("(--stall-timeout); these rows are missing\n")


def test_one_engine_at_work_is_enough() -> None:
    busy, idle = Heartbeat(), Heartbeat()
    with watched([busy, idle], 1.0, lambda: ""):
        for _ in range(15):
            time.sleep(0.1)
            busy.touch_or_raise()
    with pytest.raises(EngineError):
        with watched([busy, idle], 0.4, lambda: ""):
            for _ in range(600):
                time.sleep(0.1)
                idle.raise_if_stopped()
