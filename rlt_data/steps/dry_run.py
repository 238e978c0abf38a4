"""Dry runs of generate, score and evaluate: what is left to compute, and what that takes.

A dry run makes the same checks as the step, up to loading the weights, and changes nothing in the run: it does not lock
it, and an input is read into a temporary run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rlt_data.engines.memory import ModelMemory, fitting_texts, model_memory
from rlt_data.engines.open import Model
from rlt_data.settings.engines import ModelSettings
from rlt_data.settings.steps import DryRunSettings
from rlt_data.storage.run import RunFolder

#: Memory of the GPUs that a plan is made for on a machine without one, in GiB.
GPUS_GIB = (24, 80)
#: Settings that decide how fast a step runs on a machine.
_OF_SPEED = ("engine", "device", "data_parallel", "tensor_parallel", "ray", "engines", "gpus_per_engine")


@dataclass(frozen=True)
class StepPlan:
    """What a step has left to compute.

    Attributes:
        engine: engine that runs the models.
        questions: questions of the run, with those that the input adds.
        rows: rows of the complete table.
        done: rows that exist.
        new: rows to compute.
        left_out: rows that this call would not compute: they have failed, will fail (their text does not fit into the
            context), or are not to be retried.
        tokens_read: tokens of the texts to read: the prompts, each once, or the complete texts of all models.
        tokens: tokens to sample at most, or to score.
        tokens_expected: tokens to sample, by the mean length of the run's rows; None if it has none. For score, equal
            to ``tokens``.
        longest: tokens of the longest text, with as many sampled ones as possible.
        context: longest text that the models could take, in tokens.
        memory: memory of each model per GPU; empty for a server, or if there is nothing to compute.
        fits: how many texts of ``longest`` tokens a GPU can hold at a time for each model, by its memory in GiB: that
            of this machine's GPU, or else of :data:`GPUS_GIB`; 0 if the models do not fit.
        tokens_per_second: rate of all GPUs together, in the unit of ``tokens``; None if it is unknown.
        rate_from: where the rate comes from: ``run`` or ``flag``; None if it is unknown.
        seconds: time for ``tokens_expected``, or else for ``tokens``; None without a rate.
        gpus: number of GPUs; None if it is unknown.
        cost: GPU hours times ``gpu_price``; None without one of them.
    """

    engine: str
    questions: int
    rows: int
    done: int
    new: int
    left_out: int
    tokens_read: int
    tokens: int
    tokens_expected: float | None
    longest: int
    context: int
    memory: list[ModelMemory]
    fits: dict[int, int]
    tokens_per_second: float | None
    rate_from: str | None
    seconds: float | None
    gpus: float | None
    cost: float | None


@contextmanager
def opened(
    run: RunFolder, *, dry_run: bool, source: RunFolder | None = None, tables: Sequence[str] = ("questions",)
) -> Iterator[RunFolder]:
    """Lock a run. For a dry run, yield another run with the same input, which may change.

    Args:
        run: the run of the step.
        dry_run: whether nothing may change.
        source: the run that is the step's input; None if the step reads files.
        tables: tables that the files add to.
    """
    if not dry_run:
        with run.locked():
            yield run
    elif source:
        yield source
    else:
        with tempfile.TemporaryDirectory(prefix="rlt-data-") as folder:
            copy = RunFolder(folder)
            with copy.locked():
                for table in tables:
                    for part in run.parts(table):
                        copy.write_part(table, part, run.read(table, part))
                if entry := run.step("input"):
                    copy.record("input", entry)
                yield copy


def plan_step(
    run: RunFolder,
    step: str,
    settings: Any,
    models: Sequence[Model],
    *,
    comparable: bool = True,
    longest: int,
    tokens: int,
    tokens_expected: float | None,
    **counts: int,
) -> StepPlan:
    """Return the plan of a step, with memory, time and cost.

    Args:
        run: the run of the step.
        step: name of the step.
        settings: settings of the step.
        models: models that run at the same time.
        comparable: whether the rate that the run has measured is that of these models.
        longest: see :class:`StepPlan`.
        tokens: see :class:`StepPlan`.
        tokens_expected: see :class:`StepPlan`.
        counts: further counts of :class:`StepPlan`.
    """
    rate, rate_from = _rate(run, step, settings, comparable=comparable)
    work = tokens if tokens_expected is None else tokens_expected
    seconds = work / rate if rate else None
    gpus = _gpus(settings, len(models))
    cost = None
    if seconds is not None and gpus is not None and settings.gpu_price is not None:
        cost = seconds / 3600 * gpus * settings.gpu_price
    memory = [model_memory(model, longest) for model in models] if longest and settings.engine != "server" else []
    return StepPlan(
        engine=settings.engine,
        tokens=tokens,
        tokens_expected=tokens_expected,
        longest=longest,
        context=min(model.context_length for model in models),
        memory=memory,
        fits=_fits(memory, settings),
        tokens_per_second=rate,
        rate_from=rate_from,
        seconds=seconds,
        gpus=gpus,
        cost=cost,
        **counts,
    )


def _rate(run: RunFolder, step: str, settings: DryRunSettings, *, comparable: bool) -> tuple[float | None, str | None]:
    """Return tokens per second, and where they come from."""
    if settings.tokens_per_second:
        return settings.tokens_per_second, "flag"
    entry = run.step(step)
    recorded = entry.get("settings", {})
    same = all(recorded.get(name) == getattr(settings, name) for name in _OF_SPEED)
    work = entry.get("work") or {}
    if comparable and same and work.get("tokens"):
        return work["tokens"] / work["seconds"], "run"
    return None, None


def _fits(memory: list[ModelMemory], settings: ModelSettings) -> dict[int, int]:
    """Return how many texts fit into GPUs, by their memory in GiB; nothing for models without keys and values."""
    if not memory or not all(model.cache_gib for model in memory):
        return {}
    # On a cluster, each model has its own GPUs.
    sharing = [[model] for model in memory] if settings.ray else [memory]
    return {gib: min(fitting_texts(models, gib * settings.gpu_memory) for models in sharing) for gib in _gpu_sizes()}


def _gpu_sizes() -> tuple[int, ...]:
    """Return the memory of the GPUs to plan for, in GiB."""
    if torch.cuda.is_available():
        return (round(torch.cuda.get_device_properties(0).total_memory / 2**30),)
    return GPUS_GIB


def _gpus(settings: ModelSettings, models: int) -> float | None:
    """Return the number of GPUs that a step uses; None if only the server or the cluster knows it."""
    if settings.engine == "server":
        return None
    if not settings.ray:
        return settings.data_parallel * settings.tensor_parallel
    each = settings.tensor_parallel if settings.gpus_per_engine is None else settings.gpus_per_engine
    return None if settings.engines is None else models * settings.engines * each
