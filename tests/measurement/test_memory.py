import os

import pytest
import torch

from hf_efficient.measurement import memory
from hf_efficient.measurement.comparison import measure
from hf_efficient.measurement.memory import ProcessMemory, peak_bytes, suppress_stderr

MEGABYTE = 1000 * 1000
CPU = torch.device("cpu")


def test_peak_counts_tensors_that_exist_at_the_same_time():
    given = torch.zeros(MEGABYTE // 4)

    def work():
        first = given + 1
        second = first + 1
        del first
        third = second + 1
        return float((second + third)[0])

    assert 3 * MEGABYTE <= peak_bytes(work, CPU) < 3 * MEGABYTE + 10_000


def test_tensors_from_before_the_call_are_not_counted():
    given = torch.zeros(MEGABYTE)
    assert peak_bytes(lambda: given.add_(1), CPU) < 10_000


def test_larger_batches_need_more_memory_for_activations(make_model, make_batch):
    model = make_model()
    few, many = (
        measure(model, {"input_ids": torch.ones(batch, 16, dtype=torch.long)}, repeats=1) for batch in (1, 16)
    )
    activations = [row.peak_memory_bytes - row.bytes_on_disk for row in (few, many)]
    assert activations[0] > 0
    assert activations[1] == pytest.approx(16 * activations[0], rel=0.1)


def test_native_output_is_suppressed_within_the_context_only(capfd):
    with suppress_stderr():
        os.write(2, b"a note")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"


FLOATS = 2**24  # 64 MiB: more than an allocator keeps after freeing


def test_peak_includes_memory_that_was_freed():
    process_memory = ProcessMemory(torch.device("cpu"))
    if not process_memory.can_reset:
        pytest.skip("the kernel does not reset the peak")
    torch.ones(FLOATS)
    grown = process_memory.growth()
    assert grown == pytest.approx(4 * FLOATS, rel=0.05)
    assert process_memory.peak() == process_memory.held + grown
    process_memory.start()
    assert process_memory.growth() < 2**20


def test_peak_is_that_of_the_process_if_it_cannot_be_reset(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path)  # writing to a folder fails
    process_memory = ProcessMemory(torch.device("cpu"))
    assert not process_memory.can_reset
    assert process_memory.peak() >= 0.99 * process_memory.held > 0  # Linux updates its page counts in batches
    monkeypatch.setattr(memory, "PROCESS_STATUS", tmp_path / "none")
    assert ProcessMemory(torch.device("cpu")).growth() == 0


def test_memory_of_other_devices_is_none():
    process_memory = ProcessMemory(torch.device("meta"))
    assert (process_memory.held, process_memory.peak(), process_memory.growth()) == (None, None, None)
