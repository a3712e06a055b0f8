from types import SimpleNamespace

import pytest
import torch

from hf_efficient.measurement import target_costs
from hf_efficient.measurement.cost import count_flops, count_parameters
from hf_efficient.measurement.target_costs import TARGET_COSTS

SETTINGS = {"batch_size": 5, "sequence_length": 11, "new_tokens": 7, "runtime": "torch"}


@pytest.fixture
def timed_calls(monkeypatch):
    """Replaces timing: every call runs once; latencies are the length of its name, 100 and 1 ms."""
    outputs = []

    def time_interleaved(calls, repeats, warmup):
        outputs.extend(call() for call in calls.values())
        return {name: [float(len(name)), 100.0, 1.0] for name in calls}

    monkeypatch.setattr(target_costs, "time_interleaved", time_interleaved)
    return outputs


def test_latency_is_measured_with_the_requested_input_shape(make_model, timed_calls):
    shapes = []
    model = make_model().train()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    cost = TARGET_COSTS["target_speedup"](**SETTINGS)
    assert cost.measure(model) == len("model")
    assert cost.ratio(model, model) == len("reference") / len("student")
    assert set(shapes) == {(5, 11)}
    assert not model.training


def test_generation_is_timed_greedily_for_the_requested_number_of_tokens(make_model, timed_calls):
    model = make_model("T5ForConditionalGeneration").train()
    model.generation_config.num_beams = 3
    TARGET_COSTS["target_generation_speedup"](**SETTINGS).measure(model)
    assert {tuple(tokens.shape) for tokens in timed_calls} == {(5, 1 + 7)}  # with the start token
    assert not model.training


@pytest.mark.parametrize("name", ["target_speedup", "target_generation_speedup"])
def test_latency_costs_leave_room_for_noise(name):
    cost = TARGET_COSTS[name](**SETTINGS)
    assert (cost.min_factor, cost.aim_factor, cost.max_factor) == (1.05, 1.07, 1.1)
    assert not cost.is_deterministic


def test_flops_are_counted_with_the_requested_input_shape(make_model):
    model, larger = make_model(), make_model(num_hidden_layers=6)
    cost = TARGET_COSTS["target_flops"](**SETTINGS)
    flops = [count_flops(each, {"input_ids": torch.ones(5, 11, dtype=torch.long)}) for each in (larger, model)]
    assert cost.measure(model) == cost.measure(model.to("meta")) == flops[1]
    assert cost.ratio(larger, model.to("meta")) == flops[0] / flops[1]
    assert (cost.min_factor, cost.aim_factor, cost.is_deterministic) == (1, 1, True)


def test_size_is_the_number_of_parameters(make_model):
    model, larger = make_model(), make_model(num_hidden_layers=6)
    cost = TARGET_COSTS["target_size"](**SETTINGS)
    assert cost.measure(model) == count_parameters(model)
    assert cost.ratio(larger, model) == count_parameters(larger) / count_parameters(model)
    assert cost.is_deterministic


@pytest.mark.parametrize(
    ("device", "double", "warns"), [("cuda", 1.1, True), ("cuda", 1.9, False), ("cpu", 1.1, False)]
)
def test_latency_that_does_not_depend_on_the_batch_is_warned_of(monkeypatch, caplog, device, double, warns):
    model = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(target_costs, "model_inputs", lambda model, size, tokens: {})
    monkeypatch.setattr(target_costs, "build_runner", lambda runtime, model, inputs: None)
    monkeypatch.setattr(target_costs, "median_latencies_ms", lambda calls, seconds: {"1": 2.0, "2": 2.0 * double})
    target_costs.warn_if_launch_bound(model, 1, 64)
    assert ("2 texts of 64 tokens take 2.20 ms and 1 take 2.00 ms" in caplog.text) is warns
