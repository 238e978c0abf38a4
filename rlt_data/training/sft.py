"""Supervised fine-tuning with TRL's SFTTrainer: a student on distilled rows, or a teacher on explanations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlt_data.engines.config import load_config
from rlt_data.engines.models import Checkpoint, weights_fingerprint
from rlt_data.errors import InputError
from rlt_data.formats import Format, model_format
from rlt_data.libraries import freed_memory, quiet_bars
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import FineTuneSettings, TrainStudentSettings
from rlt_data.settings.base import name_of_input
from rlt_data.storage.schemas import content_hash
from rlt_data.training.examples import read_conversations, tokenize_texts
from rlt_data.training.models import (
    base_model_settings,
    find_base_model,
    loaded_dtype,
    model_arguments,
    prepare_quantized,
    saved_dtype,
    with_pad_token,
)
from rlt_data.training.plan import Plan, plan_fine_tuning
from rlt_data.training.requirements import missing_dependency
from rlt_data.training.runs import TrainingRun, memory_errors, training_provenance
from rlt_data.training.trainer import progress_callback, recent_mean, trainer_arguments, use_one_gpu


@dataclass(frozen=True)
class TrainingSummary:
    """Result of a fine-tuning.

    Attributes:
        out: folder of the trained model.
        plan: steps, tokens and memory.
        steps: completed steps, 0 for a dry run.
        loss: mean loss of the last ten logged steps, None for a dry run.
    """

    out: Path
    plan: Plan
    steps: int
    loss: float | None


def train_student(settings: TrainStudentSettings, progress: Progress = SILENT) -> TrainingSummary:
    """Fine-tune a student on a distilled data set, as ``rlt-data train-student`` does.

    The trained model is saved in OUT, checkpoints in OUT/checkpoint-N. The same call continues an interrupted training
    from the last complete checkpoint. A format.yaml in the base model's folder is copied to OUT.

    Raises:
        RltDataError: one of the errors in :mod:`rlt_data.errors`; existing files are kept.
    """
    checkpoint, tokenizer, template, _ = find_base_model(settings)
    examples = list(tokenize_texts(read_conversations(settings.input, template), tokenizer))
    return fine_tune(settings, checkpoint, tokenizer, examples, progress, format=model_format(checkpoint.folder))


@freed_memory()
def fine_tune(
    settings: FineTuneSettings,
    checkpoint: Checkpoint,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    progress: Progress,
    *,
    format: Format | None = None,
) -> TrainingSummary:
    """Fine-tune a checkpoint on examples.

    Args:
        settings: hyperparameters and the output folder.
        checkpoint: base model.
        tokenizer: tokenizer of the base model, saved with the trained model.
        examples: rows with ``input_ids`` and ``labels``.
        progress: receives every optimizer step.
        format: format of the examples, saved with the trained model.
    """
    kept = _fitting(settings, examples)
    config = load_config(checkpoint, base_model_settings(settings))
    plan = plan_fine_tuning(settings, config, kept, left_out=len(examples) - len(kept))
    depends_on = settings.depends_on(model=weights_fingerprint(checkpoint), data=content_hash(kept))
    run = TrainingRun(Path(settings.out), depends_on, training_provenance(settings, model=checkpoint), plan.steps)
    if settings.dry_run:
        return TrainingSummary(run.out, plan, 0, None)
    if done := run.finished:
        return TrainingSummary(run.out, plan, done["steps"], done["loss"])
    with run.locked(), memory_errors(plan.memory[0]):
        trainer = _trainer(settings, checkpoint, config, tokenizer, kept, plan, progress)
        run.record(plan=asdict(plan))
        run.train(
            trainer,
            tokenizer,
            progress,
            settings=settings,
            base=checkpoint,
            dtype=saved_dtype(settings, config),
            format=format,
        )
        loss = recent_mean(trainer, "loss")
        summary = TrainingSummary(run.out, plan, int(trainer.state.global_step), loss)
        run.record_end(plan=asdict(plan), steps=summary.steps, loss=loss)
    return summary


def _fitting(settings: FineTuneSettings, examples: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Return the examples within ``max_length``."""
    name = name_of_input(settings.input)
    if not examples:
        raise InputError(f"{name}: no rows to train on")
    kept = [row for row in examples if len(row["input_ids"]) <= settings.max_length]
    longer = len(examples) - len(kept)
    if longer and not settings.leave_out_long:
        longest = max(len(row["input_ids"]) for row in examples)
        raise InputError(
            f"{name}: {longer} of {len(examples)} rows are longer than --max-length {settings.max_length} "
            f"(longest: {longest} tokens) and would be truncated before their solution; distill with --max-tokens, "
            "raise --max-length, or skip them with --leave-out-long"
        )
    if not kept:
        raise InputError(f"{name}: every row is longer than --max-length {settings.max_length}")
    return kept


@quiet_bars(data=True)
def _trainer(
    settings: FineTuneSettings,
    checkpoint: Checkpoint,
    config: Any,
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
        raise missing_dependency("TRL", error) from None
    arguments: Any = SFTConfig(
        **trainer_arguments(settings, loaded_dtype(settings, config), plan.accumulation, plan.steps),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        max_length=settings.max_length if settings.packing else None,
        packing=settings.packing,
        packing_strategy="bfd",
    )
    trainer: Any = SFTTrainer(
        model=str(checkpoint.folder),
        args=use_one_gpu(arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=with_pad_token(tokenizer),
        callbacks=[progress_callback(progress)],
        **model_arguments(settings, config),
    )
    if settings.load_in_4bit:
        prepare_quantized(trainer.model)
    trainer.remove_callback(PrinterCallback)
    return trainer
