"""Alternate between teacher and student: does a student retrained on the best traces make a better teacher?

The arm of self-distillation has no teacher: a model learns from its own probabilities when it knows the solution.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from rlt_data.engines import find_checkpoint
from rlt_data.errors import RltDataError, SettingsError
from rlt_data.formats import ChatTemplate, Views, load_format
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.nano.build import FORMAT
from rlt_data.recipes.nano.corpus import open_book_texts
from rlt_data.recipes.nano.tokenizer import build_tokenizer
from rlt_data.recipes.stages import (
    evaluate,
    make_ranked_traces,
    train_and_eval_student,
    train_student,
    train_teacher,
    write_rows,
)

ARMS = {
    "fixed": "the student stays the base",
    "tandem": "the student is refreshed from the teacher's best traces",
    "one-model": "one model in both roles: the teacher so far is the student too",
}


def run(experiment: Experiment) -> None:
    """Train a teacher in rounds with three kinds of scoring student, and train new students on its traces."""
    calls = [(arm, seed) for arm in ARMS for seed in experiment.seeds]
    results = experiment.run_all(_arm, calls)
    self_distilled = experiment.run_all(_self_distillation, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    rounds = int(experiment.config["rounds"])
    figures: dict[str, Any] = {}
    for number, arm in enumerate(ARMS):
        seeds = results[number * len(experiment.seeds) : (number + 1) * len(experiment.seeds)]
        figures[arm] = {
            name: [estimate([result[turn][name] for result in seeds]) for turn in range(rounds)]
            for name in ("accuracy", "reward", "thought_tokens", "truncated")
        }
    turns = [f"accuracy after round {turn + 1}" for turn in range(rounds)]
    columns = ["student that rewards", *turns, "tokens", "cut off"]
    rows = [
        (
            ARMS[arm],
            *values["accuracy"],
            f"{values['thought_tokens'][-1].mean:.1f}",
            f"{values['truncated'][-1].mean:.3f}",
        )
        for arm, values in figures.items()
    ]
    text = table(columns, rows) + "\nAccuracy is that of fresh students from the base, on one trace per question.\n"
    accuracy = {when: estimate([result[when] for result in self_distilled]) for when in ("before", "after")}
    text += "\nOn-policy self-distillation, with the solution as the teacher's context: accuracy "
    text += f"{accuracy['before']} before it and {accuracy['after']} after it.\n"
    publish(
        experiment,
        {"arms": figures, "self-distillation": accuracy},
        text,
        lambda axes: _draw(axes, figures, rounds),
    )


def _arm(experiment: Experiment, arm: str, seed: int) -> list[dict[str, float]]:
    """Return the figures of new students and of the teacher's traces after each round."""
    teacher, student = str(experiment.config["teacher"]["model"]), str(experiment.config["teacher"]["student"])
    results = []
    rounds = int(experiment.config["rounds"])
    for turn in range(rounds):
        name = f"{arm}-{turn}"
        teacher = train_teacher(experiment, f"{name}-{seed}", 100 * turn + seed, model=teacher, student=student)
        results.append(train_and_eval_student(experiment, teacher, name, seed))
        if arm == "tandem" and turn + 1 < rounds:
            best = make_ranked_traces(experiment, teacher, f"{name}-best-{seed}", seed, "refresh")
            student, _ = train_student(experiment, best, f"{name}-best", seed)
        elif arm == "one-model":
            student = teacher
    return results


def _self_distillation(experiment: Experiment, seed: int) -> dict[str, float]:
    """Train a model by on-policy self-distillation; return its accuracy ``before`` and ``after``.

    The rows are those of the first arm's traces after its first round. They contain only questions and solutions.
    """
    data, out = experiment.path("data", f"privileged-{seed}"), experiment.path("self-distilled", seed)
    traces = experiment.path("traces", f"{next(iter(ARMS))}-0-{seed}")
    experiment.step("distill", in_=traces, out=data, shape="privileged", seed=seed)
    settings = {**experiment.config["self-distillation"], "output_dir": str(Path(out).absolute()), "seed": seed}
    model = _reader_of_solutions(experiment, str(settings.pop("model")), seed)
    _check(settings)
    if experiment.dry_run:
        experiment.show("python train_trl.py", "self-distillation", {"model": model, **settings})
    else:
        experiment.stored("self-distillation", [model, settings], lambda: _train(experiment, data, model, settings))
    models = {"before": model, "after": out}
    return {
        when: evaluate(experiment, name, f"{when}-self-distillation-{seed}", seed)["accuracy"]
        for when, name in models.items()
    }


def _reader_of_solutions(experiment: Experiment, model: str, seed: int) -> str:
    """Return a model that can use a solution in its prompt: the given one, or for the miniature one trained to."""
    if "open-book" not in experiment.config:
        return model
    views = Views(load_format(str(FORMAT)), ChatTemplate(build_tokenizer()))
    template = experiment.config["self-distillation"]["teacher_prompt_template"]
    texts = open_book_texts(seed, views, template)
    count = 0 if experiment.dry_run else experiment.config["open-book-rows"]
    rows = [asdict(text) for text in islice(texts, count)]
    out = experiment.path("open-book", seed)
    experiment.step(
        "student", "open-book", model=model, in_=write_rows(experiment, rows, f"open-book-{seed}"), out=out, seed=seed
    )
    return out


def _check(settings: dict[str, Any]) -> None:
    """Raise SettingsError if a setting is none of TRL's."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdft import SDFTConfig  # imports torch

    if unknown := settings.keys() - {field.name for field in fields(SDFTConfig)}:
        raise SettingsError(f"tandem, section self-distillation: {min(unknown)}: not a setting of TRL's SDFTConfig")


def _train(experiment: Experiment, data: str, model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the script for TRL that ``distill`` wrote, and save the format of its rows with the model."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        command = ["train_trl.py", str(find_checkpoint(model).folder.absolute()), "--config", file.name]
        code = subprocess.run([*experiment.launcher(), *command], check=False, cwd=data).returncode
    if code:
        raise RltDataError(f"tandem: {data}/train_trl.py failed with code {code}; see above")
    format = json.loads(Path(data, "distill.json").read_text(encoding="utf-8"))["format"]
    Path(settings["output_dir"], "format.yaml").write_text(yaml.safe_dump(format, sort_keys=False), encoding="utf-8")
    return {"out": settings["output_dir"]}


def _draw(axes: Any, figures: dict[str, Any], rounds: int) -> None:
    for arm, values in figures.items():
        means, halves = [point.mean for point in values["accuracy"]], [point.half for point in values["accuracy"]]
        axes.errorbar(range(1, rounds + 1), means, halves, capsize=3, label=ARMS[arm])
    axes.set(xlabel="round", ylabel="accuracy of fresh students", xticks=range(1, rounds + 1))
    axes.legend(fontsize="small")
