"""Training by GRPO: the dense reward as score computes it, exact continuing, what is kept and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from rlt_data.engines import open_model
from rlt_data.errors import InputError, ModelError, RunFolderError, SettingsError
from rlt_data.formats import load_format
from rlt_data.settings import (
    CountdownSettings,
    ModelSettings,
    PolicySettings,
    TrainSolverSettings,
    TrainTeacherSettings,
)
from rlt_data.steps.countdown import make_countdown
from rlt_data.tasks.grading import Grader
from rlt_data.training.grpo import grpo_arguments
from rlt_data.training.plan import PolicyPlan
from rlt_data.training.rewards import CorrectnessReward, DenseReward, copied, repeated
from rlt_data.training.rollouts import Rollout
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
    asked = [(f"What is {i} times {i + 2}?", f"{i} * {i + 2} = {i * (i + 2)}.") for i in range(3, 15)]
    records = [{"id": str(i), "question": q, "solution": s, "answer": s} for i, (q, s) in enumerate(asked)]
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
    train_teacher(settings("straight"))
    recorded = json.loads(Path("straight/training.json").read_text())
    for step in (2, 4):
        cut = Path(f"cut-{step}")
        cut.mkdir()
        begun = {key: value for key, value in recorded.items() if key in ("depends_on", "plan")}
        (cut / "training.json").write_text(json.dumps(begun))
        for done in range(2, step + 1, 2):
            shutil.copytree(f"straight/checkpoint-{done}", cut / f"checkpoint-{done}")
        train_teacher(settings(str(cut)))
        assert same(weights(cut), weights(Path("straight")))
        assert same(weights(cut / "checkpoint-6/reference"), weights(Path("straight/checkpoint-6/reference")))
        assert [each.get("kl") for each in metrics(str(cut))] == [each.get("kl") for each in metrics("straight")]
    assert not same(weights(Path("straight/checkpoint-4/reference")), weights(Path("straight/checkpoint-6/reference")))


def test_what_is_kept(settings: Settings) -> None:
    told: list[str] = []

    class Told:
        def start(self, task: str, total: int, done: int = 0) -> None:
            told.append(f"{task} {done} of {total}")

        def advance(self, rows: int = 1, tokens: int = 0) -> None:
            told.append("step")

        def finish(self) -> None:
            told.append("end")

    summary = train_teacher(settings(keep_checkpoints=1), Told())
    assert told == ["train 0 of 6", *["step"] * 6, "end"] and summary.steps == 6
    evaluated = {each["step"]: each["eval_reward"] for each in metrics("out") if "eval_reward" in each}
    assert list(evaluated) == [2, 4, 6]
    recorded = json.loads(Path("out/training.json").read_text())
    assert recorded["best_reward"] == summary.best_reward == max(evaluated.values())
    assert recorded["best_step"] == max(evaluated, key=lambda step: evaluated[step])
    assert same(weights(Path("out/best")), weights(Path(f"out/checkpoint-{recorded['best_step']}")))
    assert {each.name for each in Path("out/best").glob("*.safetensors")} == {"model.safetensors"}
    steps = [each for each in metrics("out") if "reward" in each]
    terms = {"r_ss", "r_kl", "well_formed", "truncated", "completion_tokens", "copied", "repeated", "length_drift"}
    assert len(steps) == 6 and all(terms <= each.keys() for each in steps)
    assert not any("clipped_ratio" in name for each in steps for name in each)
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
    found = reward.rows([questions[row["question_id"]] for row in traces.to_dicts()], rollouts)
    scores = {row["trace_id"]: row for row in pl.read_parquet("run/scores/*.parquet").to_dicts()}
    assert len(found) == len(scores) == 36
    for trace, row in zip(traces.to_dicts(), found, strict=True):
        score = scores[trace["trace_id"]]
        for name in ("reward", "r_ss", "r_kl", "penalty", "kl_max", "solution_logprob_min"):
            assert row[name] == pytest.approx(score[name], abs=1e-5), name
        assert row["well_formed"] == score["well_formed"] and row["thought_tokens"] == score["thought_tokens"]


@pytest.mark.parametrize("kind", ["chat", "base", "sliding"])
def test_sampled_logprobs_are_those_of_the_policy_in_training(tiny: Tiny, settings: Settings, kind: str) -> None:
    """Held against TRL's own forward pass, and against the way that is taken with vLLM, of which a stand-in samples."""
    seen: list[tuple[Any, list[list[int]], list[list[int]], list[Rollout]]] = []
    from rlt_data.training import grpo
    from rlt_data.training.rollouts import Rollouts

    class Noting(Rollouts):
        def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
            output = super().__call__(prompts, trainer)
            asked, sampled, found = output["prompt_ids"], output["completion_ids"], output["rollout"]
            seen.append((trainer, asked, sampled, found))
            if len(seen) == 1:
                for prompt, ids, each in zip(asked, sampled, found, strict=True):
                    whole = torch.tensor([[*prompt, *ids]])
                    keep = len(ids) + len(each.tail_ids)
                    with torch.no_grad():
                        values, *_ = trainer._get_per_token_logps_and_entropies(
                            trainer.model, whole, torch.ones_like(whole), keep
                        )
                    expected = np.concatenate([each.tail_logprobs, each.logprobs])
                    assert values[0][: len(expected)].numpy() == pytest.approx(expected, abs=1e-4)
                    assert list(each.tail_ids) == prompt[len(prompt) - len(each.tail_ids) :]
                # as vLLM returns them: the likeliest tokens of each place, the sampled one first; None for NaN
                returned = [[[value] for value in [*each.logprobs.tolist(), None]] for each in found]
                trainer.vllm_generation = SimpleNamespace(generate=lambda *_: (None, sampled, returned, None))
                trainer.use_vllm = True
                again = super().__call__(prompts, trainer)
                trainer.use_vllm = False
                assert again["completion_ids"] == sampled and again["prompt_ids"] == asked
                for one, other in zip(again["rollout"], found, strict=True):
                    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
                    assert one.logprobs == pytest.approx(other.logprobs)
                    assert one.tail_logprobs == pytest.approx(other.tail_logprobs, abs=1e-4)
            return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "Rollouts", Noting)
        train_teacher(settings(model=str(tiny(kind)), steps=1, held_out=0, max_tokens=20))
    _, prompts, completions, found = seen[0]
    assert len(prompts) == len(completions) == len(found) == 8
    assert prompts[0] == prompts[3] != prompts[4]  # groups stand together
    assert len({tuple(ids) for ids in completions}) > 4  # and their samples differ
    tokenizer: Any = seen[0][0].processing_class
    assert prompts[0].count(tokenizer.bos_token_id or -1) <= 1


def test_padding_is_left_out_and_changes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import GRPOTrainer

    from rlt_data.training import trl_patches

    own = GRPOTrainer._get_per_token_logps_and_entropies
    tokens: list[int] = []

    def counting(trainer: Any, model: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        tokens.append(ids.numel())
        return own(trainer, model, ids, *rest, **options)

    class AsInTrl(trl_patches.PolicyTrainer):
        def _prepare_inputs(self, *given: Any) -> Any:
            return GRPOTrainer._prepare_inputs(self, *given)  # type: ignore[arg-type]

        def _get_per_token_logps_and_entropies(self, *given: Any, **options: Any) -> Any:
            return GRPOTrainer._get_per_token_logps_and_entropies(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", counting)
    ranges = {"operators": "+-*", "fewest": 3, "most": 3, "largest": 14, "largest_target": 120, "largest_value": 120}
    make_countdown(CountdownSettings(out="asked.jsonl", rows=8, smallest_target=0, **ranges))
    models = {"model": "nano-teacher-warm", "student": "nano", "in": "asked.jsonl"}
    # the second step follows from the first one's update; its loss holds the KL to the model before it
    sizes = {"steps": 2, "questions": 4, "group": 8, "max_tokens": 110, "held_out": 0, "temperature": 1.0, "beta": 0.5}
    passed = []
    for way in (trl_patches.PolicyTrainer, AsInTrl):
        monkeypatch.setattr(trl_patches, "PolicyTrainer", way)
        train_teacher(settings(way.__name__, learning_rate=1e-4, sync_steps=0, **models, **sizes))
        passed.append(sum(tokens))
        tokens.clear()
    assert passed[0] < 0.75 * passed[1]
    for ours, trls in zip(metrics("PolicyTrainer")[:2], metrics("AsInTrl")[:2], strict=True):
        for name in ("loss", "grad_norm", "reward"):  # the others are means over micro-batches
            assert ours[name] == pytest.approx(trls[name], rel=1e-3, abs=1e-6), name
    assert metrics("PolicyTrainer")[1]["kl"] > 0


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
    steps = [each for each in metrics("solver") if "reward" in each]
    assert all({"correct", "well_formed", "truncated"} <= each.keys() for each in steps)


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
    made = TrainSolverSettings(model="m", input="i", out="o")
    with Grader() as grader:
        rows = CorrectnessReward(made, format, "countdown", grader).rows([question] * 3, rollouts)
    assert [row["reward"] for row in rows] == list(texts)
    assert [row["correct"] for row in rows] == [True, False, False]


def test_signs_of_collapse() -> None:
    solution = "( 3 * 4 ) - 5"
    assert copied(solution, solution) == 1.0 and copied("3 * 4", solution) == 1.0
    assert copied("3 * 4 = 12 12 - 5 = 7", solution) == 0.0 and copied("", solution) == 0.0
    assert copied("( 3 * 4 is 12", solution) == pytest.approx(1 / 3)
    assert repeated("a b c d e f g h") == 0.0 and repeated("a b c d " * 10) > 0.8 and repeated("") == 0.0


def test_a_collapse_is_told_of_once(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    from rlt_data.training import rewards

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING", "rlt_data"):
        patch.setattr(rewards, "copied", lambda *_: 0.9)
        train_teacher(settings(steps=3))
    told = [record.getMessage() for record in caplog.records if "copy the solution" in record.getMessage()]
    assert len(told) == 1 and "out/samples" in told[0]


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
    return PolicyPlan(17_000, 64, 0, 4000, 125, 0.1, 1024, 0, 1, 1024 // settings.micro_batch_size, 0, 0.0, 0.0, 0.0)


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
    theirs = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert {name: getattr(config, name) for name in changed} == {name: getattr(theirs, name) for name in changed}
    assert TrainTeacherSettings(model="m", student="s", input="i", out="o", recipe="trl", beta=0.1).beta == 0.1


def test_a_dry_run_plans_and_writes_nothing(rlt: Rlt, tiny: Tiny, rows: Path) -> None:
    options = "--model", tiny(), "--student", tiny("chat", 1), "--in", rows, "--out", "out", "--device", "cpu"
    result = rlt("train-teacher", "rl", *options, "--max-tokens", 100, "--questions", 4, "--held-out", 2, "--dry-run")
    assert "10 questions to train on (0 left out as too long), 2 held out" in result.stdout
    assert "125 steps of 256 samples on 1 processes, 256 forward passes each" in result.stdout
    assert "sync_steps: 32" in result.stdout and not Path("out").exists()


def test_what_cannot_be_trained_is_refused_at_once(settings: Settings, rows: Path, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=r"12 of 12 prompts .* leave no room for --max-tokens 3000"):
        train_teacher(settings(max_tokens=3000))
    with pytest.raises(SettingsError, match=r"--held-out: 12 of 12 questions leave none"):
        train_teacher(settings(held_out=12))
    with pytest.raises(SettingsError, match=r"--questions: a step takes 11, and there are 9"):
        train_teacher(settings(questions=11))
    with pytest.raises(SettingsError, match=r"--questions times --group: 8 is no multiple of --micro-batch-size 3"):
        train_teacher(settings(micro_batch_size=3))
    with pytest.raises(SettingsError, match="vLLM"):
        train_teacher(settings(vllm="colocate"))
    with pytest.raises(SettingsError, match="vllm_url: "):
        from rlt_data.settings import parse_settings

        parse_settings(TrainTeacherSettings, {"model": "m", "student": "s", "in": "i", "out": "o", "vllm": "server"})
    with pytest.raises(ModelError, match="no such model"):
        train_teacher(settings(student="nowhere"))
    assert not Path("out").exists()
    train_teacher(settings(steps=2))
    with pytest.raises(RunFolderError, match=r"other settings or data \(lambda_ differ\)"):
        train_teacher(settings(steps=2, **{"lambda": 1.0}))


def test_rewards_that_are_none_have_no_advantage(settings: Settings) -> None:
    """A student whose context is too short for a text cannot reward it; the others of the group go on."""
    from rlt_data.training import rewards

    class Forgetful(DenseReward):
        def rows(self, questions: Any, rollouts: Any) -> Any:
            found = super().rows(questions, rollouts)
            return [{**row, "reward": None} if place % 2 else row for place, row in enumerate(found)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlt_data.training.teacher.DenseReward", Forgetful)
        train_teacher(settings(steps=2, held_out=0))
    steps = [each for each in metrics("out") if "reward" in each]
    assert all(each["unrewarded"] == 0.5 and np.isfinite(each["reward"]) for each in steps)
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
