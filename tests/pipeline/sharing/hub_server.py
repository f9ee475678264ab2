"""A small server that speaks as much of the Hugging Face hub's protocol as its client needs here, kept in memory.

Repositories are lists of commits, each with all of its files. Large files are sent by git-lfs's basic transfer.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class HubServer:
    """The server, in a thread of this process. Repositories are named by their kind and id: `models/USER/NAME`."""

    def __init__(self, token: str) -> None:
        """token: what a client must give to write."""
        self.token = token
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.sent: list[str] = []
        """Digests of the large files in the order in which they were sent."""
        self.refuse: dict[str, int] = {}
        """How many of the next requests of a kind are answered with 400: upload or commit."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of a repository's last commit."""
        return self.commits[repo][-1]

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        """Make a repository or a commit, as if by somebody else."""
        before = self.commits.setdefault(repo, [{}])
        before.append({**before[-1], **files})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        self.query, path = parse_qs(address.query), address.path
        for verb, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method in verb.split("|"):
                with suppress(BrokenPipeError):
                    answer(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})
                return
        self._json({"error": f"no such page: {method} {path}"}, 404)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(value).encode(), status, **{"Content-Type": "application/json", **headers})

    def _bytes(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refused(self, kind: str) -> bool:
        if not self.hub.refuse.get(kind):
            return False
        self.hub.refuse[kind] -= 1
        self._json({"error": f"{kind} refused"}, 400)
        return True

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._json({"error": "Invalid credentials"}, 401)
        return False

    def _commit(self, kind: str, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        """The files of a revision: main, or the number of a commit. Answers 404 where there is none."""
        commits = self.hub.commits.get(f"{kind}/{repo}")
        if not commits:
            self._json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return None
        number = len(commits) - 1 if revision == "main" else int(revision, 16)
        if not 0 <= number < len(commits):
            self._json({"error": "Revision not found"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return commits[number]

    def create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        repo = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
        there = repo in self.hub.commits
        self.hub.commits.setdefault(repo, [{}])
        self.hub.private.setdefault(repo, asked.get("private") or asked.get("visibility") == "private")
        url = f"{self.hub.url}/{repo.removeprefix('models/')}"
        self._json({"url": url, "id": repo, "error": "exists"} if there else {"url": url}, 409 if there else 200)

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        if (found := self._commit(kind, repo, revision or "main")) is not None:
            sha = f"{self.hub.commits[f'{kind}/{repo}'].index(found):040x}"
            self._json({"id": repo, "sha": sha, "siblings": [], "tags": [], "downloads": 0, "likes": 0})

    def tree(self, kind: str, repo: str, revision: str, folder: str) -> None:
        files = self._commit(kind, repo, revision)
        if files is None:
            return
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            folders = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
            recursive = self.query.get("recursive") == ["true"]
            entries |= {
                n: {"type": "directory", "path": n, "oid": _oid(n.encode())}
                for n in folders[: None if recursive else 1]
            }
            if recursive or len(parts) == 1:
                entries[path] = _entry(path, data)
        if folder and not entries:
            self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self._json(list(entries.values()))

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        files = self._commit(kind, repo, revision)
        if files is not None:
            asked = parse_qs(self.body.decode())["paths"]
            self._json([_entry(path, files[path]) for path in asked if path in files])

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        if not self._may_write() or (files := self._commit(kind, repo, revision)) is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
            known = files.get(file["path"])
            oid = None if known is None else (hashlib.sha256(known).hexdigest() if mode == "lfs" else _oid(known))
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, repo: str) -> None:
        if not self._may_write():
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/large/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.url}/verify"},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects}, **{"Content-Type": "application/vnd.git-lfs+json"})

    def upload(self, oid: str) -> None:
        if self._refused("upload"):
            return
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self.hub.sent.append(oid)
        self._bytes(b"")

    def verify(self) -> None:
        asked = json.loads(self.body)
        self._bytes(b"", 200 if len(self.hub.large.get(asked["oid"], b"")) == asked["size"] else 404)

    def commit(self, kind: str, repo: str, revision: str) -> None:
        if not self._may_write() or (files := self._commit(kind, repo, revision)) is None or self._refused("commit"):
            return
        files = dict(files)
        for line in self.body.splitlines():
            operation, value = json.loads(line)["key"], json.loads(line)["value"]
            if operation == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif operation == "deletedFile":
                del files[value["path"]]
        commits = self.hub.commits[f"{kind}/{repo}"]
        commits.append(files)
        oid = f"{len(commits) - 1:040x}"
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid, "hookOutput": ""})

    def validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        files = self._commit(kind.rstrip("/") or "models", repo, revision)
        if files is None:
            return
        if path not in files:
            self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        data, headers = files[path], {"ETag": f'"{_oid(files[path])}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not part:
            self._bytes(data, **headers)
            return
        start, stop = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
        self._bytes(data[start : stop + 1], 206, **headers)


def _oid(data: bytes) -> str:
    """What git calls a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}


_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _Handler.tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/large/(?P<oid>[0-9a-f]+)", _Handler.upload),
    ("POST", "/verify", _Handler.verify),
    ("HEAD|GET", rf"/(?P<kind>(?:datasets/)?){_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
