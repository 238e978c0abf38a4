"""What people get wrong, through the real commands: one clear line, the documented exit code, nothing changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import Result
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from rlt_data.errors import SettingsError
from rlt_data.settings import GenerateSettings, parse_settings
from rlt_data.steps.generate import generate
from rlt_data.steps.registry import STEPS
from tests.conftest import Rlt, write_jsonl
from tests.killing import environment
from tests.made_runs import files_of, make_run, ranked, trace

Tiny = Callable[..., Path]
Row = dict[str, Any]

GOOD: list[Row] = [{"question": f"What is {i} + 1?", "solution": str(i + 1)} for i in range(4)]


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the good rows and a run of one trace per row."""
    folder = tmp_path_factory.mktemp("made")
    write_jsonl(folder / "good.jsonl", GOOD)
    settings = {"in": str(folder / "good.jsonl"), "teacher": str(tiny()), "n": 1, "max_tokens": 5}
    generate(parse_settings(GenerateSettings, {**settings, "out": str(folder / "run")}))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


Refused = Callable[..., Result]


@pytest.fixture
def refused(rlt: Rlt, run: Path) -> Refused:
    """Run a command that must end with an exit code and one ``error:`` line, and leave the run as it is."""

    def command(*arguments: Any, code: int, says: str, errors: int = 1) -> Result:
        before = files_of(run)
        result = rlt(*arguments, code=code)
        assert files_of(run) == before
        lines = result.stderr.splitlines()
        assert says in result.output and "Traceback" not in result.output
        assert sum(line.startswith("error: ") for line in lines) == errors, result.stderr
        return result

    return command


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


#: Inputs with bad rows: the file, and the place and reason of the one bad row that is listed.
BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "broken JSON in the middle": (lines(*GOOD[:2], b'{"question": "x", ', *GOOD[2:]), "line 3: not JSON at column 19"),
    "broken JSON at the end": (lines(*GOOD) + b'{"question": "x"', "line 5: not JSON at column 17"),
    "a list for a row": (lines(*GOOD, ["q", "s"]), "line 5: expected a JSON object, got a list"),
    "a missing column": (lines(*GOOD, {"question": "q"}), "line 5: solution: missing"),
    "null": (lines(*GOOD, {"question": None, "solution": "s"}), "line 5: question: missing"),
    "a list for a text": (
        lines({"question": ["q"], "solution": "s"}, *GOOD),
        "line 1: question: expected text, got a list of 1",
    ),
    "a number for a question": (lines(*GOOD, {"question": 3, "solution": "s"}), "line 5: question: expected text"),
    "true for a solution": (lines(*GOOD, {"question": "q", "solution": True}), "line 5: solution: expected text"),
    "an empty question": (lines(*GOOD, {"question": " \n", "solution": "s"}), "line 5: question: empty"),
    "an empty solution": (lines(*GOOD, {"question": "q", "solution": ""}), "line 5: solution: missing"),
    "a tag in a solution": (
        lines(*GOOD, {"question": "q", "solution": "so <|end_of_solution|>"}),
        "line 5: the solution contains the tag '<|end_of_solution|>' of the format 'rlt'",
    ),
    "a tag in a question": (
        lines(*GOOD, {"question": "<|begin_of_solution|>?", "solution": "s"}),
        "line 5: the question contains the tag '<|begin_of_solution|>'",
    ),
    "a line of 2 MB": (
        lines({"question": "q" * 2**21, "solution": "s"}, *GOOD),
        "line 1: question: 2,097,152 characters, --max-chars is 200,000",
    ),
    "a NUL character": (
        lines(*GOOD, {"question": "q\0", "solution": "s"}),
        "line 5: question: contains a NUL character",
    ),
    "NUL bytes": (lines(*GOOD[:1], b"\0" * 4096, *GOOD[1:]), "line 2: not JSON"),
    "half a surrogate pair in an id": (
        lines(*GOOD, {"question": "q", "solution": "s", "id": "\ud83d"}),
        "line 5: the id, answer or a --keep column contains half of a surrogate pair",
    ),
    "half a surrogate pair": (
        lines(*GOOD, {"question": "\ud83d", "solution": "s"}),
        "line 5: question: contains half of",
    ),
    "Latin-1": (lines(*GOOD) + '{"question": "é"}'.encode("latin-1"), "line 5: not UTF-8 at byte 15"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_listed_and_stops_the_work_unless_it_may_be_skipped(
    rlt: Rlt, refused: Refused, run: Path, tiny: Tiny, tmp_path: Path, name: str
) -> None:
    content, reason = BAD_ROWS[name]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    checked = refused("check", "--in", file, code=3, says=f"  {reason}", errors=0)
    assert "5 rows, 4 good" in checked.stdout and "1 bad rows" in checked.stdout
    generated = "generate", "--in", file, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", run
    result = refused(*generated, code=3, says=f"  {reason}")
    assert f"{file}: 1 of 5 rows are bad; --skip-bad-rows leaves them out" in result.stderr
    assert "4 traces (0 new)" in rlt(*generated, "--skip-bad-rows").stdout


#: Files that look odd and are fine: their content, and rows, good rows and duplicates of them.
FINE: dict[str, tuple[bytes, str]] = {
    "a byte order mark": (b"\xef\xbb\xbf" + lines(*GOOD), "4 rows, 4 good"),
    "CRLF": (lines(*GOOD).replace(b"\n", b"\r\n"), "4 rows, 4 good"),
    "both": (b"\xef\xbb\xbf" + lines(*GOOD).replace(b"\n", b"\r\n"), "4 rows, 4 good"),
    "blank lines and no end": (b"\n\n" + lines(*GOOD).replace(b"\n", b"\n \n").rstrip(), "4 rows, 4 good"),
    "duplicates": (lines(*GOOD, GOOD[0], GOOD[3], GOOD[3]), "7 rows, 7 good"),
    "other columns and their order": (
        lines(*({"x": None, **row, "y": [1]} for row in reversed(GOOD))),
        "4 rows, 4 good",
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_what_only_looks_odd_gives_the_same_questions(
    rlt: Rlt, run: Path, tiny: Tiny, tmp_path: Path, name: str
) -> None:
    content, figures = FINE[name]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    checked = rlt("check", "--in", file).stdout
    assert figures in checked and f"{content.count(b'question') - 4} duplicates" in checked
    result = rlt("generate", "--in", file, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", run)
    assert "4 traces (0 new)" in result.stdout


def _make(folder: Path, kind: str) -> Path:
    """Make an input that cannot be read."""
    path = folder / "rows.jsonl"
    if kind == "empty":
        path.touch()
    elif kind == "blank":
        path.write_text("\n \n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "folder of other things":
        path.mkdir()
        (path / "image.bin").write_bytes(b"\x89PNG")
    elif kind == "dangling link":
        path.symlink_to(folder / "nothing")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "below a file":
        (folder / "file").touch()
        return folder / "file" / "rows.jsonl"
    elif kind == "chmod 000":
        path.write_bytes(lines(*GOOD))
        path.chmod(0)
    elif kind == "UTF-16":
        path.write_bytes(lines(*GOOD).decode().encode("utf-16"))
    elif kind == "unknown kind":
        path = folder / "rows.xlsx"
        path.write_bytes(b"PK")
    elif kind == "torn gzip":
        path = folder / "rows.jsonl.gz"
        path.write_bytes(b"\x1f\x8b\x08\x00\x00")
    elif kind == "no columns that fit":
        path.write_bytes(lines({"text": "a", "label": 1}))
    return path


UNREADABLE = {
    "missing": "no such file or folder",
    "empty": "the file is empty",
    "blank": "",
    "folder": "the folder is empty",
    "folder of other things": "has only files of unknown types",
    "dangling link": "no such file or folder",
    "link to itself": "no such file or folder",
    "below a file": "no such file or folder",
    "chmod 000": "Permission denied",
    "UTF-16": "UTF-16; save it as UTF-8",
    "unknown kind": "unknown file type",
    "torn gzip": "cannot be read",
    "no columns that fit": "no preset fits the columns 'text', 'label'; name them with --question-column",
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("command", ["check", "generate", "score"])
def test_an_input_that_cannot_be_read(
    refused: Refused, run: Path, tiny: Tiny, tmp_path: Path, file_modes: None, command: str, kind: str
) -> None:
    file = _make(tmp_path, kind)
    options = {
        "check": (),
        "generate": ("--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", run),
        "score": ("--student", tiny(), "--teacher", "none", "--out", "scored"),
    }
    quiet = command == "check" and kind == "blank"
    result = refused(command, "--in", file, *options[command], code=3, says=UNREADABLE[kind], errors=not quiet)
    assert str(file) in result.output


def test_a_name_that_is_too_long(refused: Refused, run: Path, tiny: Tiny) -> None:
    name = "x" * 300 + ".jsonl"
    refused("check", "--in", name, code=3, says="File name too long")
    refused("generate", "--in", name, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", run,
            code=3, says="File name too long")  # fmt: skip


def test_a_wrong_input_leaves_no_new_folder(refused: Refused, tiny: Tiny, tmp_path: Path) -> None:
    refused("generate", "--in", "nothing.jsonl", "--teacher", tiny(), "--out", "new", code=3, says="no such file")
    assert not (tmp_path / "new").exists()


def test_rows_without_traces_cannot_be_scored(refused: Refused, made: Path, tiny: Tiny) -> None:
    refused(
        "score", "--in", made / "good.jsonl", "--student", tiny(), "--teacher", "none", "--out", "new",
        code=3, says="line 1: no explanation or completion to score",
    )  # fmt: skip


def test_bad_rows_stop_scoring_too(refused: Refused, tiny: Tiny, tmp_path: Path) -> None:
    rows = [{**row, "explanation": "Add one."} for row in GOOD]
    file = write_jsonl(tmp_path / "rows.jsonl", [*rows, {"question": "", "solution": "s", "explanation": "e"}])
    refused(
        "score", "--in", file, "--student", tiny(), "--teacher", "none", "--out", "new",
        code=3, says="  line 5: question: empty",
    )  # fmt: skip
    assert not Path("new").exists()


def _no_model(folder: Path, tiny: Tiny) -> dict[str, str]:
    (folder / "hollow").mkdir()
    shutil.copytree(tiny(), folder / "torn", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "notes.txt").write_text("no model")
    return {
        "nowhere": "nowhere: no such model",
        "nobody/nothing": "nobody/nothing: no such folder, and the Hub did not give the model",
        "hollow": "hollow: the folder holds no model (no config.json or adapter_config.json)",
        "torn": "torn: the folder holds no weights",
        "notes.txt": "notes.txt: not a model",
    }


@pytest.mark.parametrize("command", ["generate", "score"])
def test_what_is_no_model(refused: Refused, run: Path, made: Path, tiny: Tiny, tmp_path: Path, command: str) -> None:
    for name, message in _no_model(tmp_path, tiny).items():
        if command == "generate":
            refused("generate", "--in", made / "good.jsonl", "--teacher", name, "--out", run, code=6, says=message)
        else:
            refused("score", "--in", run, "--student", name, code=6, says=message)
            refused("score", "--in", run, "--student", tiny(), "--teacher", name, code=6, says=message)


@pytest.fixture
def headless(tiny: Tiny, tmp_path: Path) -> Path:
    """A model that tells no probabilities."""
    config = Qwen2Config.from_pretrained(tiny())
    Qwen2Model(config).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(tiny()).save_pretrained(tmp_path / "headless")
    return tmp_path / "headless"


def test_a_model_without_the_needed_head_can_be_replaced_by_a_good_one(
    rlt: Rlt, run: Path, made: Path, tiny: Tiny, headless: Path
) -> None:
    tables = files_of(run / "traces")
    for command in (
        ("generate", "--in", made / "good.jsonl", "--teacher", headless, "--out", "new"),
        ("score", "--in", run, "--student", headless),
    ):
        errors = rlt(*command, code=6).stderr
        assert errors.count("error: ") == 1 and "not a causal language model with a head" in errors
    assert files_of(run / "traces") == tables and not (run / "scores").exists()
    assert "4 scores (4 new)" in rlt("score", "--in", run, "--student", tiny("chat", 1)).stdout
    options = "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", "new"
    assert "4 traces (4 new)" in rlt("generate", "--in", made / "good.jsonl", *options).stdout


def test_a_run_of_other_settings_is_not_mixed_with(
    rlt: Rlt, refused: Refused, run: Path, made: Path, tiny: Tiny
) -> None:
    generated = "generate", "--in", made / "good.jsonl", "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", run
    refused(*generated, "--temperature", 1, code=5, says="temperature was 0.7, now 1.0")
    refused(*generated, "--seed", 1, code=5, says="seed was 0, now 1")
    rlt("score", "--in", run, "--student", tiny())
    refused("score", "--in", run, "--student", tiny(), "--lambda", 1, code=5, says="lambda was 3.0, now 1.0")
    refused("score", "--in", run, "--student", tiny("chat", 1), code=5, says="student was")


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Let another process write to the run."""
    code = (
        "import sys; from rlt_data.storage.run import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked(): print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdin and process.stdout and process.stdout.readline()
    yield
    process.stdin.close()
    process.wait(30)


def test_a_run_that_another_process_writes_to_is_left_alone(
    rlt: Rlt, refused: Refused, run: Path, made: Path, tiny: Tiny
) -> None:
    rlt("score", "--in", run, "--student", tiny())
    generated = "generate", "--in", made / "good.jsonl", "--teacher", tiny(), "--n", 2, "--max-tokens", 5, "--out", run
    merged = "merge", "--in", made / "run", "--in", run, "--out", "merged"
    with held(run):
        for command in (generated, ("score", "--in", run, "--student", tiny()), ("rank", "--in", run), merged):
            refused(*command, code=5, says=f"{run}: another rlt-data process is writing to this folder")
        assert "4 scores" in rlt("stats", run).stdout
    rlt("rank", "--in", run)


@pytest.mark.parametrize(
    ("command", "says"),
    {
        ("score", "--in", "empty", "--student", "t", "--teacher", "none"): "the folder is empty",
        ("rank", "--in", "empty"): "empty: not a run folder (it has no run.json)",
        ("distill", "--in", "nothing"): "nothing: no such run folder",
        ("rank", "--in", "run"): "no scores to rank; run rlt-data score",
        ("distill", "--in", "run"): "no ranks; run rlt-data rank",
        ("stats", "file"): "file: a file, not a run folder",
        ("stats", "newer"): "layout version 99",
        ("show", "broken"): "broken/run.json: not JSON",
        ("show", "list"): "list/run.json: not the run.json of a run",
        ("stats", "binary"): "binary/run.json: not JSON",
    }.items(),
)
def test_what_is_not_the_run_that_a_step_needs(
    refused: Refused, tiny: Tiny, tmp_path: Path, command: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    contents = {"newer": b'{"version": 99}', "broken": b"{", "list": b"[]", "binary": b"\xff\xfe"}
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
    code = 3 if command[0] == "score" else 5
    refused(*(str(tiny()) if part == "t" else part for part in command), code=code, says=says)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 2, "RUN and --out"),
        (("--in", "run", "--out", "new"), 2, "--in: "),
        (("--in", "run", "--in", "./run/", "--out", "new"), 2, "--in: run and run are the same folder; name each run"),
        (("--in", "run", "--in", "other", "--out", "run/new"), 2, "--out: run/new"),
        (("--in", "run", "--in", "other", "--out", "other"), 5, "other: "),
        (("--in", "run", "--in", "other", "--out", "empty"), 5, "empty: "),
        (("--in", "run", "--in", "nothing", "--out", "new"), 5, "nothing: no such run folder"),
        (("--in", "run", "--in", "empty", "--out", "new"), 5, "empty: not a run folder (it has no run.json)"),
        (("--in", "run", "--in", "unpadded", "--out", "new"), 5, "have different padding"),
        (("--in", "run", "--in", "other", "--out", "file/new"), 7, "cannot write file/new: Not a directory"),
        (("--in", "run", "--in", "other", "--out", "/proc/new"), 7, "cannot write /proc/new"),
    ],
)
def test_runs_that_cannot_be_merged(
    refused: Refused, run: Path, tmp_path: Path, options: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("other", "unpadded"):
        shutil.copytree(run, tmp_path / name)
    info = json.loads((run / "run.json").read_text())
    info["steps"]["generate"]["format"]["padding"] = ""
    (tmp_path / "unpadded" / "run.json").write_text(json.dumps(info))
    before = set(tmp_path.iterdir())
    refused("merge", *options, code=code, says=says)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_made(
    refused: Refused, run: Path, made: Path, tiny: Tiny, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    says = f"cannot write {out}"
    refused("generate", "--in", made / "good.jsonl", "--teacher", tiny(), "--n", 1, "--out", out, code=7, says=says)
    refused("score", "--in", run, "--student", tiny(), "--out", out, code=7, says=says)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["generate", "score", "rank", "distill", "merge"])
def test_a_write_that_fails_changes_nothing_and_the_same_command_does_it_later(
    rlt: Rlt, refused: Refused, largest_file: Any, run: Path, made: Path, tiny: Tiny, command: str
) -> None:
    commands: dict[str, tuple[Any, ...]] = {
        "generate": ("--in", made / "good.jsonl", "--teacher", tiny(), "--n", 2, "--max-tokens", 5, "--out", run),
        "score": ("--in", run, "--student", tiny()),
        "rank": ("--in", run),
        "distill": ("--in", run, "--select", "all", "--include", "truncated"),
        "merge": ("--in", run, "--in", made / "run", "--out", "merged"),
    }
    for step, options in commands.items():
        if step == command:
            break
        rlt(step, *options)
    (run / ".lock").touch()
    with largest_file(500):
        refused(command, *commands[command], code=7, says="File too large")
    rlt(command, *commands[command])


def test_a_full_disk_keeps_what_was_there_and_the_same_command_goes_on_later(
    rlt: Rlt, largest_file: Any, run: Path, made: Path, tiny: Tiny
) -> None:
    generated = "generate", "--in", made / "good.jsonl", "--teacher", tiny(), "--max-tokens", 5, "--out", run
    before = files_of(run / "traces")
    with largest_file(12 * 1024):
        errors = rlt(*generated, "--n", 40, code=7).stderr
    assert errors.count("error: ") == 1 and f"cannot write {run}" in errors and "Traceback" not in errors
    assert before.items() <= files_of(run / "traces").items()
    assert "160 traces" in rlt(*generated, "--n", 40).stdout
    assert pl.read_parquet(run / "traces" / "*.parquet")["trace_id"].n_unique() == 160


@pytest.fixture
def read_only(tmp_path: Path, file_modes: None) -> Iterator[Path]:
    """A ranked run in folders without write permission."""
    run = make_run(tmp_path / "locked" / "run", [trace("a", 0)])
    ranked(run)
    folders = [Path(run.path), *Path(run.path).rglob("*/")]
    for folder in folders:
        folder.chmod(0o555)
    yield Path(run.path)
    for folder in folders:
        folder.chmod(0o755)


def test_a_run_that_cannot_be_written_can_still_be_looked_at(
    rlt: Rlt, refused: Refused, read_only: Path, tiny: Tiny, tmp_path: Path
) -> None:
    before = files_of(read_only)
    for command in (
        ("rank", "--in", read_only),
        ("distill", "--in", read_only),
        ("score", "--in", read_only, "--student", tiny(), "--teacher", "none"),
    ):
        refused(*command, code=7, says=f"cannot write {read_only}")
    assert files_of(read_only) == before
    assert "1 scores" in rlt("stats", read_only).stdout and "What is a?" in rlt("show", read_only).stdout
    assert "1 rows" in rlt("distill", "--in", read_only, "--out", "elsewhere").stdout
    other = make_run(tmp_path / "other", [trace("b", 0)]).path
    assert "2 questions" in rlt("merge", "--in", read_only, "--in", other, "--out", "merged").stdout
    assert files_of(read_only) == before


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("n: 2001-99-99", 3, "--config: flags.yaml: not YAML: month must be in 1..12"),
        ("n: " + "[" * 1500, 3, "--config: flags.yaml: not YAML: nested too deeply"),
        ("? [a]\n: 3", 3, "--config: flags.yaml: not YAML: "),
        ("- in", 3, "--config: flags.yaml: "),
        ("3: 4", 2, "--config: flags.yaml: 3: unknown key"),
        ("max-tokens: 4", 2, "--config: flags.yaml: max-tokens: unknown key"),
        ("question-colum: 4", 2, "did you mean 'question_column'?"),
        ('in: "a\\0b"', 2, "--in: "),
    ],
)
def test_a_settings_file_that_is_none(refused: Refused, tmp_path: Path, text: str, code: int, says: str) -> None:
    (tmp_path / "flags.yaml").write_text(text)
    given = () if text.startswith("in") else ("--in", "x")
    refused("check", *given, "--config", "flags.yaml", code=code, says=says)


def test_the_name_of_a_file_cannot_drive_the_terminal(rlt: Rlt, refused: Refused, tiny: Tiny, tmp_path: Path) -> None:
    name = "\x1b[31mred\x07.jsonl"
    refused("check", "--in", name, code=3, says="\ufffd[31mred\ufffd.jsonl: no such file")
    write_jsonl(tmp_path / name, [*GOOD, {"question": ""}])
    options = "--in", name, "--teacher", tiny(), "--n", 1, "--max-tokens", 4, "--out", "\x1b[1mrun"
    results = [rlt("check", "--in", name, code=3), rlt("generate", *options, code=3)]
    results.append(rlt("generate", *options, "--skip-bad-rows"))
    for result in results:
        assert "\ufffd[" in result.output and not {"\x1b", "\x07"} & set(result.output)


def test_flags_that_cannot_matter_are_refused(refused: Refused, run: Path, made: Path, tiny: Tiny) -> None:
    scored = "score", "--in", run, "--student", tiny()
    says = "--limit, --preset, --question-column: no effect with a run"
    refused(*scored, "--limit", 1, "--question-column", "nonsense", "--preset", "s1k", code=2, says=says)
    refused(*scored, "--skip-bad-rows", code=2, says="--skip-bad-rows: no effect with a run")
    evaluated = "evaluate", "--benchmark", "math", "--in", made / "good.jsonl", "--model", tiny(), "--out", "new"
    refused(
        *evaluated,
        "--question-column",
        "question",
        code=2,
        says="--question-column: has no effect without --answer-column",
    )


FILE = "good.jsonl"
SOURCE = {"in": FILE}
TRAINED = SOURCE | {"model": "m", "out": "o"}
#: Settings without effect: the step, its settings, and the ones that are named.
WITHOUT_EFFECT: list[tuple[str, dict[str, Any], str]] = [
    *(("generate", SOURCE | {"teacher": "t", key: "x"}, key) for key in ("explanation_column", "completion_column")),
    ("check", SOURCE | {"skip_bad_rows": True}, "skip_bad_rows"),
    *(
        ("solver", TRAINED | {key: value}, key)
        for key, value in {
            "preset": "s1k",
            "max_chars": 5,
            "keep": ["x"],
            **dict.fromkeys(("solution_column", "id_column", "explanation_column", "completion_column"), "x"),
        }.items()
    ),
    ("solver", TRAINED | {"question_column": "x"}, "question_column"),
    *(
        ("teacher", TRAINED | {"student": "s", key: value}, key)
        for key, value in {"answer_column": "x", "keep": ["x"], "explanation_column": "x"}.items()
    ),
    ("teacher", TRAINED | {"student": "s", "vllm_memory": 0.5}, "vllm_memory"),
    ("warmup", TRAINED | {"answer_column": "x"}, "answer_column"),
    ("warmup", TRAINED | {"keep": ["x"]}, "keep"),
    *(
        (step, settings | {"engine": "server", "url": ["http://h:1/v1"], key: value}, key)
        for step, settings in {
            "generate": SOURCE | {"teacher": "t"},
            "score": SOURCE | {"student": "s", "temperature": 1},
            "evaluate": SOURCE | {"model": "m", "benchmark": "math"},
        }.items()
        for key, value in {"device": "cpu", "dtype": "float32", "batch_size": 2, "batch_tokens": 9}.items()
    ),
    ("generate", SOURCE | {"teacher": "t", "engine": "vllm", "device": "cuda:1"}, "device"),
    ("generate", SOURCE | {"teacher": "t", "engine": "transformers", "gpu_memory": 0.5}, "gpu_memory"),
    ("generate", SOURCE | {"teacher": "t", "url": ["http://h:1/v1"]}, "url"),
    ("score", SOURCE | {"student": "s", "engine": "transformers", "batch_size": 2}, "batch_size"),
    ("score", SOURCE | {"student": "s", "teacher": "none", "teacher_logprobs": "compute"}, "teacher_logprobs"),
    ("evaluate", {"model": "m", "benchmark": "gsm8k", "split": "test"}, "split"),
    ("evaluate", {"model": "m", "benchmark": "gsm8k", "subset": "x"}, "subset"),
    ("evaluate", SOURCE | {"model": "m", "benchmark": "math", "answer_column": "x"}, "answer_column"),
    ("distill", {"in": "r", "max_tokens": 9}, "max_tokens"),
]


@pytest.mark.parametrize(("step", "settings", "key"), WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused_in_python_and_as_a_flag(
    rlt: Rlt, made: Path, monkeypatch: pytest.MonkeyPatch, step: str, settings: dict[str, Any], key: str
) -> None:
    monkeypatch.chdir(made)
    with pytest.raises(SettingsError, match=f"^{key}: ") as error:
        STEPS[step].settings(**settings)
    assert "\n" not in str(error.value)
    flags: list[Any] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, value[0] if isinstance(value, list) else value]
    printed = rlt(*STEPS[step].command.split(), *flags, code=2).stderr
    assert printed.startswith(f"error: --{key.replace('_', '-')}: ") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("step", "flag"),
    [
        (step, flag)
        for step in ("check", "generate", "evaluate", "train-solver")
        for flag in ("--split", "--subset", "--revision")
        if (step, flag) != ("evaluate", "--revision")  # which evaluate lacks
    ],
)
def test_flags_of_data_sets_are_refused_for_a_file(rlt: Rlt, made: Path, tiny: Tiny, step: str, flag: str) -> None:
    models = {
        "check": (),
        "generate": ("--teacher", tiny(), "--out", "new", "--engine", "transformers"),
        "evaluate": ("--model", tiny(), "--benchmark", "math", "--out", "new", "--engine", "transformers"),
        "train-solver": ("--model", tiny(), "--out", "new"),
    }
    errors = rlt(step, "--in", made / "good.jsonl", *models[step], flag, "x", code=2).stderr
    assert errors.startswith(f"error: {flag}: ") and errors.count("\n") == 1


def test_text_for_a_number_names_the_flag_and_the_type(refused: Refused) -> None:
    result = refused("generate", "x.jsonl", "--teacher", "t", "--n", "two", code=2, says="--n")
    assert "valid integer" in result.stderr and "unable to parse" not in result.stderr


def test_a_misspelled_required_key_is_one_mistake(tmp_path: Path, refused: Refused) -> None:
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("out: r\ngenerate:\n  in: x.jsonl\n  teachr: t\n")
    result = refused("run", pipeline, code=2, says="did you mean 'teacher'?")
    assert "is required" not in result.stderr


def test_an_unknown_key_does_not_list_all_keys() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(GenerateSettings, {"in": "x", "teacher": "t", "qqqqqqqq": 1})
    assert "qqqqqqqq" in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "no such file"), ("teacher: [nano\n", "line 2: ")],
    ids=["missing", "not YAML"],
)
def test_a_config_file_that_cannot_be_used(text: str | None, says: str, tmp_path: Path, refused: Refused) -> None:
    config = tmp_path / "c.yaml"
    if text is not None:
        config.write_text(text)
    result = refused("generate", "x.jsonl", "--config", config, code=3, says=says)
    assert "Errno" not in result.stderr and "unicode string" not in result.stderr


def test_a_file_is_not_a_run_folder(made: Path, refused: Refused) -> None:
    refused("stats", made / "good.jsonl", code=5, says="a file, not a run folder")


def test_rank_names_the_reward_function_that_returned_none(tmp_path: Path, rlt: Rlt) -> None:
    run = make_run(tmp_path / "r", [trace("q", 0, None)])
    assert "without log-probs of a teacher" in rlt("rank", run.path, code=2).stderr
    run.record("score", run.step("score") | {"settings": {"reward": "rewards:mine"}})
    assert "the function of --reward returned None" in rlt("rank", run.path, code=2).stderr


def test_a_plug_in_that_is_not_callable_is_named_once(run: Path, rlt: Rlt) -> None:
    result = rlt("score", run, "--student", "nano", "--reward", "os:sep", code=2)
    assert result.stderr.count("os:sep") == 1
