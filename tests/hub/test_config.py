"""Tests of the settings of pushes; those of Spaces are in test_space."""

import re

import pytest

from hf_efficient.hub.config import PushConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repo_id": "a/b/c"}, "repo_id='a/b/c' is not a repository name: give user/name"),
        ({"repo_id": "me/.."}, "is not a repository name"),
        ({"repo_id": "me/" + "x" * 95}, "is not a repository name"),  # too long with the suffix of the companion
        ({"repo_id": "me/films", "create_pr": True, "tag": "v1"}, "leave out revision and tag, or create_pr"),
        ({"repo_id": "me/films", "create_pr": True, "revision": "dev"}, "leave out revision and tag, or create_pr"),
        ({"repo_id": "me/films", "commit_message": ""}, "commit_message is empty: give one line"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PushConfig(**fields)


@pytest.mark.parametrize("repo_id", ["films", "me/films", "club/small.films-2_x"])
def test_repository_names_are_accepted(repo_id):
    assert PushConfig(repo_id).repo_id == repo_id
