"""What a Hub holds: repositories with branches, tags and pull requests, commits, and files small and large."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

LARGE_BYTES = 60_000
WEIGHTS = (".safetensors", ".onnx", ".png", ".bin")


class RefusalError(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str = "", **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class File:
    """What a path in a commit holds; `sha256` of a large file."""

    data: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """The name git gives to the file, or to the pointer that stands for a large one."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.sha256 else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def described(self, path: str) -> dict:
        large = {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}
        told = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        return {**told, "lfs": large} if self.sha256 else told


@dataclass(frozen=True)
class Commit:
    files: Mapping[str, File]
    title: str
    parent: str | None = None
    description: str = ""

    @property
    def oid(self) -> str:
        told = [self.parent, self.title, sorted((path, file.oid) for path, file in self.files.items())]
        return hashlib.sha1(json.dumps(told).encode()).hexdigest()


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
        """Returns the commit that a branch, a tag, a pull request or the start of a hash means."""
        named = self.branches | self.tags | self.pulls
        found = named.get(revision) or next((oid for oid in self.commits if oid.startswith(revision)), None)
        if found is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def history(self, revision: str = "main") -> list[Commit]:
        """Returns the commits of a branch, the last one first."""
        oid, found = self.resolve(revision), []
        while oid:
            found.append(self.commits[oid])
            oid = self.commits[oid].parent
        return found

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Returns the content of every path."""
        return {path: file.data for path, file in self.commits[self.resolve(revision)].files.items()}


@dataclass
class Fault:
    """What happens to the next `count` requests: a status, "drop" (cut off in the middle of what is sent) or "lose".

    A lost request is done, but its answer never comes. A function is called before the request is answered.
    """

    method: str
    path: str
    action: int | str | Callable[[], object]
    count: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


def is_large(path: str, size: int) -> bool:
    """Whether a file of that name and size is stored apart from the repository."""
    return size > 0 and (size >= LARGE_BYTES or path.endswith(WEIGHTS))
