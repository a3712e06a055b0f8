import json
from dataclasses import replace

import pytest

from hf_efficient import CompressionReport
from hf_efficient.measurement.energy import Energy
from hf_efficient.measurement.report import TrainingResources, training_resources
from hf_efficient.measurement.report_rows import Latency, Ratios


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
    assert list(data) == [*documented, "training"]
    assert data["schema_version"] == 1
    row = data["models"][1]
    assert {
        "name", "role", "metrics", "parameters", "nonzero_parameters", "flops", "bytes_on_disk", "latency_ms",
        "samples_per_second", "peak_memory_bytes", "energy_joules_per_sample", "ratios",
    } <= row.keys()  # fmt: skip
    assert row["latency_ms"] == {
        "p50": 32.0, "p90": 40.0, "batch_size": 1, "sequence_length": 128, "threads": 2, "runtime": "torch float32"
    }  # fmt: skip
    others = {"metric_retained": pytest.approx(0.9), "generation": None}
    assert row["ratios"] == {"speedup": 2.5, "size": 5.5, "flops": 4.0, **others}


def test_what_was_not_measured_is_null(report):
    row = json.loads(report.to_json())["models"][2]
    assert [row[key] for key in ("latency_ms", "flops", "bytes_on_disk", "peak_memory_bytes")] == [None] * 4
    assert row["ratios"] == dict.fromkeys(("speedup", "size", "flops", "metric_retained", "generation"))
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
    del data["training"]
    for row in data["models"]:
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


def test_final_row_is_the_last_that_is_not_exported(report):
    assert report.final.role == "student"
    assert CompressionReport(models=report.models[2:]).final.role == "onnx"


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
