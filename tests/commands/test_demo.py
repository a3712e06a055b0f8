import io
import json
import os
import subprocess
import sys
import warnings

import datasets
import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_efficient.cli import main
from hf_efficient.commands import demo, demo_dataset, demo_pipeline
from hf_efficient.commands.demo import MARKER_NAME, OUTPUT_NAMES, prepare_output_dir
from hf_efficient.commands.demo_pipeline import TrainingStages, quiet_libraries, usage_snippet
from hf_efficient.commands.stage_display import StageDisplay
from hf_efficient.errors import UserError

STAGES = (
    "Import PyTorch and Transformers",
    "Read the docstrings of the standard library",
    "Prepare the teacher, a small BERT",
    "Train the teacher",
    "Evaluate the teacher",
    "Prune the teacher until it is 1.2 times as fast",
    "Train the student by distillation",
    "Quantize the student to 8 bits, evaluate and measure all",
    "Load the student in a process without this package",
)


@pytest.fixture
def display():
    return StageDisplay(Console(file=io.StringIO(), width=120))


def printed(display):
    return display.console.file.getvalue()


# ---- output directory ---------------------------------------------------------------------------------------------


def test_output_directory_of_an_earlier_demo_is_cleared(tmp_path):
    output_dir = tmp_path / "demo-output"
    prepare_output_dir(output_dir)
    for name in OUTPUT_NAMES:
        (output_dir / name).mkdir()
        (output_dir / name / "file").write_text("earlier")
    (output_dir / "notes.txt").write_text("of the user")
    prepare_output_dir(output_dir)
    assert {path.name for path in output_dir.iterdir()} == {MARKER_NAME, "notes.txt"}


def test_directory_that_the_demo_did_not_create_is_refused_and_kept(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_text("of the user")
    with pytest.raises(UserError, match="contains files that the demo did not write"):
        prepare_output_dir(tmp_path)
    assert (tmp_path / "student" / "model.safetensors").read_text() == "of the user"
    assert not (tmp_path / MARKER_NAME).exists()


def test_link_in_the_output_directory_is_removed_without_its_target(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("of the user")
    output_dir = tmp_path / "demo-output"
    prepare_output_dir(output_dir)
    (output_dir / "teacher").symlink_to(target)
    prepare_output_dir(output_dir)
    assert not (output_dir / "teacher").exists()
    assert (target / "file").read_text() == "of the user"


def test_empty_directory_is_accepted(tmp_path):
    prepare_output_dir(tmp_path)
    assert (tmp_path / MARKER_NAME).is_file()


def test_file_as_output_directory_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("of the user")
    assert main(["demo", "--output_dir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "of the user"


# ---- display ------------------------------------------------------------------------------------------------------


def test_finished_stages_are_printed_one_per_line(display):
    with display:
        display.start("Read the data")
        display.update(1)
        display.finish("12 rows")
        display.start("Train [the model]", total=3)
        display.update(2)
        display.finish()
        display.start("A stage that fails")
    lines = printed(display).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["Read the data", "Train [the model]"]
    assert lines[0].endswith("0 s   12 rows")
    assert lines[1].endswith("0 s")


def test_terminal_shows_the_progress_of_the_current_stage():
    display = StageDisplay(Console(file=io.StringIO(), width=120, force_terminal=True))
    with display:
        display.start("Train the model", total=3)
        display.update(2)
        display._progress.refresh()
        assert "2/3" in printed(display)
        display.finish()


def test_training_is_shown_between_two_other_stages(display, tmp_path):
    stages = TrainingStages(display, "Train", "Evaluate")
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True)
    state, control = TrainerState(max_steps=2), TrainerControl()
    display.start("Prepare")
    stages.on_train_begin(args, state, control)
    state.global_step = 2
    stages.on_step_end(args, state, control)
    stages.on_train_end(args, state, control)
    display.finish()
    lines = printed(display).splitlines()
    assert [line.split()[0] for line in lines] == ["Prepare", "Train", "Evaluate"]
    assert lines[1].endswith("2 steps of 4 passages")


@pytest.mark.parametrize("is_fast", [True, False, None])
def test_training_is_in_bfloat16_only_where_that_is_known_to_be_fast(tmp_path, monkeypatch, is_fast):
    monkeypatch.setattr(demo_pipeline, "has_fast_bfloat16", lambda: is_fast)
    assert demo_pipeline._training_arguments(tmp_path, epochs=1, learning_rate=1e-3).bf16 is (is_fast is True)


def test_quiet_libraries_restores_all_settings():
    def settings():
        return (
            logging.get_verbosity(),
            logging.is_progress_bar_enabled(),
            datasets.logging.get_verbosity(),
            datasets.are_progress_bars_disabled(),
        )

    before = settings()
    with warnings.catch_warnings(record=True) as caught, quiet_libraries():
        assert settings() == (logging.ERROR, False, datasets.logging.ERROR, True)
        warnings.warn("not shown", stacklevel=1)
    assert settings() == before
    assert not caught


# ---- the command --------------------------------------------------------------------------------------------------


def test_help_imports_no_heavy_library():
    script = (
        "import sys\nfrom hf_efficient.cli import main\n"
        "try:\n    main(['demo', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'rich'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: hf-efficient demo" in process.stdout
    assert process.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def small_demo(monkeypatch):
    """Makes the demo small: few rows, a narrow model, a low target."""
    load, config = demo_dataset.load_docstring_dataset, demo_dataset.demo_bert_config

    def load_some():
        splits = load()
        return datasets.DatasetDict({name: rows.select(range(64)) for name, rows in splits.items()})

    def narrow_config(*args):
        small = config(*args)
        small.hidden_size, small.num_attention_heads, small.intermediate_size = 64, 4, 256
        return small

    monkeypatch.setattr(demo_dataset, "load_docstring_dataset", load_some)
    monkeypatch.setattr(demo_dataset, "demo_bert_config", narrow_config)
    monkeypatch.setattr(demo_dataset, "TEACHER_VOCAB_SIZE", 500)
    monkeypatch.setattr(demo_pipeline, "TARGET_SPEEDUP", 1.2)


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_demo_prints_stages_table_picture_and_snippet_and_can_be_repeated(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    output_dir = tmp_path / "demo-output"
    output_dir.mkdir()
    (output_dir / MARKER_NAME).touch()
    (output_dir / "student").mkdir()
    (output_dir / "student" / "config.json").write_text("{}")  # of an earlier demo
    demo.run(["--output_dir", str(output_dir), "--overwrite_output_dir"])
    output = capfd.readouterr()
    lines = output.out.splitlines()
    assert [line for line in lines if line.startswith(STAGES)] == lines[: len(STAGES)]
    assert output.err == ""
    student_dir = output_dir / "student"
    assert f"Picture: {student_dir / 'compression_report.png'}" in output.out
    assert lines[-3:] == usage_snippet(student_dir).splitlines()
    report = json.loads((student_dir / "compression_report.json").read_text())
    assert [row["name"] for row in report["models"]] == ["teacher", "student", "8-bit"]
    assert report["dataset"] == "docstrings of the Python standard library"
    assert all(0 < row["metrics"]["accuracy"] <= 1 for row in report["models"])
    snippet = subprocess.run(
        [sys.executable, "-c", usage_snippet(student_dir)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "'label'" in snippet.stdout


def test_reload_check_fails_if_the_model_does_not_load(tmp_path):
    with pytest.raises(RuntimeError, match="does not load in a fresh process"):
        demo_pipeline._check_reload(tmp_path, tmp_path / "none.jsonl", None)
