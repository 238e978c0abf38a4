"""One repository on the Hub: list its files, plan a push, apply it.

Each push lists its files in :data:`MANIFEST`, in the repository. The next push deletes the listed files that it no
longer has, and leaves all other files alone. File contents are uploaded first, and content that the Hub already has is
not sent again, so an interrupted push continues where it stopped. Commits come last. They name the head that was read,
so a change by somebody else in between is never lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, RepoCard
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from rlt_data.errors import HubError, RltDataError
from rlt_data.publish.hub_errors import card_errors, to_user_error, why_no_comparison, with_retries

Change = TypeVar("Change", bound=CommitOperationAdd | CommitOperationDelete)
Kind = Literal["dataset", "model"]

#: File in the repository that lists the files of the last push.
MANIFEST = "rlt-data.json"
CARD = "README.md"

#: Changes per commit; the Hub advises against thousands.
_CHANGES_A_COMMIT = 500
#: Limits of one upload batch.
_FILES_AT_A_TIME, _BYTES_AT_A_TIME = 100, 2**30
#: Seconds that a dry run waits for the Hub.
_DRY_RUN_TIMEOUT = 5.0


@dataclass(frozen=True)
class RemoteFile:
    """A file in the repository.

    Attributes:
        size: bytes.
        sha256: hash of the content; None for files that git stores itself.
        blob: git's hash.
    """

    size: int
    sha256: str | None
    blob: str

    def matches(self, file: Path) -> bool:
        """Whether a local file has the same content."""
        if self.size != file.stat().st_size:
            return False
        if self.sha256:
            with file.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == self.sha256
        content = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob


@dataclass(frozen=True)
class Plan:
    """The changes of a push.

    Attributes:
        head: the commit that the files were compared with; None if the repository or branch does not exist yet.
        new: files that the repository does not have, by their path in the repository.
        changed: files that the repository has with other content.
        same: paths of files that are already there.
        gone: paths of files of an earlier push that this one no longer has.
        unknown: files that were not compared, because the Hub could not be reached (dry runs only).
    """

    head: str | None
    new: Mapping[str, Path]
    changed: Mapping[str, Path]
    same: Sequence[str]
    gone: Sequence[str]
    unknown: Mapping[str, Path] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether nothing has to change."""
        return not (self.new or self.changed or self.gone or self.unknown)


@dataclass(frozen=True)
class Commit:
    """A commit, and the URL of the pull request whose head it is."""

    oid: str
    pull_request: str | None = None


class Repository:
    """A branch of a repository.

    Args:
        name: ``ORG/NAME``.
        kind: dataset or model.
        revision: the branch; :meth:`create` makes it.
    """

    def __init__(self, name: str, kind: Kind, revision: str = "main") -> None:
        self.name = name
        self.kind: Kind = kind
        self.revision = revision
        self._api = HfApi(library_name="rlt-data")

    def branch(self, revision: str) -> Repository:
        """Return another branch of the repository."""
        return type(self)(self.name, self.kind, revision)

    def why_unreachable(self) -> str | None:
        """Ask the Hub once, for a few seconds, and return why it gave no usable answer; None if it did."""
        try:
            self._api.repo_info(self.name, repo_type=self.kind, timeout=_DRY_RUN_TIMEOUT)
        except Exception as error:
            return why_no_comparison(error)
        return None

    def create(self, *, private: bool, empty: bool = False) -> None:
        """Create the repository and the branch if they do not exist; an existing one keeps its visibility.

        Args:
            private: visibility of a new repository.
            empty: start a new branch at the first commit instead of at the main branch.

        Raises:
            HubError: the Hub refused, or the revision cannot be a branch.
        """
        if self.revision.startswith("refs/"):
            raise HubError(f"{self.name}: no {self.revision} exists; --revision takes a branch, which is created")
        api, kind = self._api, self.kind
        with self._errors():
            with_retries(lambda: api.create_repo(self.name, repo_type=kind, private=private, exist_ok=True))
            if self.revision == "main":
                return
            start = None
            if empty:
                start = with_retries(lambda: api.list_repo_commits(self.name, repo_type=kind))[-1].commit_id
            create = partial(api.create_branch, self.name, branch=self.revision, revision=start, repo_type=kind)
            with_retries(partial(create, exist_ok=True))

    def check(self, card: str) -> None:
        """Ask the Hub whether it accepts a card, before anything is uploaded.

        Raises:
            HubError: the Hub refuses the card; the message gives the reason.
        """
        with self._errors():
            try:
                with_retries(lambda: RepoCard(card, ignore_metadata_errors=True).validate(repo_type=self.kind))
            except ValueError as error:
                raise HubError(f"{self.name}: the Hub refuses the card: {card_errors(str(error))}") from None

    def head(self) -> str | None:
        """Return the last commit; None if the repository or branch does not exist."""
        with self._errors():
            try:
                info = with_retries(lambda: self._api.repo_info(self.name, repo_type=self.kind, revision=self.revision))
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if error.response.status_code == 404:
                    return None
                raise
            return str(info.sha)

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """Return the files of a commit by their paths."""
        with self._errors():
            entries = with_retries(
                lambda: list(self._api.list_repo_tree(self.name, recursive=True, revision=commit, repo_type=self.kind))
            )
        return {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def read(self, path: str, commit: str) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        with self._errors():
            try:
                local = with_retries(
                    lambda: self._api.hf_hub_download(self.name, path, repo_type=self.kind, revision=commit)
                )
            except RemoteEntryNotFoundError:
                return None
            return Path(local).read_bytes()

    def plan(self, files: Mapping[str, Path], head: str | None) -> Plan:
        """Compare local files with the repository.

        Args:
            files: all files of the push, by their paths in the repository.
            head: the commit to compare with; None if nothing exists yet.
        """
        remote = self.files(head) if head else {}
        manifest = self.read(MANIFEST, head) if head and MANIFEST in remote else None
        try:
            pushed_before = set(json.loads(manifest)["files"]) if manifest else set()
        except (ValueError, TypeError, KeyError):
            raise HubError(
                f"{self.name}: its {MANIFEST} is not one that push writes; delete it and push again"
            ) from None
        same = {path for path, file in files.items() if path in remote and remote[path].matches(file)}
        return Plan(
            head=head,
            new={path: file for path, file in files.items() if path not in remote},
            changed={path: file for path, file in files.items() if path in remote and path not in same},
            same=sorted(same),
            gone=sorted(path for path in pushed_before if path in remote and path not in files),
        )

    def apply(self, plan: Plan, message: str, *, create_pr: bool = False, advance: Callable[[int], None]) -> Commit:
        """Upload the changes of a plan and commit them.

        Args:
            plan: the result of :meth:`plan`.
            message: the commit message.
            create_pr: open a pull request instead of changing the branch.
            advance: called with the bytes of each uploaded batch.

        Returns:
            The last commit.

        Raises:
            HubError: the Hub refused; ``moved`` if somebody else changed the branch meanwhile.
        """
        assert plan.head is not None
        uploads = {**plan.new, **plan.changed}
        # The card and the manifest come last, so that every file they mention exists by then.
        paths = sorted(uploads, key=lambda path: (path in (CARD, MANIFEST), path))
        additions = [CommitOperationAdd(path, str(uploads[path])) for path in paths]
        uploaded: set[bytes] = set()
        with self._errors():
            for batch in _batches(additions, _FILES_AT_A_TIME, _BYTES_AT_A_TIME):
                # The library would upload files with equal content (the selection and rank 1, say) once each.
                by_hash = {file.upload_info.sha256: file for file in batch if file.upload_info.sha256 not in uploaded}
                upload = partial(self._api.preupload_lfs_files, repo_type=self.kind, revision=self.revision)
                with_retries(partial(upload, self.name, list(by_hash.values()), free_memory=False))
                uploaded |= by_hash.keys()
                advance(sum(file.upload_info.size for file in batch))
            changes: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationDelete(path) for path in plan.gone),
                *additions,
            ]
            head, revision, pull_request = plan.head, self.revision, None
            for number, commit_changes in enumerate(_batches(changes, _CHANGES_A_COMMIT)):
                commit = partial(
                    self._api.create_commit,
                    self.name,
                    commit_changes,
                    commit_message=message if not number else f"{message} ({number + 1})",
                    repo_type=self.kind,
                    revision=revision,
                    parent_commit=head,
                    create_pr=create_pr and not number,
                )
                info = with_retries(commit)
                head = info.oid
                revision, pull_request = info.pr_revision or revision, info.pr_url or pull_request
        return Commit(head, pull_request)

    def pull_request(self, title: str, files: Mapping[str, Path]) -> Commit | None:
        """Return the head of an open pull request to this branch that already has the files; None if there is none.

        Args:
            title: the title of the pull request, which is the message of its first commit.
            files: all files of the push, by their paths in the repository.
        """
        api, kind = self._api, self.kind
        with self._errors():
            discussions = partial(api.get_repo_discussions, self.name, repo_type=kind, discussion_type="pull_request")
            for discussion in with_retries(lambda: list(discussions())):
                if discussion.title != title:
                    continue
                details = with_retries(partial(api.get_discussion_details, self.name, discussion.num, repo_type=kind))
                if details.status in ("open", "draft") and details.target_branch == f"refs/heads/{self.revision}":
                    proposal = self.branch(f"refs/pr/{discussion.num}")
                    head = proposal.head()
                    if head and proposal.plan(files, head).nothing:
                        return Commit(head, details.url)
        return None

    def rows(self, paths: Sequence[str], commit: str) -> dict[str, int]:
        """Return the row counts of Parquet files on the Hub, read from their footers."""
        import pyarrow.parquet as pq

        prefix = "datasets/" if self.kind == "dataset" else ""
        system = HfFileSystem(use_listings_cache=False, skip_instance_cache=True)

        def count(path: str) -> int:
            with system.open(f"{prefix}{self.name}@{commit}/{path}", "rb", block_size=2**16) as file:
                return int(pq.read_metadata(file).num_rows)

        with self._errors():
            return {path: with_retries(partial(count, path)) for path in paths}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of huggingface_hub into messages for the user, which never contain the token."""
        try:
            yield
        except RltDataError:
            raise
        except Exception as error:
            user_error = to_user_error(error, self.name, self.revision)
            if user_error is None:
                raise
            raise user_error from None


class UnreachableRepository(Repository):
    """A repository for a dry run without the Hub: nothing is known of it, and nothing is checked."""

    def check(self, card: str) -> None:
        """Accept any card."""

    def head(self) -> str | None:
        """Return None: the branch is unknown."""
        return None

    def plan(self, files: Mapping[str, Path], head: str | None) -> Plan:
        """Return a plan in which all files are unknown."""
        return Plan(head=None, new={}, changed={}, same=(), gone=(), unknown=dict(files))


def _batches(changes: Sequence[Change], max_changes: int, max_bytes: int | None = None) -> Iterator[list[Change]]:
    """Yield the changes in batches of limited length and upload size."""
    batch: list[Change] = []
    batch_bytes = 0
    for change in changes:
        size = change.upload_info.size if max_bytes and isinstance(change, CommitOperationAdd) else 0
        if len(batch) == max_changes or (batch and batch_bytes + size > (max_bytes or 0) > 0):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(change)
        batch_bytes += size
    if batch:
        yield batch
