"""The command line itself: its commands, what it imports, and what it shows of errors."""

import os
import subprocess
import sys

import pytest

import hf_efficient
from hf_efficient import cli
from hf_efficient.cli import COMMANDS, main
from hf_efficient.errors import NonFiniteLossError, PushError, UnsupportedModelError, UserError

HEAVY = ("torch", "transformers", "datasets", "accelerate", "torchao", "huggingface_hub", "rich", "matplotlib")
# Command lines that are answered without importing any of them, and how they end.
QUICK = {
    (): 0,
    ("--help",): 0,
    ("--version",): 0,
    ("compres",): 2,
    ("compress", "--help"): 0,
    ("prune", "--help"): 0,
    ("measure", "--help"): 0,
    ("push", "--help"): 0,
    ("compress", "--learning_rat", "1"): 2,
    ("compress", "--model_name_or_path", "bert", "--output_dir", "out", "--temperature", "-1"): 2,
    ("compress", "--model_name_or_path", "bert", "--output_dir", "out", "--train_file", "missing.csv"): 2,
    ("compress", "--model_name_or_path", "./missing", "--output_dir", "out"): 2,
    ("prune", "--model_name_or_path", "bert", "--output_dir", "out"): 2,
    ("measure", "./missing"): 2,
    ("push", "missing", "--repo_id", "me/model"): 2,
}
LIST_HEAVY_IMPORTS = f"""
import sys, hf_efficient
def heavy():
    return [name for name in {HEAVY} if name in sys.modules]
assert not heavy(), heavy()
from hf_efficient.cli import main
for argv, expected in {QUICK}.items():
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    assert (status, heavy()) == (expected, []), (argv, status, heavy())
"""


def run_python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=os.environ, **options
    )


def fail_with(monkeypatch, error):
    def run(argv):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "push", run)
    return cli.main(["push", "folder"])


def test_help_and_refusals_import_nothing_heavy(tmp_path):
    process = run_python("-c", LIST_HEAVY_IMPORTS, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_a_refused_model_shows_one_sentence_and_no_remark_of_an_import(tmp_path):
    flags = ["--model_name_or_path", "nobody/missing", "--scheme", "int8_dynamic", "--output_dir", "out"]
    process = run_python("-m", "hf_efficient.cli", "quantize", *flags, cwd=tmp_path)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("hf-efficient quantize: the config of 'nobody/missing' cannot be loaded: ")
    assert process.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]], ids=str)
def test_commands_are_listed_with_one_line_each(capsys, argv):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cli.DESCRIPTIONS.keys() == set(cli.COMMANDS)
    for name, description in cli.DESCRIPTIONS.items():
        assert f"  {name:<10}{description}" in lines


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf_efficient {hf_efficient.__version__}\n"


def test_unknown_command_lists_the_commands_and_a_similar_one(capsys):
    assert cli.main(["compres"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("hf-efficient: unknown command 'compres', did you mean compress?\n")
    assert cli.list_commands() in shown.err
    assert cli.main(["juggle"]) == 2
    assert "unknown command 'juggle'\n" in capsys.readouterr().err


@pytest.mark.parametrize("error", [UserError, UnsupportedModelError, NonFiniteLossError, PushError])
def test_user_errors_are_shown_as_a_sentence(monkeypatch, capsys, error):
    assert fail_with(monkeypatch, error("give another file")) == 2
    assert capsys.readouterr().err == "hf-efficient push: give another file\n"


@pytest.mark.parametrize("error", [TypeError, ValueError, OSError, AssertionError])
def test_bugs_keep_their_traceback_and_say_where_to_report_them(monkeypatch, capsys, error):
    assert fail_with(monkeypatch, error("object does not support len()")) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert f"{error.__name__}: object does not support len()" in shown
    assert shown.splitlines()[-1] == cli.REPORT_BUG


def test_interruption_ends_with_status_130_and_one_line(monkeypatch, capsys):
    assert fail_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "hf-efficient push: interrupted\n"


TOKEN = "hf_" + "aBcD" * 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "--token", TOKEN],
        ["compress", "--hub_tokn", TOKEN],
        ["compress", f"--hub_tokn={TOKEN}"],
        ["compress", f"--hub_token{TOKEN}"],
        ["compress", f"-{TOKEN}"],
        ["compress", "--push_to_hub", TOKEN, "--model_name_or_path", "{model}", "--output_dir", "{folder}/out"],
        ["compress", "--hub_token", TOKEN, TOKEN, "--model_name_or_path", "{model}", "--output_dir", "{folder}/out"],
        ["compress", TOKEN],
        ["compress", "--model_name_or_path", TOKEN, "--output_dir", "{folder}/out"],
        ["compress", "--config", "{folder}/key.yaml"],
        ["compress", "--config", "{folder}/equals.yaml"],
        ["compress", "--config", "{folder}/list.yaml"],
        ["push", "{model}", "--repo_id", "me/x", TOKEN],
        ["push", "{model}", "--repo_id", TOKEN],
        ["push", TOKEN, "--repo_id", "me/x"],
        ["measure", TOKEN],
        ["measure", "{model}", "--token", TOKEN],
        [TOKEN],
    ],
    ids=lambda arguments: " ".join(arguments).replace(TOKEN, "TOKEN"),
)
def test_token_is_not_written(arguments, tmp_path, review_model_dir, capsys):
    (tmp_path / "key.yaml").write_text(f"hub_tokn: {TOKEN}\n")
    (tmp_path / "equals.yaml").write_text(f"hub_token={TOKEN}: 1\n")
    (tmp_path / "list.yaml").write_text(
        f"model_name_or_path: {review_model_dir}\noutput_dir: {tmp_path / 'out'}\nhub_token: [{TOKEN}, {TOKEN}]\n"
    )
    assert main([argument.format(folder=tmp_path, model=review_model_dir) for argument in arguments]) == 2
    written = capsys.readouterr()
    assert "aBcD" not in written.out + written.err


def test_token_in_a_bug_is_not_written(monkeypatch, capsys):
    def fail(_):
        raise RuntimeError(f"request with {TOKEN} failed\x1b[31m")

    monkeypatch.setitem(COMMANDS, "measure", fail)
    assert main(["measure"]) == 1
    error = capsys.readouterr().err
    assert "request with hf_*** failed\\x1b[31m" in error
    assert "aBcD" not in error
