"""Configuration of pushes to the Hub and of Spaces."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from hf_efficient.errors import UserError
from hf_efficient.field_checks import check_field_types

TRANSFORMERS_JS_URL = "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4"
HUB_URL = "https://huggingface.co"
ONNX_REPOSITORY_SUFFIX = "-ONNX"
# The names that huggingface_hub accepts; importing its check takes longer than parsing a command line.
_REPO_NAME = re.compile(r"(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b")


def is_repo_name(name: str) -> bool:
    """Whether a repository on the Hub can have this name."""
    return bool(_REPO_NAME.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def check_repo_name(repo_id: str, field: str, suffix: str = "") -> None:
    """Raise UserError if `repo_id` with `suffix`, the value of `field`, is not a valid repository name."""
    if not is_repo_name(repo_id + suffix):
        raise UserError(
            f"{field}={repo_id!r} is not a repository name: give user/name, of letters, digits, -, _ and ."
        )


@dataclass(frozen=True)
class PageSources:
    """Where the page of a Space loads its files from.

    | field | meaning |
    | --- | --- |
    | library | URL of the transformers.js module |
    | hub | URL of the Hub |
    | runtime | URL of the folder with ONNX Runtime's files; None: the CDN that transformers.js uses |

    Raises UserError if one of them is not a web address.
    """

    library: str = TRANSFORMERS_JS_URL
    hub: str = HUB_URL
    runtime: str | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        for name, address in asdict(self).items():
            if address is not None and not address.startswith(("https://", "http://")):
                raise UserError(
                    f"{name}={address!r} is not a web address: give one that starts with https:// or http://"
                )


@dataclass(frozen=True)
class SpaceConfig:
    """The Space that shows a pushed model.

    | field | meaning |
    | --- | --- |
    | space | user/name of the Space; None: no Space |
    | space_teacher | user/name of a model on the Hub to compare with; it needs an `onnx/` folder too |
    | space_library, space_runtime | `library` and `runtime` of `PageSources` |

    Raises UserError if a name is not a repository name, or another field is set without `space`.
    """

    space: str | None = None
    space_teacher: str | None = None
    space_library: str = TRANSFORMERS_JS_URL
    space_runtime: str | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.space is None and (self.space_teacher, self.space_library, self.space_runtime) != (
            None,
            TRANSFORMERS_JS_URL,
            None,
        ):
            raise UserError(
                "space_teacher, space_library and space_runtime describe a Space, and none is named: give "
                "space=user/name too"
            )
        for field in ("space", "space_teacher"):
            name = getattr(self, field)
            if name is not None and name.count("/") != 1:
                raise UserError(f"{field}={name!r} is not a full repository name: give user/name")
            if name is not None:
                check_repo_name(name, field)
        self.sources(HUB_URL)

    def sources(self, hub: str) -> PageSources:
        """Return where the page loads its files from, with the models on `hub`."""
        return PageSources(self.space_library, hub, self.space_runtime)


@dataclass(frozen=True)
class PushConfig:
    """The repository that a folder is pushed to, and how.

    | field | meaning |
    | --- | --- |
    | repo_id | user/name or organization/name; a name alone is in the namespace of the token's user |
    | private | True: create the repository as private; an existing public repository is refused |
    | revision | branch to push to, created if it does not exist; None: main |
    | tag | tag for the commit |
    | create_pr | push to a pull request |

    Raises UserError if the name is not a repository name, or two settings contradict each other.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    commit_message: str = "Add compressed model"

    def __post_init__(self) -> None:
        check_field_types(self)
        check_repo_name(self.repo_id, "repo_id", suffix=ONNX_REPOSITORY_SUFFIX)
        if self.create_pr and (self.revision or self.tag):
            raise UserError("create_pr opens a pull request for main: leave out revision and tag, or create_pr")
        if not self.commit_message:
            raise UserError("commit_message is empty: give one line on what the commit changes")
