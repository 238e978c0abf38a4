"""Supervised fine-tuning over TRL's SFTTrainer: of a student on distilled rows, and of a teacher as its warm-up."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlt_data.engines.config import load_config, pick_device
from rlt_data.engines.models import Checkpoint, find_checkpoint, weights_fingerprint
from rlt_data.engines.open import open_tokenizer
from rlt_data.errors import InputError, RunFolderError, SettingsError
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import ModelSettings, TrainStudentSettings
from rlt_data.store import changed_keys, content_hash, write_json
from rlt_data.training.examples import conversations, tokenised
from rlt_data.training.plan import Plan, plan_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did.

    Attributes:
        out: folder of the trained model.
        plan: steps, tokens and memory.
        steps: steps done, 0 for a dry run.
        loss: mean loss of the last logged steps, None for a dry run.
    """

    out: Path
    plan: Plan
    steps: int
    loss: float | None


def train_student(settings: TrainStudentSettings, progress: Progress = SILENT) -> TrainingSummary:
    """Fine-tune a student on a distilled data set; the library side of ``rlt-data train-student``.

    Checkpoints lie in OUT/checkpoint-N; the same call goes on from the last whole one. The trained model lies in OUT.

    Raises:
        RltDataError: of one of the kinds in :mod:`rlt_data.errors`; nothing that was there is lost.
    """
    checkpoint = find_checkpoint(settings.model)
    model_settings = ModelSettings(device=settings.device, chat_template=settings.chat_template)
    tokenizer, template = open_tokenizer(checkpoint, model_settings)
    examples = list(tokenised(conversations(settings.input, template), tokenizer))
    return fine_tune(settings, checkpoint, tokenizer, examples, progress)


def fine_tune(
    settings: TrainStudentSettings,
    checkpoint: Checkpoint,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    progress: Progress,
) -> TrainingSummary:
    """Train a checkpoint on examples.

    Args:
        settings: see there.
        checkpoint: where the model begins.
        tokenizer: its tokenizer, saved with the trained model.
        examples: ``input_ids`` and ``labels``.
        progress: told of every step.
    """
    kept = _fitting(settings, examples)
    config = load_config(checkpoint, ModelSettings())
    plan = plan_of(settings, config, kept, left_out=len(examples) - len(kept))
    out = Path(settings.out)
    depends_on = {
        "model": weights_fingerprint(checkpoint),
        "data": content_hash(kept),
        **settings.model_dump(mode="json", exclude={"model", "input", "out", "dry_run", "log_to", "micro_batch_size"}),
    }
    _refuse_other_training(out, depends_on)
    if settings.dry_run:
        return TrainingSummary(out, plan, 0, None)
    trainer = _trainer(settings, checkpoint, tokenizer, kept, plan, progress)
    entry = {"depends_on": depends_on, "plan": asdict(plan)}
    write_json(out / "training.json", entry)
    last = last_whole_checkpoint(out)
    progress.start("train", plan.steps, int(last.name.rpartition("-")[2]) if last else 0)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    finally:
        progress.finish()
    trainer.save_model(str(out))
    tokenizer.save_pretrained(str(out))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loss = float(sum(losses[-10:]) / len(losses[-10:])) if losses else None
    summary = TrainingSummary(out, plan, int(trainer.state.global_step), loss)
    write_json(out / "training.json", entry | {"steps": summary.steps, "loss": loss})
    return summary


def last_whole_checkpoint(out: Path) -> Path | None:
    """Return the latest checkpoint that was written to its end; a torn one, from a kill, is removed."""
    found = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            return path
    return None


def _fitting(settings: TrainStudentSettings, examples: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Leave out rows that would be cut, if that was allowed."""
    if not examples:
        raise InputError(f"{settings.input}: there are no rows to train on")
    kept = [row for row in examples if len(row["input_ids"]) <= settings.max_length]
    longer = len(examples) - len(kept)
    if longer and not settings.leave_out_long:
        longest = max(len(row["input_ids"]) for row in examples)
        raise InputError(
            f"{settings.input}: {longer} of {len(examples)} rows are longer than --max-length {settings.max_length} "
            f"(the longest has {longest} tokens) and would be cut before their solution; distill with --max-tokens, "
            "raise --max-length, or give --leave-out-long"
        )
    if not kept:
        raise InputError(f"{settings.input}: every row is longer than --max-length {settings.max_length}")
    return kept


def _refuse_other_training(out: Path, depends_on: dict[str, Any]) -> None:
    file = out / "training.json"
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: is a file; --out takes a folder")
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise RunFolderError(f"{out}: is there already and holds no training; choose another --out")
        return
    before = json.loads(file.read_text(encoding="utf-8")).get("depends_on", {})
    if before != depends_on:
        changed = ", ".join(changed_keys(before, depends_on))
        raise RunFolderError(
            f"{out}: holds a training with other settings or data ({changed} differ); "
            "use the same to continue it, or another --out"
        )


def _trainer(
    settings: TrainStudentSettings,
    checkpoint: Checkpoint,
    tokenizer: Any,
    rows: Iterable[dict[str, list[int]]],
    plan: Plan,
    progress: Progress,
) -> Any:
    try:
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise SettingsError(f"training needs TRL ({error}); pip install 'rlt-data[train]'") from None
    device = pick_device(settings.device)
    on_cpu = device.type == "cpu"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    arguments = SFTConfig(
        output_dir=str(settings.out),
        use_cpu=on_cpu,
        bf16=not on_cpu and device.type == "cuda",
        model_init_kwargs={"dtype": settings.dtype},
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        max_length=settings.max_length if settings.packing else None,
        packing=settings.packing,
        packing_strategy="bfd",
        activation_checkpointing=settings.activation_checkpointing,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        logging_steps=max(1, plan.steps // 100),
        report_to=settings.log_to,
        disable_tqdm=True,
    )
    lora = None
    if settings.lora_rank:
        try:
            from peft import LoraConfig
        except ImportError:
            raise SettingsError("--lora-rank: needs peft; pip install 'rlt-data[train]'") from None
        lora = LoraConfig(
            r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = SFTTrainer(
        model=str(checkpoint.folder),
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[_told(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _told(progress: Progress) -> Any:
    """Return a callback that tells of every step, and notes the loss."""
    from transformers import TrainerCallback

    class Told(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            progress.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                logger.info(
                    "step %d: loss %.4f, gradient norm %.3f, learning rate %.2e, tokens %d",
                    state.global_step,
                    float(logs["loss"]),
                    float(logs["grad_norm"]),
                    float(logs["learning_rate"]),
                    int(logs["num_tokens"]),
                )

    return Told()
