"""Publish a run, a distilled folder or a trained model on the Hub, with a card.

All files are written to a local folder first (publish/tables.py, publish/models.py; cards: publish/dataset_card.py,
publish/model_card.py). The folder is then compared with the repository, the differences are uploaded, and the result
is read back (publish/hub.py).
"""

from __future__ import annotations

import json
import logging
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
from rlt_data.publish.dataset_card import dataset_metadata, dataset_text, stage_text
from rlt_data.publish.evaluations import read_evaluations
from rlt_data.publish.facts import DatasetFacts, best_and_worst
from rlt_data.publish.hub import CARD, MANIFEST, Kind, Plan, Repository, UnreachableRepository
from rlt_data.publish.model_card import ModelFacts, model_metadata, model_text
from rlt_data.publish.models import read_model, training_folder, write_model
from rlt_data.publish.redact import redact_paths
from rlt_data.publish.tables import STAGES, Config, write_configs, write_default, write_stage
from rlt_data.settings import PushSettings
from rlt_data.statistics import Stats, scored, stats
from rlt_data.steps import trainers
from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import Folder, checksum
from rlt_data.storage.paths import disk_errors, refusal
from rlt_data.storage.run import RunFolder

logger = logging.getLogger(__name__)

#: Message of every commit, and title of a pull request.
_MESSAGE = "Push by rlt-data"
_INPUTS = (
    "takes a run with a distilled data set (rlt-data distill), a folder that distill wrote (with distill.json), or the "
    "folder of a finished training (with training.json)"
)


@dataclass
class PushSummary:
    """The result of a push to one branch.

    Attributes:
        repo_id: the repository, ``ORG/NAME``.
        revision: the branch.
        plan: the changes that were made, or would be made in a dry run.
        card: the text of README.md.
        commit: the new commit; None if nothing changed, and in a dry run.
        head: the commit that has all files, on the branch or the pull request; None if none exists yet.
        pull_request: its URL, if one was opened or was already open.
        sizes: bytes of the files, by path.
        rows: row counts, by configuration; empty for a model.
        stages: one summary for each branch of a stage.
        seconds: duration of the push.
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
    """The content of one branch.

    Attributes:
        files: local files by their paths in the repository.
        describe: returns the metadata and the text of the card, given title and licence.
        provenance: how the content was made, for the manifest.
        configs: the configurations of a data set.
    """

    files: dict[str, Path]
    describe: Callable[[str, Licence], tuple[dict[str, Any], str]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    configs: list[Config] = field(default_factory=list)


def push(settings: PushSettings, progress: Progress = SILENT) -> PushSummary:
    """Publish a run's distilled data set, a distilled folder, or a trained model, as ``rlt-data push`` does.

    Raises:
        RunFolderError: the input is nothing that can be published, or its training is not finished.
        HubError: the Hub refused, cannot be reached, or has other content than was sent. A dry run without the Hub
            succeeds.
        SettingsError: the repository name is invalid, or a setting does not fit the input.
        DiskError: the files cannot be written.
    """
    began = time.monotonic()
    folder = open_folder(settings.input)
    kind = _kind(folder)
    if kind != "model" and (settings.base_model or settings.trained_on or settings.evaluation):
        raise SettingsError("--base-model, --trained-on and --evaluation: require a trained model as input")
    if kind != "run" and settings.branch_per_stage:
        raise SettingsError("--branch-per-stage: requires a run as input, because only a run has the tables of stages")
    if settings.branch_per_stage and settings.revision in STAGES:
        raise SettingsError(f"--revision: --branch-per-stage uses the branch {settings.revision} for a stage")
    repository = _repository(settings, "model" if kind == "model" else "dataset")
    parent = (
        folder.local_path if kind == "run" and folder.local_path and os.access(folder.local_path, os.W_OK) else None
    )
    with _temporary_folder(parent) as root:
        if kind == "model":
            summary = _push_model(settings, folder, repository, root, progress)
        elif kind == "distilled":
            summary = _push_distilled(settings, folder, repository, root, progress)
        else:
            summary = _push_run(settings, RunFolder.existing(folder.path), repository, root, progress)
    if kind != "model" and not read_card(settings.repo_id, summary.card.encode()).metadata.get("language"):
        logger.warning("the card names no language; add it with --language, for example --language en")
    summary.seconds = time.monotonic() - began
    return summary


def _repository(settings: PushSettings, kind: Kind) -> Repository:
    repository = Repository(settings.repo_id, kind, settings.revision)
    reason = repository.why_unreachable() if settings.dry_run else None
    if reason is None:
        return repository
    logger.warning(
        "%s: %s, so this dry run does not check the card or tell new files from unchanged ones",
        settings.repo_id,
        reason,
    )
    return UnreachableRepository(settings.repo_id, kind, settings.revision)


@contextmanager
def _temporary_folder(parent: Path | None) -> Iterator[Path]:
    """Yield an empty folder that is removed afterwards, and remove those of killed pushes.

    Args:
        parent: where to create it; None for the system's temporary folder, where nothing else is removed.

    Raises:
        DiskError: the folder cannot be created.
    """
    for lock in parent.glob(".push-*/.lock") if parent else ():
        with suppress(OSError), filelock.FileLock(lock, timeout=0):  # OSError: a running push holds the lock
            shutil.rmtree(lock.parent)
    with disk_errors(parent or Path(tempfile.gettempdir())):
        temporary = tempfile.TemporaryDirectory(dir=parent, prefix=".push-", ignore_cleanup_errors=True)
    with temporary as folder, filelock.FileLock(Path(folder) / ".lock"):
        content = Path(folder) / "content"
        content.mkdir()
        yield content


def _kind(folder: Folder) -> str:
    """Return the kind of a folder: ``run``, ``distilled`` or ``model``.

    Raises:
        RunFolderError: the folder is none of these.
    """
    try:
        if folder.exists("run.json"):
            if folder.exists("dataset/distill.json"):
                return "run"
            raise RunFolderError(
                f"{folder.path}: has no distilled data set; run rlt-data distill --in {folder.path} first"
            )
        if folder.exists("distill.json"):
            return "distilled"
        if folder.local_path and training_folder(folder.local_path):
            return "model"
        reason = "has nothing to publish" if folder.exists() else "no such folder"
    except OSError as error:
        reason = f"cannot be read: {refusal(error)}"
    raise RunFolderError(f"{folder.path}: {reason}; --in {_INPUTS}")


# Data sets


def _push_run(
    settings: PushSettings, run: RunFolder, repository: Repository, root: Path, progress: Progress
) -> PushSummary:
    distilled = run.path / "dataset"
    provenance = _distill_json(open_folder(distilled))
    if not run.is_current("ranks"):
        raise RunFolderError(
            f"{run.path}: the ranks are older than the scores or signals that they were made from; run rlt-data rank "
            "and distill again"
        )
    if changed := run.changed(provenance.get("made_from", {})):
        raise RunFolderError(f"{distilled}: is older than the {changed[0]}; run rlt-data distill again")
    _fail_early(settings, repository)
    main = root / "main"
    main.mkdir()
    with disk_errors(root):
        with task(progress, "write tables", len(run.parts("ranks")) + len(run.parts("traces"))):
            configs = write_configs(run, distilled, provenance, main, progress)
        scores = scored(run)
        images = _draw(scores, main)
    figures, samples = stats(run, scores), best_and_worst(run)
    content = _data_set(settings, provenance, configs, main, figures, samples, images)
    summary = _send(settings, repository, content, main, progress)
    for stage in STAGES if settings.branch_per_stage else ():
        if stage_content := _stage(settings, run, provenance, figures, stage, root / stage, progress):
            branch = repository.branch(stage)
            summary.stages.append(_send(settings, branch, stage_content, root / stage, progress, empty=True))
    return summary


def _fail_early(settings: PushSettings, repository: Repository) -> None:
    """Let the Hub refuse name, token or licence before the tables are written, which takes long."""
    repository.head()
    if settings.license:
        repository.check(f"---\nlicense: {settings.license}\n---\n")


def _push_distilled(
    settings: PushSettings, folder: Folder, repository: Repository, root: Path, progress: Progress
) -> PushSummary:
    provenance = _distill_json(folder)
    with disk_errors(root):
        configs = [write_default(folder.path, root)]
    content = _data_set(settings, provenance, configs, root)
    return _send(settings, repository, content, root, progress)


def _data_set(
    settings: PushSettings,
    provenance: Mapping[str, Any],
    configs: list[Config],
    root: Path,
    figures: Stats | None = None,
    samples: Mapping[str, Mapping[str, Any]] | None = None,
    images: tuple[str, ...] = (),
) -> _Content:
    def describe(title: str, licence: Licence) -> tuple[dict[str, Any], str]:
        facts = DatasetFacts(
            settings.repo_id, title, configs, provenance, figures, licence, settings.language, samples or {}, images
        )
        return dataset_metadata(facts), dataset_text(facts)

    rows = {"rows": figures.rows} if figures else {}
    return _Content(_files_in(root), describe, {"distill": redact_paths(dict(provenance)), **rows}, configs)


def _stage(
    settings: PushSettings,
    run: RunFolder,
    provenance: Mapping[str, Any],
    figures: Stats,
    stage: str,
    root: Path,
    progress: Progress,
) -> _Content | None:
    """Write the tables of a stage and return the content of its branch; None if the stage has no tables."""
    root.mkdir()
    parts = sum(len(run.parts(table)) for table in STAGES[stage])
    with disk_errors(root), task(progress, f"copy tables of {stage}", parts):
        configs = write_stage(run, stage, root, progress)
    if not configs:
        return None

    def describe(title: str, licence: Licence) -> tuple[dict[str, Any], str]:
        facts = DatasetFacts(settings.repo_id, title, configs, provenance, figures, licence, settings.language)
        return dataset_metadata(facts), stage_text(facts, stage, settings.revision)

    return _Content(_files_in(root), describe, {"stage": stage}, configs)


def _distill_json(folder: Folder) -> dict[str, Any]:
    """Read ``distill.json``, and check the files of the data set against it.

    Raises:
        RunFolderError: ``distill.json`` cannot be read, or a file is missing, damaged or foreign.
    """
    file = folder.path / "distill.json"
    try:
        provenance = json.loads(folder.read("distill.json"))
        if not isinstance(provenance, dict) or not {"settings", "format", "counts", "steps"} <= provenance.keys():
            raise RunFolderError(f"{file}: was not written by rlt-data distill")
        recorded = {name: digest for name, digest in provenance.pop("files", {}).items() if name != "README.md"}
        rows = {name for name in folder.list_files("") if name.startswith("data/") or name.endswith(".jsonl")}
        present = rows | {name for name in folder.names() if name in trainers.FILES}
        wrong = recorded.keys() ^ present if recorded else set()
        if folder.local_path and not wrong:
            wrong = {name for name, digest in recorded.items() if checksum(folder.local_path / name) != digest}
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{file}: cannot be read: {error}") from None
    if wrong:
        raise RunFolderError(
            f"{folder.path / min(wrong)}: is damaged, missing, or not from rlt-data distill; run rlt-data distill again"
        )
    return provenance


def _draw(scores: pl.DataFrame, root: Path) -> tuple[str, ...]:
    """Draw the plots of the card, and return their paths in the repository."""
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

    assert folder.local_path
    model = read_model(folder.local_path, settings.base_model, settings.trained_on)
    evaluations = read_evaluations(settings.evaluation, model)
    with disk_errors(root):
        files = write_model(model, root)
        image = training_image(model.entries)
        images = (_write_image(root, "training.png", image),) if image else ()
    files |= {path: root / path for path in images}

    def describe(title: str, licence: Licence) -> tuple[dict[str, Any], str]:
        facts = ModelFacts(settings.repo_id, title, model, licence, settings.language, evaluations, images)
        return model_metadata(facts), model_text(facts)

    return _send(settings, repository, _Content(files, describe), root, progress)


# Shared by all kinds


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
    """Make a branch equal to the content, and read it back; in a dry run only plan it.

    Args:
        settings: the settings of the push.
        repository: the branch.
        content: the files of the branch.
        root: folder for the card and the manifest.
        progress: shows the upload.
        empty: start a new branch at the first commit instead of at the main branch.
    """
    head = repository.head()
    card = _write_card(settings, repository, head, content, root)
    if head is None and not settings.dry_run:
        repository.create(private=not settings.public, empty=empty)
        head = repository.head()
        card = _write_card(settings, repository, head, content, root)  # a new branch has the card of the main branch
    plan = repository.plan(content.files, head)
    summary = PushSummary(settings.repo_id, repository.revision, plan, card, head=head)
    summary.sizes = {path: file.stat().st_size for path, file in content.files.items()}
    summary.rows = {config.name: config.row_count for config in content.configs}
    if settings.dry_run:
        return summary
    # The answer to an earlier push may have been lost. The Hub refuses a second commit, but not a second pull request.
    proposed = repository.pull_request(_MESSAGE, content.files) if settings.create_pr and not plan.nothing else None
    if proposed:
        summary.head, summary.pull_request = proposed.oid, proposed.pull_request
    elif not plan.nothing:
        total = sum(summary.sizes[path] for path in (*plan.new, *plan.changed))
        with task(progress, "upload", total):
            commit = repository.apply(plan, _MESSAGE, create_pr=settings.create_pr, advance=progress.advance)
        summary.commit = summary.head = commit.oid
        summary.pull_request = commit.pull_request
    assert summary.head is not None
    _read_back(repository, summary.head, content)
    return summary


def _write_card(settings: PushSettings, repository: Repository, head: str | None, content: _Content, root: Path) -> str:
    """Write the card and the manifest, and return the card, which the Hub has accepted."""
    readme = repository.read(CARD, head) if head else None
    existing = read_card(repository.name, readme)
    key = "model_name" if repository.kind == "model" else "pretty_name"
    title = existing.title(key, settings.title, settings.repo_id.partition("/")[2])
    card = existing.with_block(*content.describe(title, existing.licence(settings.license)))
    repository.check(card)
    content.files[CARD] = root / CARD
    manifest = {
        "files": sorted({*content.files, CARD} - {MANIFEST}),
        "configs": {config.name: config.rows for config in content.configs},
        "made": content.provenance,
    }
    content.files[MANIFEST] = root / MANIFEST
    with disk_errors(root):
        (root / CARD).write_text(card, encoding="utf-8")
        (root / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def _read_back(repository: Repository, commit: str, content: _Content) -> None:
    """Compare the hashes of all files and the row counts of all tables on the Hub with the local ones.

    Raises:
        HubError: something differs.
    """
    remote = repository.files(commit)
    wrong = [path for path, file in content.files.items() if path not in remote or not remote[path].matches(file)]
    if not wrong:
        rows = {
            f"data/{config.name}/{name}": count for config in content.configs for name, count in config.rows.items()
        }
        remote_rows = repository.rows(list(rows), commit)
        wrong = [path for path, count in rows.items() if remote_rows[path] != count]
    if wrong:
        raise HubError(
            f"{repository.name}: at {commit} the Hub has other content than was sent, in: {', '.join(wrong)}"
        )
