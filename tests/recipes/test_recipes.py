"""Run small versions of all recipes with the bundled models, and check their effects and the settings of all scales."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlt_data.errors import RltDataError, SettingsError
from rlt_data.recipes import experiment
from rlt_data.recipes.experiment import Experiment, estimate, load_config, pearson, spearman
from rlt_data.settings import TrainTeacherSettings, WarmUpSettings, parse_settings
from tests.recipes.work import process_of_call
from tests.training.test_policy import RELEASED

pytest.importorskip("trl", reason="needs the extra train")

RECIPES = ("reward_analysis", "teacher", "student", "cold_start", "countdown_transfer", "tandem")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a recipe at the nano scale with one seed and some settings made smaller; return its figures."""

    def run(recipe: str, test_rows: int = 300, **smaller: Any) -> dict[str, Any]:
        config = load_config(recipe, "nano") | {"seeds": 1, "workers": 1}
        for section, keys in smaller.items():
            name = section.replace("_", "-") if section.replace("_", "-") in config else section
            replaced = section in ("lambdas", "sources") or not isinstance(keys, dict)
            config[name] = keys if replaced else config[name] | keys
        for section in [name for name in config if name.startswith("test")]:
            config[section] = {"countdown": config[section]["countdown"] | {"rows": test_rows}}
        work: Callable[[Experiment], None] = import_module(f"rlt_data.recipes.{recipe}.recipe").run
        experiment = Experiment(recipe, config, tmp_path / recipe)
        work(experiment)
        for suffix in ("json", "md", "svg"):
            assert (experiment.out / "results" / f"{recipe}.{suffix}").stat().st_size > 100
        before = {path: path.stat().st_mtime_ns for path in (experiment.out / "steps").iterdir()}
        work(experiment)  # returns the stored results
        assert before == {path: path.stat().st_mtime_ns for path in (experiment.out / "steps").iterdir()}
        return dict(json.loads((experiment.out / "results" / f"{recipe}.json").read_text()))

    return run


def countdown(recipe: str, section: str, rows: int) -> dict[str, Any]:
    return {"countdown": load_config(recipe, "nano")[section]["countdown"] | {"rows": rows}}


def fewer_rows(recipe: str, rows: int, section: str = "train") -> dict[str, Any]:
    return {section.replace("-", "_"): countdown(recipe, section, rows)}


def test_a_recipe_runs_to_its_results_and_not_again(run: Run) -> None:
    sizes = {"generate": {"n": 2, "max_tokens": 60}, "student": {"epochs": 1, "max_steps": 2}}
    results = run("reward_analysis", 20, lambdas={1: [1, 2]}, **sizes, **fewer_rows("reward_analysis", 24))
    assert set(results["lambdas"]["1.0"]["accuracy"]) == {"1", "2"}


@pytest.mark.slow
def test_students_of_better_ranks_are_better(run: Run) -> None:
    results = run("reward_analysis", lambdas={1: [1, 8]}, generate={"n": 8}, **fewer_rows("reward_analysis", 400))
    accuracy = {int(rank): figure["mean"] for rank, figure in results["lambdas"]["1.0"]["accuracy"].items()}
    assert accuracy[1] > accuracy[8] + 0.05
    reward = [figure["mean"] for figure in results["lambdas"]["1.0"]["reward"].values()]
    assert reward == sorted(reward, reverse=True)


@pytest.mark.slow
def test_rl_raises_the_reward_and_without_the_kl_term_the_teacher_copies(run: Run) -> None:
    small = {"steps": 24, "questions": 16, "group": 8, "held_out": 32, "save_steps": 12, "learning_rate": 5e-4}
    results = run("teacher", lambdas=[1, 0], teacher=small, student={"epochs": 1}, **fewer_rows("teacher", 320))["arms"]
    before, after, without = results["before RL"], results["after RL, λ = 1"], results["after RL, λ = 0"]
    assert after["reward"]["mean"] > before["reward"]["mean"] + 0.3
    assert without["r_ss"]["mean"] > before["r_ss"]["mean"] and without["r_kl"]["mean"] > after["r_kl"]["mean"] + 0.3
    assert without["copied"]["mean"] > after["copied"]["mean"] + 0.2


@pytest.mark.slow
def test_students_of_several_sources(run: Run) -> None:
    config = load_config("student", "nano")["sources"]
    kept = {name: config[name] for name in ("RL teacher, one", "search by rule, edited")}
    results = run("student", sources=kept, subset=64, student={"epochs": 1}, **fewer_rows("student", 200))["arms"]
    assert (
        results["search by rule, edited, all"]["rows"]["mean"]
        > results["search by rule, edited, subset"]["rows"]["mean"]
    )
    assert len(results) == 2 * len(kept) + 1


@pytest.mark.slow
def test_solvers_from_four_starts(run: Run) -> None:
    solver = {"steps": 3, "questions": 8, "micro_batch_size": 64}
    results = run(
        "cold_start",
        solver=solver,
        generate={"n": 2},
        answers={"n": 2},
        student={"epochs": 1},
        **fewer_rows("cold_start", 160),
    )["arms"]
    assert len(results) == 4 and all(0 <= figure["after"]["mean"] <= 1 for figure in results.values())
    assert results["student of an RL solver, raw"]["rows"]["mean"] > 10


@pytest.mark.slow
def test_a_teacher_in_another_domain(run: Run) -> None:
    small = {"steps": 2, "questions": 8, "micro_batch_size": 64}
    sizes = fewer_rows("countdown_transfer", 120, "train-new") | fewer_rows("countdown_transfer", 120, "train-home")
    results = run(
        "countdown_transfer",
        warmup_rows={"count": 640},
        warmup={"model": "nano-teacher-warm", "learning_rate": 1e-3},  # from the base it takes minutes
        teacher={"steps": 2, "questions": 8, "held_out": 16, "save_steps": 2},
        generate={"n": 2},
        student={"epochs": 1},
        solver_new=small,
        solver_home=small,
        **sizes,
    )["arms"]
    assert set(results) == {"base", "solver", "home-student", "home-solver", "before", "after"}
    assert results["after"]["rows"]["mean"] > 60


@pytest.mark.slow
def test_teacher_and_student_in_turns(run: Run) -> None:
    teacher = {"steps": 2, "questions": 8}
    results = run(
        "tandem", rounds=2, teacher=teacher, refresh={"n": 2}, student={"epochs": 1}, **fewer_rows("tandem", 96)
    )
    assert all(len(figure["accuracy"]) == 2 for figure in results["arms"].values()) and len(results["arms"]) == 3


@pytest.mark.parametrize("scale", ["nano", "single-gpu", "paper"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_scale_is_understood(recipe: str, scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = import_module(f"rlt_data.recipes.{recipe}.recipe").run
    work(Experiment(recipe, load_config(recipe, scale), tmp_path / "dry", dry_run=True))
    printed = capsys.readouterr().out
    assert "rlt-data evaluate" in printed and "rlt-data train-student" in printed
    assert not list(tmp_path.rglob("*.json"))
    steps = printed.split("rlt-data ")[1:]
    run_by = {step.partition("  #")[0]: _engine(step) for step in steps if step.startswith(("gen", "sco", "eva"))}
    expected = {"nano": ("auto", 1), "single-gpu": ("vllm", 1), "paper": ("vllm", 8)}[scale]
    assert len(run_by) == 3 and set(run_by.values()) == {expected}, run_by


def _engine(shown: str) -> tuple[str, int]:
    settings = yaml.safe_load("\n".join(line for line in shown.splitlines() if line.startswith("  ")))
    return settings["engine"], settings["data_parallel"]


def test_the_papers_scale_is_the_released_one() -> None:
    config = load_config("teacher", "paper")
    from rlt_data.training.grpo import grpo_arguments
    from tests.training.test_policy import a_plan

    paths = {"out": "o", "in": "i"}
    teacher = parse_settings(TrainTeacherSettings, config["teacher"] | paths | {"vllm": "none", "device": "cpu"})
    arguments = grpo_arguments(teacher, a_plan(teacher), stop="</x>") | {"mask_truncated_completions": False}
    known = {name: arguments.get(name, RELEASED[name]) for name in RELEASED}
    assert known == RELEASED and teacher.questions * teacher.group == 1024
    assert (teacher.lambda_, teacher.alpha, teacher.missing_tag_penalty) == (3.0, 0.01, -1.0)
    warm = parse_settings(WarmUpSettings, config["warmup"] | {"out": "o"})
    #: cfgs/run_cfg/teacher_sft.yaml of the authors' repository.
    released = {
        "epochs": 10,
        "batch_size": 16,
        "learning_rate": 1e-5,
        "schedule": "cosine",
        "warmup": 0.05,
        "weight_decay": 1e-4,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "max_length": 16_384,
        "packing": False,
    }
    assert warm.model_dump(include=set(released)) == released
    assert config["launcher"] == "fsdp2" and warm.model == teacher.model == "Qwen/Qwen2.5-7B-Instruct"
    assert teacher.student == "bespokelabs/Bespoke-Stratos-7B"


def test_statistics() -> None:
    interval = estimate([1.0, 2.0, 3.0])
    assert interval.mean == 2.0 and interval.half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert str(estimate([0.5])) == "0.500"
    many = estimate([float(value) for value in range(11)])
    assert many.half == pytest.approx(2.228 * 11**0.5 / 11**0.5, abs=1e-3)  # the deviation of 0 to 10 is the root of 11
    assert spearman([1, 1, 2], [1, 1, 3]) == pytest.approx(1)
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)


def test_a_step_on_a_gpu_runs_in_a_process_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = replace(experiment.STEPS["generate"], function="tests.recipes.work:process_of_step")
    monkeypatch.setitem(experiment.STEPS, "generate", step)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = Experiment("teacher", {"generate": {"teacher": "t", "in": "i"}}, tmp_path)
    assert recipe.step("generate", out="on-gpu")["result"]["process"] != os.getpid()
    assert recipe.step("generate", out="on-cpu", device="cpu")["result"]["process"] == os.getpid()


def test_work_is_shared_among_processes_and_returned_in_order(tmp_path: Path) -> None:
    shared = Experiment("teacher", {"workers": 2}, tmp_path)
    results = shared.run_all(process_of_call, [(number,) for number in range(4)])
    assert [number for number, _ in results] == [0, 1, 2, 3]
    assert os.getpid() not in {process for _, process in results}
    with pytest.raises(SettingsError, match="nine is too many"):
        shared.run_all(process_of_call, [(9,), (1,)])


def test_a_launcher_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    config = {"launcher": "zero3", "student": {"model": "nano-student", "in": "rows.jsonl"}}
    with pytest.raises(SettingsError, match="zero3"):
        Experiment("teacher", config, tmp_path).step("student", out="out")


@pytest.mark.slow
def test_a_launched_training_that_fails_is_one_line(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    config = {"launcher": "fsdp2", "student": {"model": str(tiny()), "in": "nowhere.jsonl"}}
    with pytest.raises(RltDataError, match=r"^teacher: student .*code \d+[^\n]*$"):
        Experiment("teacher", config, tmp_path).step("student", out="out")


def test_a_recipe_is_run_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    experiment.main(["teacher", "--scale", "paper", "--dry-run"])
    assert "rlt-data train-teacher rl  # section teacher" in capsys.readouterr().out
    assert tuple(experiment.recipes()) == tuple(sorted(RECIPES))
    Path("mine.yaml").write_text("[")
    Path("date.yaml").write_text("seed: 2025-02-30")
    for arguments, code, message in (
        (["taecher"], 2, "invalid choice: 'taecher'"),
        (["teacher", "--scale", "huge"], SettingsError.exit_code, "error: --scale: huge: cannot be read"),
        (["teacher", "--scale", "mine.yaml"], SettingsError.exit_code, "error: --scale: mine.yaml: cannot be read"),
        (["teacher", "--scale", "date.yaml"], SettingsError.exit_code, "error: --scale: date.yaml: cannot be read"),
    ):
        with pytest.raises(SystemExit) as ended:
            experiment.main(arguments)
        assert ended.value.code == code and message in capsys.readouterr().err
