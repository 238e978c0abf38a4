"""Scores of a pool: the KL of each trace is relative to its own teacher.

A score's ``scored_by`` hashes what the ``score`` step depends on, with the one teacher that the KL of this trace is
relative to, or ``none``. In run.json, ``depends_on`` has all these teachers, joined by ``+``. So scores of a teacher's
traces stay the same when traces of another teacher join them, and scores that differ in nothing else can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash

#: The teacher of scores without KL.
NO_TEACHER = "none"

_SEPARATOR = "+"


def join_teachers(teachers: set[str]) -> str:
    """Return the teachers of a run's scores as one text for ``depends_on``."""
    return _SEPARATOR.join(sorted(teachers))


def scored_by(depends_on: Mapping[str, Any], teacher: str) -> str:
    """Return the ``scored_by`` of scores whose KL is relative to a teacher."""
    return content_hash({**depends_on, "teacher": teacher})


def teachers_by_scored_by(depends_on: Mapping[str, Any]) -> dict[str, str]:
    """Return the teachers that a run's scores can have, by their ``scored_by``."""
    teachers = str(depends_on.get("teacher", NO_TEACHER)).split(_SEPARATOR)
    return {scored_by(depends_on, teacher): teacher for teacher in teachers}


def differ_only_in_teachers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether ``depends_on`` of two runs' scores differ in nothing but the teachers."""
    return {**one, "teacher": None} == {**other, "teacher": None}


def own_teacher(trace: Mapping[str, Any], temperature: float | None) -> str:
    """Return the teacher of a trace if its log-probs at a temperature are stored with it, else ``none``."""
    return str(trace["teacher"]) if trace["teacher"] and trace["logprob_temperature"] == temperature else NO_TEACHER


def has_other_teachers(
    run: RunFolder, depends_on: Mapping[str, Any], teacher_of: Callable[[Mapping[str, Any]], str]
) -> bool:
    """Return whether a score has another teacher than it should.

    Args:
        run: the run.
        depends_on: what its scores depend on.
        teacher_of: returns the teacher that the score of a trace should have, given ``teacher`` and
            ``logprob_temperature`` of the trace.
    """
    teachers = teachers_by_scored_by(depends_on)
    columns = ["trace_id", "teacher", "logprob_temperature"]
    for part in run.parts("scores"):
        traces = {row["trace_id"]: row for row in run.read("traces", part, columns).to_pylist()}
        for score in run.read("scores", part, ["trace_id", "scored_by"]).to_pylist():
            expected = teacher_of(traces[score["trace_id"]])
            if teachers.get(score["scored_by"], expected) != expected:
                return True
    return False


def with_teachers_of(entry: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's entry of ``score`` with the teachers of another run added, as without ``--teacher``."""
    one, two = (set(str(step["depends_on"]["teacher"]).split(_SEPARATOR)) for step in (entry, other))
    models = {role: model for role, model in entry.get("models", {}).items() if role != "teacher"}
    return {
        **entry,
        "depends_on": {**entry["depends_on"], "teacher": join_teachers(one | two)},
        "settings": {**entry.get("settings", {}), "teacher": None},
        "models": models,
    }


def has_own_teachers(run: RunFolder) -> bool:
    """Return whether every score has the teacher that :func:`own_teacher` returns for its trace."""
    depends_on = run.step("score").get("depends_on", {})
    return not has_other_teachers(run, depends_on, lambda trace: own_teacher(trace, depends_on.get("temperature")))
