"""The benchmark of a GPU, tried on the CPU; on a GPU, how often a training step waits for it."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "benchmarks"))

import gpu


def benchmark(device="cpu", repeats=1):
    options = argparse.Namespace(device=device, steps=18, repeats=repeats, batch_sizes=(1, 2))
    return gpu.Benchmark(gpu.TINY["tiny"], 4, 8, options)


def test_steps_of_every_technique_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    steps = benchmark().training()
    assert list(steps) == ["Trainer", gpu.LOOP, *gpu.TECHNIQUES]
    for step in steps.values():
        assert step["step_ms"] > 0
        assert step["synchronizations"] is None or torch.cuda.is_available()
        if step["compared_with"] is not None:
            assert step["ratio"] == pytest.approx(step["step_ms"] / steps[step["compared_with"]]["step_ms"])


def test_latency_memory_and_energy(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    measured = benchmark()
    assert {name: list(each) for name, each in measured.latency().items()} == {
        size: ["teacher float32", "student float32"] for size in ("1x8", "2x8")
    }
    assert all(each["peak_bytes"] > 0 for each in measured.checkpointing().values())
    assert set(measured.energy()["joules_per_1000_texts"]) == {"teacher", "student"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_techniques_wait_for_the_gpu_no_more_often_than_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    steps = benchmark("cuda").training()
    stock = steps["Trainer"]["synchronizations"]
    for name in gpu.TECHNIQUES:  # the forward pass of the teacher looks for padding, as that of any model does
        assert steps[name]["synchronizations"] <= stock + ("distillation" in gpu.TECHNIQUES[name])
