"""Tests of the products of integers, and of how one is chosen for this machine."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_efficient.models import int8_kernels
from hf_efficient.models.int8_kernels import (
    ACTIVATION_MAX,
    MIN_WEIGHT_ENTRIES,
    SMALL_PRODUCT,
    WEIGHT_LIMIT,
    AmxKernel,
    build_kernel,
    channel_weights,
    fbgemm_kernel,
    onednn_kernel,
    select_kernel,
)

HAS_AMX = AmxKernel in int8_kernels._supported_builders()
BUILDERS = [*int8_kernels._supported_builders(), *([onednn_kernel] if HAS_AMX else [])]


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def builder(request):
    return request.param


@pytest.fixture
def select_again():
    """Let `select_kernel` choose again in the test, and after it."""
    select_kernel.cache_clear()
    yield
    select_kernel.cache_clear()


def integers(low, high, *shape, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 48, 64), (7, 33, 100), (64, 256, 384), (3, 5, 1), (2, 1, 9)]
)
def test_products_are_those_of_integers(builder, rows, outputs, inputs):
    states, weight = integers(0, ACTIVATION_MAX, rows, inputs), integers(-WEIGHT_LIMIT, WEIGHT_LIMIT, outputs, inputs)
    kernel = builder(weight.to(torch.int8), torch.ones(outputs), None)
    assert torch.equal(kernel(states.float(), 1.0, 0), (states @ weight.T).float())


@pytest.mark.parametrize("sign", [-1, 1])
def test_largest_sums_do_not_saturate(builder, sign):
    weight = torch.full((32, 512), sign * WEIGHT_LIMIT, dtype=torch.int8)
    kernel = builder(weight, torch.ones(32), None)
    expected = torch.full((4, 32), float(sign * 512 * WEIGHT_LIMIT * ACTIVATION_MAX))
    assert torch.equal(kernel(torch.full((4, 512), float(ACTIVATION_MAX)), 1.0, 0), expected)


def test_scales_zero_point_and_bias_are_applied(builder):
    states, weight = integers(-100, 155, 6, 64), integers(-WEIGHT_LIMIT, WEIGHT_LIMIT, 40, 64)
    scale, bias = 2.0 ** -torch.arange(40).remainder(7).float(), torch.linspace(-8, 8, 40)
    kernel = builder(weight.to(torch.int8), scale, bias)
    expected = (states @ weight.T).float() * 0.5 * scale + bias
    torch.testing.assert_close(kernel(0.5 * states.float(), 0.5, 100), expected, rtol=1e-6, atol=1e-6)


def test_inputs_are_rounded_to_even_and_cut_off_at_the_range(builder):
    kernel = builder(torch.ones(1, 1, dtype=torch.int8), torch.ones(1), None)
    states = torch.tensor([[-9.0], [0.4], [0.5], [1.5], [2.6], [254.7], [300.0]])
    assert kernel(states, 1.0, 0).flatten().tolist() == [0, 0, 0, 2, 3, 255, 255]


def test_packing_keeps_the_quantized_engine(builder, monkeypatch):
    engine = torch.backends.quantized.engine
    other = next((name for name in ("onednn", "fbgemm") if name in torch.backends.quantized.supported_engines), engine)
    try:
        torch.backends.quantized.engine = other
        builder(torch.ones(4, 4, dtype=torch.int8), torch.ones(4), None)
        assert torch.backends.quantized.engine == other
    finally:
        torch.backends.quantized.engine = engine


@pytest.mark.parametrize("builder", int8_kernels._supported_builders(), ids=lambda builder: builder.__name__)
def test_small_weights_have_no_kernel(builder, monkeypatch):
    monkeypatch.setattr(int8_kernels, "select_kernel", lambda: builder)
    rows = MIN_WEIGHT_ENTRIES[builder] // 128
    assert build_kernel(torch.ones(rows - 1, 128, dtype=torch.int8), torch.ones(rows - 1), None) is None
    assert build_kernel(torch.ones(rows, 128, dtype=torch.int8), torch.ones(rows), None) is not None


@pytest.mark.skipif(not HAS_AMX, reason="this CPU has no AMX")
@pytest.mark.parametrize("small_first", [True, False])
def test_small_and_large_products_with_amx_are_the_same(small_first):
    weight, scale, bias = integers(-WEIGHT_LIMIT, WEIGHT_LIMIT, 256, 192), torch.rand(256) + 0.5, torch.rand(256)
    kernel = AmxKernel(weight.to(torch.int8), scale, bias)
    states = integers(0, ACTIVATION_MAX, SMALL_PRODUCT // weight.numel() + 1, 192).float()
    parts = (states[:9], states) if small_first else (states, states[:9])
    outputs = [kernel(part, 1.0, 0)[:9] for part in parts]
    assert kernel._small is not None
    assert kernel._large is not None
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(outputs[0], states[:9] @ weight.T.float() * scale + bias, rtol=1e-6, atol=1e-3)


@pytest.mark.skipif(not HAS_AMX, reason="this CPU has no AMX")
def test_a_weight_that_is_packed_for_amx_is_packed_once_for_the_products_that_occur():
    kernel = AmxKernel(torch.ones(256, 192, dtype=torch.int8), torch.ones(256), None)
    kernel(torch.ones(3, 192), 1.0, 0)
    assert kernel._large is None
    assert kernel._weight is None
    assert torch.equal(channel_weights(kernel, torch.arange(192), 192), torch.ones(192, 256))
    assert kernel._large is None


def test_weights_on_other_devices_have_no_kernel():
    weight = torch.ones(256, 256, dtype=torch.int8, device="meta")
    assert build_kernel(weight, torch.ones(256, device="meta"), None) is None


def test_first_builder_that_computes_correctly_is_selected(select_again, monkeypatch):
    def wrong(weight, scale, bias):
        return lambda rows, input_scale, zero_point: rows @ weight.float().T

    def missing(weight, scale, bias):
        return torch.ops.no_such_library.no_such_operator(weight)

    def right(weight, scale, bias):
        return lambda rows, input_scale, zero_point: rows @ weight.float().T + bias

    monkeypatch.setattr(int8_kernels, "_supported_builders", lambda: [wrong, missing, right])
    assert select_kernel() is right


def test_without_a_correct_builder_there_is_no_kernel(select_again, monkeypatch):
    def missing(weight, scale, bias):
        return torch.ops.no_such_library.no_such_operator(weight)

    monkeypatch.setattr(int8_kernels, "_supported_builders", lambda: [missing])
    assert select_kernel() is None
    assert build_kernel(torch.ones(256, 256, dtype=torch.int8), torch.ones(256), None) is None


@pytest.mark.parametrize(
    ("engines", "vectors", "capabilities", "expected"),
    [
        (["x86"], "AVX512", {"amx_int8": True}, [AmxKernel, fbgemm_kernel]),
        (["x86"], "AVX2", {"amx_int8": True}, [fbgemm_kernel]),
        (["x86"], "AVX512", {}, [fbgemm_kernel]),
        (["x86"], "AVX2", {}, [fbgemm_kernel]),
        (["x86"], "DEFAULT", {}, []),
        (["qnnpack"], "DEFAULT", {}, []),
    ],
)
def test_builders_follow_the_instructions_of_the_processor(monkeypatch, engines, vectors, capabilities, expected):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", engines)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert int8_kernels._supported_builders() == expected


def test_kernels_are_selected_one_thread_at_a_time(select_again, monkeypatch):
    # Packing sets the engine of the process and restores it: at the same time in two threads it could stay changed.
    running, most = [], []

    def compute(builder):
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return True

    monkeypatch.setattr(int8_kernels, "_supported_builders", lambda: [lambda weight, scale, bias: torch.relu])
    monkeypatch.setattr(int8_kernels, "_computes_correctly", compute)
    weight, scale = torch.ones(128, 128, dtype=torch.int8), torch.ones(128)
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(lambda _: build_kernel(weight, scale, None), range(8)))
    assert most == [1]
    assert kernels == [torch.relu] * 8
