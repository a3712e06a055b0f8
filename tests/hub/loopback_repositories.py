"""Requests of the loopback Hub about accounts and repositories: create, describe, list, branch and tag."""

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, urlsplit

from loopback_state import File, RefusalError
from loopback_wire import Wire

PAGE = 5  # files per page of a listing
DATE = "2024-01-01T00:00:00.000Z"


class Repositories(Wire):
    """Requests that transfer no files."""

    def preflight(self) -> None:
        self._send(204, b"", {"Access-Control-Max-Age": "600"})

    def whoami(self) -> dict:
        if not self._names:
            raise RefusalError(401, "Invalid username or password.")
        first, *others = self._names
        return {"type": "user", "name": first, "fullname": first, "orgs": [{"name": name} for name in others]}

    def create(self) -> dict:
        request, names = self._json(), self._names
        if not names:
            raise RefusalError(401, "Invalid username or password.")
        owner = request.get("organization") or names[0]
        repo_id = f"{owner}/{request['name']}"
        if owner not in names:
            raise RefusalError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        description = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            raise RefusalError(409, "You already created this model repo", **description)
        self.hub.make(repo_id, request.get("visibility") == "private" or bool(request.get("private")))
        return description

    def validate_yaml(self) -> dict:
        metadata = re.match(r"---\n(.*?)\n---", self._json()["content"], re.DOTALL)
        if metadata is None:
            return {"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []}
        lines = [line for line in metadata[1].splitlines() if not re.match(r"(\s*- )|(\s*[\w-]+:)", line)]
        if lines:
            raise RefusalError(400, "Invalid metadata", errors=[{"message": f"not YAML: {lines[0]}"}], warnings=[])
        return {"warnings": [], "errors": []}

    def info(self, repo_id: str, revision: str = "main") -> dict:
        repo = self._repo(repo_id)
        oid = repo.resolve(revision)
        card = repo.commits[oid].files.get("README.md", File(b"")).data.decode()
        tag = re.search(r"^pipeline_tag: (\S+)$", card, re.MULTILINE)
        return {
            "_id": "0" * 24,
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.partition("/")[0],
            "sha": oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "lastModified": DATE,
            "createdAt": DATE,
            "tags": [],
            "library_name": "transformers",
            "downloads": 0,
            "likes": 0,
            **({"pipeline_tag": tag[1]} if tag else {}),
            "siblings": [{"rfilename": path} for path in sorted(repo.commits[oid].files)],
        }

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repo = self._repo(repo_id)
        files = repo.commits[repo.resolve(revision)].files
        start = f"{folder.strip('/')}/" if folder.strip("/") else ""
        inside = {path: file for path, file in sorted(files.items()) if path.startswith(start)}
        if start and not inside:
            raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries = []
        for path, file in inside.items():
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = start + "/".join(parts[:depth])
                if not any(entry["path"] == name for entry in entries):
                    entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
            if recursive or len(parts) == 1:
                entries.append(self._expanded(file.described(path)))
        at = int(self.query.get("cursor", 0))
        links = {}
        if at + PAGE < len(entries):
            query = "&".join(f"{name}={quote(value)}" for name, value in self.query.items() if name != "cursor")
            path = urlsplit(self.path).path
            links = {"Link": f'<{self.hub.url}{path}?{query}&cursor={at + PAGE}>; rel="next"'}
        self._send_json(200, entries[at : at + PAGE], links)

    def _expanded(self, described: dict) -> dict:
        if self.query.get("expand", "").lower() not in ("true", "1"):
            return described
        safe = {"status": "safe", "avScan": None, "pickleImportScan": None}
        last = {"id": "0" * 40, "title": "commit", "date": DATE}
        return {**described, "lastCommit": last, "securityFileStatus": safe}

    def paths_info(self, repo_id: str, revision: str) -> list:
        repo = self._repo(repo_id)
        files = repo.commits[repo.resolve(revision)].files
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = self._json()["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        entries = [files[path].described(path) for path in paths if path in files]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
        return entries + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]

    def refs(self, repo_id: str) -> dict:
        repo = self._repo(repo_id)

        def references(names: Mapping[str, str], kind: str) -> list:
            return [{"name": name, "ref": f"{kind}{name}", "targetCommit": oid} for name, oid in names.items()]

        return {
            "branches": references(repo.branches, "refs/heads/"),
            "tags": references(repo.tags, "refs/tags/"),
            "converts": [],
            "pullRequests": references(repo.pulls, ""),
        }

    def history(self, repo_id: str, revision: str) -> list:
        commits = self._repo(repo_id).history(revision)
        return [{"id": c.oid, "title": c.title, "message": "", "authors": [], "date": DATE} for c in commits]

    def discussions(self, repo_id: str) -> dict:
        pulls = self._repo(repo_id).pulls
        author = {"name": repo_id.partition("/")[0]}
        discussions = [
            {"num": int(ref.rpartition("/")[2]), "title": "push", "status": "open", "isPullRequest": True}
            | {"author": author, "createdAt": DATE, "repo": {"name": repo_id, "type": "model"}}
            for ref in pulls
        ]
        return {"discussions": discussions, "count": len(discussions), "start": 0, "numClosedDiscussions": 0}

    def make_branch(self, repo_id: str, name: str) -> dict:
        repo = self._repo(repo_id, write=True)
        if name in repo.branches:
            raise RefusalError(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.resolve((json.loads(self.body or b"{}") or {}).get("startingPoint", "main"))
        return {}

    def make_tag(self, repo_id: str, revision: str) -> dict:
        repo, name = self._repo(repo_id, write=True), self._json()["tag"]
        if name in repo.tags:
            raise RefusalError(409, f"Tag {name} already exists")
        repo.tags[name] = repo.resolve(revision)
        return {}
