"""How the loopback Hub reads requests, sends responses, fails as a test requests, and checks tokens."""

import json
import re
import socket
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_state import Fault, RefusalError, Repo

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization, Content-Type, Range",
    "Access-Control-Expose-Headers": "ETag, X-Repo-Commit, X-Linked-Etag, X-Linked-Size, X-Error-Code, "
    "X-Error-Message, Content-Length, Content-Range, Accept-Ranges, Link, Location",
}


class Wire(BaseHTTPRequestHandler):
    """Calls the method of a request, which `routes` gives."""

    hub: Any
    routes: tuple[tuple[str, str, str], ...] = ()
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets

    def log_message(self, *_: object) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, self.query = url.path, {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.hub.seen.append((self.command, self.path))
        if path.startswith(("/lfs/", "/cdn/")) and not path.endswith("/complete"):
            self.hub.storage_credentials += self.headers.get_all("Authorization") or []
        fault = self._fault(path)
        if fault and fault.action == "drop":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0) // 2))
            return self._close_connection()
        self.body = self._read()
        self.hub.bodies.append(self.body)
        if fault and callable(fault.action):
            fault.action()
        if fault and isinstance(fault.action, int):
            return self._refuse(RefusalError(fault.action, "requested by the test"), fault.headers)
        try:
            for method, pattern, name in self.routes:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    with self.hub.lock:
                        response = getattr(self, name)(*(unquote(part) for part in match.groups()))
                    break
            else:
                raise RefusalError(404, f"there is no route for {self.command} {path}")
        except RefusalError as refusal:
            return self._refuse(refusal)
        if fault and fault.action == "lose":
            return self._close_connection()
        if response is not None:
            self._send_json(200, response)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.count and fault.method == self.command and re.search(fault.path, path):
                    fault.count -= 1
                    return fault
        return None

    def _close_connection(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**CORS, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_json(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, refusal: RefusalError, headers: Mapping[str, str] | None = None) -> None:
        error_headers = {
            "X-Error-Message": refusal.message,
            **({"X-Error-Code": refusal.code} if refusal.code else {}),
        }
        self._send_json(
            refusal.status, {"error": refusal.message, **refusal.body}, {**error_headers, **(headers or {})}
        )

    def _json(self) -> dict:
        return json.loads(self.body)

    # Access

    @property
    def _names(self) -> tuple[str, ...]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token, ())

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        names, owner = self._names, repo_id.partition("/")[0]
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and owner not in names):
            raise RefusalError(404 if names else 401, "Repository not found", "RepoNotFound")
        if write and owner not in names:
            raise RefusalError(403 if names else 401, f"You have no write access to {repo_id}")
        return repo
