"""`hf-efficient measure`: comparison of models, and of the variants of a model."""

import pytest
import torch
from datasets import load_dataset
from reviews import save_model, tiny_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, set_seed

from hf_efficient import CompressionReport
from hf_efficient.cli import main
from hf_efficient.variants.builders import ModelVariant
from hf_efficient.variants.config import VARIANTS

RUNTIME_PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def measure(job_dir, *arguments):
    command = ["measure", *map(str, arguments), "--output_dir", str(job_dir / "measured")]
    assert main([*command, "--latency_sequence_length", "16"]) == 0
    return CompressionReport.load(job_dir / "measured")


class CompiledModel:
    """Runs a model; like a compiled module it has no length, and so no truth value."""

    def __init__(self, model):
        self.model = model

    def __call__(self, **inputs):
        return self.model(**inputs)

    def __len__(self):
        raise TypeError(f"{type(self.model).__name__} does not support len()")


def test_models_are_compared_with_the_first(job_dir):
    set_seed(1)
    save_model(job_dir / "other", BertForSequenceClassification(tiny_config(num_hidden_layers=1)))
    report = measure(job_dir, job_dir / "model", job_dir / "other", "--validation_file", job_dir / "dev.csv")
    assert [row.name for row in report.models] == ["model", "other"]
    assert report.dataset == "dev.csv"
    assert report.models[1].ratios.flops == pytest.approx(2, rel=0.05)
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "other").eval()
    tokenizer = AutoTokenizer.from_pretrained(job_dir / "other")
    rows = load_dataset("csv", data_files=str(job_dir / "dev.csv"), split="train")
    with torch.no_grad():
        logits = model(**tokenizer(rows["sentence"][:], padding=True, return_tensors="pt")).logits
    predictions = [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
    correct = sum(map(str.__eq__, predictions, rows["label"]))
    assert report.models[1].metrics["accuracy"] == correct / len(rows)


def test_compiled_model_without_a_truth_value_is_measured(job_dir, monkeypatch):
    monkeypatch.setitem(VARIANTS, "int8_compiled", lambda model, *_: ModelVariant(model, CompiledModel(model)))
    command = [job_dir / "model", "--variants", "int8_compiled", "--validation_file", job_dir / "dev.csv"]
    report = measure(job_dir, *command)
    assert report.models[0].metrics["accuracy"] > 0.9
    assert report.models[0].latency_ms.p50 > 0


def test_variant_that_cannot_be_built_on_this_machine_is_left_out(job_dir, monkeypatch):
    monkeypatch.setitem(VARIANTS, "int8_compiled", lambda *_: None)
    report = measure(job_dir, job_dir / "model", "--variants", "float32", "int8_compiled")
    assert [row.name for row in report.models] == ["float32"]


def test_recommended_variant_is_printed_with_code_that_makes_it(job_dir, capsys):
    files = ["--validation_file", job_dir / "dev.csv", "--train_file", job_dir / "train.csv"]
    report = measure(job_dir, job_dir / "model", "--variants", "float32", "int8", *files)
    screen = " ".join(capsys.readouterr().out.split())
    assert [row.role for row in report.models] == ["teacher", "int8"]
    assert report.models[0].agreement is None
    assert report.models[1].agreement > 0.9
    assert " ".join(report.recommendation().split()) in screen
    code = {"teacher": "dtype=torch.float32)", "int8": "calibration=batches)"}[report.recommended]
    assert "Load it by:" in screen
    assert code in screen


def test_int8_is_not_calibrated_on_the_data_of_the_metrics(job_dir, monkeypatch):
    calibrations = []

    def build(model, inputs, calibration, directory):
        calibrations.append(calibration)
        return ModelVariant(model)

    monkeypatch.setitem(VARIANTS, "int8", build)
    measure(job_dir, job_dir / "model", "--variants", "int8", "--validation_file", job_dir / "dev.csv")
    assert calibrations == [None]


@pytest.mark.slow
def test_variants_of_a_model_are_compared(job_dir):
    for package in RUNTIME_PACKAGES:
        pytest.importorskip(package)
    variants = ["float32", "bfloat16", "int8", "onnx_int8", "openvino_int8"]
    files = ["--validation_file", job_dir / "dev.csv", "--train_file", job_dir / "train.csv"]
    report = measure(job_dir, job_dir / "model", "--variants", *variants, *files)
    assert [row.name for row in report.models] == variants
    assert [row.latency_ms.runtime for row in report.models] == [
        "torch float32",
        "torch bfloat16",
        "torch int8",
        "onnxruntime int8",
        "openvino int8",
    ]
    for row in report.models:
        assert row.metrics["accuracy"] > 0.9
        assert row.samples_per_second > 0
        assert (
            row.samples_per_second != row.latency_ms.batch_size / row.latency_ms.p50 * 1e3
        )  # it is of the real texts
        assert row.bytes_on_disk > 0
    assert report.models[1].bytes_on_disk < 0.6 * report.models[0].bytes_on_disk


def test_old_name_of_variants_is_accepted_with_a_warning(job_dir, caplog):
    report = measure(job_dir, job_dir / "model", job_dir / "model", "--forms", "float32", "int8_weight_only")
    assert [row.name for row in report.models] == ["model float32", "model int8_weight_only"] * 2
    assert "--forms is now called --variants" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--variants", "int3"], f"variant 'int3' is unknown: give one of {', '.join(VARIANTS)}"),
        (["--validation_file", "missing.csv"], "validation_file='missing.csv' does not exist"),
        (["--variant", "int8"], "unknown flag --variant: did you mean --variants"),
        (["./missing"], "MODEL='./missing' does not exist"),
        (["nobody/missing"], "the config of 'nobody/missing' cannot be loaded"),
    ],
    ids=str,
)
def test_measure_refuses_what_it_cannot_do(job_dir, capsys, arguments, sentence):
    assert main(["measure", str(job_dir / "model"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_calibration_data_is_not_evaluated_on(job_dir, capsys):
    pytest.importorskip("openvino")
    command = ["measure", str(job_dir / "model"), "--variants", "openvino_int8"]
    assert main([*command, "--validation_file", str(job_dir / "dev.csv")]) == 2
    assert "openvino_int8 needs calibration data that no metric is measured on" in capsys.readouterr().err
