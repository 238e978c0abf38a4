"""Publish what was made on the Hub, with a card that says how: a run, a distilled folder, or a trained model.

What goes up is written to a folder first (publish/tables.py, publish/models.py; the cards in publish/dataset_card.py
and publish/model_card.py); then the repository is compared with it (publish/hub.py), gets what it lacks, and is read
back.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import polars as pl

from rlt_data.errors import HubError, RunFolderError, SettingsError
from rlt_data.progress import SILENT, Progress, task
from rlt_data.publish.card import Licence, read_card
from rlt_data.publish.dataset_card import Facts, best_and_worst, dataset_metadata, dataset_text, stage_text
from rlt_data.publish.hub import CARD, MANIFEST, Plan, Repository
from rlt_data.publish.model_card import ModelFacts, model_metadata, model_text
from rlt_data.publish.models import read_model, training_folder, write_model
from rlt_data.publish.redact import redact_paths
from rlt_data.publish.tables import STAGES, Config, write_configs, write_default, write_stage
from rlt_data.settings import PushSettings
from rlt_data.statistics import Stats, scored, stats
from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import Folder, checksum
from rlt_data.storage.paths import disk_errors, refusal
from rlt_data.storage.run import RunFolder

#: Of every commit, and the title of a pull request.
_MESSAGE = "Push by rlt-data"
_PUBLISHED = (
    "takes a run with a distilled data set (rlt-data distill), a folder that distill wrote (with distill.json), or the "
    "folder of a finished training (with training.json)"
)


@dataclass
class PushSummary:
    """What was published.

    Attributes:
        repo_id: the repository.
        revision: its branch.
        commit: the last commit; None where nothing was changed or it was a dry run.
        head: the commit that has all of it, of the branch or of the pull request; None where there is none yet.
        pull_request: its address, where one was or is open.
        plan: what was, or would be, changed.
        sizes: bytes of the files, by their paths.
        rows: rows by configuration; none of a model.
        card: the card.
        stages: likewise of the branches of stages.
        seconds: time spent.
    """

    repo_id: str
    revision: str
    plan: Plan
    card: str
    commit: str | None = None
    head: str | None = None
    pull_request: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    stages: list[PushSummary] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Content:
    """What a branch is to hold.

    Attributes:
        files: by their paths in the repository.
        describe: returns the metadata and the text of a card with a title and a licence.
        made: what the list of files says beside them.
        configs: of a data set.
    """

    files: dict[str, Path]
    describe: Callable[[str, Licence], tuple[dict[str, Any], str]]
    made: Mapping[str, Any] = field(default_factory=dict)
    configs: list[Config] = field(default_factory=list)


def push(settings: PushSettings, progress: Progress = SILENT) -> PushSummary:
    """Publish a run's distilled data set, a distilled folder, or a model; the library side of ``rlt-data push``.

    Raises:
        RunFolderError: there is nothing to publish, or a training is not finished.
        HubError: the Hub refused something, cannot be reached, or holds other content than was sent.
        SettingsError: the name cannot be one of a repository, or a setting does not fit what is published.
        DiskError: the files cannot be written.
    """
    began = time.monotonic()
    folder = open_folder(settings.input)
    kind = _kind(folder)
    if kind != "model" and (settings.base_model or settings.trained_on):
        raise SettingsError("--base-model and --trained-on: go with a trained model only")
    if kind != "run" and settings.branch_per_stage:
        raise SettingsError("--branch-per-stage: goes with a run only, which has the tables of the stages")
    if settings.branch_per_stage and settings.revision in STAGES:
        raise SettingsError(f"--revision: {settings.revision} is the branch of a stage with --branch-per-stage")
    repository = Repository(settings.repo_id, "model" if kind == "model" else "dataset", settings.revision)
    beside = folder.on_disk if kind == "run" and folder.on_disk and os.access(folder.on_disk, os.W_OK) else None
    with _own_folder(beside) as root:
        if kind == "model":
            summary = _push_model(settings, folder, repository, root, progress)
        elif kind == "distilled":
            summary = _push_distilled(settings, folder, repository, root, progress)
        else:
            summary = _push_run(settings, RunFolder.existing(folder.path), repository, root, progress)
    summary.seconds = time.monotonic() - began
    return summary


@contextmanager
def _own_folder(beside: Path | None) -> Iterator[Path]:
    """Hand out an empty folder that goes away; in a run's folder, what killed pushes have left there goes too.

    Args:
        beside: where to make it; None: where the system has such folders.

    Raises:
        DiskError: it cannot be made.
    """
    for lock in beside.glob(".push-*/.lock") if beside else ():
        with suppress(OSError), filelock.FileLock(lock, timeout=0):  # OSError: a push that lives holds it
            shutil.rmtree(lock.parent)
    with disk_errors(beside or Path(tempfile.gettempdir())):
        temporary = tempfile.TemporaryDirectory(dir=beside, prefix=".push-", ignore_cleanup_errors=True)
    with temporary as folder, filelock.FileLock(Path(folder) / ".lock"):
        content = Path(folder) / "content"
        content.mkdir()
        yield content


def _kind(folder: Folder) -> str:
    """Return what lies in a folder: a run, what was distilled, or a model.

    Raises:
        RunFolderError: something else.
    """
    try:
        if folder.exists("run.json"):
            if folder.exists("dataset/distill.json"):
                return "run"
            raise RunFolderError(
                f"{folder.path}: nothing is distilled there; run rlt-data distill --in {folder.path} first"
            )
        if folder.exists("distill.json"):
            return "distilled"
        if folder.on_disk and training_folder(folder.on_disk):
            return "model"
        there = "there is nothing to publish" if folder.exists() else "there is no such folder"
    except OSError as error:
        there = f"cannot be read: {refusal(error)}"
    raise RunFolderError(f"{folder.path}: {there}; --in {_PUBLISHED}")


# Data sets


def _push_run(
    settings: PushSettings, run: RunFolder, repository: Repository, root: Path, progress: Progress
) -> PushSummary:
    distilled = run.path / "dataset"
    made = _distill_json(open_folder(distilled))
    if not run.is_current("ranks"):
        raise RunFolderError(f"{run.path}: the ranks are older than the scores; run rlt-data rank and distill again")
    if made.get("made_from", {}).get("ranks", run.digest("ranks")) != run.digest("ranks"):
        raise RunFolderError(f"{distilled}: is older than the ranks; run rlt-data distill again")
    _ask_first(settings, repository)
    main = root / "main"
    main.mkdir()
    with disk_errors(root):
        with task(progress, "write tables", len(run.parts("ranks")) + len(run.parts("traces"))):
            configs = write_configs(run, distilled, made, main, progress)
        scores = scored(run)
        images = _draw(scores, main)
    figures, samples = stats(run, scores), best_and_worst(run)
    content = _data_set(settings, made, configs, main, figures, samples, images)
    summary = _send(settings, repository, content, main, progress)
    for stage in STAGES if settings.branch_per_stage else ():
        if branch := _stage(settings, run, made, figures, stage, root / stage, progress):
            of_stage = Repository(settings.repo_id, "dataset", stage)
            summary.stages.append(_send(settings, of_stage, branch, root / stage, progress, empty=True))
    return summary


def _ask_first(settings: PushSettings, repository: Repository) -> None:
    """Ask for what the Hub may refuse, name, token and licence, before tables are written."""
    repository.head()
    if settings.license:
        repository.check(f"---\nlicense: {settings.license}\n---\n")


def _push_distilled(
    settings: PushSettings, folder: Folder, repository: Repository, root: Path, progress: Progress
) -> PushSummary:
    made = _distill_json(folder)
    with disk_errors(root):
        configs = [write_default(folder.path, root)]
    content = _data_set(settings, made, configs, root)
    return _send(settings, repository, content, root, progress)


def _data_set(
    settings: PushSettings,
    made: Mapping[str, Any],
    configs: list[Config],
    root: Path,
    figures: Stats | None = None,
    samples: Mapping[str, Mapping[str, Any]] | None = None,
    images: tuple[str, ...] = (),
) -> _Content:
    def describe(title: str, licence: Licence) -> tuple[dict[str, Any], str]:
        facts = Facts(settings.repo_id, title, configs, made, figures, licence, samples or {}, images)
        return dataset_metadata(facts), dataset_text(facts)

    rows = {"rows": figures.rows} if figures else {}
    return _Content(_files_in(root), describe, {"distill": redact_paths(dict(made)), **rows}, configs)


def _stage(
    settings: PushSettings,
    run: RunFolder,
    made: Mapping[str, Any],
    figures: Stats,
    stage: str,
    root: Path,
    progress: Progress,
) -> _Content | None:
    """Write the content of the branch of a stage; None where it has no tables."""
    root.mkdir()
    parts = sum(len(run.parts(table)) for table in STAGES[stage])
    with disk_errors(root), task(progress, f"copy tables of {stage}", parts):
        configs = write_stage(run, stage, root, progress)
    if not configs:
        return None

    def describe(title: str, licence: Licence) -> tuple[dict[str, Any], str]:
        facts = Facts(settings.repo_id, title, configs, made, figures, licence)
        return dataset_metadata(facts), stage_text(facts, stage, settings.revision)

    return _Content(_files_in(root), describe, {"stage": stage}, configs)


def _distill_json(folder: Folder) -> dict[str, Any]:
    """Read what distill says of a data set, and check that its rows are those that it wrote.

    Raises:
        RunFolderError: they are not, or ``distill.json`` cannot be read.
    """
    file = folder.path / "distill.json"
    try:
        made = json.loads(folder.read("distill.json"))
        if not isinstance(made, dict) or not {"settings", "format", "counts", "steps"} <= made.keys():
            raise RunFolderError(f"{file}: not what rlt-data distill writes")
        files = {name: digest for name, digest in made.pop("files", {}).items() if name != "README.md"}
        rows = {name for name in folder.below("") if name.startswith("data/") or name == "train.jsonl"}
        other = files.keys() ^ rows if files else set()
        if folder.on_disk and not other:
            other = {name for name, digest in files.items() if checksum(folder.on_disk / name) != digest}
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{file}: cannot be read: {error}") from None
    if other:
        raise RunFolderError(
            f"{folder.path / min(other)}: is damaged, missing, or not from rlt-data distill; run rlt-data distill again"
        )
    return made


def _draw(scores: pl.DataFrame, root: Path) -> tuple[str, ...]:
    """Draw the plots of a card, and return their paths in the repository."""
    from rlt_data.plots import card_images

    return tuple(_write_image(root, name, image) for name, image in card_images(scores).items())


def _write_image(root: Path, name: str, image: bytes) -> str:
    path = root / "plots" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image)
    return f"plots/{name}"


# Models


def _push_model(
    settings: PushSettings, folder: Folder, repository: Repository, root: Path, progress: Progress
) -> PushSummary:
    from rlt_data.plots import training_image

    assert folder.on_disk
    model = read_model(folder.on_disk, settings.base_model, settings.trained_on)
    with disk_errors(root):
        files = write_model(model, root)
        image = training_image(model.entries)
        images = (_write_image(root, "training.png", image),) if image else ()
    files |= {path: root / path for path in images}

    def describe(title: str, licence: Licence) -> tuple[dict[str, Any], str]:
        facts = ModelFacts(settings.repo_id, title, model, licence, images)
        return model_metadata(facts), model_text(facts)

    return _send(settings, repository, _Content(files, describe), root, progress)


# What all have in common


def _files_in(root: Path) -> dict[str, Path]:
    return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}


def _send(
    settings: PushSettings,
    repository: Repository,
    content: _Content,
    root: Path,
    progress: Progress,
    *,
    empty: bool = False,
) -> PushSummary:
    """Bring a branch to its content, and read it back.

    Args:
        settings: see there.
        repository: the repository at the branch.
        content: what it is to hold.
        root: where the texts are written.
        progress: told of what is uploaded.
        empty: a new branch has nothing of the main branch.
    """
    head = repository.head()
    card = _write_texts(settings, repository, head, content, root)
    if head is None and not settings.dry_run:
        repository.create(private=not settings.public, empty=empty)
        head = repository.head()
        card = _write_texts(settings, repository, head, content, root)  # a new branch has the card of the main branch
    plan = repository.plan(content.files, head)
    summary = PushSummary(settings.repo_id, repository.revision, plan, card, head=head)
    summary.sizes = {path: file.stat().st_size for path, file in content.files.items()}
    summary.rows = {config.name: sum(config.rows.values()) for config in content.configs}
    if settings.dry_run:
        return summary
    # The answer to a commit may have been lost, and a second pull request is not refused as a second commit is.
    opened = repository.pull_request(_MESSAGE, content.files) if settings.create_pr and not plan.nothing else None
    if opened:
        summary.head, summary.pull_request = opened.oid, opened.pull_request
    elif not plan.nothing:
        total = sum(summary.sizes[path] for path in (*plan.new, *plan.changed))
        with task(progress, "upload", total):
            made = repository.apply(plan, _MESSAGE, create_pr=settings.create_pr, advance=progress.advance)
        summary.commit = summary.head = made.oid
        summary.pull_request = made.pull_request
    assert summary.head is not None
    _read_back(repository, summary.head, content)
    return summary


def _write_texts(
    settings: PushSettings, repository: Repository, head: str | None, content: _Content, root: Path
) -> str:
    """Write the card and the list of files, and return the card, which the Hub has found right."""
    there = repository.read(CARD, head) if head else None
    existing = read_card(repository.name, there.decode("utf-8") if there else None)
    key = "model_name" if repository.kind == "model" else "pretty_name"
    title = existing.title(key, settings.title, settings.repo_id.partition("/")[2])
    card = existing.with_block(*content.describe(title, existing.licence(settings.license)))
    repository.check(card)
    content.files[CARD] = root / CARD
    listed = {
        "files": sorted({*content.files, CARD} - {MANIFEST}),
        "configs": {each.name: each.rows for each in content.configs},
        "made": content.made,
    }
    content.files[MANIFEST] = root / MANIFEST
    with disk_errors(root):
        (root / CARD).write_text(card, encoding="utf-8")
        (root / MANIFEST).write_text(json.dumps(listed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def _read_back(repository: Repository, commit: str, content: _Content) -> None:
    """Compare what is on the Hub with what was sent: hashes of all files, and rows of the tables.

    Raises:
        HubError: something else is there.
    """
    there = repository.files(commit)
    wrong = [path for path, file in content.files.items() if path not in there or not there[path].holds(file)]
    if not wrong:
        rows = {
            f"data/{config.name}/{name}": count for config in content.configs for name, count in config.rows.items()
        }
        found = repository.rows(list(rows), commit)
        wrong = [path for path, count in rows.items() if found[path] != count]
    if wrong:
        raise HubError(f"{repository.name}: at {commit} the Hub has other content than was sent: {', '.join(wrong)}")
