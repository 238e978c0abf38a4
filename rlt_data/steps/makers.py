"""The makers of a run's generated traces: teachers with their sampling settings.

A maker is named by the ``made_by`` of its traces. In run.json, the entry of the step ``generate`` is that of the first
maker, and its key ``added`` has the entries of the others. ``sample_index`` counts from 0 for each maker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlt_data.engines.models import find_checkpoint, weights_fingerprint
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import Format
from rlt_data.settings import GenerateSettings
from rlt_data.signals.frames import trace_format
from rlt_data.steps.provenance import recorded_engine
from rlt_data.storage.errorlog import NAME
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash

#: Key of the other makers' entries.
ADDED = "added"

#: What score needs to be equal in the formats of all traces of a run.
OF_EXPLANATIONS = ("explanation_tags", "padding")


def makers_of(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the makers of traces by ``made_by``, the first one first.

    Args:
        entry: the run.json entry of ``generate``; empty if the step has not run.
    """
    if not entry:
        return {}
    first = {key: value for key, value in entry.items() if key != ADDED}
    return {content_hash(first.get("depends_on", {})): first, **entry.get(ADDED, {})}


def recorded_makers(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the makers of a run's generated traces; see :func:`makers_of`."""
    return makers_of(run.step("generate"))


def has_imports(run: RunFolder) -> bool:
    """Return whether a run has imported traces."""
    return bool(run.step("input").get("traces"))


def record_maker(run: RunFolder, made_by: str, entry: dict[str, Any]) -> None:
    """Record a maker in run.json, or update its entry."""
    first = next(iter(recorded_makers(run)), None)
    if first in (None, made_by) or _made_nothing(run):
        run.record("generate", entry)
    else:
        run.record("generate", {ADDED: run.step("generate").get(ADDED, {}) | {made_by: entry}})


def refuse_maker(run: RunFolder, made_by: str, entry: dict[str, Any], format: Format, *, add: bool) -> None:
    """Refuse to generate traces that the run cannot take.

    Args:
        run: the run.
        made_by: the maker.
        entry: its entry for run.json.
        format: its format.
        add: whether the user wants to add a maker.

    Raises:
        RunFolderError: the run has traces of other makers and ``add`` is false, or traces of an early version.
        SettingsError: the run's traces have other tags or padding.
    """
    run.refuse_earlier_prompts("generate", entry)
    makers = recorded_makers(run)
    if made_by in makers or _made_nothing(run):
        return
    if not add:
        if not makers and has_imports(run):
            raise RunFolderError(
                f"{run.path}: has imported traces. Use --add to add the teacher's traces to them, or choose another "
                "--out."
            )
        remedy = "Use the same settings to continue it, --add to add traces of these settings, or choose another --out."
        run.refuse_other_settings("generate", entry, remedy)
    existing = trace_format(run)
    if existing and (difference := differing_explanations(existing, format)):
        raise SettingsError(
            f"--format: {format.name!r} and the format of the traces in {run.path}, {existing.name!r}, have different "
            f"{difference}, and score reads all traces of a run in one format; choose a format with the same "
            f"{difference}, such as {existing.name!r}"
        )


def origin_of_maker(run: RunFolder, made_by: str, origin: str | None, default: str) -> str:
    """Return the origin of a maker's traces: the one its traces have already, else the user's, else the default.

    Raises:
        SettingsError: its traces have another origin than the user's.
    """
    maker = recorded_makers(run).get(made_by)
    if maker is None or _made_nothing(run):
        return origin or default
    recorded = str(maker.get("origin", default))
    if origin not in (None, recorded):
        raise SettingsError(
            f"--origin: the traces of these settings in {run.path} have the origin {recorded!r}; omit the option, or "
            "choose another --out"
        )
    return recorded


def engine_of_maker(run: RunFolder, settings: GenerateSettings) -> str | None:
    """Return the engine of the run's maker that has these settings; None if no maker has them.

    Raises:
        ModelError: the teacher does not exist, or its folder holds no weights.
    """
    asked = {key: value for key, value in settings.depends_on().items() if key != "engine"}
    makers = [maker for maker in recorded_makers(run).values() if asked.items() <= maker.get("depends_on", {}).items()]
    for maker in makers:
        if maker["settings"].get("teacher") == settings.teacher:
            return recorded_engine(maker)
    weights = weights_fingerprint(find_checkpoint(settings.teacher)) if makers else None
    return next((recorded_engine(maker) for maker in makers if maker["models"]["teacher"]["weights"] == weights), None)


def differing_explanations(one: Format, other: Format) -> str | None:
    """Return the name of a setting in which the explanations of two formats differ; None if score can read both."""
    return next((name for name in OF_EXPLANATIONS if getattr(one, name) != getattr(other, name)), None)


def refuse_import(run: RunFolder) -> None:
    """Refuse to import traces into a run that has generated ones.

    Raises:
        RunFolderError: the run has generated traces; the message says how to pool them with imported ones.
    """
    if recorded_makers(run) and run.parts("traces"):
        raise RunFolderError(
            f"{run.path}: has generated traces. To score them, run rlt-data score {run.path}; to add the traces of a "
            "file, import it into another --out and combine both runs with rlt-data merge."
        )


def pooled_entry(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Return the run.json entry of ``generate`` for a run that merges others; empty if none has makers.

    If several runs have a maker, the first run's entry counts.

    Raises:
        RunFolderError: two runs have traces in formats of different tags or padding.
    """
    makers: dict[str, dict[str, Any]] = {}
    formats: list[tuple[RunFolder, Format]] = []
    for run in runs:
        makers |= {made_by: entry for made_by, entry in recorded_makers(run).items() if made_by not in makers}
        if format := trace_format(run):
            formats.append((run, format))
    for run, format in formats[1:]:
        first, existing = formats[0]
        if difference := differing_explanations(existing, format):
            raise RunFolderError(
                f"{first.path} and {run.path} have traces whose formats, {existing.name!r} and {format.name!r}, have "
                f"different {difference}; score reads all traces of a run in one format"
            )
    if not makers:
        return {}
    first_entry, *others = makers.values()
    outcome = ("rows", "failed", "work")  # of the step, not of the maker
    added = [{key: value for key, value in entry.items() if key not in outcome} for entry in others]
    return first_entry | ({ADDED: dict(zip([*makers][1:], added, strict=True))} if added else {})


def _made_nothing(run: RunFolder) -> bool:
    """Return whether earlier starts made neither traces nor failures, for example because a model did not load."""
    return not run.parts("traces") and not run.folder.exists(NAME)
