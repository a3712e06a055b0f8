"""Uploads and downloads of the loopback Hub: small files in commits, large files in parts, ranges of both."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping

from loopback_state import Commit, File, RefusalError, is_large
from loopback_wire import Wire

PART_BYTES = 100_000


class Files(Wire):
    """Requests that transfer files."""

    def preupload(self, repo_id: str, revision: str) -> dict:
        repo = self._repo(repo_id, write="create_pr" not in self.query)
        stored = repo.commits[repo.resolve(revision)].files
        modes = []
        for file in self._json()["files"]:
            path, large = file["path"], is_large(file["path"], file["size"])
            oid = (stored[path].sha256 or stored[path].oid) if path in stored else None
            modes.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        return {"files": modes, "commitOid": repo.resolve(revision)}

    def batch(self, repo_id: str) -> dict:
        self._repo(repo_id)
        objects = []
        for request in self._json()["objects"]:
            oid, size = request["oid"], request["size"]
            if oid in self.hub.large:
                objects.append({"oid": oid, "size": size})
                continue
            url, header = f"{self.hub.storage}/lfs/{oid}", {}
            if size >= PART_BYTES:
                count = -(-size // PART_BYTES)
                header = {f"{number:05}": f"{url}/{number}" for number in range(1, count + 1)}
                header["chunk_size"] = str(PART_BYTES)
            upload = {"href": f"{self.hub.url}/lfs/{oid}/complete" if header else url, "header": header}
            verify = {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/objects/verify", "header": {}}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        multipart = any(
            "chunk_size" in each.get("actions", {}).get("upload", {}).get("header", {}) for each in objects
        )
        return {"transfer": "multipart" if multipart else "basic", "objects": objects}

    def put(self, oid: str) -> dict:
        self._keep(oid, self.body)
        return {}

    def put_part(self, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        self._send(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def complete(self, oid: str) -> dict:
        parts = self.hub.parts.get(oid, {})
        hashes = {part["partNumber"]: part["etag"].strip('"') for part in self._json()["parts"]}
        if hashes != {number: hashlib.md5(part).hexdigest() for number, part in parts.items()}:
            raise RefusalError(400, "the parts have other hashes")
        self._keep(oid, b"".join(parts[number] for number in sorted(parts)))
        return {}

    def _keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise RefusalError(400, "the content has another hash")
        self.hub.large[oid] = data

    def verify(self, _repo_id: str) -> dict:
        request = self._json()
        if len(self.hub.large.get(request["oid"], b"")) != request["size"]:
            raise RefusalError(404, "no such object")
        return {}

    def commit(self, repo_id: str, revision: str) -> dict:
        creates_pull_request = "create_pr" in self.query
        repo = self._repo(repo_id, write=not creates_pull_request)
        if not self._names:
            raise RefusalError(401, "Invalid username or password.")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, parent = lines[0]["value"], repo.resolve(revision)
        if header.get("parentCommit", parent) != parent:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[parent].files)
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                files[path] = File(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise RefusalError(400, f"LFS object {value['oid']} was not uploaded")
                files[path] = File(self.hub.large[value["oid"]], value["oid"])
            elif path in files or line["key"] == "deletedFolder":
                files = {
                    name: file for name, file in files.items() if name != path and not name.startswith(f"{path}/")
                }
            else:
                raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = Commit(files, header["summary"], parent, header.get("description", ""))
        repo.commits[commit.oid] = commit
        description = {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit.oid}",
        }
        if creates_pull_request:
            number = len(repo.pulls) + 1
            repo.pulls[f"refs/pr/{number}"] = commit.oid
            return {**description, "pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/{number}"}
        repo.branches[revision] = commit.oid
        return description

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(repo_id)
        oid = repo.resolve(revision)
        file = repo.commits[oid].files.get(path)
        if file is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.sha256 is None:
            return self._send_range(file.data, headers)
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/cdn/{file.sha256}"})

    def download(self, oid: str) -> None:
        if oid not in self.hub.large:
            raise RefusalError(404, "no such object")
        self._send_range(self.hub.large[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _send_range(self, data: bytes, headers: Mapping[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if byte_range is None:
            return self._send(200, data, headers)
        start, end = int(byte_range[1]), min(int(byte_range[2] or len(data)), len(data) - 1)
        if start >= len(data):
            return self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        self._send(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
