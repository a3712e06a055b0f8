"""Evaluation of several models by one trainer: its attributes are restored, and the metrics are plain numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trainers import build, classifier, collate, rows
from transformers import Trainer

from hf_efficient import PruningConfig, QuantizationConfig, quantize
from hf_efficient.measurement import latency
from hf_efficient.measurement.report_rows import Latency, ModelRow
from hf_efficient.models import int8_kernels
from hf_efficient.tasks.classification import classification_compute_metrics
from hf_efficient.trainer import evaluation
from hf_efficient.trainer.evaluation import ModelEvaluator, UntrimmedModel, describe_training, evaluated_by
from hf_efficient.trainer.techniques import Techniques


def read_attributes(trainer):
    args, accelerator = trainer.args, trainer.accelerator
    return {
        "model": trainer.model,
        "model_wrapped": trainer.model_wrapped,
        "compute_metrics": trainer.compute_metrics,
        "native_amp": accelerator.native_amp,
        "full_eval": (args.bf16_full_eval, args.fp16_full_eval),
    }


def compute_nothing(prediction):
    return {}


@pytest.mark.parametrize("fails", [False, True], ids=["without an error", "after an error"])
def test_attributes_of_the_trainer_are_restored(tmp_path, fails):
    trainer, other = build(tmp_path, Trainer, bf16=True, bf16_full_eval=True), classifier()
    trainer.model_wrapped = torch.nn.Sequential(trainer.model)
    before = read_attributes(trainer)
    assert before["native_amp"]
    within = {}
    try:
        with evaluated_by(trainer, other, compute_nothing):
            within = read_attributes(trainer)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert within == {
        "model": other,
        "model_wrapped": other,
        "compute_metrics": compute_nothing,
        "native_amp": False,
        "full_eval": (False, False),
    }
    assert read_attributes(trainer) == before


def build_evaluator(folder, untrimmed=None, **pruning):
    """Return an evaluator, and a list that receives the datasets and metrics that it evaluates with."""
    trainer, calls = build(folder, Trainer), []

    def predict(dataset, metric_key_prefix):
        calls.append((trainer.model, dataset, trainer.compute_metrics))
        metrics = {"accuracy": 0.5, "loss": float("nan"), "f1": float("inf"), "runtime": 1.0, "count": 3}
        metrics |= {"samples_per_second": 2.0, "steps_per_second": 1.0, "model_preparation_time": 0.1}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return SimpleNamespace(metrics=metrics, predictions=None, label_ids=None)

    trainer.predict = predict
    return ModelEvaluator(trainer, Techniques(pruning=PruningConfig(**pruning)), untrimmed), calls


@pytest.mark.parametrize("role", ["student", "teacher", "teacher 2"])
def test_metrics_are_finite_numbers_without_timings(tmp_path, role):
    evaluator, calls = build_evaluator(tmp_path)
    model = classifier()
    assert evaluator.evaluate(role, model) == {"accuracy": 0.5}
    assert calls == [(model, evaluator.trainer.eval_dataset, evaluator.trainer.compute_metrics)]


def test_nothing_is_evaluated_without_data(tmp_path):
    evaluator, calls = build_evaluator(tmp_path)
    evaluator.trainer.eval_dataset = None
    assert evaluator.evaluate("student", classifier()) == {}
    assert calls == []


def test_untrained_teacher_is_not_evaluated(tmp_path):
    evaluator, calls = build_evaluator(tmp_path, heads=0.5, before_training=True)
    assert evaluator.evaluate("teacher", classifier()) == {}
    assert evaluator.evaluate("student", classifier()) == {"accuracy": 0.5}
    assert len(calls) == 1


def test_metrics_of_several_datasets_have_their_names(tmp_path):
    evaluator, calls = build_evaluator(tmp_path)
    evaluator.trainer.eval_dataset = {"short": rows(4), "long": rows(8)}
    assert evaluator.evaluate("student", classifier()) == {"short_accuracy": 0.5, "long_accuracy": 0.5}
    assert [dataset for _, dataset, _ in calls] == list(evaluator.trainer.eval_dataset.values())


@pytest.fixture
def passes(monkeypatch):
    """Call each pass once instead of timing it; return what `measure_throughput` was given."""
    given = {}

    def measure(passes, num_texts):
        given.update(passes=passes, num_texts=num_texts)
        for call in passes.values():
            call()
        return dict.fromkeys(passes, 100.0)

    monkeypatch.setattr(evaluation, "measure_throughput", measure)
    monkeypatch.setattr(latency, "THROUGHPUT_TEXTS", 8)
    return given


def test_throughput_is_that_of_texts_of_all_lengths(tmp_path, passes):
    trainer, other = build(tmp_path, per_device_eval_batch_size=4, bf16=True), classifier()
    predict, lengths = trainer.prediction_step, []

    def record(model, inputs, *args, **kwargs):
        lengths.append((model, trainer.model, trainer.accelerator.native_amp, inputs["input_ids"].shape))
        return predict(model, inputs, *args, **kwargs)

    trainer.prediction_step = record
    models = {"teacher": trainer.model, "student": other}
    assert trainer.evaluator.measure_throughput(models) == {"teacher": 100.0, "student": 100.0}
    assert passes["num_texts"] == {"teacher": 8, "student": 8}
    shapes = [(4, 9), (4, 4)]  # the second and the last of four batches
    assert lengths == [(model, model, False, shape) for model in models.values() for shape in shapes]


@pytest.mark.parametrize("data", [None, rows(8).to_iterable_dataset()], ids=["no data", "streamed data"])
def test_throughput_is_not_measured_without_data_of_known_size(tmp_path, passes, data):
    trainer = build(tmp_path)
    trainer.eval_dataset = data
    assert trainer.evaluator.measure_throughput({"student": trainer.model}) is None
    assert not passes


def test_throughput_of_a_model_that_is_timed_in_another_runtime_is_not_reported(tmp_path, passes, monkeypatch):
    arguments = {}
    monkeypatch.setattr(evaluation, "compare", lambda models, inputs, **kwargs: arguments.update(kwargs) or ())
    trainer = build(tmp_path, techniques={"pruning": PruningConfig(heads=0.5, latency_runtime="compiled")})
    models = {"teacher": trainer.model, "student": classifier(), "quantized": classifier()}
    trainer.build_report(models, {})
    assert arguments["throughput"] == {"quantized": 100.0}
    assert arguments["metric"] == "accuracy"


@pytest.fixture
def reporting(tmp_path, monkeypatch):
    """Return a trainer, and a function that reports on its model and an int8 form with these latencies."""
    monkeypatch.setattr(latency, "THROUGHPUT_TEXTS", 8)
    monkeypatch.setattr(evaluation, "measure_throughput", lambda passes, num_texts: dict.fromkeys(passes, 100.0))

    def report(scheme="int8_static", milliseconds=(10.0, 5.0), **changes):
        times = iter(milliseconds)

        def compare(models, inputs, metrics, compiled, **kwargs):
            for forward in compiled.values():
                forward(**inputs)
            return tuple(
                ModelRow(role, role, metrics[role], latency_ms=Latency(time, time, 1, 1, 1, "torch"), bytes_on_disk=9)
                for role, time in zip(models, times, strict=True)
            )

        monkeypatch.setattr(evaluation, "compare", compare)
        trainer = build(tmp_path, techniques={"quantization": QuantizationConfig(scheme, **changes)})
        calibration = [collate(list(rows(8)))] if scheme == "int8_static" else None
        quantized = quantize(trainer.model, trainer.techniques.quantization, calibration)
        return trainer.build_report({"student": trainer.model, "quantized": quantized}, {})

    return report


def test_report_has_the_agreement_of_the_quantized_model_with_the_float_student(reporting, monkeypatch):
    monkeypatch.setattr(int8_kernels, "MIN_WEIGHT_ENTRIES", {})
    student, quantized = reporting().models
    assert student.agreement is None
    assert 0.8 <= quantized.agreement <= 1
    has_kernel = int8_kernels.select_kernel() is not None
    assert 0 < quantized.max_difference_without_kernels < 0.1 or not has_kernel
    assert student.max_difference_without_kernels is None


def test_agreement_counts_equal_predictions(reporting, monkeypatch):
    monkeypatch.setattr(evaluation, "comparable_predictions", lambda predictions, labels: next(classes))
    classes = iter([np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0])])
    assert reporting("int8_weight_only").row("quantized").agreement == 0.75


def test_students_are_compared_with_the_teacher_row_by_row(tmp_path):
    trainer = build(tmp_path)
    trainer.eval_dataset, trainer.compute_metrics = rows(100, seed=9), classification_compute_metrics()
    teacher, student = classifier(), classifier()
    with torch.no_grad():
        teacher.classifier.bias += torch.tensor([9.0, 0.0, 0.0])  # the first class for every row
    rows_of = trainer.build_report({"teacher": teacher, "student": student}, {}).row
    assert (rows_of("teacher").teacher_agreement, rows_of("teacher").retained_intervals) == (None, {})
    share, interval = rows_of("student").ratios.metric_retained, rows_of("student").retained_intervals["accuracy"]
    assert 0 <= rows_of("student").teacher_agreement < 1
    assert interval.low <= share <= interval.high
    assert interval.rows == len(trainer.eval_dataset)


def test_quantized_model_that_is_slower_gives_a_warning(reporting, monkeypatch):
    messages = []
    monkeypatch.setattr(evaluation.logger, "warning", messages.append)
    assert reporting(milliseconds=(10.0, 5.0)).recommended == "quantized"
    assert messages == []
    report = reporting(milliseconds=(10.0, 50.0))
    assert report.recommended == "student"
    assert messages == [report.slower_form_note()]
    assert "8-bit" not in messages[0]
    assert "smaller, not faster here" not in messages[0]  # both have the same size


def test_model_is_compiled_once_to_be_measured_and_evaluated(reporting, monkeypatch):
    compiled, calls = [], []

    def compile_model(model, inputs):
        compiled.append(sorted(inputs))

        def forward(**arguments):
            calls.append(sorted(arguments))
            return model(**arguments)

        return forward

    monkeypatch.setattr("hf_efficient.variants.compiled.compile_model", compile_model)
    report = reporting("int8_dynamic", (10.0, 5.0, 2.0), compile=True)
    assert len(compiled) == 1
    assert len(calls) == 3  # two batches of the evaluation, and the timed one
    assert calls == compiled * 3
    quantized, both = report.row("quantized"), report.row("compiled")
    assert both.metrics["accuracy"] == quantized.metrics["accuracy"]
    assert both.agreement == quantized.agreement
    assert "loss" not in both.metrics
    assert report.recommended == "compiled"
    assert report.final.role == "quantized"


def test_half_precision_forms_are_rows_beside_the_float_models(reporting, monkeypatch):
    half = classifier().to(torch.bfloat16)
    monkeypatch.setattr(evaluation, "half_precision_forms", lambda models, device: {"bfloat16": half})
    report = reporting(milliseconds=(10.0, 2.0, 5.0))
    assert [row.role for row in report.models] == ["student", "bfloat16", "quantized"]
    assert report.recommended == "bfloat16"
    assert report.row("bfloat16").agreement > 0.8


@pytest.mark.parametrize("metrics", [None, compute_nothing], ids=["the trainer's metrics", "own metrics"])
def test_teacher_of_a_trimmed_model_is_evaluated_on_data_in_its_own_tokens(tmp_path, metrics):
    untrimmed = UntrimmedModel(classifier(), torch.arange(60), rows(4), metrics)
    evaluator, calls = build_evaluator(tmp_path, untrimmed)
    trainer, student = evaluator.trainer, classifier()
    evaluator.evaluate("teacher", untrimmed.model)
    evaluator.evaluate("student", student)
    expected = trainer.compute_metrics if metrics is None else metrics
    assert calls == [
        (untrimmed.model, untrimmed.eval_dataset, expected),
        (student, trainer.eval_dataset, trainer.compute_metrics),
    ]


def test_settings_of_training_are_described_for_the_report(tmp_path):
    trainer = build(tmp_path, Trainer, learning_rate=0.25, gradient_accumulation_steps=4)
    settings = describe_training(trainer.args, trainer.model)
    assert settings["learning_rate"] == 0.25
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["attn_implementation"] == "sdpa"
    assert "output_dir" not in settings
