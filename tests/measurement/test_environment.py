import re

import pytest
import torch

from hf_efficient.measurement.environment import describe_environment, has_fast_bfloat16

CPU = torch.device("cpu")


def test_environment_has_the_machine_and_versions():
    environment = describe_environment()
    assert {"processor", "cores", "threads", "accelerator", "system", "python", "packages"} <= environment.keys()
    assert environment["packages"]["torch"].startswith(re.match(r"\d+\.\d+", torch.__version__).group())
    assert environment["threads"] == torch.get_num_threads()
    assert environment["cores"] >= 1
    assert environment["processor"]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, None),
        ({}, None),
    ],
    ids=["AVX2", "AVX512-BF16", "AMX", "ARM", "unknown processor"],
)
def test_bfloat16_is_fast_on_x86_with_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_fast_bfloat16(CPU) is expected


def test_bfloat16_of_other_accelerators_is_unknown():
    assert has_fast_bfloat16(torch.device("mps")) is None


def test_bfloat16_is_that_of_the_processor_where_there_is_no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert has_fast_bfloat16() is has_fast_bfloat16(CPU)
