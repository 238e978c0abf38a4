"""A repository of the Hub: what is there, what would change, and changing it.

Files that a push made are listed in :data:`MANIFEST`, in the repository. The next push deletes those of them that it
does not have any more; what others put there stays. Content goes up first, file by file, and a file that the Hub has is
not sent again, so a push that was cut off goes on where it was. Commits come last; they name the head that was looked
at, so that a change in between is never lost.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from rlt_data.errors import HubError, SettingsError, first_line
from rlt_data.retries import RETRIED, pause, retry_after

T = TypeVar("T")
Kind = Literal["dataset", "model"]

#: What a push keeps in the repository about itself.
MANIFEST = "rlt-data.json"
CARD = "README.md"

#: Changes of one commit; the Hub advises against thousands.
_CHANGES_A_COMMIT = 500
#: Files whose upload is agreed upon together.
_FILES_AT_A_TIME = 100
#: Tries of a request that may go well later.
_TRIES = 6
#: The head has moved since it was looked at.
_MOVED = 412


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

    def create(self, *, private: bool) -> None:
        """Make sure that repository and branch are there; one that is there stays as visible as it is."""
        with self._errors():
            _patiently(lambda: self._api.create_repo(self.name, repo_type=self.kind, private=private, exist_ok=True))
            if self.revision != "main" and not self.revision.startswith("refs/"):
                make = self._api.create_branch
                _patiently(lambda: make(self.name, branch=self.revision, repo_type=self.kind, exist_ok=True))

    def head(self) -> str | None:
        """Return the last commit; None where there is no repository or no such branch."""
        with self._errors():
            try:
                info = _patiently(lambda: self._api.repo_info(self.name, repo_type=self.kind, revision=self.revision))
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if error.response.status_code == 404:
                    return None
                raise
            return str(info.sha)

    def files(self, commit: str) -> dict[str, Remote]:
        """Return the files of a commit by their paths."""
        with self._errors():
            found = _patiently(
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
                place = _patiently(
                    lambda: self._api.hf_hub_download(self.name, path, repo_type=self.kind, revision=commit)
                )
            except EntryNotFoundError:
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
        same = [path for path, file in files.items() if path in there and there[path].holds(file)]
        return Plan(
            head=head,
            new={path: file for path, file in files.items() if path not in there},
            changed={path: file for path, file in files.items() if path in there and path not in same},
            same=same,
            gone=sorted(path for path in ours if path in there and path not in files),
        )

    def apply(self, plan: Plan, message: str, *, create_pr: bool = False, advance: Callable[[int], None]) -> str:
        """Upload what a plan changes and commit it.

        Args:
            plan: what :meth:`plan` returned.
            message: of the commits.
            create_pr: open a pull request instead of changing the branch.
            advance: told the bytes of every file that is there.

        Returns:
            The last commit; with ``create_pr`` that of the pull request.

        Raises:
            HubError: what the Hub answered; ``moved`` where somebody else changed the branch meanwhile.
        """
        assert plan.head is not None
        sent = {**plan.new, **plan.changed}
        # The card and the list of files come last: what they tell of is there when they are.
        paths = sorted(sent, key=lambda path: (path in (CARD, MANIFEST), path))
        additions = [CommitOperationAdd(path, str(sent[path])) for path in paths]
        with self._errors():
            # The library would send equal files of one batch (the selection and rank 1, say) each for itself.
            different = list({each.upload_info.sha256: each for each in additions}.values())
            for few in _batches(different, _FILES_AT_A_TIME):
                upload = partial(self._api.preupload_lfs_files, repo_type=self.kind, revision=self.revision)
                _patiently(partial(upload, self.name, few, free_memory=False))
                advance(sum(each.upload_info.size for each in few))
            changes: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationDelete(path) for path in plan.gone),
                *additions,
            ]
            head, revision = plan.head, self.revision
            for number, some in enumerate(_batches(changes, _CHANGES_A_COMMIT)):
                made = self._api.create_commit(
                    self.name,
                    some,
                    commit_message=message if not number else f"{message} ({number + 1})",
                    repo_type=self.kind,
                    revision=revision,
                    parent_commit=head,
                    create_pr=create_pr and not number,
                )
                head = made.oid
                revision = made.pr_revision or revision
        return head

    def rows(self, paths: Sequence[str], commit: str) -> dict[str, int]:
        """Return the rows of Parquet files as they lie on the Hub, read from the ends of the files."""
        import pyarrow.parquet as pq

        prefix = "datasets/" if self.kind == "dataset" else ""
        system = HfFileSystem(use_listings_cache=False, skip_instance_cache=True)
        with self._errors():
            found = {}
            for path in paths:
                with system.open(f"{prefix}{self.name}@{commit}/{path}", "rb", block_size=2**16) as file:
                    found[path] = pq.read_metadata(file).num_rows
            return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the library's errors into ours, in words for the one who pushes."""
        try:
            yield
        except HFValidationError as error:
            raise SettingsError(f"--repo-id: {first_line(error)}") from None
        except LocalTokenNotFoundError:
            raise HubError(f"{self.name}: the Hub wants a token: set HF_TOKEN, or run hf auth login") from None
        except HfHubHTTPError as error:
            raise self._explained(error) from None
        except (HTTPError, ConnectionError, TimeoutError) as error:
            raise HubError(
                f"{self.name}: the Hub cannot be reached ({type(error).__name__}); the same command goes on later"
            ) from None
        except ValueError as error:
            if "README.md" not in str(error):
                raise
            raise HubError(f"{self.name}: the Hub refuses the card: {' '.join(str(error).split())}") from None

    def _explained(self, error: HfHubHTTPError) -> HubError:
        status = error.response.status_code if error.response is not None else 0
        said = (error.server_message or "").strip().splitlines()
        said_so = f" ({said[0]})" if said else ""
        if isinstance(error, GatedRepoError) or status in (401, 403):
            return HubError(
                f"{self.name}: the Hub does not let this token write there{said_so}; HF_TOKEN or hf auth login must "
                "hold one that may"
            )
        if status == _MOVED:
            return HubError(
                f"{self.name}: somebody changed {self.revision} meanwhile; nothing of theirs is lost, and the same "
                "command goes on from there",
                moved=True,
            )
        if status in RETRIED:
            return HubError(f"{self.name}: the Hub answers {status}{said_so}; the same command goes on later")
        return HubError(f"{self.name}: the Hub answers {status}{said_so}")


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again after errors that pass, with growing pauses; as long as Retry-After says where the Hub says so."""
    for tries in range(1, _TRIES):
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in RETRIED:
                raise
            wait = retry_after(error.response.headers.get("Retry-After"))
        except (HTTPError, ConnectionError, TimeoutError):
            wait = None
        time.sleep(pause(tries) if wait is None else wait)
    return ask()


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
