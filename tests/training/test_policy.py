"""Training by GRPO: the dense reward as score computes it, exact continuing, what is kept and what is refused."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlt_data.engines import open_model
from rlt_data.engines.vllm.version import major_minor
from rlt_data.errors import InputError, ModelError, RunFolderError, SettingsError
from rlt_data.formats import ChatTemplate, Problem, Views, encode, load_format
from rlt_data.formats.views import tagged_solution
from rlt_data.settings import (
    CountdownSettings,
    ModelSettings,
    PolicySettings,
    TrainSolverSettings,
    TrainTeacherSettings,
)
from rlt_data.steps.countdown import make_countdown
from rlt_data.tasks.grading import Grader
from rlt_data.training import grpo
from rlt_data.training.checkpoints import RECORD
from rlt_data.training.grpo import grpo_arguments
from rlt_data.training.plan import PolicyPlan
from rlt_data.training.rewards import CorrectnessReward, DenseReward, copied_fraction, repeated_fraction
from rlt_data.training.rollouts import Rollout, Rollouts
from rlt_data.training.solver import train_solver
from rlt_data.training.teacher import train_teacher
from tests.conftest import Rlt, write_jsonl

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]

SMALL: dict[str, Any] = {
    "steps": 6,
    "questions": 2,
    "group": 4,
    "micro_batch_size": 4,
    "held_out": 3,
    "save_steps": 2,
    "keep_checkpoints": 5,
    "max_tokens": 12,
    "learning_rate": 3e-3,
    "device": "cpu",
    "activation_checkpointing": False,
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    problems = [(f"What is {i} times {i + 2}?", f"{i} * {i + 2} = {i * (i + 2)}.") for i in range(3, 15)]
    records = [{"id": str(i), "question": q, "solution": s, "answer": s} for i, (q, s) in enumerate(problems)]
    return write_jsonl(tmp_path / "rows.jsonl", records)


@pytest.fixture
def settings(tiny: Tiny, rows: Path) -> Callable[..., TrainTeacherSettings]:
    def make(out: str = "out", **changes: Any) -> TrainTeacherSettings:
        fixed = {"model": str(tiny()), "student": str(tiny("chat", 1)), "in": str(rows), "out": out, "sync_steps": 2}
        return TrainTeacherSettings(**(SMALL | fixed | changes))

    return make


Settings = Callable[..., TrainTeacherSettings]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def test_a_continued_training_with_a_synchronised_reference_ends_in_the_same_weights(settings: Settings) -> None:
    straight, cut = Path("straight"), Path("cut")
    train_teacher(settings("straight", steps=4))
    recorded = json.loads((straight / "training.json").read_text())
    cut.mkdir()
    unfinished = {key: value for key, value in recorded.items() if key in ("depends_on", "plan")}
    (cut / "training.json").write_text(json.dumps(unfinished))
    shutil.copytree(straight / "checkpoint-2", cut / "checkpoint-2")
    shutil.copytree(cut, "without reference")
    train_teacher(settings("cut", steps=4))
    assert same(weights(cut), weights(straight))
    assert same(weights(cut / "checkpoint-4/reference"), weights(straight / "checkpoint-4/reference"))
    assert [entry.get("kl") for entry in metrics("cut")] == [entry.get("kl") for entry in metrics("straight")]
    assert not same(weights(straight / "checkpoint-2/reference"), weights(straight / "checkpoint-4/reference"))

    old = Path("without reference/checkpoint-2")  # as an earlier version wrote it
    shutil.rmtree(old / "reference")
    (old / RECORD).unlink()
    with pytest.raises(RunFolderError, match="reference/model.safetensors"):
        train_teacher(settings("without reference", steps=4))


def test_a_finished_training_continues_to_more_steps(settings: Settings) -> None:
    train_teacher(settings("straight", steps=3))
    train_teacher(settings("longer", steps=1))
    assert train_teacher(settings("longer", steps=3)).steps == 3
    assert same(weights(Path("longer")), weights(Path("straight")))
    assert same(weights(Path("longer/checkpoint-3/reference")), weights(Path("straight/checkpoint-3/reference")))
    recorded = json.loads(Path("longer/training.json").read_text())
    assert (recorded["steps"], recorded["depends_on"]["steps"], recorded["previous_steps"]) == (3, 3, [1])
    assert "previous_steps" not in json.loads(Path("straight/training.json").read_text())
    with pytest.raises(RunFolderError, match="contains a training of 3 steps, which is more than 2"):
        train_teacher(settings("longer", steps=2))


def test_epochs_are_steps(rlt: Rlt, settings: Settings, tiny: Tiny, rows: Path) -> None:
    def steps(epochs: int) -> int:
        return train_teacher(settings(steps=None, epochs=epochs, dry_run=True)).plan.steps

    assert (steps(1), steps(2)) == (5, 9)  # 9 questions, 2 per step
    options: list[Any] = [
        "--model",
        tiny(),
        "--student",
        tiny("chat", 1),
        "--in",
        rows,
        "--out",
        "out",
        "--held-out",
        3,
    ]
    options += ["--questions-per-step", 3, "--max-tokens", 12, "--device", "cpu", "--dry-run", "--epochs", 2]
    output = rlt("train-teacher", "rl", *options).stdout
    assert "6 steps of" in output and "used 2.00 times" in output
    assert (
        "--epochs: cannot be combined with --steps" in rlt("train-teacher", "rl", *options, "--steps", 5, code=2).output
    )


def test_what_is_kept(settings: Settings) -> None:
    calls: list[str] = []

    class Told:
        def start(self, task: str, total: int, done: int = 0) -> None:
            calls.append(f"{task} {done} of {total}")

        def advance(self, rows: int = 1, tokens: int = 0) -> None:
            calls.append("step")

        def finish(self) -> None:
            calls.append("end")

    summary = train_teacher(settings(keep_checkpoints=1), Told())
    assert calls == ["train 0 of 6", *["step"] * 6, "end"] and summary.steps == 6
    evaluated = {entry["step"]: entry["eval_reward"] for entry in metrics("out") if "eval_reward" in entry}
    assert list(evaluated) == [2, 4, 6]
    recorded = json.loads(Path("out/training.json").read_text())
    assert recorded["best_reward"] == summary.best_reward == max(evaluated.values())
    assert recorded["best_step"] == max(evaluated, key=lambda step: evaluated[step])
    assert same(weights(Path("out/best")), weights(Path(f"out/checkpoint-{recorded['best_step']}")))
    assert {entry.name for entry in Path("out/best").glob("*.safetensors")} == {"model.safetensors"}
    steps = [entry for entry in metrics("out") if "reward" in entry]
    terms = {"r_ss", "r_kl", "well_formed", "truncated", "completion_tokens", "copied", "repeated", "length_drift"}
    assert len(steps) == 6 and all(terms <= entry.keys() for entry in steps)
    assert not any("clipped_ratio" in name for entry in steps for name in entry)
    samples = pl.read_parquet("out/samples/step-000004.parquet")
    assert {"step", "question", "completion", "explanation", "reward", "r_kl", "copied"} <= set(samples.columns)
    assert samples["reward"].mean() == pytest.approx(evaluated[4], abs=1e-4)
    assert load_format("out/format.yaml").hash == load_format("out/best/format.yaml").hash == load_format("rlt").hash


def test_the_training_scores_as_score_does(rlt: Rlt, tiny: Tiny, rows: Path, settings: Settings) -> None:
    teacher, student = tiny(), tiny("chat", 1)
    rlt("generate", "--teacher", teacher, "--in", rows, "--n", 3, "--max-tokens", 20, "--out", "run", "--format", "rlt")
    rlt("score", "--in", "run", "--student", student, "--lambda", 2)
    traces = pl.read_parquet("run/traces/*.parquet")
    questions = {row["question_id"]: row for row in pl.read_parquet("run/questions/*.parquet").to_dicts()}
    rollouts = [
        Rollout(
            row["completion"],
            np.asarray(row["token_ids"], np.int32),
            np.asarray(row["logprobs"], np.float32),
            np.asarray(row["prefill_token_ids"], np.int32),
            np.asarray(row["prefill_logprobs"], np.float32),
            row["finish_reason"],
        )
        for row in traces.to_dicts()
    ]
    model = open_model(str(student), ModelSettings(device="cpu"))
    with_lambda = settings(**{"lambda": 2.0})
    reward = DenseReward(with_lambda, model, load_format("rlt"), model.tokenizer, same_tokenizer=True)
    scored = reward.rows([questions[row["question_id"]] for row in traces.to_dicts()], rollouts)
    scores = {row["trace_id"]: row for row in pl.read_parquet("run/scores/*.parquet").to_dicts()}
    assert len(scored) == len(scores) == 36
    for trace, row in zip(traces.to_dicts(), scored, strict=True):
        score = scores[trace["trace_id"]]
        for name in ("reward", "r_ss", "r_kl", "penalty", "kl_max", "solution_logprob_min"):
            assert row[name] == pytest.approx(score[name], abs=1e-5), name
        assert row["well_formed"] == score["well_formed"] and row["thought_tokens"] == score["thought_tokens"]


@pytest.mark.parametrize("kind", ["chat", "base", "sliding"])
def test_sampled_logprobs_are_those_of_the_policy(tiny: Tiny, settings: Settings, kind: str) -> None:
    """Compare with one plain forward pass per sample; vLLM is replaced by a stand-in that returns the same samples."""
    from trl import GRPOConfig

    from rlt_data.training.trl_patches import policy_trainer

    chosen = settings(model=str(tiny(kind)), max_tokens=20)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny(kind))
    views = Views(load_format("rlt"), ChatTemplate(tokenizer))
    prompts = [
        views.teacher_prompt(Problem(f"What is {i} + 1?", f"It is {i + 1}.")) for i in range(2) for _ in range(4)
    ]
    rollouts = Rollouts(chosen, stop="<|end_of_explanation|>", tail_characters=2)
    plan = replace(a_plan(chosen), held_out=0, accumulation=2)
    trainer = policy_trainer(
        rollout_func=rollouts,
        model=str(tiny(kind)),
        reward_funcs=[lambda prompts, **_: [0.0] * len(prompts)],
        args=GRPOConfig(**grpo_arguments(chosen, plan, stop="<|end_of_explanation|>")),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts[::4]]),
        processing_class=tokenizer,
    )
    output = rollouts(prompts, trainer)
    prompt_ids, sampled, samples = output["prompt_ids"], output["completion_ids"], output["rollout"]
    assert len({tuple(ids) for ids in sampled}) > 4
    assert prompt_ids[0].count(tokenizer.bos_token_id or -1) <= 1
    for prompt, ids, sample in zip(prompt_ids, sampled, samples, strict=True):
        expected = plain_logprobs(trainer.model, [*prompt, *ids], chosen.temperature)[len(prompt) - 1 :]
        assert sample.logprobs == pytest.approx(expected[: len(sample.logprobs)], abs=1e-4)
        tail = len(sample.tail_ids)
        assert tail and list(sample.tail_ids) == prompt[-tail:]
        of_prompt = plain_logprobs(trainer.model, prompt, chosen.temperature)
        assert sample.tail_logprobs == pytest.approx(of_prompt[-tail:], abs=1e-4)

    # as vLLM returns them: the likeliest tokens of each position, the sampled one first; None for NaN
    returned = [[[value] for value in [*sample.logprobs.tolist(), None]] for sample in samples]
    trainer.vllm_generation = SimpleNamespace(generate=lambda *_: (None, sampled, returned, None))
    trainer.use_vllm = True
    again = rollouts(prompts, trainer)
    assert again["completion_ids"] == sampled and again["prompt_ids"] == prompt_ids
    for one, other in zip(again["rollout"], samples, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs)
        assert one.tail_logprobs == pytest.approx(other.tail_logprobs, abs=1e-4)


def plain_logprobs(model: Any, ids: list[int], temperature: float) -> np.ndarray:
    """Return the log-prob of every token of a text but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1] / temperature
    return np.asarray(torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy())


def test_padding_changes_nothing(settings: Settings) -> None:
    ranges = {"operators": "+-*", "fewest": 3, "most": 3, "largest": 14, "largest_target": 120, "largest_value": 120}
    make_countdown(CountdownSettings(out="asked.jsonl", rows=4, smallest_target=0, **ranges))
    models = {"model": "nano-teacher-warm", "student": "nano", "in": "asked.jsonl"}
    # the second step follows from the first one's update; its loss holds the KL to the model before it
    sizes = {"steps": 2, "questions": 2, "group": 4, "max_tokens": 60, "held_out": 0, "temperature": 1.0, "beta": 0.5}
    sizes |= {"learning_rate": 1e-4, "sync_steps": 0}
    for size in (1, 8):  # without padding, and with
        train_teacher(settings(f"of {size}", micro_batch_size=size, **models, **sizes))
    samples = pl.concat(pl.read_parquet(file) for file in Path("of 8").glob("samples/*.parquet"))
    assert samples["completion"].str.len_chars().n_unique() > 1
    for one, other in zip(metrics("of 1")[:2], metrics("of 8")[:2], strict=True):
        for name in ("loss", "grad_norm", "reward"):  # the others are means over micro-batches
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
    assert metrics("of 8")[1]["kl"] > 0


def test_a_teacher_of_other_tokens_than_the_student_is_trained_too(tiny: Tiny, settings: Settings) -> None:
    summary = train_teacher(settings(model=str(tiny("base")), steps=2, format="think"))
    assert summary.reward is not None and np.isfinite(summary.reward)
    assert load_format("out/format.yaml").name == "think"


def test_a_solver_is_trained(tiny: Tiny, tmp_path: Path) -> None:
    problems = [{"numbers": [3, 4, n], "target": 12 + n} for n in range(5, 15)]
    data = write_jsonl(tmp_path / "countdown.jsonl", problems)
    options = SMALL | {"model": str(tiny()), "in": str(data), "out": "solver", "benchmark": "countdown", "steps": 2}
    summary = train_solver(TrainSolverSettings(**options))
    assert summary.reward == -1.0  # random weights write no tags
    steps = [entry for entry in metrics("solver") if "reward" in entry]
    assert all({"correct", "well_formed", "truncated"} <= entry.keys() for entry in steps)


def test_correctness_is_rewarded_in_three_steps(settings: Settings) -> None:
    format = load_format("think")
    texts = {
        1.0: "<think>3 * 4 is 12.</think>\n\n<answer>\n3 * 4 + 5\n</answer>",
        -0.5: "<think>Hm.</think>\n\n<answer>\n3 + 4 + 5\n</answer>",
        -1.0: "3 * 4 + 5",
    }
    question = {"question": "?", "answer": "17", "problem": '{"numbers": [3, 4, 5], "target": 17}'}
    nothing = np.zeros(0, np.float32)
    rollouts = [
        Rollout(text, np.zeros(3, np.int32), nothing, nothing.astype(np.int32), nothing, "stop")
        for text in texts.values()
    ]
    solver = TrainSolverSettings(model="m", input="i", out="o")
    with Grader() as grader:
        rows = CorrectnessReward(solver, partial(tagged_solution, format), "countdown", grader).rows(
            [question] * 3, rollouts
        )
    assert [row["reward"] for row in rows] == list(texts)
    assert [row["correct"] for row in rows] == [True, False, False]


def test_signs_of_collapse() -> None:
    solution = "( 3 * 4 ) - 5"
    assert copied_fraction(solution, solution) == 1.0 and copied_fraction("3 * 4", solution) == 1.0
    assert copied_fraction("3 * 4 = 12 12 - 5 = 7", solution) == 0.0 and copied_fraction("", solution) == 0.0
    assert copied_fraction("( 3 * 4 is 12", solution) == pytest.approx(1 / 3)
    assert (
        repeated_fraction("a b c d e f g h") == 0.0
        and repeated_fraction("a b c d " * 10) > 0.8
        and repeated_fraction("") == 0.0
    )


def test_training_warns_of_a_collapse_once(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    from rlt_data.training import rewards

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING", "rlt_data"):
        patch.setattr(rewards, "copied_fraction", lambda *_: 0.9)
        train_teacher(settings(steps=3))
    warnings = [record.getMessage() for record in caplog.records if "copy the solution" in record.getMessage()]
    assert len(warnings) == 1 and "out/samples" in warnings[0]


#: The released teacher's RL settings (cfgs/run_cfg/teacher_rlt.yaml and trainers/grpo.py of the authors' repository).
RELEASED = {
    "max_steps": 125,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "beta": 0.04,
    "sync_ref_model": True,
    "ref_model_sync_steps": 32,
    "ref_model_mixup_alpha": 0.9,
    "temperature": 0.7,
    "top_p": 1.0,
    "max_completion_length": 16_384,
    "num_generations": 64,
    "save_steps": 25,
    "num_iterations": 1,
    "loss_type": "grpo",  # mean over a sample's tokens, then over samples
    "scale_rewards": "group",  # (r - mean) / (unbiased std + 1e-4)
    "use_bias_correction_kl": False,
    "vllm_importance_sampling_correction": False,
    "mask_truncated_completions": False,
    "importance_sampling_level": "token",
}


def a_plan(settings: PolicySettings) -> PolicyPlan:
    return PolicyPlan(17_000, 64, 0, 4000, 125, 0.1, 1024, 0, 1, 1024 // settings.micro_batch_size, 0)


def test_the_defaults_are_the_released_settings(tmp_path: Path) -> None:
    from trl import GRPOConfig

    settings = TrainTeacherSettings(model="m", student="s", input="i", out=str(tmp_path), device="cpu")
    config = GRPOConfig(**grpo_arguments(settings, a_plan(settings), stop="</x>"))
    assert {name: getattr(config, name) for name in RELEASED} == RELEASED
    assert config.generation_batch_size == 1024 == settings.questions * settings.group
    assert (settings.lambda_, settings.alpha, settings.kl, settings.missing_tag_penalty) == (3.0, 0.01, "k1", -1.0)


def test_the_other_recipe_is_what_trl_does(tmp_path: Path) -> None:
    from trl import GRPOConfig

    changed = ("loss_type", "beta", "use_bias_correction_kl", "vllm_importance_sampling_correction", "sync_ref_model")
    settings = TrainTeacherSettings(model="m", student="s", input="i", out=str(tmp_path), device="cpu", recipe="trl")
    config = GRPOConfig(**grpo_arguments(settings, a_plan(settings), stop="</x>"))
    default = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert {name: getattr(config, name) for name in changed} == {name: getattr(default, name) for name in changed}
    assert TrainTeacherSettings(model="m", student="s", input="i", out="o", recipe="trl", beta=0.1).beta == 0.1


def test_a_dry_run_plans_and_writes_nothing(rlt: Rlt, tiny: Tiny, rows: Path) -> None:
    options = "--model", tiny(), "--student", tiny("chat", 1), "--in", rows, "--out", "out", "--device", "cpu"
    result = rlt("train-teacher", "rl", *options, "--max-tokens", 100, "--questions", 4, "--held-out", 2, "--dry-run")
    assert {"10", "2", "125", "256"} <= set(re.findall(r"\d+", result.stdout))  # questions, steps, samples
    assert "ref_sync_steps: 32" in result.stdout and not Path("out").exists()


def test_what_cannot_be_trained_is_refused_immediately(settings: Settings, rows: Path, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=r"12 of 12 prompts .*--max-tokens 3000"):
        train_teacher(settings(max_tokens=3000))
    with pytest.raises(SettingsError, match="--held-out: .*12 of 12"):
        train_teacher(settings(held_out=12))
    with pytest.raises(SettingsError, match=r"--questions-per-step: .*11.* 9"):
        train_teacher(settings(questions=11))
    with pytest.raises(SettingsError, match=r"--questions-per-step .*--samples-per-question: 8 .*--micro-batch-size 3"):
        train_teacher(settings(micro_batch_size=3))
    with pytest.raises(SettingsError, match="vllm_url: "):
        from rlt_data.settings import parse_settings

        parse_settings(TrainTeacherSettings, {"model": "m", "student": "s", "in": "i", "out": "o", "vllm": "server"})
    with pytest.raises(ModelError, match="nowhere"):
        train_teacher(settings(student="nowhere"))
    assert not Path("out").exists()
    train_teacher(settings(steps=2))
    with pytest.raises(RunFolderError, match="lambda_"):
        train_teacher(settings(steps=2, **{"lambda": 1.0}))


def test_a_vllm_that_trl_does_not_support_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL only warns of it, and weights that are copied wrongly would not be noticed."""
    for version, gpu, message in [
        (None, True, r"vLLM is not installed .* pip install 'rlt-data\[rl\]'"),
        ("0.33.0", False, "needs a GPU"),
        ("0.33.0", True, r"vLLM 0.33.0 is installed, but TRL supports vLLM 0.22 to 0.31; pip install 'rlt-data\[rl\]'"),
    ]:
        monkeypatch.setattr(grpo, "installed_version", lambda version=version: version)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
            with pytest.raises(SettingsError, match=f"^--vllm: {message}"):
                train_teacher(settings(vllm="colocate"))
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    last, next_minor = grpo._VLLM[1], (grpo._VLLM[1][0], grpo._VLLM[1][1] + 1)
    assert extras["rl"] == ["rlt-data[train]", f"vllm>={last[0]}.{last[1]},<{next_minor[0]}.{next_minor[1]}"]


def test_the_stated_versions_of_vllm_are_those_of_trl() -> None:
    from trl import import_utils

    [(first, last)] = re.findall(
        r'Version\("([\d.]+)"\) <= \w+ <= Version\("([\d.]+)"\)', inspect.getsource(import_utils)
    )
    assert tuple(map(major_minor, (first, last))) == grpo._VLLM


def test_colocated_vllm_gets_the_context_that_the_training_needs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would reserve memory for a text of the model's context, such as 131,072 tokens."""
    passed: list[Any] = []

    def stop(**options: Any) -> None:
        passed.append(options)
        raise InterruptedError

    monkeypatch.setattr(grpo, "_check_vllm", lambda _: None)
    monkeypatch.setattr(grpo, "policy_trainer", stop)
    with pytest.raises(InterruptedError):
        train_teacher(settings(vllm="colocate"))
    [options] = passed
    prompts = [*options["train_dataset"]["prompt"], *options["eval_dataset"]["prompt"]]
    longest = max(len(encoding) for encoding in encode(options["processing_class"], prompts))
    assert options["args"].vllm_max_model_length == longest + 12


def test_memory_is_given_back_after_training(settings: Settings, given_back: list[int]) -> None:
    train_teacher(settings(steps=2))
    assert given_back[-1] == 0 and len(given_back) >= 2  # trainer and student


def test_rewards_that_are_none_have_no_advantage(settings: Settings) -> None:
    """A student whose context is too short for a text cannot reward it; other samples of the group are rewarded."""
    from rlt_data.training import rewards

    class Forgetful(DenseReward):
        def rows(self, questions: Any, rollouts: Any) -> Any:
            rows = super().rows(questions, rollouts)
            return [{**row, "reward": None} if index % 2 else row for index, row in enumerate(rows)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlt_data.training.teacher.DenseReward", Forgetful)
        train_teacher(settings(steps=2, held_out=0))
    steps = [entry for entry in metrics("out") if "reward" in entry]
    assert all(entry["unrewarded"] == 0.5 and np.isfinite(entry["reward"]) for entry in steps)
    assert rewards.DenseReward is DenseReward


def test_figures_are_logged_whichever_sample_cannot_be_scored() -> None:
    from rlt_data.training.rewards import Reward

    class Given(Reward):
        def rows(self, questions: Any, rollouts: Any) -> Any:
            return [{"reward": None, "explanation": ""}, {"reward": 1.0, "explanation": "e", "r_ss": -2.0}]

    nothing = np.zeros(0, np.float32)
    rollouts = [Rollout("", np.zeros(3, np.int32), nothing, nothing.astype(np.int32), nothing, "stop")] * 2
    logged: dict[str, float] = {}
    Given()(rollout=rollouts, log_metric=logged.__setitem__, question=["a", "b"])
    assert logged == {"r_ss": -2.0, "completion_tokens": 3.0, "unrewarded": 0.5}
