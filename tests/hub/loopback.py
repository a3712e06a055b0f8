"""A small Hub on 127.0.0.1, with the requests that the real client, transformers.js and a browser use.

State is in memory. Files from `LARGE_BYTES` on, and weights, are uploaded as large files, those from `PART_BYTES` on
in parts. `Hub.fail` makes the next requests that match fail.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer

from loopback_files import Files
from loopback_repositories import Repositories
from loopback_state import Commit, Fault, File, Repo, is_large

_ID, _REV = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = (
    ("OPTIONS", r".*", "preflight"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"/api/models/{_ID}", "info"),
    ("GET", rf"/api/models/{_ID}/revision/{_REV}", "info"),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}", "tree"),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}/(.+)", "tree"),
    ("POST", rf"/api/models/{_ID}/paths-info/{_REV}", "paths_info"),
    ("GET", rf"/api/models/{_ID}/refs", "refs"),
    ("GET", rf"/api/models/{_ID}/commits/{_REV}", "history"),
    ("GET", rf"/api/models/{_ID}/discussions", "discussions"),
    ("POST", rf"/api/models/{_ID}/branch/{_REV}", "make_branch"),
    ("POST", rf"/api/models/{_ID}/tag/{_REV}", "make_tag"),
    ("POST", rf"/api/models/{_ID}/preupload/{_REV}", "preupload"),
    ("POST", rf"/api/models/{_ID}/commit/{_REV}", "commit"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", r"/lfs/(\w+)", "put"),
    ("PUT", r"/lfs/(\w+)/(\d+)", "put_part"),
    ("POST", r"/lfs/(\w+)/complete", "complete"),
    ("GET HEAD", r"/cdn/(\w+)", "download"),
    ("GET HEAD", rf"/{_ID}/resolve/{_REV}/(.+)", "resolve"),
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Logs nothing about connections that a client closed."""


class _Handler(Repositories, Files):
    routes = ROUTES


class Hub:
    """The server and its state; a context manager. `users` maps tokens to the namespaces that they may write to."""

    def __init__(self, users: Mapping[str, tuple[str, ...]] | None = None, port: int = 0) -> None:
        self.users = dict(users or {})
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.lock = threading.RLock()
        self.storage_credentials: list[str] = []  # tokens that reached the storage host: there must be none
        handler = type("Handler", (_Handler,), {"hub": self})
        # Large files are on another host, as those of the Hub are.
        self.servers = [_Server(("127.0.0.1", at), handler) for at in (port, 0)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> "Hub":
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def fail(
        self, method: str, path: str, action: int | str | Callable[[], object], count: int = 1, **headers: str
    ) -> None:
        """Makes the next `count` requests fail whose method and path match; `path` is a regular expression."""
        header_names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, action, count, header_names))

    def seed(self, repo_id: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Commits `files` to the repository, which is created if it does not exist, and returns the commit."""
        repo = self.make(repo_id, private)
        added = {path: self.stored(path, data) for path, data in files.items()}
        parent = repo.branches["main"]
        return repo.add(Commit({**repo.commits[parent].files, **added}, "seed", parent), "main")

    def make(self, repo_id: str, private: bool) -> Repo:
        if repo_id not in self.repos:
            self.repos[repo_id] = Repo(private)
            first = {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
            self.repos[repo_id].add(Commit(first, "initial commit"), "main")
        return self.repos[repo_id]

    def stored(self, path: str, data: bytes) -> File:
        if not is_large(path, len(data)):
            return File(data)
        self.large[hashlib.sha256(data).hexdigest()] = data
        return File(data, hashlib.sha256(data).hexdigest())

    def kept(self) -> bytes:
        """Returns all URLs, bodies and files of all requests, joined; headers are left out."""
        urls = "\n".join(path for _, path in self.seen).encode()
        files = [path.encode() + file.data for repo in self.repos.values() for path, file in _every_file(repo)]
        return b"\n".join([urls, *self.bodies, *self.large.values(), *files])


def _every_file(repo: Repo) -> list[tuple[str, File]]:
    return [pair for commit in repo.commits.values() for pair in commit.files.items()]
