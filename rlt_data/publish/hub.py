"""A repository of the Hub: what is there, what would change, and changing it.

Files that a push made are listed in :data:`MANIFEST`, in the repository. The next push deletes those of them that it
does not have any more; what others put there stays. Content goes up first, file by file, and a file that the Hub has is
not sent again, so a push that was cut off goes on where it was. Commits come last; they name the head that was looked
at, so that a change in between is never lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, RepoCard
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from rlt_data.errors import HubError, RltDataError
from rlt_data.publish.hub_errors import card_errors, to_user_error, with_retries

Change = TypeVar("Change", bound=CommitOperationAdd | CommitOperationDelete)
Kind = Literal["dataset", "model"]

#: What a push keeps in the repository about itself.
MANIFEST = "rlt-data.json"
CARD = "README.md"

#: Changes of one commit; the Hub advises against thousands.
_CHANGES_A_COMMIT = 500
#: Files whose upload is agreed upon together, and their bytes.
_FILES_AT_A_TIME, _BYTES_AT_A_TIME = 100, 2**30


@dataclass(frozen=True)
class Remote:
    """A file that is there: its size, and the hash that the Hub has of it."""

    size: int
    sha256: str | None
    blob: str

    def holds(self, file: Path) -> bool:
        """Whether it has the content of a file on the disk."""
        if self.size != file.stat().st_size:
            return False
        if self.sha256:
            with file.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == self.sha256
        content = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob


@dataclass(frozen=True)
class Plan:
    """What a push changes.

    Attributes:
        head: the commit that was looked at; None where there is no repository yet.
        new: files that are not there, by their path in the repository.
        changed: files that are there with other content.
        same: paths of files that are there already.
        gone: paths of files of an earlier push that this one does not have.
    """

    head: str | None
    new: Mapping[str, Path]
    changed: Mapping[str, Path]
    same: Sequence[str]
    gone: Sequence[str]

    @property
    def nothing(self) -> bool:
        """Whether everything is as it should be."""
        return not (self.new or self.changed or self.gone)


@dataclass(frozen=True)
class Commit:
    """A commit, and the address of the pull request that it is the head of."""

    oid: str
    pull_request: str | None = None


class Repository:
    """A repository at a revision.

    Args:
        name: ``ORG/NAME``.
        kind: what it holds.
        revision: branch; it is made where there is none.
    """

    def __init__(self, name: str, kind: Kind, revision: str = "main") -> None:
        self.name = name
        self.kind: Kind = kind
        self.revision = revision
        self._api = HfApi(library_name="rlt-data")

    def create(self, *, private: bool, empty: bool = False) -> None:
        """Make sure that repository and branch are there; one that is there stays as visible as it is.

        Args:
            private: of a new repository.
            empty: a new branch begins from the first commit, not from the main branch.

        Raises:
            HubError: the Hub refuses, or the revision is no branch.
        """
        if self.revision.startswith("refs/"):
            raise HubError(f"{self.name}: there is no {self.revision}; --revision takes a branch, which is made")
        api, kind = self._api, self.kind
        with self._errors():
            with_retries(lambda: api.create_repo(self.name, repo_type=kind, private=private, exist_ok=True))
            if self.revision == "main":
                return
            start = None
            if empty:
                start = with_retries(lambda: api.list_repo_commits(self.name, repo_type=kind))[-1].commit_id
            make = partial(api.create_branch, self.name, branch=self.revision, revision=start, repo_type=kind)
            with_retries(partial(make, exist_ok=True))

    def check(self, card: str) -> None:
        """Ask the Hub whether it takes a card, before anything is sent.

        Raises:
            HubError: it does not; says why.
        """
        with self._errors():
            try:
                with_retries(lambda: RepoCard(card, ignore_metadata_errors=True).validate(repo_type=self.kind))
            except ValueError as error:
                raise HubError(f"{self.name}: the Hub refuses the card: {card_errors(str(error))}") from None

    def head(self) -> str | None:
        """Return the last commit; None where there is no repository or no such branch."""
        with self._errors():
            try:
                info = with_retries(lambda: self._api.repo_info(self.name, repo_type=self.kind, revision=self.revision))
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if error.response.status_code == 404:
                    return None
                raise
            return str(info.sha)

    def files(self, commit: str) -> dict[str, Remote]:
        """Return the files of a commit by their paths."""
        with self._errors():
            found = with_retries(
                lambda: list(self._api.list_repo_tree(self.name, recursive=True, revision=commit, repo_type=self.kind))
            )
        return {
            each.path: Remote(each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
            for each in found
            if isinstance(each, RepoFile)
        }

    def read(self, path: str, commit: str) -> bytes | None:
        """Return the content of a small file; None where there is none."""
        with self._errors():
            try:
                place = with_retries(
                    lambda: self._api.hf_hub_download(self.name, path, repo_type=self.kind, revision=commit)
                )
            except RemoteEntryNotFoundError:
                return None
            return Path(place).read_bytes()

    def plan(self, files: Mapping[str, Path], head: str | None) -> Plan:
        """Compare files with what is there.

        Args:
            files: all files of the push, by their paths in the repository.
            head: the commit to compare with; None where there is nothing.
        """
        there = self.files(head) if head else {}
        before = self.read(MANIFEST, head) if head and MANIFEST in there else None
        ours = set(json.loads(before).get("files", ())) if before else set()
        same = {path for path, file in files.items() if path in there and there[path].holds(file)}
        return Plan(
            head=head,
            new={path: file for path, file in files.items() if path not in there},
            changed={path: file for path, file in files.items() if path in there and path not in same},
            same=sorted(same),
            gone=sorted(path for path in ours if path in there and path not in files),
        )

    def apply(self, plan: Plan, message: str, *, create_pr: bool = False, advance: Callable[[int], None]) -> Commit:
        """Upload what a plan changes and commit it.

        Args:
            plan: what :meth:`plan` returned.
            message: of the commits.
            create_pr: open a pull request instead of changing the branch.
            advance: told the bytes of every file that is there.

        Returns:
            The last commit.

        Raises:
            HubError: what the Hub answered; ``moved`` where somebody else changed the branch meanwhile.
        """
        assert plan.head is not None
        sent = {**plan.new, **plan.changed}
        # The card and the list of files come last: what they tell of is there when they are.
        paths = sorted(sent, key=lambda path: (path in (CARD, MANIFEST), path))
        additions = [CommitOperationAdd(path, str(sent[path])) for path in paths]
        known: set[bytes] = set()
        with self._errors():
            for few in _batches(additions, _FILES_AT_A_TIME, _BYTES_AT_A_TIME):
                # The library would send equal files of one batch (the selection and rank 1, say) each for itself.
                different = {each.upload_info.sha256: each for each in few if each.upload_info.sha256 not in known}
                upload = partial(self._api.preupload_lfs_files, repo_type=self.kind, revision=self.revision)
                with_retries(partial(upload, self.name, list(different.values()), free_memory=False))
                known |= different.keys()
                advance(sum(each.upload_info.size for each in few))
            changes: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationDelete(path) for path in plan.gone),
                *additions,
            ]
            head, revision, pull_request = plan.head, self.revision, None
            for number, some in enumerate(_batches(changes, _CHANGES_A_COMMIT)):
                commit = partial(
                    self._api.create_commit,
                    self.name,
                    some,
                    commit_message=message if not number else f"{message} ({number + 1})",
                    repo_type=self.kind,
                    revision=revision,
                    parent_commit=head,
                    create_pr=create_pr and not number,
                )
                made = with_retries(commit)
                head = made.oid
                revision, pull_request = made.pr_revision or revision, made.pr_url or pull_request
        return Commit(head, pull_request)

    def pull_request(self, title: str, files: Mapping[str, Path]) -> Commit | None:
        """Return the head of an open pull request to this branch by its title, if it has all files as they are here.

        Args:
            title: the message of the commit that it was opened with.
            files: all files of the push, by their paths in the repository.
        """
        api, kind = self._api, self.kind
        with self._errors():
            ask = partial(api.get_repo_discussions, self.name, repo_type=kind, discussion_type="pull_request")
            found = [each for each in with_retries(lambda: list(ask())) if each.title == title]
            for each in found:
                details = with_retries(partial(api.get_discussion_details, self.name, each.num, repo_type=kind))
                if details.status in ("open", "draft") and details.target_branch == f"refs/heads/{self.revision}":
                    proposed = Repository(self.name, kind, f"refs/pr/{each.num}")
                    head = proposed.head()
                    if head and proposed.plan(files, head).nothing:
                        return Commit(head, details.url)
        return None

    def rows(self, paths: Sequence[str], commit: str) -> dict[str, int]:
        """Return the rows of Parquet files as they lie on the Hub, read from the ends of the files."""
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
        """Turn the library's errors into ours, in words for the one who pushes; the token is in none of them."""
        try:
            yield
        except RltDataError:
            raise
        except Exception as error:
            said = to_user_error(error, self.name, self.revision)
            if said is None:
                raise
            raise said from None


def _batches(items: Sequence[Change], most: int, most_bytes: int | None = None) -> Iterator[list[Change]]:
    """Yield items in groups of at most so many, and so many bytes."""
    group: list[Change] = []
    size = 0
    for item in items:
        more = item.upload_info.size if most_bytes and isinstance(item, CommitOperationAdd) else 0
        if len(group) == most or (group and size + more > (most_bytes or 0) > 0):
            yield group
            group, size = [], 0
        group.append(item)
        size += more
    if group:
        yield group
