"""Configuration of pushes to the Hub."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from hf_efficient.errors import UserError

TRANSFORMERS_JS_URL = "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4"
HUB_URL = "https://huggingface.co"
ONNX_REPOSITORY_SUFFIX = "-ONNX"
# What huggingface_hub accepts; its own check would import it, which takes longer than parsing a command line.
_REPO_NAME = re.compile(r"(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b")


def check_repo_name(repo_id: str, field: str, suffix: str = "") -> None:
    """Raises ValueError if `repo_id` with `suffix`, the value of `field`, is not a valid repository name."""
    name = repo_id + suffix
    if not _REPO_NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise UserError(f"{field}={repo_id!r} is no name on the Hub: give user/name, of letters, digits, -, _ and .")


@dataclass(frozen=True)
class PageSources:
    """Where the page loads from: the module of transformers.js, the Hub, and the folder of ONNX Runtime's files.

    Without `runtime` transformers.js takes those from its own CDN.

    Raises ValueError: one of them is no address of the web.
    """

    library: str = TRANSFORMERS_JS_URL
    hub: str = HUB_URL
    runtime: str | None = None

    def __post_init__(self) -> None:
        for name, address in asdict(self).items():
            if address is not None and not address.startswith(("https://", "http://")):
                raise UserError(f"{name}={address!r} must be an address that begins with https:// or http://")


@dataclass(frozen=True)
class SpaceConfig:
    """Which Space shows a model that is pushed; none without `space`.

    | field | meaning |
    | --- | --- |
    | space | user/name of the Space |
    | space_teacher | user/name of a model on the Hub to stand beside it, with an `onnx/` of its own |
    | space_library, space_runtime | `library` and `runtime` of `Sources` |

    Raises ValueError: a name is none of a repository, or there is something to show, but no Space.
    """

    space: str | None = None
    space_teacher: str | None = None
    space_library: str = TRANSFORMERS_JS_URL
    space_runtime: str | None = None

    def __post_init__(self) -> None:
        if self.space is None and (self.space_teacher, self.space_library, self.space_runtime) != (
            None,
            TRANSFORMERS_JS_URL,
            None,
        ):
            raise UserError("a Space is described, but not asked for: give space=user/name too")
        for field in ("space", "space_teacher"):
            name = getattr(self, field)
            if name is not None and name.count("/") != 1:
                raise UserError(f"{field}={name!r} is no name on the Hub: give user/name")
            if name is not None:
                check_repo_name(name, field)
        self.sources(HUB_URL)

    def sources(self, hub: str) -> PageSources:
        """Return where the page loads from, with the models at `hub`."""
        return PageSources(self.space_library, hub, self.space_runtime)


@dataclass(frozen=True)
class PushConfig:
    """Where a folder is pushed to, and how.

    | field | meaning |
    | --- | --- |
    | repo_id | user/name or organisation/name; a name alone is in your own namespace |
    | private | True: private, where the repository is new; an old one that is public is refused |
    | revision | a branch, made where there is none; None: main |
    | tag | name of the commit that the push makes |
    | create_pr | propose the commit in a pull request |

    Raises ValueError: the name is no name of a repository, or two settings contradict each other.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    commit_message: str = "Add compressed model"

    def __post_init__(self) -> None:
        check_repo_name(self.repo_id, "repo_id", suffix=ONNX_REPOSITORY_SUFFIX)
        if self.create_pr and (self.revision or self.tag):
            raise UserError("create_pr proposes a commit to main: leave out revision and tag, or create_pr")
        if not self.commit_message:
            raise UserError("commit_message is empty: say what the commit does")
