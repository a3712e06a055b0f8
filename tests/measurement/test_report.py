import json
from dataclasses import replace

import pytest

from hf_efficient import CompressionReport
from hf_efficient.measurement.energy import Energy
from hf_efficient.measurement.report import TrainingResources, training_resources
from hf_efficient.measurement.report_rows import Latency, Ratios, with_ratios


def test_report_survives_json(report):
    loaded = CompressionReport.from_json(report.to_json())
    assert loaded == report
    assert loaded.to_json() == report.to_json()
    assert isinstance(loaded.models[1].latency_ms, Latency)
    assert isinstance(loaded.models[1].ratios, Ratios)


def test_empty_report_survives_json():
    assert CompressionReport.from_json(CompressionReport().to_json()).to_json() == CompressionReport().to_json()


def test_json_has_the_documented_keys(report):
    data = json.loads(report.to_json())
    documented = ["schema_version", "task", "dataset", "metric", "stages", "models", "environment", "configs"]
    assert list(data) == [*documented, "training", "training_curve", "recommended", "targets"]
    assert data["recommended"] == "student"
    assert data["targets"] == [{"name": "speedup", "asked": 2.5, "reached": 2.5, "role": "student"}]
    assert data["schema_version"] == 1
    row = data["models"][1]
    assert {
        "name", "role", "metrics", "parameters", "nonzero_parameters", "flops", "bytes_on_disk", "latency_ms",
        "samples_per_second", "peak_memory_bytes", "energy_joules_per_sample", "ratios",
    } <= row.keys()  # fmt: skip
    assert row["latency_ms"] == {
        "p50": 32.0, "p90": 40.0, "batch_size": 1, "sequence_length": 128, "threads": 2, "runtime": "torch float32"
    }  # fmt: skip
    others = {"metric_retained": pytest.approx(0.9), "generation": None, "metric_difference": pytest.approx(-0.09)}
    assert row["ratios"] == {"speedup": 2.5, "size": 5.5, "flops": 4.0, **others}


def test_what_was_not_measured_is_null(report):
    row = json.loads(report.to_json())["models"][2]
    assert [row[key] for key in ("latency_ms", "flops", "bytes_on_disk", "peak_memory_bytes")] == [None] * 4
    assert row["ratios"] == dict.fromkeys(
        ("speedup", "size", "flops", "metric_retained", "generation", "metric_difference")
    )
    loaded = CompressionReport.from_json(report.to_json()).row("onnx")
    assert (loaded.latency_ms, loaded.parameters, loaded.ratios.speedup) == (None, None, None)


def test_other_schema_version_is_refused(report):
    other = json.dumps({**json.loads(report.to_json()), "schema_version": 2})
    with pytest.raises(ValueError, match="the report has schema version 2, this package reads version 1"):
        CompressionReport.from_json(other)
    with pytest.raises(ValueError, match="the report has schema version None"):
        CompressionReport.from_json('{"models": []}')


def test_older_reports_are_read(report):
    data = json.loads(report.to_json())
    for name in ("training", "training_curve", "recommended", "targets"):
        del data[name]
    for row in data["models"]:
        del row["agreement"], row["max_difference_without_kernels"]
        del row["compressed_bytes_on_disk"], row["generation_ms"], row["ratios"]["generation"]
    assert CompressionReport.from_json(json.dumps(data)) == report


def test_report_is_saved_atomically_and_loaded(report, tmp_path):
    path = report.save(tmp_path / "new" / "folder")
    assert path.name == "compression_report.json"
    assert [file.name for file in path.parent.iterdir()] == ["compression_report.json"]
    assert CompressionReport.load(path.parent) == report


def test_rows_are_found_by_role(report):
    assert report.row("student").name == "small"
    with pytest.raises(KeyError, match="the report has no 'int8', only teacher, student, onnx"):
        report.row("int8")


def test_final_row_is_the_model_that_is_loaded(report):
    assert report.final.role == "student"
    assert CompressionReport(models=report.models[2:]).final.role == "onnx"
    compiled = [replace(report.models[1], role=role) for role in ("float16", "quantized", "compiled")]
    assert replace(report, models=[*report.models[:2], *compiled]).final.role == "quantized"


def with_quantized(report, milliseconds, **changes):
    """Return the report, whose student takes 32 ms, with a quantized form that takes so many."""
    teacher, student, exported = report.models
    latency = replace(student.latency_ms, p50=milliseconds)
    row = replace(student, name="8-bit", role="quantized", latency_ms=latency, bytes_on_disk=20_000_000, **changes)
    return replace(report, models=with_ratios([teacher, student, row, exported], "accuracy"))


def test_summary_recommends_the_faster_form(report):
    faster = with_quantized(report, 20.0)
    assert faster.recommended == "quantized"
    assert not faster.ships_slower_form
    assert faster.summary() == (
        "2.5x speed-up asked, 2.50x reached. On this machine use 8-bit: 4.00 times as fast as the teacher, 1.60 times "
        "as fast as the float student."
    )


def test_summary_says_that_a_slower_form_is_not_faster_here(report):
    slower = with_quantized(report, 128.0)
    assert slower.recommended == "student"
    assert slower.ships_slower_form
    assert slower.summary() == (
        "2.5x speed-up asked, 2.50x reached. On this machine use the float student: 2.50 times as fast as the "
        "teacher, no other form is faster at the same quality. The model in the output folder, 8-bit, is smaller, not "
        "faster here: it takes 4.00 times as long as the float student, which is in the folder _student."
    )


def test_summary_of_a_quantization_alone_compares_with_the_model_before(report):
    models = [row for row in with_quantized(report, 160.0).models if row.role in ("teacher", "quantized")]
    summary = replace(report, models=models, configs={}).summary()
    assert summary == (
        "On this machine use the large: no other form is faster at the same quality. The model in the output folder, "
        "8-bit, is smaller, not faster here: it takes 2.00 times as long as the large."
    )


def test_missed_targets_are_named(report):
    assert report.missed_targets() == ""
    missed = replace(report, configs={"pruning": {"target_speedup": 4.0, "target_size": 5.5}})
    assert missed.missed_targets() == "4x speed-up asked, 2.50x reached."
    assert missed.summary() == (
        "4x speed-up asked, 2.50x reached. 5.5x smaller size asked, 5.50x reached. On this machine use the float "
        "student: 2.50 times as fast as the teacher, no other form is faster at the same quality."
    )


def test_reports_without_forms_have_no_summary(report):
    assert replace(report, models=report.models[:2], configs={}).summary() == ""
    assert CompressionReport().summary() == ""


def test_training_resources_hold_seconds_and_measured_energy():
    assert training_resources(60.0, None) == TrainingResources(60.0, None, None)
    resources = training_resources(60.0, Energy(7200.0, 1.5))
    assert resources == TrainingResources(60.0, 7200.0, 1.5)
    report = CompressionReport(training=resources)
    assert CompressionReport.from_json(report.to_json()).training == resources


@pytest.mark.parametrize("count", [1, 2, 3])
def test_plot_writes_one_picture(report, tmp_path, count):
    path = replace(report, models=report.models[:count]).plot(tmp_path)
    assert path.name == "compression_report.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
