"""The state of the loopback Hub: repositories with branches, tags, pull requests, commits and files."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

LARGE_BYTES = 60_000
WEIGHTS = (".safetensors", ".onnx", ".png", ".bin")


class RefusalError(Exception):
    """An error response of the Hub."""

    def __init__(self, status: int, message: str, code: str = "", **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class File:
    """The content of a path in a commit; `sha256` is set for large files."""

    data: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """The hash that git computes of the file, or of the pointer of a large file."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.sha256 else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def described(self, path: str) -> dict:
        large = {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}
        entry = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        return {**entry, "lfs": large} if self.sha256 else entry


@dataclass(frozen=True)
class Commit:
    files: Mapping[str, File]
    title: str
    parent: str | None = None
    description: str = ""

    @property
    def oid(self) -> str:
        content = [self.parent, self.title, sorted((path, file.oid) for path, file in self.files.items())]
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit, branch: str) -> str:
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit.oid

    def resolve(self, revision: str) -> str:
        """Returns the commit of a branch, a tag, a pull request or the start of a hash."""
        references = self.branches | self.tags | self.pulls
        commit = references.get(revision) or next((oid for oid in self.commits if oid.startswith(revision)), None)
        if commit is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def history(self, revision: str = "main") -> list[Commit]:
        """Returns the commits of a branch, the last one first."""
        oid, commits = self.resolve(revision), []
        while oid:
            commits.append(self.commits[oid])
            oid = self.commits[oid].parent
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Returns the content of every path."""
        return {path: file.data for path, file in self.commits[self.resolve(revision)].files.items()}


@dataclass
class Fault:
    """What happens to the next `count` requests.

    | action | effect |
    | --- | --- |
    | a number | the response has this status |
    | "drop" | the connection is closed while the request is sent |
    | "lose" | the request is executed, and the connection closed before the response |
    | a function | it is called before the request is executed |
    """

    method: str
    path: str
    action: int | str | Callable[[], object]
    count: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


def is_large(path: str, size: int) -> bool:
    """Whether a file of this name and size is stored outside the repository."""
    return size > 0 and (size >= LARGE_BYTES or path.endswith(WEIGHTS))
