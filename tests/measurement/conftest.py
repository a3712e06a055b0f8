"""Rows and a report that the tests of the record, the table and the picture share."""

import pytest

from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.report_rows import Latency, ModelRow, with_ratios


def encoder_structure(heads, neurons):
    """Return the structure of an encoder from the kept heads and the number of neurons of each layer, by index."""
    return {
        "encoder": [
            {"source": source, "heads": {"attention": heads[source]}, "neurons": {"feed_forward": neurons[source]}}
            for source in heads
        ]
    }


@pytest.fixture
def teacher_row():
    return ModelRow(
        name="large",
        role="teacher",
        metrics={"accuracy": 0.9, "f1": 0.88},
        parameters=110_000_000,
        nonzero_parameters=110_000_000,
        flops=22_000_000_000,
        bytes_on_disk=440_000_000,
        latency_ms=Latency(80.0, 95.5, 1, 128, 2, "torch float32"),
        samples_per_second=12.5,
        structure=encoder_structure({layer: [0, 1, 2, 3] for layer in range(3)}, dict.fromkeys(range(3), 64)),
    )


@pytest.fixture
def student_row():
    return ModelRow(
        name="small",
        role="student",
        metrics={"accuracy": 0.81},
        parameters=20_000_000,
        flops=5_500_000_000,
        bytes_on_disk=80_000_000,
        latency_ms=Latency(32.0, 40.0, 1, 128, 2, "torch float32"),
        structure=encoder_structure({0: [1, 3], 2: []}, {0: 40, 2: 0}),
    )


@pytest.fixture
def unmeasured_row():
    return ModelRow(name="exported", role="onnx")


@pytest.fixture
def report(teacher_row, student_row, unmeasured_row):
    return CompressionReport(
        task="text-classification",
        dataset="reviews",
        metric="accuracy",
        stages=["pruned", "distilled"],
        models=with_ratios([teacher_row, student_row, unmeasured_row], "accuracy"),
        environment={"processor": "a processor", "accelerator": None, "packages": {"torch": "2.13"}},
        configs={"pruning": {"target_speedup": 2.5}},
    )
