from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash, to_table
from rlt_data.storage.writer import FLUSH_SECONDS, TableWriter


def question(i: int) -> dict[str, Any]:
    return {"question_id": f"{i:03d}", "question": f"q{i}", "solution": "s"}


def trace(i: int, sample: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "trace_id": f"t{i}-{sample}",
        "question_id": f"{i:03d}",
        "sample_index": sample,
        "completion": f"c{i}-{sample}",
        "made_by": "test",
        **more,
    }


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.write_part("questions", 0, to_table("questions", [question(i) for i in (2, 0, 1)]))
    return run


def ids(run: RunFolder) -> list[str]:
    return [key for part in run.parts("traces") for key in run.read("traces", part, ["trace_id"])[0].to_pylist()]


def test_a_row_is_on_disk_within_five_seconds_while_the_writer_waits(run: RunFolder) -> None:
    with TableWriter(run, "traces") as writer:
        writer.append(0, trace(0))
        deadline = time.monotonic() + 60
        while not ids(RunFolder(run.path)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert FLUSH_SECONDS < 4


def test_rows_are_read_in_the_order_of_questions_and_samples_from_journal_and_part_alike(run: RunFolder) -> None:
    with TableWriter(run, "traces") as writer:
        for i, sample in [(1, 1), (0, 0), (1, 0), (2, 0)]:
            writer.append(0, trace(i, sample))
            writer.flush()
    expected = ["t2-0", "t0-0", "t1-0", "t1-1"]
    assert ids(run) == expected and not run.part_file("traces", 0).exists()
    run.compact_all("traces")
    assert ids(run) == expected and run.part_file("traces", 0).exists() and not (run.path / "journal").exists()


def test_parts_are_byte_equal_whatever_the_order_and_the_number_of_flushes(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    other.adopt("questions", run)
    rows = [trace(i, s, token_ids=[1, 2], logprobs=[-0.5, -1.5], seed=2**63 + 1) for i in range(3) for s in range(4)]
    with TableWriter(run, "traces") as writer:
        for row in rows:
            writer.append(0, row)
    with TableWriter(other, "traces") as writer:
        for row in reversed(rows):
            writer.append(0, row)
            writer.flush()
    run.compact(table := "traces", 0)
    other.compact(table, 0)
    assert run.part_file(table, 0).read_bytes() == other.part_file(table, 0).read_bytes()


def test_a_kill_between_merging_and_clearing_the_journal_makes_no_duplicate(run: RunFolder) -> None:
    run.add_segment("traces", 0, to_table("traces", [trace(0), trace(1)]))
    run.write_part("traces", 0, run.read("traces", 0))  # as compact() does before it removes the journal
    assert ids(run) == ["t0-0", "t1-0"] and run.count("traces") == 2
    run.compact_all("traces")
    assert ids(run) == ["t0-0", "t1-0"]


def test_incomplete_files_are_never_read_and_are_removed(run: RunFolder) -> None:
    torn = run.path / "traces" / f".rlt-data-{'0' * 32}.tmp"
    torn.parent.mkdir()
    torn.write_bytes(b"half a file")
    assert run.parts("traces") == []
    with run.locked():
        assert not torn.exists()


def test_keys_and_counts(run: RunFolder) -> None:
    run.add_segment("traces", 0, to_table("traces", [trace(0), trace(2)]))
    assert run.keys("traces", 0) == {"t0-0", "t2-0"} and run.count("traces") == 2
    assert run.keys("traces", 1) == set()


def _hold(path: Path, ready: Any, leave: Any) -> None:
    with RunFolder(path).locked():
        ready.set()
        leave.wait(30)


def test_only_one_process_writes_to_a_run(run: RunFolder) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(run.path, ready, leave))
    other.start()
    assert ready.wait(30)
    with pytest.raises(RunFolderError, match="another rlt-data process"), run.locked():
        pass
    other.kill()
    other.join()
    with run.locked():
        pass


def test_other_settings_are_refused_by_name(run: RunFolder) -> None:
    run.record("generate", {"depends_on": {"temperature": 0.7, "seed": 0}})
    run.refuse_other_settings("generate", {"depends_on": {"temperature": 1.0, "seed": 0}})  # the step has no rows yet
    run.add_segment("traces", 0, to_table("traces", [trace(0)]))
    run.refuse_other_settings("generate", {"depends_on": {"temperature": 0.7, "seed": 0}})
    with pytest.raises(RunFolderError, match=r"temperature was 0\.7, now 1\.0") as error:
        run.refuse_other_settings("generate", {"depends_on": {"temperature": 1.0, "seed": 0}})
    assert "seed" not in str(error.value) and "another --out" in str(error.value)


def test_recording_a_step_keeps_other_entries(run: RunFolder) -> None:
    run.record("generate", {"a": 1})
    run.record("generate", {"b": 2})
    run.record("score", {"c": 3})
    assert run.step("generate") == {"a": 1, "b": 2} and run.step("score") == {"c": 3}


def test_adopting_links_part_files_and_copies_journals(run: RunFolder, tmp_path: Path) -> None:
    run.write_part("traces", 0, to_table("traces", [trace(0)]))
    other = RunFolder(tmp_path / "other")
    other.adopt("questions", run)
    other.adopt("traces", run)
    assert os.path.samefile(other.part_file("traces", 0), run.part_file("traces", 0))
    run.add_segment("traces", 0, to_table("traces", [trace(1)]))
    other.adopt("traces", run)
    assert ids(other) == ["t0-0", "t1-0"]
    run.compact_all("traces")
    assert ids(other) == ["t0-0", "t1-0"]


def test_a_replaced_table_stays_until_the_new_one_is_complete(run: RunFolder) -> None:
    with run.replacing("ranks") as new:
        new.write(0, to_table("ranks", []))
    before = run.part_file("ranks", 0).read_bytes()
    with pytest.raises(ZeroDivisionError), run.replacing("ranks") as new:
        new.write(0, to_table("ranks", []))
        new.write(1, to_table("ranks", []))
        raise ZeroDivisionError
    assert run.parts("ranks") == [0] and run.part_file("ranks", 0).read_bytes() == before
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_not_a_run_or_has_a_newer_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        RunFolder.existing(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.existing(tmp_path)
    (tmp_path / "run.json").write_text('{"version": 99}')
    with pytest.raises(RunFolderError, match="layout version 99"):
        RunFolder.existing(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="not JSON"):
        RunFolder.existing(tmp_path)


def test_a_damaged_part_is_named(run: RunFolder) -> None:
    run.write_part("traces", 0, to_table("traces", [trace(0)]))
    content = bytearray(run.part_file("traces", 0).read_bytes())
    content[100] ^= 1
    run.part_file("traces", 0).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"part-00000\.parquet: is damaged"):
        RunFolder(run.path).read("traces", 0)


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(DiskError, match="cannot write /proc/run"), RunFolder("/proc/run").locked():
        pass


def test_a_full_disk_stops_the_writer_and_keeps_earlier_rows(tmp_path: Path, largest_file: Any) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_part("questions", 0, to_table("questions", [question(i) for i in range(256)]))
    with (
        pytest.raises(DiskError, match=f"cannot write .*{run.path}"),
        largest_file(64 * 1024),
        TableWriter(run, "traces") as writer,
    ):
        for i in range(256):
            writer.append(0, trace(i, completion=os.urandom(1024 * (1 if i < 9 else 256)).hex()))
            writer.flush()
    kept = ids(run)
    assert 0 < len(kept) < 256 and kept == [f"t{i}-0" for i in range(len(kept))]
    assert not list(run.path.rglob("*.tmp"))


def test_schemas_are_versioned_in_every_file(run: RunFolder) -> None:
    assert pq.read_schema(run.part_file("questions", 0)).metadata[b"rlt_data_version"] == b"4"


def test_content_hashes_depend_on_content_and_boundaries() -> None:
    assert content_hash("a", "b") != content_hash("ab") != content_hash("a", "", "b")
    assert content_hash({"x": 1, "y": 2}) == content_hash({"y": 2, "x": 1})
    assert content_hash("é") == content_hash("é") and len(content_hash("é")) == 32
