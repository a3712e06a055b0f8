"""`hf-efficient quantize`: from the command line to the model that loads."""

import errno
import os
import shutil

import pytest
from reviews import flags, save_model, tiny_config
from transformers import AutoModelForSequenceClassification, BertModel, set_seed

from hf_efficient import CompressionReport
from hf_efficient.cli import main
from hf_efficient.commands.output_dir import is_finished


def flags_without_data(directory, **changes):
    values = {"model_name_or_path": directory / "model", "output_dir": directory / "out", "compile": False, **changes}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def quantized_dir(tmp_path_factory, review_model_dir):
    """Returns a folder with `model` and its int8 version in `out`; tests only read it."""
    directory = tmp_path_factory.mktemp("quantized")
    shutil.copytree(review_model_dir, directory / "model")
    assert main(["quantize", *flags_without_data(directory, scheme="int8_weight_only")]) == 0
    return directory


@pytest.fixture
def own_quantized_dir(tmp_path, quantized_dir):
    """Returns a copy of that folder."""
    shutil.copytree(quantized_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_codebooks_need_no_data_and_are_described_in_the_card(job_dir):
    assert main(["quantize", *flags_without_data(job_dir, scheme="codebook", bits=4)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [row.role for row in report.models] == ["teacher", "quantized"]
    assert report.models[1].bytes_on_disk < 0.6 * report.models[0].bytes_on_disk
    assert report.models[1].metrics == {}
    assert report.dataset is None
    loaded = AutoModelForSequenceClassification.from_pretrained(job_dir / "out", trust_remote_code=True)
    assert loaded.config.codebooks
    card = (job_dir / "out" / "README.md").read_text()
    assert "Quality was not measured." in card
    assert "codebooks" in card
    assert "Deep Compression" in card
    for wrong in ("differ in width", "Eight bits", "What was removed", "Jacob"):
        assert wrong not in card


def test_metrics_are_measured_with_data_and_nothing_is_trained(job_dir):
    changes = {"scheme": "int8_weight_only", "skip_modules": "layer.0", "max_steps": 3}
    assert main(["quantize", *flags(job_dir, **changes)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert report.row("quantized").metrics["accuracy"] > 0.9
    assert not any("trained" in stage for stage in report.stages)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "--scheme is required: give one of int8_static, int8_dynamic, int8_weight_only, codebook"),
        ({"scheme": "codebook", "layers": 0.5}, "quantize neither prunes nor trains"),
        ({"scheme": "int8_dynamic", "aware": True}, "quantize neither prunes nor trains"),
        ({"scheme": "int8_dynamic", "eval_strategy": "epoch"}, "eval_dataset"),
    ],
    ids=str,
)
def test_quantize_refuses_what_it_cannot_do(job_dir, capsys, changes, sentence):
    assert main(["quantize", *flags_without_data(job_dir, **changes)]) == 2
    assert sentence in capsys.readouterr().err
    assert not [path for path in (job_dir / "out").rglob("*") if path.is_file()]


def test_model_without_a_head_is_refused(job_dir, capsys):
    set_seed(0)
    save_model(job_dir / "base", BertModel(tiny_config()))
    changes = {"model_name_or_path": job_dir / "base", "scheme": "int8_weight_only"}
    assert main(["quantize", *flags_without_data(job_dir, **changes)]) == 2
    assert "has no head for text-classification" in capsys.readouterr().err


def test_overwriting_keeps_files_that_the_first_run_did_not_write(own_quantized_dir):
    out = own_quantized_dir / "out"
    kept = [
        out / name for name in ("onnx/model.onnx", "_notes/a.txt", "_private.txt", "checkpoint-best/b", "x.partial")
    ]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("of the user")
    command = ["quantize", *flags_without_data(own_quantized_dir, scheme="codebook"), "--overwrite_output_dir"]
    assert main(command) == 0
    assert [path.read_text() for path in kept] == ["of the user"] * len(kept)


def test_interrupted_overwriting_is_not_taken_for_a_finished_run(own_quantized_dir, monkeypatch):
    command = ["quantize", *flags_without_data(own_quantized_dir, scheme="codebook")]

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hf_efficient.trainer.run.quantize", interrupt)
        assert main([*command, "--overwrite_output_dir"]) == 130
    assert main([*command, "--resume_from_checkpoint", "True"]) == 0
    assert CompressionReport.load(own_quantized_dir / "out").configs["quantization"]["scheme"] == "codebook"


def test_failed_push_is_repeated_when_a_finished_run_is_resumed(quantized_dir, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        "hf_efficient.commands.job.push_output_dir", lambda folder, args: pushed.append((folder, args.hub_model_id))
    )
    changes = {"scheme": "int8_weight_only", "resume_from_checkpoint": True, "hub_model_id": "me/x"}
    command = ["quantize", *flags_without_data(quantized_dir, **changes)]
    assert main(command) == 0
    assert pushed == []
    assert main([*command, "--push_to_hub"]) == 0
    assert pushed == [(quantized_dir / "out", "me/x")]


def test_quantized_model_has_no_other_variants(quantized_dir, capsys):
    assert main(["measure", str(quantized_dir / "out"), "--variants", "float32"]) == 2
    assert "out is quantized already: leave out --variants, or give its float model" in capsys.readouterr().err


def disturb(monkeypatch, name, action):
    """Call `action` once, when Python opens a file to write whose path contains `name`."""
    replace = os.replace

    def wrapped(source, target, **kwargs):
        if name in str(target):
            monkeypatch.undo()
            action()
        return replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", wrapped)


def press_ctrl_c():
    raise KeyboardInterrupt  # a signal is ignored in processes that run in the background


def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file")


@pytest.mark.parametrize(
    ("action", "status", "sentence"),
    [
        (press_ctrl_c, 130, "interrupted: the same command with --resume_from_"),
        (fill_the_disk, 2, "the file cannot be written: No space left on device. Make room"),
    ],
    ids=["Ctrl-C", "disk full"],
)
def test_interruption_is_a_sentence_and_the_run_can_be_resumed(job_dir, monkeypatch, capsys, action, status, sentence):
    folder, command = job_dir / "out", ["quantize", *flags_without_data(job_dir, scheme="int8_dynamic")]
    disturb(monkeypatch, "compression_report.json", action)
    assert main(command) == status
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert main(command) == 2
    assert "already contains a model" in capsys.readouterr().err
    assert main([*command, "--resume_from_checkpoint", "True"]) == 0
    assert is_finished(folder)
