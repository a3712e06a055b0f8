"""Push a directory that holds a model, with its model card, to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_efficient.commands.flag_parser import FlagParser
from hf_efficient.errors import UserError
from hf_efficient.hub.config import TRANSFORMERS_JS_URL, PushConfig, SpaceConfig


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient push`. Raises UserError if the directory cannot be pushed, PushError if the Hub refuses."""
    args = vars(_build_parser().parse_all(argv))
    directory, dry_run = Path(args.pop("directory")), args.pop("dry_run")
    space = SpaceConfig(**{name: args.pop(name) for name in list(args) if name.startswith("space")})
    config = PushConfig(**args)
    if not directory.is_dir():
        raise UserError(f"{str(directory)!r} is not a folder: give what `hf-efficient compress` wrote")
    from rich.console import Console

    from hf_efficient.hub.files import file_size_bytes
    from hf_efficient.hub.onnx_repository import plan_repositories
    from hf_efficient.hub.push import push_folder
    from hf_efficient.hub.space import check_space_folder, push_space
    from hf_efficient.measurement.formatting import printable

    console = Console(soft_wrap=True)
    if space.space:
        check_space_folder(directory, config)
    if dry_run:
        for repo_id, files in plan_repositories(directory, config.repo_id).items():
            console.print(f"{repo_id}: {len(files)} files, nothing is pushed", markup=False)
            for path, content in sorted(files.items()):
                console.print(f"{file_size_bytes(content):>14,}  {printable(path)}", markup=False, highlight=False)
        return
    commits = push_folder(directory, config)
    for repo_id, commit in commits.items():
        console.print(f"{repo_id}: {commit.pr_url or commit.commit_url}", markup=False)
    if space.space:
        console.print(f"{space.space}: {push_space(directory, next(iter(commits)), space)}", markup=False)


def _build_parser() -> FlagParser:
    parser = FlagParser(
        "push",
        usage="hf-efficient push DIRECTORY --repo_id USER/NAME [flags]",
        description=__doc__,
        epilog="The token is the one of `hf auth login` or HF_TOKEN: a flag would show in the list of processes.",
    )
    parser.add_argument("directory", metavar="DIRECTORY", help="what `hf-efficient compress` or save_pretrained wrote")
    parser.add_argument("--repo_id", required=True, help="user/name or organisation/name")
    parser.add_argument("--private", action="store_true", default=None, help="create a new repository as private")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch, created if it does not exist")
    parser.add_argument("--tag", metavar="NAME", help="tag the commit")
    parser.add_argument("--create_pr", action="store_true", help="propose the commit in a pull request")
    parser.add_argument("--commit_message", default=PushConfig.commit_message, help="[%(default)s]")
    parser.add_argument("--dry_run", action="store_true", help="list what would be pushed; needs no token")
    parser.add_argument("--space", metavar="USER/NAME", help="also push a Space that runs a classifier in the browser")
    parser.add_argument(
        "--space_teacher", metavar="USER/NAME", help="model on the Hub with an onnx/ directory to compare it with"
    )
    parser.add_argument(
        "--space_library", default=TRANSFORMERS_JS_URL, metavar="URL", help="transformers.js that the page loads"
    )
    parser.add_argument("--space_runtime", metavar="URL", help="directory with ONNX Runtime's files for the web")
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return parser
