"""Training a policy by GRPO, whatever rewards it: checks, the plan, TRL's arguments, and what is kept."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rlt_data.engines import Model
from rlt_data.engines.config import load_config, longest_text
from rlt_data.engines.models import Checkpoint, weights_fingerprint
from rlt_data.errors import InputError, SettingsError
from rlt_data.formats import Format, Tokenizer, encode
from rlt_data.libraries import quiet_bars
from rlt_data.progress import Progress
from rlt_data.settings import PolicySettings, TrainTeacherSettings
from rlt_data.steps.score import reward_identity
from rlt_data.storage.outputs import write_file
from rlt_data.storage.run import content_hash
from rlt_data.training.plan import PolicyPlan, policy_plan_of
from rlt_data.training.rewards import Reward, Row
from rlt_data.training.rollouts import Rollouts
from rlt_data.training.runs import (
    TrainingRun,
    base_model_settings,
    copy_model,
    missing_dependency,
    pad_token,
    progress_callback,
    recent_mean,
    save_format,
    saved_dtype,
    store_as,
    trainer_arguments,
    training_provenance,
)
from rlt_data.training.trl_patches import policy_trainer

logger = logging.getLogger(__name__)

#: Versions of vLLM that TRL states, as (major, minor).
_VLLM = ((0, 22), (0, 31))
#: A sign of collapse is told of once when it passes this.
_COLLAPSED = 0.5
_DRIFT = 3.0


@dataclass(frozen=True)
class PolicySummary:
    """What a training by GRPO did.

    Attributes:
        out: folder of the trained model.
        plan: steps, tokens and memory.
        steps: steps done, 0 for a dry run.
        reward: mean reward of the last logged steps, None for a dry run.
        best: folder of the model with the best reward on held-out questions, if there were any.
        best_reward: that reward.
    """

    out: Path
    plan: PolicyPlan
    steps: int
    reward: float | None = None
    best: Path | None = None
    best_reward: float | None = None


@dataclass(frozen=True)
class Policy:
    """A policy and what it is to learn.

    Attributes:
        checkpoint: where it begins.
        tokenizer: its tokenizer.
        format: how problems are shown.
        rows: ``prompt`` (rendered), ``question_id``, ``question``, ``solution`` and what else the reward needs.
        stop: text that ends a sample.
        tail_characters: characters at a prompt's end whose tokens belong to the sample.
        student: the frozen student, where there is one.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    format: Format
    rows: Sequence[Row]
    stop: str
    tail_characters: int = 0
    student: Model | None = None


def train_policy(
    settings: PolicySettings, policy: Policy, open_reward: Callable[[], Reward], progress: Progress
) -> PolicySummary:
    """Train a policy.

    Args:
        settings: see there.
        policy: what is trained, and on what.
        open_reward: loads what rewards it; called when everything else is known to be right.
        progress: told of every step.
    """
    config = load_config(policy.checkpoint, base_model_settings(settings))
    kept, lengths = _fitting(settings, policy, config)
    train, held_out = _split(settings, kept)
    student = policy.student
    plan = policy_plan_of(
        settings,
        config,
        [lengths[row["question_id"]] for row in train],
        held_out=len(held_out),
        left_out=len(policy.rows) - len(kept),
        student=load_config(student.checkpoint, student.settings) if student else None,
        student_dtype=getattr(torch, student.identity.dtype) if student else torch.float32,
    )
    _check_vllm(settings)
    depends_on = settings.depends_on(
        model=weights_fingerprint(policy.checkpoint),
        student=student.identity.weights if student else None,
        data=content_hash(train, held_out),
        format=policy.format.hash,
        **(reward_identity(settings) if isinstance(settings, TrainTeacherSettings) else {}),
    )
    made = training_provenance(settings, model=policy.checkpoint, student=student.checkpoint if student else None)
    run = TrainingRun(Path(settings.out), depends_on, made)
    if settings.dry_run:
        return PolicySummary(run.out, plan, 0)
    best = run.out / "best" if held_out else None
    if done := run.finished:
        return PolicySummary(run.out, plan, done["steps"], done["reward"], best, done["best_reward"])
    with run.locked():
        # Before there is a trainer: in a process group with FSDP, Transformers loads weights in one process only.
        reward = open_reward()
        trainer = _trainer(settings, policy, plan, reward, train, held_out, progress)
        run.record(plan=asdict(plan))
        dtype = saved_dtype(settings, config)
        run.train(trainer, policy.tokenizer, plan.steps, progress, settings=settings, dtype=dtype, format=policy.format)
        summary = PolicySummary(
            run.out,
            plan,
            int(trainer.state.global_step),
            recent_mean(trainer, "reward"),
            best,
            trainer.state.best_metric,
        )
        if best and trainer.args.should_save:
            copy_model(Path(trainer.state.best_model_checkpoint), best)
            store_as(best, dtype)
            save_format(policy.format, best)
        run.record_end(
            plan=asdict(plan),
            steps=summary.steps,
            reward=summary.reward,
            best_reward=summary.best_reward,
            best_step=getattr(trainer.state, "best_global_step", None),
        )
    return summary


def _fitting(settings: PolicySettings, policy: Policy, config: Any) -> tuple[list[Row], dict[str, int]]:
    """Leave out questions whose prompt leaves too little room, if that was allowed; with the tokens of all prompts."""
    if not policy.rows:
        raise InputError(f"{settings.input}: there are no rows to train on")
    encoded = encode(policy.tokenizer, [row["prompt"] for row in policy.rows])
    lengths = {row["question_id"]: len(each) for row, each in zip(policy.rows, encoded, strict=True)}
    context = longest_text(config)
    kept = [row for row in policy.rows if lengths[row["question_id"]] + settings.max_tokens <= context]
    longer = len(policy.rows) - len(kept)
    if longer and (not kept or not settings.leave_out_long):
        raise InputError(
            f"{settings.input}: {longer} of {len(policy.rows)} prompts (the longest has {max(lengths.values())} "
            f"tokens) leave no room for --max-tokens {settings.max_tokens} in a context of {context}; take fewer tokens"
            + (", or give --leave-out-long" if kept else "")
        )
    return kept, lengths


def _split(settings: PolicySettings, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Keep questions out, a random draw."""
    if settings.held_out >= len(rows):
        raise SettingsError(
            f"--held-out: {settings.held_out} of {len(rows)} questions leave none to train on; keep fewer out"
        )
    chosen = set(random.Random(settings.seed).sample(range(len(rows)), settings.held_out))
    train = [row for number, row in enumerate(rows) if number not in chosen]
    if len(train) < settings.questions:
        raise SettingsError(f"--questions: a step takes {settings.questions}, and there are {len(train)} to train on")
    return train, [row for number, row in enumerate(rows) if number in chosen]


def _check_vllm(settings: PolicySettings) -> None:
    """Refuse a vLLM that cannot work, before anything is loaded."""
    if settings.vllm == "none":
        return
    stated = f"TRL states vLLM {_VLLM[0][0]}.{_VLLM[0][1]} to {_VLLM[1][0]}.{_VLLM[1][1]}"
    if find_spec("vllm") is None:
        raise SettingsError(f"--vllm: vLLM is not installed ({stated})")
    if not torch.cuda.is_available():
        raise SettingsError("--vllm: needs CUDA, because weights are sent to vLLM from GPU to GPU")
    version = str(import_module("vllm").__version__)
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
    if not _VLLM[0] <= (major, minor) <= _VLLM[1]:
        logger.warning("vLLM %s is outside of what TRL was tested with (%s)", version, stated)


def grpo_arguments(settings: PolicySettings, plan: PolicyPlan, *, stop: str) -> dict[str, Any]:
    """Return what TRL's GRPOConfig is told."""
    arguments = trainer_arguments(settings, plan.accumulation, plan.steps, checkpoints=plan.held_out > 0)
    vllm: dict[str, Any] = {"use_vllm": False}
    if settings.vllm != "none":
        vllm = {
            "use_vllm": True,
            "vllm_mode": settings.vllm,
            "vllm_server_base_url": settings.vllm_url,
            "vllm_gpu_memory_utilization": settings.vllm_memory,
            "vllm_tensor_parallel_size": settings.vllm_tensor_parallel,
            "generation_kwargs": {"stop": [stop], "include_stop_str_in_output": True},
        }
    if plan.held_out:
        arguments |= {
            "eval_strategy": "steps",
            "eval_steps": settings.save_steps,
            "per_device_eval_batch_size": -(-plan.held_out // plan.processes),
            "num_generations_eval": 1,
            "metric_for_best_model": "eval_reward",
            "greater_is_better": True,
        }
    return {
        **arguments,
        **vllm,
        "logging_steps": 1,
        "max_steps": settings.steps,
        "shuffle_dataset": False,
        "num_generations": settings.group,
        "num_iterations": 1,
        "max_completion_length": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "loss_type": settings.loss,
        "scale_rewards": settings.scale_rewards,
        "epsilon": settings.epsilon,
        "beta": settings.beta,
        "use_bias_correction_kl": settings.bias_corrected_kl,
        "vllm_importance_sampling_correction": settings.vllm_correction,
        "sync_ref_model": bool(settings.beta and settings.sync_steps),
        "ref_model_sync_steps": settings.sync_steps or 1,
        "ref_model_mixup_alpha": settings.sync_mixup,
    }


def _order(settings: PolicySettings, questions: int) -> list[int]:
    """Return which question comes when, over all steps: every pass in an order of its own.

    Planned whole, because TRL's sampler forgets on continuing which passes it has made.
    """
    draw, order = random.Random(settings.seed), list[int]()
    while len(order) < settings.steps * settings.questions:
        order += draw.sample(range(questions), questions)
    return order[: settings.steps * settings.questions]


@quiet_bars(data=True)
def _trainer(
    settings: PolicySettings,
    policy: Policy,
    plan: PolicyPlan,
    reward: Reward,
    train: list[Row],
    held_out: list[Row],
    progress: Progress,
) -> Any:
    try:
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback
        from trl import GRPOConfig
    except ImportError as error:
        raise missing_dependency("TRL", error) from None
    trainer = policy_trainer(
        rollout_func=Rollouts(settings, stop=policy.stop, tail_characters=policy.tail_characters),
        model=str(policy.checkpoint.folder),
        reward_funcs=[reward],
        args=GRPOConfig(**grpo_arguments(settings, plan, stop=policy.stop)),
        train_dataset=Dataset.from_list(train).select(_order(settings, len(train))),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=pad_token(policy.tokenizer),
        callbacks=[progress_callback(progress), _collapse_monitor(settings, reward)],
    )
    if not trainer.use_vllm and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise SettingsError("--vllm: a policy that is sharded over GPUs is sampled by vLLM only (colocate or server)")
    trainer.remove_callback(PrinterCallback)
    return trainer


def _collapse_monitor(settings: PolicySettings, reward: Reward) -> Any:
    """Return a callback that keeps samples of each checkpoint as a table, and tells of signs of a collapse."""
    import polars as pl
    from transformers import TrainerCallback

    told_of: set[str] = set()

    class CollapseMonitor(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if settings.sample_rows and state.is_world_process_zero:
                rows = [{"step": state.global_step, **row} for row in reward.latest[: settings.sample_rows]]
                frame = pl.DataFrame(rows, infer_schema_length=None)
                file = Path(settings.out) / "samples" / f"step-{state.global_step:06d}.parquet"
                write_file(file, lambda path: frame.write_parquet(path))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            drift = logs.get("length_drift", 1.0)
            signs = {
                "copy the solution": logs.get("copied", 0) > _COLLAPSED,
                "repeat themselves": logs.get("repeated", 0) > _COLLAPSED,
                f"are over {_DRIFT:g} times as long as at the start": drift > _DRIFT,
                f"are under 1/{_DRIFT:g} as long as at the start": drift < 1 / _DRIFT,
            }
            for sign in [sign for sign, shows in signs.items() if shows and sign not in told_of]:
                told_of.add(sign)
                logger.warning("step %d: samples %s; look at %s/samples", state.global_step, sign, settings.out)

    return CollapseMonitor()
