"""A small Hub on 127.0.0.1: it speaks what the real client of the Hub, transformers.js and a browser ask of one.

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
        """Says nothing of a client that hung up."""


class _Handler(Repositories, Files):
    routes = ROUTES


class Hub:
    """The server and what it holds; a context manager. `users` has the names that each token may write to."""

    def __init__(self, users: Mapping[str, tuple[str, ...]] | None = None, port: int = 0) -> None:
        self.users = dict(users or {})
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.lock = threading.RLock()
        self.told_storage: list[str] = []  # credentials that reached it: there must be none
        handler = type("Handler", (_Handler,), {"hub": self})
        # Large files lie on another host, as the Hub's do.
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
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, action, count, named))

    def seed(self, repo_id: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Puts `files` into the repository, made where there is none, and returns the commit."""
        repo = self.make(repo_id, private)
        held = {path: self.stored(path, data) for path, data in files.items()}
        before = repo.branches["main"]
        return repo.add(Commit({**repo.commits[before].files, **held}, "seed", before), "main")

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
        """Returns all that was ever sent or asked but for the headers, in one piece."""
        asked = "\n".join(path for _, path in self.seen).encode()
        held = [path.encode() + file.data for repo in self.repos.values() for path, file in _every_file(repo)]
        return b"\n".join([asked, *self.bodies, *self.large.values(), *held])


def _every_file(repo: Repo) -> list[tuple[str, File]]:
    return [pair for commit in repo.commits.values() for pair in commit.files.items()]
