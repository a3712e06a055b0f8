import time
from functools import partial

import pytest
import torch

from hf_efficient.measurement.latency import (
    measure_throughput,
    sample_batches,
    sample_inputs,
    summarize_latency,
    time_interleaved,
)
from hf_efficient.measurement.report_rows import Latency


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock; return a function that advances it by a number of seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_calls_alternate_and_warmup_is_not_counted(clock):
    order, durations = [], iter(range(1, 100))

    def call(name):
        def work():
            order.append(name)
            clock(next(durations))

        return work

    milliseconds = time_interleaved(
        {"teacher": call("teacher"), "student": call("student")}, repeats=3, warmup=1, turn=2
    )
    assert order == ["teacher"] * 3 + ["student"] * 3 + ["teacher"] * 2 + ["student"] * 2
    assert milliseconds == {"teacher": [2000.0, 3000.0, 8000.0], "student": [5000.0, 6000.0, 10000.0]}


def test_calls_run_without_gradients():
    weight, outputs = torch.ones(2, requires_grad=True), []
    time_interleaved({"model": lambda: outputs.append(weight * 2)}, repeats=1, warmup=0)
    assert not outputs[0].requires_grad


def test_throughput_is_that_of_the_median_pass_and_models_alternate(clock):
    order, durations = [], {"teacher": iter([9.0, 2.0, 1.0]), "student": iter([1.0, 0.5, 30.0])}

    def process(name):
        order.append(name)
        clock(next(durations[name]))

    passes = {name: partial(process, name) for name in durations}
    assert measure_throughput(passes, dict.fromkeys(passes, 10)) == pytest.approx({"teacher": 5.0, "student": 10.0})
    assert order == ["teacher", "student"] * 3


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [(100, 32, [12, 37, 62, 87]), (3, 32, [0, 1, 2]), (4, 64, [1, 3]), (100, 500, [50]), (0, 32, [])],
)
def test_batches_are_sampled_evenly(count, batch_size, expected):
    assert sample_batches(iter(range(count)), batch_size) == expected


def test_summary_is_the_median_and_the_90th_percentile():
    latency = summarize_latency([float(value) for value in range(20, -1, -1)], 4, 128, runtime="torch float32")
    assert latency == Latency(10.0, 18.0, 4, 128, torch.get_num_threads(), "torch float32")
    assert summarize_latency([3.0], 1, 8, "").p90 == 3.0
    assert summarize_latency([1.0, 2.0, 40.0, 3.0], 1, 8, "").p50 == 2.5


def test_inputs_are_deterministic_and_unpadded():
    first, second = (sample_inputs(100, 2, 16, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].shape == first["attention_mask"].shape == (2, 16)
    assert int(first["attention_mask"].sum()) == 32
    assert int(first["input_ids"].max()) < 100
    assert len(first["input_ids"].unique()) > 16


def test_sampling_inputs_keeps_the_random_state():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    sample_inputs(100, 2, 16, torch.device("cpu"))
    assert torch.equal(torch.rand(2), expected)
