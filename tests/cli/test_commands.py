from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import transformers

import rlt_data
from rlt_data import progress
from rlt_data.cli import commands
from rlt_data.settings import GenerateSettings, Settings, TrainTeacherSettings, parse_settings
from rlt_data.steps.registry import STEPS
from tests.children import Child, run_child, write_slowly
from tests.conftest import Rlt
from tests.killing import command, environment, write_questions
from tests.made_runs import make_run, trace

Tiny = Callable[..., Path]

COMMANDS: dict[str, type[Settings]] = {
    **{step.command: step.settings for step in STEPS.values()},
    **{name: settings for name, (settings, _) in commands.COMMANDS.items()},
}


def flags(settings: type[Settings]) -> set[str]:
    return {"--" + (field.alias or name).replace("_", "-") for name, field in settings.model_fields.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag(rlt: Rlt, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    printed = rlt(*name.split(), "--help").stdout
    assert rlt(*name.split(), "-h").stdout == printed
    assert "Usage: rlt-data " + name in re.sub(r"\broot\b", "rlt-data", printed)
    settings = COMMANDS[name]
    assert set(re.findall(r"--[a-z0-9-]+", printed)) >= {*flags(settings), "--config"}
    required = [field for field in settings.model_fields.values() if field.is_required()]
    assert len(re.findall(r"\(required", printed)) == len(required)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_at_most_ten_flags_first(rlt: Rlt, name: str) -> None:
    printed = rlt(*name.split(), "--help").stdout
    [panel] = re.findall(r"─ Options ─.*?╰", printed, re.S)
    first = set(re.findall(r"^│ (--[a-z0-9-]+)", panel, re.M))
    assert "--help" in first and len(first) <= 10
    fields = COMMANDS[name].model_fields.items()
    required = {"--" + (info.alias or key).replace("_", "-") for key, info in fields if info.is_required()}
    assert all(flag in first or re.search(rf"also\W+{flag}\)", printed) for flag in required)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_a_file_of_flags(rlt: Rlt, tmp_path: Path, name: str) -> None:
    (tmp_path / "flags.yaml").write_text("zzzzzzzz: 1\n")
    error = rlt(*name.split(), "--config", "flags.yaml", code=2).stderr
    assert error.startswith("error: --config: flags.yaml: zzzzzzzz: unknown key") and error.count("\n") == 1


def test_help_names_every_command_and_exit_code(rlt: Rlt) -> None:
    printed = rlt("--help").stdout
    assert all(re.search(rf"^\W*{name.split()[0]} ", printed, re.M) for name in COMMANDS)
    assert all(f"{code} " in printed for code in (0, 2, 3, 4, 5, 6, 7, 130))


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def processor_seconds(argv: list[str]) -> float:
    before = os.times()
    subprocess.run(argv, env=environment(), capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.slow
def test_help_appears_at_once() -> None:
    """Against its libraries' own start in the same run: processors differ, and others may be using the cores."""
    libraries = [sys.executable, "-c", "import typer.rich_utils, rich.markdown, pydantic.fields, pydantic.main"]
    pairs = [(processor_seconds(command("--help")), processor_seconds(libraries)) for _ in range(5)]
    help, floor = (min(column) for column in zip(*pairs, strict=True))
    assert 0 < help < 2.5 * floor


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    loaded = python("import sys, rlt_data, rlt_data.cli.main; print(*sys.modules)").split()
    heavy = {"torch", "transformers", "datasets", "polars", "pyarrow", "numpy", "yaml", "huggingface_hub"}
    assert "rlt_data.settings" in loaded and not heavy & set(loaded)


def import_every_module() -> None:
    """Import all of the package, print what is loaded, and end the process."""
    for module in pkgutil.walk_packages(rlt_data.__path__, "rlt_data."):
        importlib.import_module(module.name)
    print(*sys.modules)
    sys.exit()


def test_no_module_needs_trl_or_vllm() -> None:
    loaded = run_child(prepare=import_every_module).stdout.split()
    assert {"rlt_data.steps.score", "rlt_data.engines.transformers", "torch"} <= set(loaded)
    assert not {"trl", "vllm"} & {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize("name", rlt_data.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(rlt_data, name)
    assert thing.__name__ == name and thing.__module__.startswith("rlt_data.") and thing.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trainer'"):
        rlt_data.trainer  # noqa: B018


def test_the_version_is_that_of_the_package(rlt: Rlt) -> None:
    assert rlt("--version").stdout == f"rlt-data {version('rlt-data')}\n"


#: A wrong command line, and what stderr says; the exit code is 2.
WRONG: dict[str, tuple[list[Any], list[str]]] = {
    "all required flags are missing": (["generate"], ["FILE and --teacher", "generate --help"]),
    "one required flag is missing": (["score", "x"], ["--student", "score --help"]),
    "several required flags are missing": (["train-teacher", "rl"], ["FILE", "--model", "--student", "--out"]),
    "no argument": (["show"], ["RUN", "show --help"]),
    "too many arguments": (["stats", "a", "b"], ["(b)", "stats --help"]),
    "unknown command": (["genrate"], ["'genrate'", "did you mean 'generate', 'curate'?"]),
    "unknown command of a group": (["train-teacher", "rll"], ["'rll'", "did you mean 'rl'?"]),
    "unknown flag": (["rank", "--bye", "r_ss"], ["--bye:", "did you mean --by?"]),
    "unknown flag like no other": (["rank", "--zzzzzzzz", "1"], ["--zzzzzzzz:", "rank --help"]),
    "a flag without its value": (["rank", "--by"], ["--by"]),
    "two different runs": (["rank", "a", "--in", "b"], ["--in:", "'a'"]),
    "different runs to merge": (["merge", "a", "b", "--in", "a", "--in", "c", "--out", "d"], ["--in:"]),
    "a flag of another command": (
        ["generate", "x", "--teacher", "t", "--explanation-column", "y"],
        ["--explanation-column:", "check, preview, score, curate and train-teacher warmup"],
    ),
    "two spellings of a flag": (
        ["train-teacher", "rl", "x", "--model", "m", "--student", "s", "--out", "o", "--config", "twice.yaml"],
        ["--config: twice.yaml: questions-per-step: "],
    ),
    "not a number": (["generate", "--in", "x", "--teacher", "t", "--n", "many"], ["'--n'", "valid integer"]),
    "out of range": (
        ["generate", "--in", "x", "--teacher", "t", "--top-p", "2"],
        ["error: --top-p: must be less than or equal to 1 (got 2.0)"],
    ),
    "not a finite number": (
        ["score", "--in", "x", "--student", "s", "--lambda", "nan"],
        ["error: --lambda: must be a finite number (got nan)"],
    ),
    "a reward without a term": (
        ["score", "--in", "x", "--student", "s", "--lambda", "0", "--solution-weight", "0"],
        ["error: --solution-weight: 0 with --lambda 0 leaves no term"],
    ),
    "unknown choice": (["score", "--in", "x", "--student", "nano", "--kl", "k2"], ["'--kl'", "'k3'"]),
    "a bucket that is none": (
        ["rank", "--in", "x", "--buckets", "1"],
        ["error: --buckets: ", "'ranks'", "(got '1')"],
    ),
    "more buckets than can be counted": (
        ["rank", "--in", "x", "--buckets", "100000000"],
        ["error: --buckets: ", "from 2 to 1000"],
    ),
    "a selection that is none": (
        ["distill", "--in", "x", "--select", "rank:0"],
        ["error: --select: ", "rank:K, bucket:K, top:K", "(got 'rank:0')"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_line_says_what_would_be_right(rlt: Rlt, tmp_path: Path, name: str) -> None:
    (tmp_path / "twice.yaml").write_text("questions: 3\nquestions-per-step: 4\n")
    arguments, messages = WRONG[name]
    result = rlt(*arguments, code=2)
    assert all(message in result.stderr for message in messages) and not result.stdout
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["twice.yaml"]


@pytest.mark.parametrize("arguments", [("RUN",), ("--in", "RUN"), ("RUN", "--in", "RUN"), ("--config", "flags.yaml")])
def test_a_run_is_named_with_or_without_its_flag(rlt: Rlt, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    make_run(tmp_path / "RUN", [trace("a", 0, 1.0)])
    (tmp_path / "flags.yaml").write_text("in: RUN\n")
    for name in ("rank", "stats", "show", "report", "distill"):
        assert re.search(r"RUN|report.html|1 questions|question a", rlt(name, *arguments).stdout)
    (tmp_path / "flags.yaml").write_text("in: [RUN, RUN]\n")
    if arguments != ("RUN", "--in", "RUN"):  # two of the same
        twice = ("--config", "flags.yaml") if "--config" in arguments else (*arguments, *arguments)
        assert "RUN and RUN" in rlt("merge", *twice, "--out", "new", code=2).stderr


def test_flags_go_before_a_file_of_flags_whose_keys_have_hyphens_or_underscores(rlt: Rlt, tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"{i}?", "solution": "s" * i}) + "\n" for i in range(1, 5)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "flags.yaml").write_text("in: rows.jsonl\nmax-chars: 2\nquestion_column: question\nlimit: 3\n")
    assert "3 rows, 2 good" in rlt("check", "--config", "flags.yaml", code=3).stdout
    assert "2 rows, 2 good" in rlt("check", "--config", "flags.yaml", "--limit", 2).stdout
    assert "3 rows, 3 good" in rlt("check", "--config", "flags.yaml", "--max-chars", 9).stdout


#: Flags by their earlier names, with a value.
EARLIER = {
    "--questions": ("--questions-per-step", 3),
    "--group": ("--samples-per-question", 6),
    "--sync-mixup": ("--ref-mixup-alpha", 0.5),
    "--sync-steps": ("--ref-sync-steps", 5),
    "--recipe": ("--defaults", "trl"),
    "--warmup": ("--warmup-ratio", 0.25),
    "--batch-size": ("--sampling-batch-size", 7),
    "--sample-rows": ("--save-samples", 8),
}


@pytest.mark.parametrize("flag", EARLIER)
def test_a_flag_has_its_earlier_name_too(rlt: Rlt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: str) -> None:
    parsed: list[Any] = []
    monkeypatch.setattr("rlt_data.training.teacher.train_teacher", lambda settings, _: parsed.append(settings))
    monkeypatch.setattr("rlt_data.cli.output.print_policy_training", lambda *_: None)
    new, value = EARLIER[flag]
    options = "train-teacher", "rl", "x", "--model", "m", "--student", "s", "--out", "o"
    rlt(*options, flag, value)
    rlt(*options, f"{flag}={value}")
    rlt(*options, new, value)
    for key in (flag, new):
        (tmp_path / "flags.yaml").write_text(f"{key.removeprefix('--')}: {value}\n")
        rlt(*options, "--config", "flags.yaml")
        keyword = {key.removeprefix("--").replace("-", "_"): value}
        parsed.append(TrainTeacherSettings(model="m", student="s", input="x", out="o", **keyword))
    assert len(parsed) == 7 and all(settings == parsed[0] for settings in parsed)
    assert parsed[0].not_default(*TrainTeacherSettings.model_fields.keys() - {"model", "student", "input", "out"})
    assert flag not in re.findall(r"--[a-z-]+", rlt("train-teacher", "rl", "--help").stdout)


def test_without_arguments_the_help_is_shown(rlt: Rlt) -> None:
    assert "Usage" in rlt(code=2).output


def test_flags_and_formats_can_be_copied_from_what_is_printed(rlt: Rlt, tmp_path: Path) -> None:
    assert rlt("formats").stdout.split() == ["rlt", "rlt-shots", "think", "native"]
    (tmp_path / "mine.yaml").write_text(rlt("formats", "think").stdout)
    assert rlt("formats", "mine.yaml").stdout == rlt("formats", "think").stdout
    assert "neither a built-in format" in rlt("formats", "thnik", code=2).stderr


def test_progress_in_a_log_is_plain_lines(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    result = rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 2, "--max-tokens", 5, "--out", "run")
    assert re.search(r"^generate: 12/12 \(100 %\), [\d,]+ tok/s in [\d.]+ s$", result.stderr, re.M)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", result.output)
    result = rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 2, "--max-tokens", 5, "--out", "run")
    assert "generate: 12/12" not in result.stderr  # nothing was left to do


def test_every_step_ends_its_progress_at_the_whole(rlt: Rlt, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *([trace(f"q{part}", i, float(i)) for i in range(2)] for part in range(3)))
    assert "rank: 3/3 (100 %)" in rlt("rank", "--in", run.path).stderr
    assert "distill: 3/3 (100 %)" in rlt("distill", "--in", run.path, "--limit", 1).stderr


def test_a_long_task_writes_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0] + [float(second) for second in range(4, 400, 4) for _ in range(2)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.LogLines()
    lines.start("score", 8, done=2)
    for _ in range(6):
        lines.advance(1, tokens=100)
    lines.finish()
    written = capsys.readouterr().err.splitlines()
    assert 2 <= len(written) < 6 and written[-1].startswith("score: 8/8 (100 %)")
    assert re.fullmatch(r"score: \d/8 \(\d+ %\), \d+ tok/s, 0:00:\d\d left", written[0])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_keeps_what_is_finished_and_goes_on_from_there(
    rlt: Rlt, tiny: Tiny, tmp_path: Path, stop: signal.Signals
) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 200)
    options = "generate", "--in", questions, "--teacher", tiny(), "--n", 3, "--max-tokens", 8, "--out", "run"
    process = Child(*options, "--batch-size", 8, prepare=write_slowly)
    process.wait_for(lambda: list(Path("run").glob("journal/traces/*/*.parquet")))
    process.send_signal(stop)
    code, errors = process.wait(), process.stderr
    assert code == 130, errors
    assert errors.count("interrupted") == 1 and "Traceback" not in errors
    kept = pl.concat(pl.read_parquet(file) for file in Path("run").rglob("[!.]*.parquet") if "traces" in str(file))
    assert 0 < len(kept) < 600
    assert f"600 traces ({600 - len(kept)} new)" in rlt(*options).stdout
    traces = pl.read_parquet("run/traces/*.parquet")
    assert traces["trace_id"].n_unique() == len(traces) == 600 and set(kept["trace_id"]) <= set(traces["trace_id"])


def test_the_total_is_that_of_this_call_whatever_an_earlier_one_made(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 8)
    first = tmp_path / "first.jsonl"
    first.write_text("".join(questions.read_text().splitlines(keepends=True)[:4]))
    options = "--teacher", tiny(), "--max-tokens", 4, "--out", "run"
    rlt("generate", "--in", first, "--n", 4, *options)
    result = rlt("generate", "--in", questions, "--n", 1, *options)
    assert "20 traces (4 new)" in result.stdout
    assert re.findall(r"generate: (\d+/\d+ \(\d+ %\))", result.stderr) == ["8/8 (100 %)"]


@pytest.mark.parametrize("name", ["stats", "show", "rank", "check", "formats"])
def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, 1.0), trace("a", 1, 2.0)])
    questions = write_questions(tmp_path / "questions.jsonl", 2)
    options = {"rank": ("--in", run.path), "check": ("--in", questions), "formats": ()}
    process = Child(name, *options.get(name, (run.path,)), unread="stdout")
    assert process.wait() == 0 and not re.search("error|Traceback|Exception", process.stderr), process.stderr


def test_a_command_ends_quietly_where_only_its_first_line_is_read() -> None:
    shell = f"set -o pipefail; {shlex.join(command('formats', 'rlt'))} | head -1"
    result = subprocess.run(["bash", "-c", shell], env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout.count("\n") == 1, result.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("train-teacher",)])
def test_a_reader_that_leaves_ends_the_help_quietly(arguments: tuple[str, ...]) -> None:
    child = Child(*arguments, unread="stdout")
    assert (child.wait(), child.stderr) == (0, "")


def test_a_reader_of_notices_that_leaves_does_not_end_the_work(tiny: Tiny, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 4)
    options = "generate", "--in", questions, "--teacher", tiny("base"), "--n", 2, "--max-tokens", 4, "--out", "run"
    assert Child(*options, unread="stderr").wait() == 0
    assert len(pl.read_parquet("run/traces/*.parquet")) == 8


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_ctrl_c_while_modules_are_imported_is_one_line(delay: float) -> None:
    code = (
        "import sys, time, threading, signal, os; from rlt_data import cli\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'rlt_data.cli.options': print(flush=True); [time.sleep(0.01) for _ in range(6000)]\n"
        "sys.meta_path.insert(0, Slow())\n"
        "cli.start()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_the_library_shows_no_bars_and_leaves_those_of_others(
    tiny: Tiny, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    monkeypatch.setattr("rlt_data.libraries._bars_shown", False)  # earlier command lines of this process showed them
    write_questions(Path("questions.jsonl"), 2)
    settings = {"teacher": str(tiny()), "in": "questions.jsonl", "out": "run", "n": 1, "max_tokens": 4}
    transformers.logging.enable_progress_bar()
    capfd.readouterr()  # making the tiny model prints
    rlt_data.generate(parse_settings(GenerateSettings, settings))
    output, errors = capfd.readouterr()
    assert not output
    assert "%|" not in errors  # earlier command lines of this process may have chosen to see the log
    transformers.AutoModelForCausalLM.from_pretrained(tiny())
    assert "Loading weights" in capfd.readouterr().err
