"""Publish what was distilled on the Hub, with all ways to load it and a card that says how it was made.

tables (publish/tables.py) and card (publish/card.py) are written to a folder first; then the repository is compared
with it (publish/hub.py), gets what it lacks, and is read back.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from rlt_data.errors import HubError, RunFolderError
from rlt_data.progress import SILENT, Progress, task
from rlt_data.publish.card import Facts, write_card
from rlt_data.publish.hub import CARD, MANIFEST, Plan, Repository
from rlt_data.publish.tables import Config, write_configs
from rlt_data.settings import PushSettings
from rlt_data.steps.stats import stats
from rlt_data.store import Run


@dataclass
class PushSummary:
    """What was published.

    Attributes:
        repo_id: the repository.
        commit: the last commit; None where nothing was changed or it was a dry run.
        head: the commit that the repository is at now; None where there is none.
        plan: what was, or would be, changed.
        sizes: bytes of the files, by their paths.
        rows: rows by configuration.
        card: the card.
        seconds: time spent.
    """

    repo_id: str
    plan: Plan
    card: str
    commit: str | None = None
    head: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def push(settings: PushSettings, progress: Progress = SILENT) -> PushSummary:
    """Publish a run's distilled data set; the library side of ``rlt-data push``.

    Raises:
        RunFolderError: there is nothing distilled, or it is elsewhere than in the run.
        HubError: the Hub refused something, cannot be reached, or holds other content than was sent.
        SettingsError: the name cannot be one of a repository.
    """
    began = time.monotonic()
    run = Run.existing(settings.input)
    if not isinstance(run.path, Path):
        raise RunFolderError(f"{run.path}: is not on this machine; copy the run folder here first")
    distilled = run.path / "dataset"
    if not (distilled / "distill.json").is_file():
        raise RunFolderError(f"{run.path}: nothing is distilled there; run rlt-data distill --in {run.path} first")
    repository = Repository(settings.repo_id, "dataset", settings.revision)
    head = repository.head()
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".push-") as temporary:
        root = Path(temporary)
        with task(progress, "write tables", len(run.parts("ranks")) + len(run.parts("traces"))):
            configs = write_configs(run, distilled, root, progress)
        card = _write_texts(settings, run, distilled, root, configs, repository.read(CARD, head) if head else None)
        files = {str(file.relative_to(root)): file for file in sorted(root.rglob("*")) if file.is_file()}
        plan = repository.plan(files, head)
        summary = PushSummary(settings.repo_id, plan, card, head=head)
        summary.sizes = {path: file.stat().st_size for path, file in files.items()}
        summary.rows = {config.name: sum(config.rows.values()) for config in configs}
        if not settings.dry_run and not plan.nothing:
            if head is None:
                repository.create(private=not settings.public)
                plan = summary.plan = repository.plan(files, repository.head())
            total = sum(file.stat().st_size for file in (*plan.new.values(), *plan.changed.values()))
            with task(progress, "upload", total):
                summary.commit = repository.apply(
                    plan, "Push by rlt-data", create_pr=settings.create_pr, advance=progress.advance
                )
            summary.head = summary.commit
        if not settings.dry_run and summary.head:
            _read_back(repository, summary.head, files, configs)
    summary.seconds = time.monotonic() - began
    return summary


def _write_texts(
    settings: PushSettings, run: Run, distilled: Path, root: Path, configs: list[Config], existing: bytes | None
) -> str:
    """Write the card and the list of files."""
    made = json.loads((distilled / "distill.json").read_text(encoding="utf-8"))
    figures = stats(run)
    facts = Facts(
        name=settings.repo_id,
        title=settings.title or settings.repo_id.partition("/")[2] or settings.repo_id,
        configs=configs,
        stats=figures,
        distilled=made,
        licence=settings.license,
        samples=_best_and_worst(run),
    )
    card = write_card(facts, existing.decode("utf-8") if existing else None)
    (root / CARD).write_text(card, encoding="utf-8")
    names = [str(file.relative_to(root)) for file in sorted(root.rglob("*")) if file.is_file()]
    content = {
        "files": names,
        "configs": {each.name: each.rows for each in configs},
        "made": {"distill": made, "rows": figures.rows},
    }
    (root / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def _best_and_worst(run: Run) -> dict[str, dict[str, Any]]:
    """Return the well-formed traces of largest and of smallest value, with their texts."""
    ends: list[pl.DataFrame] = []
    for part in run.parts("ranks"):
        ranks = pl.DataFrame(run.read("ranks", part)).filter(pl.col("flaw").is_null(), pl.col("value").is_not_null())
        ranks = ranks.sort("value", "trace_id").with_columns(pl.lit(part).alias("part"))
        ends.append(pl.concat([ranks.head(1), ranks.tail(1)]))
    if not ends or not sum(map(len, ends)):
        return {}
    all_ends = pl.concat(ends).sort("value", "trace_id")
    found = {}
    for name, row in (("Best", all_ends.row(-1, named=True)), ("Worst", all_ends.row(0, named=True))):
        mine = pl.col("trace_id") == row["trace_id"]
        trace = pl.DataFrame(run.read("traces", row["part"], ["trace_id", "completion"])).filter(mine)
        questions = pl.DataFrame(run.read("questions", row["part"]))
        question = questions.row(by_predicate=pl.col("question_id") == row["question_id"], named=True)
        found[name] = {
            "reward": row["value"],
            "thought_tokens": row["thought_tokens"],
            "completion": trace["completion"][0],
            "question": question["question"],
            "solution": question["solution"],
        }
    return found


def _read_back(repository: Repository, commit: str, files: Mapping[str, Path], configs: list[Config]) -> None:
    """Compare what is on the Hub with what was sent: hashes of all files, and rows of the tables.

    Raises:
        HubError: something else is there.
    """
    there = repository.files(commit)
    wrong = [path for path, file in files.items() if path not in there or not there[path].holds(file)]
    rows = {f"data/{config.name}/{name}": count for config in configs for name, count in config.rows.items()}
    found = repository.rows(list(rows), commit)
    wrong += [path for path, count in rows.items() if found[path] != count]
    if wrong:
        raise HubError(f"{repository.name}: at {commit} the Hub has other content than was sent: {', '.join(wrong)}")
