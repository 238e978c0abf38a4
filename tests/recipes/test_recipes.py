"""Run small versions of all recipes with the bundled models, and check their effects and the settings of all scales."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from rlt_data.errors import InputError, RltDataError, SettingsError
from rlt_data.recipes import experiment
from rlt_data.recipes.experiment import Experiment, checked_config, estimate, load_config, merged, pearson, spearman
from rlt_data.recipes.nano.corpus import warm_up_rows
from rlt_data.recipes.stages import compare_evaluations, slug, source_rows, train_teacher
from rlt_data.settings import TrainTeacherSettings, WarmUpSettings, parse_settings
from tests.conftest import Rlt, write_jsonl
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
            replaced = section in ("lambdas", "sources", "sizes") or not isinstance(keys, dict)
            config[name] = keys if replaced else merged(config.get(name, {}), keys)
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


def test_a_recipe_runs_to_its_results_and_not_again(run: Run, tmp_path: Path) -> None:
    sizes = {"generate": {"n": 2, "max_tokens": 60}, "student": {"epochs": 1, "max_steps": 2}}
    results = run("reward_analysis", 20, lambdas={1: [1, 2]}, **sizes, **fewer_rows("reward_analysis", 24))
    assert set(results["lambdas"]["1.0"]["accuracy"]) == {"1", "2"}
    rival = {name: figure["mean"] for name, figure in results["rival"].items()}
    assert 0 <= rival["rlt_is_higher"] <= 1 and max(rival["of_rlt"], rival["of_rival"]) < 0
    assert "rival-0" in (tmp_path / "reward_analysis" / "results" / "reward_analysis.html").read_text()


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
    results = run("teacher", teacher=small, student={"epochs": 1}, **fewer_rows("teacher", 320))["arms"]
    before, after, without = results["before RL"], results["after RL, λ = 1"], results["after RL, λ = 0"]
    assert after["reward"]["mean"] > before["reward"]["mean"] + 0.3
    assert without["r_ss"]["mean"] > before["r_ss"]["mean"] and without["r_kl"]["mean"] > after["r_kl"]["mean"] + 0.3
    assert without["copied"]["mean"] > after["copied"]["mean"] + 0.2


@pytest.mark.slow
def test_a_reward_without_the_solution_term_makes_other_teachers(run: Run) -> None:
    weights = {"r_kl only": {"lambda": 1, "solution_weight": 0}, "λ = 0": None}
    small = {"steps": 3, "questions": 8, "group": 8, "held_out": 8, "save_steps": 3, "learning_rate": 1e-3}
    results = run("teacher", rewards=weights, teacher=small, student={"epochs": 1}, **fewer_rows("teacher", 64))
    arms = results["arms"]
    assert set(arms) == {"before RL", "after RL, λ = 1", "after RL, r_kl only", "base"}
    assert arms["after RL, r_kl only"]["reward"] != arms["after RL, λ = 1"]["reward"]
    assert all(0 <= arms[arm][name]["mean"] <= 1 for arm in list(arms)[:3] for name in ("copied", "repeated"))
    assert set(results["gains"]) == {"after RL, λ = 1", "after RL, r_kl only"}


@pytest.mark.slow
def test_adapters_in_every_training(run: Run, tmp_path: Path) -> None:
    """As at the scale single-24gb: RL starts from an adapter, and students learn from the traces of one."""
    rows = write_jsonl(tmp_path / "warm-up.jsonl", list(warm_up_rows(0, count=64, large_share=0)))
    adapter = {"lora_rank": 4}
    warmup = {"model": "nano-teacher-warm", "in": str(rows), "max_steps": 2, "max_length": 256, "device": "cpu"}
    teacher = {"steps": 2, "questions": 4, "held_out": 8, "save_steps": 1, "micro_batch_size": 16}
    arms = run(
        "teacher",
        60,
        rewards={"λ = 0": None},
        warmup=warmup | adapter,
        teacher=teacher | adapter | {"beta": 0.04, "sync_steps": 1},
        student=adapter | {"epochs": 1},
        **fewer_rows("teacher", 96),
    )["arms"]
    assert arms["after RL, λ = 1"]["reward"] != arms["before RL"]["reward"]
    for model in ("teachers/warm", "teachers/lambda-1-0/best", "students/after-RL-lambda-1-0"):
        assert (tmp_path / "teacher" / model / "adapter_config.json").is_file()


@pytest.mark.slow
def test_students_of_several_sources(run: Run) -> None:
    config = load_config("student", "nano")["sources"]
    kept = {name: config[name] for name in ("RL teacher, one", "search by rule, edited")}
    kept["search by rule, raw"] = {"rule": "raw", "sizes": ["all"], "evaluation": {"n": 2}}
    sizes = {"all": {"epochs": 1}, "subset": {"limit": 64, "max_steps": 1}}
    results = run("student", sources=kept, sizes=sizes, **fewer_rows("student", 200))["arms"]
    rows = {arm: figure["rows"]["mean"] for arm, figure in results.items() if "rows" in figure}
    assert rows["search by rule, edited, all"] == 200 and rows["search by rule, edited, subset"] == 64
    assert len(results) == 6 and "search by rule, raw, subset" not in results


@pytest.mark.slow
def test_solvers_from_five_starts(run: Run) -> None:
    solver = {"steps": 3, "questions": 8, "micro_batch_size": 64}
    results = run(
        "cold_start",
        solver=solver,
        sources={"student of an RLT": {"teacher": "nano", "n": 2}, "student of a rule": {"rule": "edited"}},
        answers={"n": 2},
        student={"epochs": 1},
        **fewer_rows("cold_start", 160),
    )
    arms = {arm: figure["after"]["mean"] for arm, figure in results["arms"].items()}
    assert len(arms) == 5 and all(0 <= accuracy <= 1 for accuracy in arms.values())
    assert results["arms"]["student of an RL solver, raw"]["rows"]["mean"] > 10
    assert len(results["pairs"]) == 4
    for pair in results["pairs"].values():
        other, rlt = pair["models"]
        assert rlt == "student of an RLT" and pair["difference"]["mean"] == pytest.approx(arms[rlt] - arms[other])


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
    )
    arms = results["arms"]
    of_paper = {"base", "solver", "home-student", "home-rival", "after", "rival-solver"}
    assert set(arms) == of_paper | {"home-solver", "before"}
    assert arms["after"]["rows"]["mean"] > 60 and arms["home-rival"]["rows"]["mean"] > 60
    assert len(results["pairs"]) == 4 and all(0 <= pair["overlap"]["mean"] <= 1 for pair in results["pairs"].values())


@pytest.mark.slow
def test_teacher_and_student_in_turns(run: Run) -> None:
    teacher = {"steps": 2, "questions": 8}
    results = run(
        "tandem",
        rounds=2,
        teacher=teacher,
        refresh={"n": 2},
        student={"epochs": 1},
        open_book_rows=64,
        self_distillation={"max_steps": 2, "per_device_train_batch_size": 8},
        **fewer_rows("tandem", 96),
    )
    assert all(len(figure["accuracy"]) == 2 for figure in results["arms"].values()) and len(results["arms"]) == 3
    assert set(results["self-distillation"]) == {"before", "after"}


SCALES = [
    (recipe, file.name.removesuffix(".yaml"))
    for recipe in RECIPES
    for file in files(f"rlt_data.recipes.{recipe}").iterdir()
    if file.name.endswith(".yaml")
]


@pytest.mark.parametrize(("recipe", "scale"), SCALES)
def test_every_scale_is_understood(recipe: str, scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = import_module(f"rlt_data.recipes.{recipe}.recipe").run
    shown = Experiment(recipe, load_config(recipe, scale), tmp_path / "dry", dry_run=True)
    work(shown)
    assert Path(shown.launcher()[-1]).is_file()
    printed = capsys.readouterr().out
    assert "rlt-data evaluate" in printed and "rlt-data train-student" in printed
    assert not list(tmp_path.rglob("*.json"))
    steps = printed.split("rlt-data ")[1:]
    run_by = {step.partition("  #")[0]: _engine(step) for step in steps if step.startswith(("gen", "sco", "eva"))}
    expected = {"single": ("vllm", 1), "paper": ("vllm", 8)}.get(scale.partition("-")[0], ("auto", 1))
    assert {"score", "evaluate"} <= run_by.keys() and set(run_by.values()) == {expected}, run_by
    assert files(f"rlt_data.recipes.{recipe}").joinpath(f"{scale}.yaml").read_text().startswith("# ")


def test_models_and_traces_of_other_recipes_have_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    made: set[str] = set()

    def remember(self: Experiment, name: str, section: str, settings: Any) -> None:
        made.add(str(getattr(settings, "out", None)))
        if getattr(settings, "held_out", 0):
            made.add(f"{settings.out}/best")

    monkeypatch.setattr(Experiment, "_show", remember)
    used: set[str] = set()
    for recipe, scale in SCALES:
        config = load_config(recipe, scale)
        used |= set(re.findall(r"'(runs/[^']+)'", str(config)))
        dry = Experiment(recipe, config, Path(f"runs/{recipe}-{scale}"), dry_run=True)
        import_module(f"rlt_data.recipes.{recipe}.recipe").run(dry)
    assert used and used <= made, used - made


def _engine(shown: str) -> tuple[str, int]:
    settings = yaml.safe_load("\n".join(line for line in shown.splitlines() if line.startswith("  ")))
    return settings["engine"], settings["data_parallel"] * settings["tensor_parallel"]


def test_students_of_1k_rows_have_the_settings_of_1k_rows(capsys: pytest.CaptureFixture[str]) -> None:
    experiment.main(["student", "--scale", "paper", "--dry-run"])
    [first, other] = [part for part in capsys.readouterr().out.split("section ") if part.startswith("student")]
    assert "preset: 7b-17k" in first and "batch_size: 96" in first
    assert other.startswith("student, again with ") and "preset: 7b-1k" in other and "batch_size: 16" in other


def test_refined_traces_come_from_a_file_or_the_arm_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, config = import_module("rlt_data.recipes.cold_start.recipe"), load_config("cold_start", "single-gpu")
    recipe.run(Experiment("cold_start", config, tmp_path, dry_run=True))
    assert "refined: FILE" in capsys.readouterr().out
    file = tmp_path / "refined.jsonl"
    row = {"question": "1 + 1?", "solution": "2", "explanation": "Add one."}
    file.write_text(json.dumps(row) + "\n")
    assert recipe.refined_rows(str(file)) == [row]
    recipe.run(Experiment("cold_start", config | {"refined": str(file)}, tmp_path, dry_run=True))
    assert "refined: FILE" not in capsys.readouterr().out
    file.write_text(json.dumps(row) + "\n" + json.dumps({"question": "1 + 2?", "solution": "3"}))
    with pytest.raises(InputError, match=r"refined.jsonl, line 2: has no column 'explanation'"):
        recipe.refined_rows(str(file))
    file.write_text("[")
    with pytest.raises(InputError, match="cannot be read as JSON Lines"):
        recipe.refined_rows(str(file))


#: Rows in the layout of Bespoke-Stratos-17k.
BESPOKE = [
    {
        "system": "Think.",
        "conversations": [
            {"from": "user", "value": question},
            {
                "from": "assistant",
                "value": f"<|begin_of_thought|>\n\nHm.\n\n<|end_of_thought|>\n\n"
                f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>",
            },
        ],
    }
    for question, solution in (("What is 1 + 1?", r"So \boxed{2}."), ("Write a program.", "print(1)"))
]


def test_rows_of_bespoke_are_graded_and_compared_by_their_solutions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"in": str(write_jsonl(tmp_path / "bespoke.jsonl", BESPOKE)), "preset": "bespoke", "system": "format"}
    found = import_module("rlt_data.recipes.cold_start.recipe").stated_answers(source)
    assert found == [{"question": "What is 1 + 1?", "answer": "2"}]
    assert "1 of 2 questions state no final answer" in capsys.readouterr().out
    assert source_rows(Experiment("student", {}, tmp_path), source, 0) == [
        {"question": "What is 1 + 1?", "solution": r"So \boxed{2}.", "explanation": "Hm."},
        {"question": "Write a program.", "solution": "print(1)", "explanation": "Hm."},
    ]


def test_traces_of_another_pipeline_have_the_questions_of_a_teachers_traces(
    rlt: Rlt, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Otherwise students of 1,000 rows would learn from other questions."""
    source = {"in": str(write_jsonl(tmp_path / "bespoke.jsonl", BESPOKE)), "preset": "bespoke", "system": "format"}
    options = "--teacher", tiny(), "--n", 1, "--max-tokens", 2, "--preset", "bespoke", "--system", "format"
    rlt("generate", "--in", source["in"], *options, "--out", "ours")
    rows = write_jsonl(tmp_path / "rows.jsonl", source_rows(Experiment("student", {}, tmp_path), source, 0))
    rlt("score", "--in", rows, "--student", tiny(), "--teacher", "none", "--out", "theirs")
    ours, theirs = (pl.read_parquet(f"{run}/questions/*.parquet")["question_id"] for run in ("ours", "theirs"))
    assert sorted(ours) == sorted(theirs) and len(ours) == 2


def test_two_models_are_compared_on_the_same_problems(rlt: Rlt) -> None:
    settings = load_config("teacher", "nano")["test"]["countdown"] | {"rows": 100}
    Experiment("teacher", {"countdown": settings}, Path()).step("countdown", out="questions.jsonl")
    options = "--benchmark", "countdown", "--in", "questions.jsonl", "--max-tokens", 60, "--temperature", 0.7
    for seed, name in enumerate(("one", "other")):
        rlt("evaluate", "--model", "nano-student", *options, "--seed", seed, "--out", name)
    solved = {
        name: set(pl.read_parquet(f"{name}/grades/*.parquet").filter("correct")["question_id"])
        for name in ("one", "other")
    }
    both = len(solved["one"] & solved["other"]) / min(len(solved["one"]), len(solved["other"]))
    [found] = compare_evaluations({"countdown": "one"}, {"countdown": "other"}).values()
    assert 0 < found["overlap"] == both and 0 < found["p_value"] <= 1
    assert found["difference"] == pytest.approx((len(solved["other"]) - len(solved["one"])) / 100)
    [same] = compare_evaluations({"countdown": "one"}, {"countdown": "one"}).values()
    assert same == {"overlap": 1.0, "difference": 0.0, "p_value": 1.0}


def test_a_scale_extends_another(tmp_path: Path) -> None:
    Path("mine.yaml").write_text(
        "extends: nano\nseeds: 1\nrewards: {λ = 0: null, λ = 2: {lambda: 2}}\nteacher: {steps: 7}"
    )
    nano, mine = load_config("teacher", "nano"), load_config("teacher", "mine.yaml")
    assert mine["rewards"] == {"λ = 1": {"lambda": 1}, "λ = 2": {"lambda": 2}} and mine["seeds"] == 1
    assert mine["teacher"] == nano["teacher"] | {"steps": 7} and mine["score"] == nano["score"]
    Path("folder").mkdir()
    Path("folder/one.yaml").write_text("extends: two.yaml")
    Path("folder/two.yaml").write_text("extends: nano\nseeds: 7")
    assert load_config("teacher", "folder/one.yaml") == nano | {"seeds": 7}
    Path("other.yaml").write_text("extends: mine.yaml")
    Path("mine.yaml").write_text("extends: other.yaml")
    with pytest.raises(SettingsError, match=r"mine.yaml: extends itself"):
        load_config("teacher", "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: null", "the key 'seeds' is missing"),
        ("teacher: {model: null}", "mine.yaml, teacher: the key 'model' is missing"),
        ("techer: {steps: 3}", "the recipe has no key 'techer'; did you mean 'teacher'"),
        ("teacher: 3", "teacher must be a mapping"),
        ("seeds: two", "seeds must be a whole number from 1 .got 'two'"),
        ("seeds: 0", "seeds must be a whole number from 1 .got 0"),
        ("workers: 1.5", "workers must be a whole number from 1"),
        ("launcher: fsdp", "launcher must be one of .*fsdp2"),
        ("extends: null", "the key 'teacher' is missing"),
        ("extends: [nano]", "cannot be read"),
    ],
)
def test_mistakes_in_a_scale_get_one_line(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(text if "extends" in text else f"extends: nano\n{text}")
    with pytest.raises(SystemExit) as ended:
        experiment.main(["teacher", "--scale", "mine.yaml", "--dry-run", "--out", "out"])
    assert ended.value.code == SettingsError.exit_code
    assert re.fullmatch(f"error: --scale: .*{message}.*\n", capsys.readouterr().err)


def test_sections_are_written_and_sent_to_processes_like_dicts() -> None:
    config = checked_config("tandem", "nano")
    assert yaml.safe_load(yaml.safe_dump(config)) == pickle.loads(pickle.dumps(config)) == load_config("tandem", "nano")


def test_names_of_arms_as_file_names() -> None:
    assert [slug(name) for name in ("λ = 3", "RLT, one raw trace", "α = 0.1", "r_kl only")] == [
        "lambda-3",
        "RLT-one-raw-trace",
        "alpha-0.1",
        "r_kl-only",
    ]


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


class _OneProcess(Experiment):
    """Launches trainings in one process, as accelerate does in several."""

    def launcher(self) -> list[str]:
        return [sys.executable]


@pytest.mark.parametrize("held_out", [0, 2])
def test_a_launched_teacher_is_the_best_checkpoint_too(
    tmp_path: Path, tiny: Callable[..., Path], held_out: int
) -> None:
    rows = [{"question": f"What is {i} + 1?", "solution": f"{i + 1}"} for i in range(6)]
    sizes = {"steps": 1, "questions": 2, "group": 2, "micro_batch_size": 2, "max_tokens": 4, "save_steps": 1}
    paths = {"model": str(tiny()), "student": str(tiny("chat", 1)), "device": "cpu", "held_out": held_out}
    config = {"train": {"in": str(write_jsonl(tmp_path / "rows.jsonl", rows))}, "teacher": sizes | paths}
    for name, launched in (("here", {}), ("launched", {"launcher": "fsdp2"})):
        teacher = train_teacher(_OneProcess("teacher", config | launched, tmp_path / name), "t", 0)
        assert teacher == str(tmp_path / name / "teachers" / "t") + ("/best" if held_out else "")
