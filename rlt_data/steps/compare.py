"""Compare two evaluations question by question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.settings import CompareSettings
from rlt_data.storage.changes import describe_changes
from rlt_data.storage.run import RunFolder

#: Bootstrap resamples of the questions.
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Evaluated:
    """One of the two evaluations.

    Attributes:
        run: the run, as it was named.
        model: name of the model.
        accuracy: pass@1 on the common questions.
        answers: mean number of answers to a common question.
        solved: number of common questions that the model solves.
        other_questions: questions that the other evaluation lacks, and that are left out.
    """

    run: str
    model: str
    accuracy: float
    answers: float
    solved: int
    other_questions: int


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on their common questions.

    A question is solved if more than half of its answers are correct. If one evaluation has more answers to it than the
    other, only the first ones count, because a majority of more answers is right more or less often for the same model.

    Attributes:
        benchmark: name of the benchmark.
        first: the first evaluation.
        second: the second evaluation.
        questions: common questions.
        difference: accuracy of the second minus that of the first.
        low: lower end of its 95 % interval, from a paired bootstrap over questions (:func:`mean_interval`).
        high: its upper end.
        both: questions that both solve.
        p_value: two-sided p-value of McNemar's exact test: the binomial test on the questions that only one solves.
        overlap: questions that both solve, as a share of those that at least one solves; None if there are none.
        settings: settings other than the model that differ, in words; empty if none.
    """

    benchmark: str
    first: Evaluated
    second: Evaluated
    questions: int
    difference: float
    low: float
    high: float
    both: int
    p_value: float
    overlap: float | None
    settings: str


def compare(settings: CompareSettings) -> Comparison:
    """Compare two evaluations of one benchmark; implements ``rlt-data compare``.

    Raises:
        RunFolderError: a run is not a finished evaluation.
        SettingsError: the evaluations have different benchmarks or questions, or scipy is missing.
    """
    try:
        from scipy.stats import binomtest
    except ImportError:
        raise SettingsError("compare needs scipy; pip install 'rlt-data[eval]'") from None
    runs = [RunFolder.existing(name) for name in settings.input]
    entries = [run.step("evaluate") for run in runs]
    tables = [_grades(run, entry) for run, entry in zip(runs, entries, strict=True)]
    benchmarks = [entry["settings"]["benchmark"] for entry in entries]
    if benchmarks[0] != benchmarks[1]:
        named = " and ".join(f"{name} evaluated {b}" for name, b in zip(settings.input, benchmarks, strict=True))
        raise SettingsError(f"{named}; compare takes two evaluations of one benchmark")
    common = tables[0].join(tables[1], on="question_id", suffix="_second", maintain_order="left")
    if len(common) < 2:
        raise SettingsError(
            f"{' and '.join(settings.input)} have {len(common)} common questions; compare needs at least two"
        )
    lists = [pl.col(name).list for name in ("correct", "correct_second")]
    answers = [common.select(correct.len()).to_series().to_numpy() for correct in lists]
    rates = [common.select(correct.mean()).to_series().to_numpy() for correct in lists]
    shared = pl.min_horizontal(*(correct.len() for correct in lists))
    solved = [common.select(correct.head(shared).list.mean() > 0.5).to_series().to_numpy() for correct in lists]
    differences = rates[1] - rates[0]
    low, high = mean_interval(differences, lowest=-1.0)
    both, either = int((solved[0] & solved[1]).sum()), int((solved[0] | solved[1]).sum())
    only_first = int(solved[0].sum()) - both
    first, second = (
        Evaluated(
            run=settings.input[index],
            model=entries[index]["models"]["model"]["name"],
            accuracy=float(rates[index].mean()),
            answers=float(answers[index].mean()),
            solved=int(solved[index].sum()),
            other_questions=len(tables[index]) - len(common),
        )
        for index in (0, 1)
    )
    return Comparison(
        benchmark=benchmarks[0],
        first=first,
        second=second,
        questions=len(common),
        difference=float(differences.mean()),
        low=low,
        high=high,
        both=both,
        p_value=float(binomtest(only_first, either - both).pvalue) if either > both else 1.0,
        overlap=both / either if either else None,
        settings=_other_settings(*entries),
    )


def mean_interval(
    values: npt.NDArray[np.float64], seed: int = 0, *, lowest: float = 0.0, highest: float = 1.0
) -> tuple[float, float]:
    """Return a 95 % interval of the mean over questions: a percentile bootstrap.

    If all values are equal, a bootstrap has no width. The interval then allows for questions that were not drawn: the
    share that a sample of this size misses with a probability of 2.5 % (Clopper and Pearson 1934) has the lowest value
    at its lower end, and the highest at its upper end.

    Args:
        values: one value per question, such as the share of its answers that are correct, shape (questions,). The
            answers to a question are not independent, so whole questions are drawn.
        seed: seed of the resamples.
        lowest: smallest value that a question can have.
        highest: largest value that a question can have.
    """
    if (value := float(values[0])) == values.min() == values.max():
        share = 1 - 0.025 ** (1 / len(values))
        return value - share * (value - lowest), value + share * (highest - value)
    random = np.random.default_rng(seed)
    # One resample at a time: together, those of 20,000 questions would take 3 GB.
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _grades(run: RunFolder, entry: Mapping[str, Any]) -> pl.DataFrame:
    """Return which answers to each question are correct, in the order of the samples."""
    parts = run.parts("grades")
    finished = "settings" in entry and run.folder.exists("evaluation.json")
    if not (finished and parts and run.count("grades") == run.count("answers")):
        raise RunFolderError(f"{run.path}: is not a finished evaluation; run rlt-data evaluate --out {run.path}")
    grades = pl.concat([pl.DataFrame(run.read("grades", part)) for part in parts])
    return (
        grades.filter(pl.col("sample_index") < entry["settings"]["n"])
        .group_by("question_id", maintain_order=True)
        .agg(pl.col("correct").sort_by("sample_index"))
    )


def _other_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return the settings that differ, except the model and, if the models differ, their chat templates."""
    models = {entry["depends_on"]["model"] for entry in (first, second)}
    left_out = ("model",) if len(models) == 1 else ("model", "chat_template")
    before, now = (
        {**entry, "depends_on": {key: value for key, value in entry["depends_on"].items() if key not in left_out}}
        for entry in (first, second)
    )
    return describe_changes(before, now, "{key}: {old} and {new}")
