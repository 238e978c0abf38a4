"""Train a policy by GRPO with any reward: checks, the plan, TRL's arguments, and the saved files."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlt_data.engines import Model
from rlt_data.engines.config import context_length_of, load_config
from rlt_data.engines.gpus import unusable_gpu
from rlt_data.engines.models import Checkpoint, weights_fingerprint
from rlt_data.engines.vllm.version import installed_version, major_minor
from rlt_data.errors import InputError, SettingsError
from rlt_data.formats import Format, Tokenizer, encode
from rlt_data.libraries import freed_memory, quiet_bars
from rlt_data.progress import Progress
from rlt_data.settings import PolicySettings, TrainTeacherSettings
from rlt_data.settings.base import name_of_input
from rlt_data.steps.score import reward_identity
from rlt_data.storage.outputs import write_file
from rlt_data.storage.schemas import content_hash
from rlt_data.training.launch import sharding
from rlt_data.training.models import (
    base_model_settings,
    complete_model,
    copy_model,
    loaded_dtype,
    model_arguments,
    prepare_quantized,
    saved_dtype,
    with_pad_token,
)
from rlt_data.training.plan import PolicyPlan, plan_policy
from rlt_data.training.requirements import missing_dependency, refuse_here
from rlt_data.training.rewards import Reward, Row
from rlt_data.training.rollouts import Rollouts
from rlt_data.training.runs import TrainingRun, memory_errors, training_provenance
from rlt_data.training.trainer import progress_callback, recent_mean, trainer_arguments, use_one_gpu
from rlt_data.training.trl_patches import policy_trainer

logger = logging.getLogger(__name__)

#: First and last version of vLLM that TRL supports, as (major, minor).
_VLLM = ((0, 22), (0, 31))
#: Warn once when a collapse metric exceeds this value.
_COLLAPSED = 0.5
_DRIFT = 3.0


@dataclass(frozen=True)
class PolicySummary:
    """Result of a GRPO training.

    Attributes:
        out: folder of the trained model.
        plan: steps, tokens and memory.
        steps: completed steps, 0 for a dry run.
        reward: mean reward of the last ten logged steps, None for a dry run.
        best: folder of the model with the highest reward on held-out questions, None without held-out questions.
        best_reward: mean held-out reward of that model.
    """

    out: Path
    plan: PolicyPlan
    steps: int
    reward: float | None = None
    best: Path | None = None
    best_reward: float | None = None


@dataclass(frozen=True)
class Policy:
    """A policy and its training data.

    Attributes:
        checkpoint: initial weights.
        tokenizer: tokenizer of the policy.
        format: format of the prompts.
        rows: one per question: ``prompt`` (rendered), ``question_id``, ``question``, and columns that the reward needs.
        stop: text that ends a sample.
        tail_characters: number of characters at the end of a prompt that belong to the explanation (the padding).
        student: frozen student, if the reward needs one.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    format: Format
    rows: Sequence[Row]
    stop: str
    tail_characters: int = 0
    student: Model | None = None


@freed_memory()
def train_policy(
    settings: PolicySettings, policy: Policy, open_reward: Callable[[], Reward], progress: Progress
) -> PolicySummary:
    """Train a policy, or continue its training from the last complete checkpoint.

    Args:
        settings: hyperparameters, batch sizes and the output folder.
        policy: policy and training data.
        open_reward: loads the reward; called after all checks have passed.
        progress: receives every optimizer step.
    """
    config = load_config(policy.checkpoint, base_model_settings(settings))
    kept, lengths = _fitting(settings, policy, config)
    train, held_out = _split(settings, kept)
    student = policy.student
    plan = plan_policy(
        settings,
        config,
        [lengths[row["question_id"]] for row in train],
        held_out=len(held_out),
        left_out=len(policy.rows) - len(kept),
        student_bytes=int(student.weight_bytes) if student and student.settings.engine != "server" else 0,
    )
    _check_vllm(settings)
    if settings.lora_rank and settings.has_synchronised_reference and sharding() == "zero3":
        raise SettingsError(
            "--ref-sync-steps: a reference adapter cannot be sharded by DeepSpeed ZeRO-3; use FSDP2 "
            "(recipes/accelerate/fsdp2.yaml) or --ref-sync-steps 0"
        )
    depends_on = settings.depends_on(
        model=weights_fingerprint(policy.checkpoint),
        student=student.identity.weights if student else None,
        data=content_hash(train, held_out),
        format=policy.format.hash,
        steps=plan.steps,
        **(reward_identity(settings) if isinstance(settings, TrainTeacherSettings) else {}),
    )
    provenance = training_provenance(settings, model=policy.checkpoint, student=student.checkpoint if student else None)
    run = TrainingRun(Path(settings.out), depends_on, provenance, plan.steps)
    if settings.dry_run:
        return PolicySummary(run.out, plan, 0)
    best = run.out / "best" if held_out else None
    if done := run.finished:
        return PolicySummary(run.out, plan, done["steps"], done["reward"], best, done["best_reward"])
    with run.locked(), memory_errors(plan.memory[0]):
        # Before the trainer exists: in an FSDP process group, Transformers loads weights in one process only.
        reward = open_reward()
        context = max(lengths[row["question_id"]] for row in kept) + settings.max_tokens
        trainer = _trainer(settings, policy, config, plan, reward, train, held_out, context, progress)
        run.record(plan=asdict(plan))
        dtype = saved_dtype(settings, config)
        run.train(
            trainer,
            policy.tokenizer,
            progress,
            settings=settings,
            base=policy.checkpoint,
            dtype=dtype,
            format=policy.format,
        )
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
            complete_model(best, policy.checkpoint, dtype, policy.format)
        run.record_end(
            plan=asdict(plan),
            steps=summary.steps,
            reward=summary.reward,
            best_reward=summary.best_reward,
            best_step=getattr(trainer.state, "best_global_step", None),
        )
    return summary


def _fitting(settings: PolicySettings, policy: Policy, config: Any) -> tuple[list[Row], dict[str, int]]:
    """Return the rows whose prompt and longest sample fit into the context, and the prompt lengths of all rows."""
    name = name_of_input(settings.input)
    if not policy.rows:
        raise InputError(f"{name}: no rows to train on")
    encodings = encode(policy.tokenizer, [row["prompt"] for row in policy.rows])
    lengths = {row["question_id"]: len(encoding) for row, encoding in zip(policy.rows, encodings, strict=True)}
    context = context_length_of(config)
    kept = [row for row in policy.rows if lengths[row["question_id"]] + settings.max_tokens <= context]
    longer = len(policy.rows) - len(kept)
    if longer and (not kept or not settings.leave_out_long):
        raise InputError(
            f"{name}: {longer} of {len(policy.rows)} prompts (longest: {max(lengths.values())} tokens) leave "
            f"no room for --max-tokens {settings.max_tokens} in a context of {context} tokens; lower --max-tokens"
            + (", or skip these questions with --leave-out-long" if kept else "")
        )
    return kept, lengths


def _split(settings: PolicySettings, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Split rows at random into training and held-out questions."""
    if settings.held_out >= len(rows):
        raise SettingsError(
            f"--held-out: {settings.held_out} of {len(rows)} questions leave none to train on; lower the number"
        )
    held_out = set(random.Random(settings.seed).sample(range(len(rows)), settings.held_out))
    train = [row for index, row in enumerate(rows) if index not in held_out]
    if len(train) < settings.questions:
        raise SettingsError(
            f"--questions-per-step: each step needs {settings.questions} questions, but only {len(train)} are left to "
            "train on"
        )
    return train, [row for index, row in enumerate(rows) if index in held_out]


def _check_vllm(settings: PolicySettings) -> None:
    """Check before loading anything that vLLM is installed and can be used.

    TRL only warns of other versions. With these, the copied weights could be wrong, and nothing would show it.

    Raises:
        SettingsError: vLLM or CUDA is missing, or TRL does not support the version of vLLM.
    """
    if settings.vllm == "none":
        return
    supported = f"TRL supports vLLM {_VLLM[0][0]}.{_VLLM[0][1]} to {_VLLM[1][0]}.{_VLLM[1][1]}"
    version = installed_version()
    if not torch.cuda.is_available():
        obstacle = unusable_gpu() or "PyTorch sees none"
        refuse_here(settings, f"--vllm: needs a GPU, because weights are copied from GPU to GPU; {obstacle}")
    elif version is None:
        refuse_here(settings, f"--vllm: vLLM is not installed ({supported}); pip install 'rlt-data[rl]'")
    elif not _VLLM[0] <= major_minor(version) <= _VLLM[1]:
        refuse_here(settings, f"--vllm: vLLM {version} is installed, but {supported}; pip install 'rlt-data[rl]'")


def grpo_arguments(
    settings: PolicySettings,
    plan: PolicyPlan,
    *,
    stop: str,
    dtype: torch.dtype = torch.float32,
    context: int | None = None,
) -> dict[str, Any]:
    """Return the arguments of TRL's GRPOConfig.

    Args:
        settings: hyperparameters and the output folder.
        plan: plan of the training.
        stop: text that ends a sample.
        dtype: dtype of the loaded weights.
        context: tokens of the longest prompt and its longest sample. Colocated vLLM reserves memory for one text of
            this length. None: the model's context.
    """
    arguments = trainer_arguments(settings, dtype, plan.accumulation, plan.steps, checkpoints=plan.held_out > 0)
    vllm: dict[str, Any] = {"use_vllm": False}
    if settings.vllm != "none":
        vllm = {
            "use_vllm": True,
            "vllm_mode": settings.vllm,
            "vllm_server_base_url": settings.vllm_url,
            "vllm_gpu_memory_utilization": settings.vllm_memory,
            "vllm_max_model_length": context,
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
        "max_steps": plan.steps,
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
        # TRL refuses to synchronise adapters; see PolicyTrainer.add_reference_adapter.
        "sync_ref_model": settings.has_synchronised_reference and not settings.lora_rank,
        "ref_model_sync_steps": settings.sync_steps or 1,
        "ref_model_mixup_alpha": settings.sync_mixup,
    }


def _order(settings: PolicySettings, plan: PolicyPlan) -> list[int]:
    """Return the question indices of all steps, reshuffled for each epoch; more steps only append to them.

    All steps are planned in advance, because TRL's sampler starts again with the first epoch when training resumes.
    """
    draw, order, size = random.Random(settings.seed), list[int](), plan.steps * settings.questions
    while len(order) < size:
        order += draw.sample(range(plan.questions), plan.questions)
    return order[:size]


@quiet_bars(data=True)
def _trainer(
    settings: PolicySettings,
    policy: Policy,
    config: Any,
    plan: PolicyPlan,
    reward: Reward,
    train: list[Row],
    held_out: list[Row],
    context: int,
    progress: Progress,
) -> Any:
    try:
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback
        from trl import GRPOConfig
    except ImportError as error:
        raise missing_dependency("TRL", error) from None
    dtype = loaded_dtype(settings, config)
    arguments = GRPOConfig(**grpo_arguments(settings, plan, stop=policy.stop, context=context, dtype=dtype))
    trainer = policy_trainer(
        rollout_func=Rollouts(settings, stop=policy.stop, tail_characters=policy.tail_characters),
        model=str(policy.checkpoint.folder),
        reward_funcs=[reward],
        args=use_one_gpu(arguments),
        train_dataset=Dataset.from_list(train).select(_order(settings, plan)),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=with_pad_token(policy.tokenizer),
        callbacks=[progress_callback(progress), _collapse_monitor(settings, reward)],
        **model_arguments(settings, config),
    )
    if settings.load_in_4bit:
        prepare_quantized(trainer.model)
    if settings.lora_rank and settings.has_synchronised_reference:
        trainer.add_reference_adapter()
    trainer.remove_callback(PrinterCallback)
    return trainer


def _collapse_monitor(settings: PolicySettings, reward: Reward) -> Any:
    """Return a callback that saves samples at each checkpoint, and warns of collapse."""
    import polars as pl
    from transformers import TrainerCallback

    warned: set[str] = set()

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
            for sign in [sign for sign, present in signs.items() if present and sign not in warned]:
                warned.add(sign)
                logger.warning("step %d: samples %s; see %s/samples", state.global_step, sign, settings.out)

    return CollapseMonitor()
