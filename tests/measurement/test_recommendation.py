"""The form that is recommended is fast, as good as float, and never one that is slower than the float student."""

import pytest

from hf_efficient.measurement.recommendation import list_targets, recommend, student_forms
from hf_efficient.measurement.report_rows import GenerationLatency, Latency, ModelRow, Ratios, with_ratios


def form(role, milliseconds=None, size=100, metric=0.9, generation=None):
    return ModelRow(
        role,
        role,
        {} if metric is None else {"accuracy": metric},
        bytes_on_disk=size,
        latency_ms=milliseconds and Latency(milliseconds, milliseconds, 1, 64, 2, "torch"),
        generation_ms=generation and GenerationLatency(generation, generation, 20, 1, 64),
    )


TEACHER, STUDENT = form("teacher", 80.0, 200, 0.92), form("student", 40.0)


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ([form("quantized", 20.0)], "quantized"),
        ([form("quantized", 40.5, size=25)], "student"),  # a little slower than float is slower
        ([form("quantized", 39.5, size=25)], "quantized"),
        ([form("quantized", 20.0, size=25), form("openvino", 19.5, size=25)], "quantized"),
        ([form("quantized", 20.0, size=25), form("openvino", 19.5, size=24)], "openvino"),
        ([form("quantized", 20.0, size=25), form("openvino", 10.0, size=50)], "openvino"),
        ([form("quantized", 20.0, metric=0.891)], "quantized"),
        ([form("quantized", 20.0, metric=0.889)], "student"),
        ([form("quantized", 20.0, metric=float("nan"))], "student"),
        ([form("quantized", 20.0, metric=None)], "quantized"),
        ([form("quantized")], "student"),
        ([form("teacher float16", 5.0)], "student"),
        ([form("float16", 5.0)], "float16"),
        ([], "student"),
    ],
)
def test_recommended_form(forms, expected):
    assert recommend([TEACHER, STUDENT, *forms], "accuracy").role == expected


def test_large_metrics_may_lose_one_percent():
    models = [form("student", 40.0, metric=35.0), form("quantized", 20.0, metric=34.7)]
    assert recommend(models, "accuracy").role == "quantized"
    assert recommend([models[0], form("quantized", 20.0, metric=34.6)], "accuracy").role == "student"


@pytest.mark.parametrize(("perplexity", "expected"), [(8.05, "quantized"), (8.2, "student"), (3.0, "quantized")])
def test_lower_perplexity_is_better(perplexity, expected):
    student, quantized = (
        ModelRow(role, role, {"perplexity": value}, latency_ms=Latency(time, time, 1, 1, 1, ""))
        for role, value, time in (("student", 8.0, 2.0), ("quantized", perplexity, 1.0))
    )
    assert recommend([student, quantized], "perplexity").role == expected


def test_generation_counts_where_it_was_timed():
    models = [form("student", 40.0, generation=4.0), form("quantized", 20.0, generation=5.0)]
    assert recommend(models, None).role == "student"
    assert recommend([*models, form("compiled", 1.0)], None).role == "student"  # its generation was not timed
    assert recommend([models[0], form("onnx", 50.0, generation=2.0)], None).role == "onnx"


def test_student_without_latency_is_recommended():
    assert recommend([TEACHER, form("student"), form("quantized", 20.0)], "accuracy").role == "student"


def test_forms_of_a_model_that_is_no_student():
    quantized = form("quantized", 10.0)
    assert recommend([TEACHER, form("quantized", 10.0, metric=0.915)], "accuracy").role == "quantized"
    assert recommend([TEACHER, form("quantized", 90.0)], "accuracy") is TEACHER
    assert student_forms([TEACHER, quantized, form("teacher 2"), form("student 1")]) == [TEACHER, quantized]


def test_nothing_is_recommended_among_different_models():
    assert recommend([TEACHER, form("student 1", 1.0)], "accuracy") is None
    assert recommend([], None) is None


# ---- targets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def models():
    return with_ratios([TEACHER, STUDENT, form("quantized", 20.0, size=25)], "accuracy")


@pytest.mark.parametrize(("runtime", "reached"), [("torch", 2.0), ("onnx", 2.0), ("int8", 4.0), ("fastest", 8.0)])
def test_speed_up_is_that_of_the_model_that_counts(models, runtime, reached):
    fastest = ModelRow("x", "onnx", ratios=Ratios(speedup=8.0))
    [target] = list_targets([*models, fastest], {"target_speedup": 3.0, "latency_runtime": runtime}, fastest)
    assert (target.asked, target.reached) == (3.0, reached)


def test_other_targets_are_those_of_the_float_student(models):
    settings = {"target_size": 2.0, "target_flops": 3.0, "target_speedup": None, "latency_runtime": "int8"}
    flops, size = list_targets(models, settings, None)
    assert (size.reached, size.role, size.describe()) == (2.0, "student", "2x smaller size asked, 2.00x reached")
    assert (flops.reached, flops.is_missed) == (None, False)
    assert flops.describe() == "3x fewer operations asked, not measured"
    assert list_targets(models, {"heads": 0.5}, None) == ()


@pytest.mark.parametrize(("asked", "is_missed"), [(1.9, False), (2.03, False), (2.05, True)])
def test_targets_are_missed_by_more_than_two_percent(models, asked, is_missed):
    [target] = list_targets(models, {"target_speedup": asked}, None)
    assert target.is_missed == is_missed
