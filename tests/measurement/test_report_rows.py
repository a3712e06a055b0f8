from dataclasses import replace

import pytest

from hf_efficient.measurement.report_rows import GenerationLatency, Ratios, with_ratios


def test_ratios_are_relative_to_the_teacher(teacher_row, student_row, unmeasured_row):
    teacher, student, exported = with_ratios([teacher_row, student_row, unmeasured_row], "accuracy")
    assert teacher.ratios == Ratios(1, 1, 1, 1, metric_difference=0)
    assert student.ratios == Ratios(
        speedup=2.5,
        size=5.5,
        flops=4.0,
        metric_retained=pytest.approx(0.9),
        metric_difference=student.metrics["accuracy"] - teacher.metrics["accuracy"],
    )
    assert exported.ratios == Ratios()


def test_ratios_need_a_teacher_and_the_metric_of_both_models(teacher_row, student_row):
    assert with_ratios([student_row], "accuracy")[0].ratios == Ratios()
    assert with_ratios([teacher_row, student_row], "f1")[1].ratios.metric_retained is None
    assert with_ratios([teacher_row, student_row], None)[1].ratios.metric_retained is None


@pytest.mark.parametrize(
    ("metric", "values"),
    [("pearson", (-0.12, -0.21)), ("pearson", (0.12, -0.3)), ("pearson", (0.0, 0.1)), ("perplexity", (10.0, 17.0))],
)
def test_metric_that_is_no_share_of_the_teachers_is_given_as_a_difference(teacher_row, student_row, metric, values):
    rows = [
        replace(row, metrics={metric: value}) for row, value in zip((teacher_row, student_row), values, strict=True)
    ]
    ratios = with_ratios(rows, metric)[1].ratios
    assert ratios.metric_retained is None
    assert ratios.metric_difference == pytest.approx(values[1] - values[0])


def test_ratios_change_nothing_else(teacher_row, student_row):
    student = with_ratios([teacher_row, student_row], "accuracy")[1]
    assert replace(student, ratios=Ratios()) == student_row
    assert with_ratios([teacher_row], None)[0].metrics == teacher_row.metrics
    assert student_row.ratios == Ratios()


def test_generation_ratio_is_that_of_the_complete_text(teacher_row, student_row):
    teacher = replace(teacher_row, generation_ms=GenerationLatency(20.0, 4.0, 16, 8, 32))
    student = replace(student_row, generation_ms=GenerationLatency(10.0, 2.0, 16, 8, 32))
    assert (teacher.generation_duration_ms, student.generation_duration_ms) == (80.0, 40.0)
    assert with_ratios([teacher, student], None)[1].ratios.generation == 2.0
    assert with_ratios([teacher, student_row], None)[1].ratios.generation is None


def test_density_is_the_fraction_that_is_not_zero(teacher_row, student_row):
    assert (teacher_row.density, student_row.density) == (1.0, None)
    assert replace(student_row, nonzero_parameters=5_000_000).density == 0.25
