"""An in-memory Hub for tests, which answers the requests of huggingface_hub and datasets, with faults on demand.

Answers have the fields that the client libraries read. Uploads and downloads are real, and only uploaded files can be
committed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import yaml
from flask import Flask, Response, abort, g, jsonify, request
from werkzeug.serving import make_server

TOKEN = "hf_a_token_that_must_not_appear_anywhere"

#: Files that the Hub stores outside git, whatever their size.
_BINARY = re.compile(r"\.(parquet|safetensors|bin|png|zst|gz|arrow)$")

#: Some licences that the Hub accepts.
_LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "other"}


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """Git's hash of the file, or of its LFS pointer."""
        content = self.content
        if self.lfs:
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def as_json(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob}
        stored = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry | ({"lfs": stored} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    """A commit, with all files after it."""

    oid: str
    title: str
    parent: str | None
    files: dict[str, File]
    changed: tuple[str, ...] = ()


@dataclass
class Pull:
    """A pull request: its title, its target branch, and its status (open, closed or merged)."""

    title: str
    base: str
    status: str = "open"


@dataclass
class Repo:
    """A repository: the heads of its branches and pull requests, by name."""

    kind: str
    name: str
    private: bool
    heads: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, revision: str, title: str, files: dict[str, File], changed: tuple[str, ...] = ()) -> Commit:
        before = self.heads.get(revision)
        parent = before.oid if before else None
        oid = hashlib.sha1(f"{self.kind} {self.name} {revision} {len(self.commits)}".encode()).hexdigest()
        self.heads[revision] = self.commits[oid] = Commit(oid, title, parent, files, changed)
        return self.heads[revision]

    def history(self, revision: str = "main") -> list[Commit]:
        """Return the commits of a revision, the newest first."""
        commits = []
        at: Commit | None = self.heads[revision]
        while at:
            commits.append(at)
            at = self.commits[at.parent] if at.parent else None
        return commits


@dataclass
class Fault:
    """A fault to inject.

    Attributes:
        to: a pattern for method and path.
        how: an HTTP status; ``cut``: the connection breaks; ``lost``: it breaks after the request was processed;
            ``echo``: the request is refused, with its token in the message; ``hang``: no answer comes; ``moved``:
            another commit comes just before the request.
        times: number of requests with the fault.
        after: number of requests that succeed first.
    """

    to: str
    how: int | str
    times: int = 1
    after: int = 0


class HubServer:
    """The server, which runs until :meth:`stop`.

    Attributes:
        repos: repositories by kind (``dataset``, ``model``) and id.
        faults: the faults to inject.
        requests: method and path of every request.
        uploaded: number of uploads of each content, by hash.
        hanging: set once a request hangs.
        stopped: set when the server stops.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.uploaded: dict[str, int] = {}
        self._stored: dict[str, bytes] = {}
        self.hanging, self.stopped = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._pulls = count(1)
        self._server = make_server("127.0.0.1", 0, _app(self), threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make a process use this Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def dataset(self, name: str) -> Repo:
        return self.repos["dataset", name]

    def model(self, name: str) -> Repo:
        return self.repos["model", name]

    def fault(self, request_line: str) -> Fault | None:
        """Return the fault for a request, if there is one."""
        with self._lock:
            for fault in self.faults:
                if fault.times and re.search(fault.to, request_line):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def store(self, sha256: str, content: bytes) -> bool:
        """Store uploaded content, and return whether its hash is right."""
        with self._lock:
            self.uploaded[sha256] = self.uploaded.get(sha256, 0) + 1
            self._stored[sha256] = content
        return hashlib.sha256(content).hexdigest() == sha256

    def stored(self, sha256: str) -> bytes | None:
        return self._stored.get(sha256)

    def commit(
        self, repo: Repo, revision: str, lines: list[dict[str, Any]], *, as_pull: bool
    ) -> tuple[Commit, int | None]:
        """Apply the lines of a commit, and return it with the number of its pull request, if it opens one."""
        with self._lock:
            header = next(line["value"] for line in lines if line["key"] == "header")
            head = repo.heads[revision]
            if header.get("parentCommit") not in (None, head.oid):
                abort(_error_response(412, "the head has moved"))
            files, changed = dict(head.files), []
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = File(b64decode(value["content"]), lfs=False)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self._stored:
                        abort(_error_response(400, f"{value['path']} was not uploaded"))
                    files[value["path"]] = File(self._stored[value["oid"]], lfs=True)
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
                elif line["key"] == "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
                if line["key"] != "header":
                    changed.append(value["path"])
            pull = None
            if as_pull:
                pull = next(self._pulls)
                repo.pulls[pull] = Pull(header["summary"], revision)
                revision = f"refs/pr/{pull}"
                repo.heads[revision] = head
            return repo.add(revision, header["summary"], files, tuple(changed)), pull


def _app(hub: HubServer) -> Flask:
    app = Flask(__name__)

    def repo_of(kinds: str, name: str) -> Repo:
        repo = hub.repos.get((kinds.removesuffix("s"), name))
        if repo is None or (repo.private and request.headers.get("Authorization") != f"Bearer {TOKEN}"):
            abort(_error_response(404 if repo is None else 401, "Repository not found", "RepoNotFound"))
        return repo

    def commit_of(repo: Repo, revision: str) -> Commit:
        commit = repo.heads.get(revision) or repo.commits.get(revision)
        if commit is None:
            abort(_error_response(404, f"Invalid rev id: {revision}", "RevisionNotFound"))
        return commit

    @app.before_request
    def _inject_fault() -> Response | None:
        request_line = f"{request.method} {request.path}"
        hub.requests.append(request_line)
        fault = hub.fault(request_line)
        if fault is None:
            return None
        if fault.how == "cut":
            _cut()
            return Response(status=500)
        if fault.how == "lost":
            g.lost = True
            return None
        if fault.how == "echo":
            return _error_response(400, f"cannot do this for {request.headers.get('Authorization')}")
        if fault.how == "hang":
            hub.hanging.set()
            hub.stopped.wait(60)
            return Response(status=503)
        if fault.how == "moved":
            [repo] = hub.repos.values()
            head = repo.heads["main"]
            repo.add("main", "by somebody else", head.files | {"notes.txt": File(b"mine", lfs=False)})
            return None
        response = _error_response(int(fault.how), "not now")
        if fault.how == 429:
            response.headers["Retry-After"] = "7"
        return response

    @app.after_request
    def _lose_answer(response: Response) -> Response:
        if g.pop("lost", False):
            _cut()
        return response

    @app.before_request
    def _only_with_token() -> Response | None:
        if request.method in ("POST", "PUT") and "validate-yaml" not in request.path and "/upload/" not in request.path:
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                return _error_response(401, "Invalid username or password.")
        return None

    @app.get("/api/whoami-v2")
    def _whoami() -> Any:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _error_response(401, "Invalid username or password.")
        return jsonify(name="tester", type="user", orgs=[], auth={"accessToken": {"role": "write"}})

    @app.post("/api/repos/create")
    def _create() -> Any:
        body = request.get_json()
        name = "/".join(filter(None, (body.get("organization") or "tester", body["name"])))
        kind = body.get("type", "model")
        url = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in hub.repos:
            return jsonify(url=url, error="You already created this repo"), 409
        repo = hub.repos[kind, name] = Repo(kind, name, private=body.get("visibility") == "private")
        repo.add("main", "initial commit", {".gitattributes": File(b"*.parquet filter=lfs\n", lfs=False)})
        return jsonify(url=url)

    @app.post("/api/validate-yaml")
    def _validate() -> Any:
        errors = list(_card_errors(request.get_json()["content"]))
        return jsonify(errors=[{"message": error} for error in errors], warnings=[]), 400 if errors else 200

    @app.get("/api/<kinds>/<org>/<name>")
    @app.get("/api/<kinds>/<org>/<name>/revision/<path:revision>")
    def _info(kinds: str, org: str, name: str, revision: str = "main") -> Any:
        repo = repo_of(kinds, f"{org}/{name}")
        commit = commit_of(repo, revision)
        then = "2026-01-01T00:00:00.000Z"
        return jsonify(
            _id=repo.name, id=repo.name, author=org, sha=commit.oid, private=repo.private, lastModified=then,
            createdAt=then, gated=False, disabled=False, downloads=0, likes=0, tags=[], siblings=[
                {"rfilename": path} for path in sorted(commit.files)
            ],
        )  # fmt: skip

    @app.get("/api/<kinds>/<org>/<name>/refs")
    def _refs(kinds: str, org: str, name: str) -> Any:
        heads = repo_of(kinds, f"{org}/{name}").heads
        refs = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": head.oid} for ref, head in heads.items()]
        pulls = [ref for ref in refs if ref["name"].startswith("refs/")]
        return jsonify(branches=[ref for ref in refs if ref not in pulls], pullRequests=pulls, tags=[], converts=[])

    @app.get("/api/<kinds>/<org>/<name>/commits/<path:revision>")
    def _commits(kinds: str, org: str, name: str, revision: str) -> Any:
        then = "2026-01-01T00:00:00.000Z"
        history = repo_of(kinds, f"{org}/{name}").history(revision)
        return jsonify([{"id": c.oid, "title": c.title, "message": "", "date": then, "authors": []} for c in history])

    @app.get("/api/<kinds>/<org>/<name>/discussions")
    def _discussions(kinds: str, org: str, name: str) -> Any:
        repo = repo_of(kinds, f"{org}/{name}")
        listed = [_discussion(repo, number) for number in repo.pulls]
        page = int(request.args["p"])
        return jsonify(discussions=listed[page : page + 1], count=len(listed), start=page)  # one on a page

    @app.get("/api/<kinds>/<org>/<name>/discussions/<int:number>")
    def _details(kinds: str, org: str, name: str, number: int) -> Any:
        repo = repo_of(kinds, f"{org}/{name}")
        changes = {"base": f"refs/heads/{repo.pulls[number].base}"}
        return jsonify(_discussion(repo, number) | {"changes": changes, "filesWithConflicts": [], "events": []})

    @app.post("/api/<kinds>/<org>/<name>/branch/<path:branch>")
    def _branch(kinds: str, org: str, name: str, branch: str) -> Any:
        repo = repo_of(kinds, f"{org}/{name}")
        if branch in repo.heads:
            return _error_response(409, "Reference already exists")
        repo.heads[branch] = commit_of(repo, (request.get_json() or {}).get("startingPoint", "main"))
        return jsonify({})

    @app.post("/api/<kinds>/<org>/<name>/preupload/<path:revision>")
    def _preupload(kinds: str, org: str, name: str, revision: str) -> Any:
        commit = commit_of(repo_of(kinds, f"{org}/{name}"), revision)
        answers = []
        for entry in request.get_json()["files"]:
            file = commit.files.get(entry["path"])
            lfs = bool(_BINARY.search(entry["path"])) or entry["size"] > 10 * 2**20
            oid = (file.sha256 if file.lfs else file.blob) if file else None
            answers.append(
                {"path": entry["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        return jsonify(files=answers)

    @app.post("/datasets/<org>/<name>.git/info/lfs/objects/batch")
    @app.post("/<org>/<name>.git/info/lfs/objects/batch")
    def _batch(org: str, name: str) -> Any:
        objects = []
        for content in request.get_json()["objects"]:
            href = f"{hub.url}/upload/{content['oid']}"
            missing = hub.stored(content["oid"]) is None
            objects.append(content | ({"actions": {"upload": {"href": href, "header": {}}}} if missing else {}))
        return jsonify(transfer="basic", objects=objects)

    @app.put("/upload/<oid>")
    def _upload(oid: str) -> Any:
        return Response(status=200 if hub.store(oid, request.get_data()) else 400)

    @app.post("/api/<kinds>/<org>/<name>/commit/<path:revision>")
    def _commit(kinds: str, org: str, name: str, revision: str) -> Any:
        repo = repo_of(kinds, f"{org}/{name}")
        commit_of(repo, revision)
        lines = [json.loads(line) for line in request.get_data().splitlines() if line.strip()]
        commit, pull = hub.commit(repo, revision, lines, as_pull=request.args.get("create_pr") == "1")
        page = f"{hub.url}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{page}/commit/{commit.oid}"}
        return jsonify(answer | ({"pullRequestUrl": f"{page}/discussions/{pull}"} if pull else {}))

    @app.get("/api/<kinds>/<org>/<name>/tree/<revision>")
    @app.get("/api/<kinds>/<org>/<name>/tree/<revision>/<path:folder>")
    def _tree(kinds: str, org: str, name: str, revision: str, folder: str = "") -> Any:
        files = commit_of(repo_of(kinds, f"{org}/{name}"), revision).files
        inside = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            return _error_response(404, f"{folder} does not exist", "EntryNotFound")
        if request.args.get("recursive", "").lower() in ("true", "1"):
            return jsonify([file.as_json(path) for path, file in sorted(inside.items())])
        start = len(folder) + 1 if folder else 0
        entries = [file.as_json(path) for path, file in sorted(inside.items()) if "/" not in path[start:]]
        folders = sorted({path[: path.index("/", start)] for path in inside if "/" in path[start:]})
        return jsonify(entries + [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders])

    @app.post("/api/<kinds>/<org>/<name>/paths-info/<path:revision>")
    def _paths(kinds: str, org: str, name: str, revision: str) -> Any:
        files = commit_of(repo_of(kinds, f"{org}/{name}"), revision).files
        paths = request.form.getlist("paths") or (request.get_json(silent=True) or {}).get("paths", [])
        entries = [files[path].as_json(path) for path in paths if path in files]
        folders = {path for path in paths for file in files if file.startswith(f"{path}/")}
        return jsonify(entries + [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders])

    @app.get("/datasets/<org>/<name>/resolve/<revision>/<path:path>")
    def _resolve_dataset(org: str, name: str, revision: str, path: str) -> Any:
        return resolved("datasets", f"{org}/{name}", revision, path)

    @app.get("/<org>/<name>/resolve/<revision>/<path:path>")
    def _resolve_model(org: str, name: str, revision: str, path: str) -> Any:
        return resolved("models", f"{org}/{name}", revision, path)

    def resolved(kinds: str, name: str, revision: str, path: str) -> Response:
        commit = commit_of(repo_of(kinds, name), revision)
        if path not in commit.files:
            return _error_response(404, f"{path} does not exist", "EntryNotFound")
        file = commit.files[path]
        response = Response(file.content, mimetype="application/octet-stream")
        response.set_etag(file.sha256 if file.lfs else file.blob)
        response.headers["X-Repo-Commit"] = commit.oid
        if file.lfs:
            response.headers["X-Linked-Etag"] = f'"{file.sha256}"'
            response.headers["X-Linked-Size"] = str(len(file.content))
        return response.make_conditional(request, accept_ranges=True, complete_length=len(file.content))

    return app


def _cut() -> None:
    request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def _error_response(status: int, message: str, code: str = "") -> Response:
    response = Response(json.dumps({"error": message}), status=status, mimetype="application/json")
    response.headers["X-Error-Message"] = message
    if code:
        response.headers["X-Error-Code"] = code
    return response


def _discussion(repo: Repo, number: int) -> dict[str, Any]:
    pull = repo.pulls[number]
    return {
        "num": number,
        "title": pull.title,
        "status": pull.status,
        "author": {"name": "tester"},
        "createdAt": "2026-01-01T00:00:00.000Z",
        "repo": {"name": repo.name, "type": repo.kind},
        "isPullRequest": True,
    }


def _card_errors(text: str) -> Iterator[str]:
    """Yield the errors in the metadata of a card, as the Hub finds them."""
    header = re.match(r"---\s*\n(.*?\n)---\s*\n", text, re.DOTALL)
    if not header:
        return
    try:
        data = yaml.safe_load(header[1])
    except yaml.YAMLError as error:
        yield f"YAML: {error}"
        return
    if not isinstance(data, dict):
        yield "metadata must be a mapping"
        return
    for key, kinds in {"license": (str, list), "tags": (list,), "language": (str, list), "configs": (list,)}.items():
        if key in data and not isinstance(data[key], kinds):
            yield f'"{key}" must be {" or ".join(kind.__name__ for kind in kinds)}'
    licences = data.get("license", [])
    for licence in [licences] if isinstance(licences, str) else licences:
        if licence not in _LICENCES:
            yield f'"license" must be one of {sorted(_LICENCES)}'
    for config in data.get("configs") or []:
        if not re.fullmatch(r"[\w.-]+", str(config.get("config_name"))):
            yield f'"configs.config_name" is not allowed: {config.get("config_name")}'
        if "data_files" not in config and "data_dir" not in config:
            yield '"configs.data_files" is required'
