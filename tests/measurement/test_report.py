import json
import re
from dataclasses import replace

import pytest

from hf_efficient import CompressionReport
from hf_efficient.measurement.report_rows import Latency, ModelRow, Ratios, with_ratios
from hf_efficient.measurement.report_table import SPARSITY_NOTE

STRUCTURE = {
    "encoder": [
        {"source": 0, "heads": {"attention": [1, 3]}, "neurons": {"feed_forward": 40}},
        {"source": 2, "heads": {"attention": []}, "neurons": {"feed_forward": 0}},
    ]
}
FULL = {
    "encoder": [{"source": i, "heads": {"attention": [0, 1, 2, 3]}, "neurons": {"feed_forward": 64}} for i in range(3)]
}
TEACHER = ModelRow(
    name="large",
    role="teacher",
    metrics={"accuracy": 0.9, "f1": 0.88},
    parameters=110_000_000,
    nonzero_parameters=110_000_000,
    flops=22_000_000_000,
    bytes_on_disk=440_000_000,
    latency_ms=Latency(80.0, 95.5, 1, 128, 2, "torch float32"),
    samples_per_second=12.5,
    structure=FULL,
)
STUDENT = ModelRow(
    name="small",
    role="student",
    metrics={"accuracy": 0.81},
    parameters=20_000_000,
    flops=5_500_000_000,
    bytes_on_disk=80_000_000,
    latency_ms=Latency(32.0, 40.0, 1, 128, 2, "torch float32"),
    structure=STRUCTURE,
)
UNMEASURED = ModelRow(name="exported", role="onnx")


@pytest.fixture
def report():
    return CompressionReport(
        task="text-classification",
        dataset="reviews",
        metric="accuracy",
        stages=["pruned", "distilled"],
        models=with_ratios([TEACHER, STUDENT, UNMEASURED], "accuracy"),
        environment={"processor": "a processor", "accelerator": None, "packages": {"torch": "2.13"}},
        configs={"pruning": {"target_speedup": 2.5}},
    )


def test_ratios_are_against_the_teacher():
    teacher, student, exported = with_ratios([TEACHER, STUDENT, UNMEASURED], "accuracy")
    assert teacher.ratios == Ratios(1, 1, 1, 1)
    assert student.ratios == Ratios(speedup=2.5, size=5.5, flops=4.0, metric_retained=pytest.approx(0.9))
    assert exported.ratios == Ratios()


def test_ratios_need_a_teacher_and_the_metric_on_both_sides():
    assert with_ratios([STUDENT], "accuracy")[0].ratios == Ratios()
    assert with_ratios([TEACHER, STUDENT], "f1")[1].ratios.metric_retained is None
    assert with_ratios([TEACHER, STUDENT], None)[1].ratios.metric_retained is None


def test_ratios_change_nothing_else():
    assert with_ratios([TEACHER, STUDENT], "accuracy")[1].structure == STRUCTURE
    assert with_ratios([TEACHER], None)[0].metrics == TEACHER.metrics
    assert STUDENT.ratios == Ratios()


def test_report_survives_json(report):
    again = CompressionReport.from_json(report.to_json())
    assert again == report
    assert again.to_json() == report.to_json()
    assert isinstance(again.models[1].latency_ms, Latency)
    assert isinstance(again.models[1].ratios, Ratios)


def test_empty_report_survives_json():
    assert CompressionReport.from_json(CompressionReport().to_json()).to_json() == CompressionReport().to_json()


def test_json_has_the_keys_that_others_read(report):
    data = json.loads(report.to_json())
    contract = ["schema_version", "task", "dataset", "metric", "stages", "models", "environment", "configs"]
    assert list(data) == [*contract, "training"]
    assert data["schema_version"] == 1
    row = data["models"][1]
    assert {
        "name", "role", "metrics", "parameters", "nonzero_parameters", "flops", "bytes_on_disk", "latency_ms",
        "samples_per_second", "peak_memory_bytes", "energy_joules_per_sample", "ratios",
    } <= row.keys()  # fmt: skip
    assert row["latency_ms"] == {
        "p50": 32.0, "p90": 40.0, "batch_size": 1, "sequence_length": 128, "threads": 2, "runtime": "torch float32"
    }  # fmt: skip
    kept = {"metric_retained": pytest.approx(0.9), "generation": None}
    assert row["ratios"] == {"speedup": 2.5, "size": 5.5, "flops": 4.0, **kept}


def test_what_was_not_measured_is_null_and_stays_so(report):
    row = json.loads(report.to_json())["models"][2]
    assert [row[key] for key in ("latency_ms", "flops", "bytes_on_disk", "peak_memory_bytes")] == [None] * 4
    assert row["ratios"] == dict.fromkeys(("speedup", "size", "flops", "metric_retained", "generation"))
    again = CompressionReport.from_json(report.to_json()).row("onnx")
    assert (again.latency_ms, again.parameters, again.ratios.speedup) == (None, None, None)


def test_other_schema_version_is_refused(report):
    other = json.dumps({**json.loads(report.to_json()), "schema_version": 2})
    with pytest.raises(ValueError, match="the report has schema version 2, this package reads version 1"):
        CompressionReport.from_json(other)
    with pytest.raises(ValueError, match="the report has schema version None"):
        CompressionReport.from_json('{"models": []}')


def test_report_is_saved_whole_and_loaded(report, tmp_path):
    path = report.save(tmp_path / "new" / "folder")
    assert path.name == "compression_report.json"
    assert [file.name for file in path.parent.iterdir()] == ["compression_report.json"]
    assert CompressionReport.load(path.parent) == report


def test_row_is_found_by_its_role(report):
    assert report.row("student").name == "small"
    with pytest.raises(KeyError, match="the report has no 'int8', only teacher, student, onnx"):
        report.row("int8")


def test_table_shows_the_numbers(report):
    text = report.markdown()
    for shown in ("large", "small", "0.9000", "0.8100", "32.0", "2.50x", "5.50x", "80.0 MB", "440 MB", "90.0%"):
        assert shown in text
    assert text.count("|") % len(text.splitlines()) == 0


def test_table_says_what_was_not_measured():
    nothing = CompressionReport(models=(UNMEASURED,)).markdown()
    assert "not measured" in nothing
    cells = [cell.strip() for line in nothing.splitlines() for cell in line.strip("|").split("|")]
    assert not [cell for cell in cells if re.match(r"(None|nan|[\d.]+)($|[ %x])", cell)]


def test_table_on_screen_has_a_cell_for_each_in_markdown(report):
    table = report.table()
    lines = report.markdown().splitlines()
    assert len(table.columns) == lines[0].count("|") - 1
    assert table.row_count == len(lines) - 2
    assert "reviews" in table.title


def test_conditions_say_how_latency_was_measured(report):
    sentence = report.conditions()
    for shown in ("batch 1 x 128 tokens", "a processor, 2 threads"):
        assert shown in sentence
    assert CompressionReport(models=(UNMEASURED,)).conditions() == "Latency was not measured."


def test_zeros_are_shown_where_they_were_put(report):
    teacher, student, exported = report.models
    sparse = replace(
        report,
        models=(
            replace(teacher, compressed_bytes_on_disk=400_000_000),
            replace(student, nonzero_parameters=9_000_000, compressed_bytes_on_disk=40_000_000),
            exported,
        ),
    )
    lines = sparse.markdown().splitlines()
    assert "| density | 100.0% | 45.0% | not measured |" in lines
    assert "| compressed on disk | 400 MB | 40.0 MB | not measured |" in lines
    assert sparse.conditions() == f"{report.conditions()} {SPARSITY_NOTE}"
    assert "neither faster nor smaller in memory" in SPARSITY_NOTE
    assert CompressionReport.from_json(sparse.to_json()) == sparse


def test_reports_without_zeros_do_not_mention_them(report):
    for word in ("density", "compressed on disk", "zero"):
        assert word not in report.markdown() + report.conditions()


def test_density_is_the_fraction_that_is_not_zero():
    assert (TEACHER.density, STUDENT.density) == (1.0, None)
    assert replace(STUDENT, nonzero_parameters=5_000_000).density == 0.25


def test_older_reports_are_read(report):
    data = json.loads(report.to_json())
    for row in data["models"]:
        del row["compressed_bytes_on_disk"]
    assert CompressionReport.from_json(json.dumps(data)) == report


@pytest.mark.parametrize("count", [1, 2, 3])
def test_plot_writes_a_picture(report, tmp_path, count):
    models = report.models[:count]
    path = CompressionReport(dataset="reviews", metric="accuracy", models=models).plot(tmp_path)
    assert path.name == "compression_report.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
