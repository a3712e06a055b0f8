import re
from dataclasses import replace

import pytest
from rich.console import Console

from hf_efficient import CompressionReport
from hf_efficient.measurement.intervals import Interval
from hf_efficient.measurement.report_rows import GenerationLatency, ModelRow
from hf_efficient.measurement.report_table import GENERATION_NOTE, SPARSITY_NOTE, TORCHAO_NOTE


def test_table_shows_the_numbers(report):
    text = report.markdown()
    for shown in ("large", "small", "0.9000", "0.8100", "32.0", "2.50x", "5.50x", "80.0 MB", "440 MB", "90.0%"):
        assert shown in text
    assert text.count("|") % len(text.splitlines()) == 0


def test_numbers_of_a_small_model_have_three_digits_too(report):
    tiny = replace(report.models[0], flops=3_100_000, bytes_on_disk=412_000, peak_memory_bytes=940_400)
    lines = replace(report, models=(replace(tiny, energy_joules_per_sample=0.00034),)).markdown().splitlines()
    assert {
        "| size on disk | 412 kB |",
        "| operations | 3.10 MFLOP |",
        "| peak memory | 940 kB |",
        "| energy of 1,000 predictions | 340 mJ |",
    } <= set(lines)


def test_table_says_what_was_not_measured(unmeasured_row):
    text = CompressionReport(models=(unmeasured_row,)).markdown()
    assert "not measured" in text
    cells = [cell.strip() for line in text.splitlines() for cell in line.strip("|").split("|")]
    assert not [cell for cell in cells if re.match(r"(None|nan|[\d.]+)($|[ %x])", cell)]


def test_table_on_screen_has_the_cells_of_the_markdown(report):
    table = report.table()
    lines = report.markdown().splitlines()
    assert len(table.columns) == lines[0].count("|") - 1
    assert table.row_count == len(lines) - 2
    assert "reviews" in table.title


@pytest.mark.parametrize("count", [1, 4, 8])
def test_table_on_screen_fits_120_columns_and_shows_names_in_full(teacher_row, count):
    name = "distilbert-base-uncased-finetuned-sst-2-english openvino_int8_weight_only"
    rows = [replace(teacher_row, name=f"{name} {number} [/b]", role=f"model {number}") for number in range(count)]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(CompressionReport(models=rows).table())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert "…" not in "".join(lines)


def test_conditions_say_how_latency_was_measured(report, unmeasured_row):
    conditions = report.conditions()
    for shown in (
        "batch 1 x 128 tokens",
        "models timed alternately",
        "on a processor, 2 threads",
        "speed-up relative",
    ):
        assert shown in conditions
    assert CompressionReport(models=(unmeasured_row,)).conditions() == "Latency was not measured."


def test_conditions_of_one_model_name_its_accelerator_and_attention(student_row):
    report = CompressionReport(
        models=(student_row,),
        environment={"processor": "a processor", "accelerator": "a GPU"},
        configs={"training": {"attn_implementation": "sdpa"}},
    )
    assert report.conditions() == (
        "Latency: median of one forward pass at batch 1 x 128 tokens, on a GPU, sdpa attention."
    )


def test_zeros_are_shown_where_connections_were_removed(report):
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
    assert sparse.has_sparse_models
    assert sparse.conditions() == f"{report.conditions()} {SPARSITY_NOTE}"
    assert "neither faster nor smaller in memory" in SPARSITY_NOTE
    assert CompressionReport.from_json(sparse.to_json()) == sparse


def test_reports_without_zeros_do_not_mention_them(report):
    assert not report.has_sparse_models
    for word in ("density", "compressed on disk", "zero"):
        assert word not in report.markdown() + report.conditions()


def test_generation_is_shown_for_models_that_generate(report):
    teacher, student, exported = report.models
    generating = replace(
        report,
        models=(
            replace(teacher, generation_ms=GenerationLatency(20.0, 4.0, 16, 1, 128)),
            replace(student, ratios=replace(student.ratios, generation=2.0)),
            exported,
        ),
    )
    lines = generating.markdown().splitlines()
    assert "| first token | 20.0 ms | not measured | not measured |" in lines
    assert "| next token | 4.00 ms | not measured | not measured |" in lines
    assert "| generation speed-up | not measured | 2.00x | not measured |" in lines
    assert GENERATION_NOTE in generating.conditions()
    assert GENERATION_NOTE not in report.conditions()


def test_conditions_explain_torchao_without_compilation(report):
    quantized = replace(report.models[1], role="quantized")
    int8 = replace(quantized, latency_ms=replace(quantized.latency_ms, runtime="torch int8"))
    assert TORCHAO_NOTE in replace(report, models=(*report.models, int8)).conditions()
    assert TORCHAO_NOTE not in replace(report, models=(*report.models, quantized)).conditions()
    assert TORCHAO_NOTE not in replace(report, models=(ModelRow("8-bit", "quantized"),)).conditions()
    native = replace(report, models=(*report.models, int8), configs={"quantization": {"torchao": False}})
    assert TORCHAO_NOTE not in native.conditions()


def test_conditions_say_how_much_int8_differs_on_other_machines(report):
    int8 = replace(report.models[1], role="quantized", max_difference_without_kernels=0.0054)
    conditions = replace(report, models=(*report.models, int8)).conditions()
    assert conditions.endswith("its outputs differ by up to 0.54% of the largest, measured here.")
    assert "8-bit products" not in report.conditions()


def test_agreement_with_float_is_shown_where_it_was_measured(report):
    teacher, student, exported = report.models
    lines = replace(report, models=(teacher, student, replace(exported, agreement=0.9966))).markdown().splitlines()
    assert "| same as float | not measured | not measured | 99.7% |" in lines
    assert "same as float" not in report.markdown()


def test_recommended_form_and_slower_ones_are_marked(report):
    teacher, student, exported = report.models
    slow = replace(exported, latency_ms=replace(student.latency_ms, p50=33.0), bytes_on_disk=10)
    fast = replace(exported, role="openvino", latency_ms=replace(student.latency_ms, p50=10.0))
    large = replace(slow, role="compiled", bytes_on_disk=10**9)
    last = replace(report, models=(teacher, student, slow, large, fast)).markdown().splitlines()[-1]
    assert last == "| on this machine |  |  | smaller, not faster here | not faster here | recommended |"
    assert "on this machine" not in replace(report, models=(teacher, student)).markdown()


def test_share_that_is_kept_has_its_interval(report):
    interval = Interval(0.85, 0.952, 0.95, 872, "paired bootstrap, 1000 resamples, percentiles")
    teacher, student, other = report.models
    student = replace(student, retained_intervals={"accuracy": interval}, teacher_agreement=0.913)
    report = replace(report, models=(teacher, student, other))
    lines = report.markdown().splitlines()
    assert "| accuracy kept | 100.0% | 90.0% (85.0 to 95.2) | not measured |" in lines
    assert "| same as the teacher |  | 91.3% | not measured |" in lines
    few = "accuracy kept: 95% interval, from a paired bootstrap of the 872 rows: 872 rows cannot tell 1 point."
    assert few in report.conditions()
    narrow = replace(student, retained_intervals={"accuracy": replace(interval, low=0.945)})
    assert "of the 872 rows." in replace(report, models=(teacher, narrow)).conditions()
    assert replace(report, metric="f1").markdown().count("(85.0") == 0
    assert CompressionReport.from_json(report.to_json()) == report
