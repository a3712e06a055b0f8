"""Tests of Linears and embeddings with 8-bit weights."""

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from int8_cases import ACTIVATIONS, error, float_outputs, has_kernel, int8_linear, states_of
from safetensors.torch import save
from torch import nn

from hf_efficient.models import int8
from hf_efficient.models.int8 import Int8Embedding, Int8Linear, Int8Slice, install_int8
from hf_efficient.models.int8_kernels import select_kernel

pytestmark = pytest.mark.usefixtures("kernels_for_tiny_weights")
needs_kernel = pytest.mark.skipif(select_kernel() is None, reason="no product of integers is faster than float here")


@pytest.fixture(params=ACTIVATIONS, ids=str)
def activations(request):
    return request.param


@pytest.fixture(params=["kernel", "float"])
def way(request, monkeypatch):
    """Compute with the kernel of this machine, and in float as on a machine without one."""
    if request.param == "float":
        monkeypatch.setattr(int8, "build_kernel", lambda *_: None)
    elif select_kernel() is None:
        pytest.skip("no product of integers is faster than float here")
    return request.param


# ---- outputs ----


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_close_to_those_in_float(activations, way, bias):
    linear, states = int8_linear(activations, bias=bias), states_of(3, 7, 160)
    outputs = linear(states)
    assert outputs.shape == (3, 7, 192)
    assert has_kernel(linear) == (way == "kernel" and activations is not None)
    assert error(outputs, float_outputs(linear, states)) < (0.015 if has_kernel(linear) else 1e-6)


@needs_kernel
def test_static_outputs_are_those_of_rounded_inputs():
    linear, states = int8_linear("static"), states_of(9, 160)
    scale = 8 / 255
    rounded = ((states / scale).round() + 128).clamp(0, 255).sub(128) * scale
    assert error(linear(states), float_outputs(linear, rounded)) < 1e-6


@needs_kernel
def test_dynamic_outputs_are_those_of_inputs_rounded_by_the_largest_of_their_token():
    linear, states = int8_linear("dynamic"), states_of(9, 160) * torch.logspace(-6, 6, 9)[:, None]
    largest = states.abs().amax(-1, keepdim=True)
    expected = float_outputs(linear, (states / largest * 127).round() / 127 * largest)
    for row in range(9):
        assert error(linear(states)[row], expected[row]) < 1e-5


def test_an_output_depends_on_its_own_token_only(activations, way):
    linear, states = int8_linear(activations, outliers=(3,) if activations == "static" else ()), states_of(40, 160)
    states[17] *= 1000
    together = linear(states)
    for row in (0, 17, 39):
        assert error(linear(states[row]), together[row]) < 1e-6
    inside = torch.arange(40) != 17
    assert error(linear(states[inside]), together[inside]) < 1e-6


@pytest.mark.parametrize("shape", [(0, 160), (2, 0, 160), (160,), (1, 160), (1, 1, 160), (2, 3, 4, 160)])
def test_leading_dimensions_are_kept(activations, shape):
    linear, states = int8_linear(activations), states_of(*shape)
    outputs = linear(states)
    assert outputs.shape == (*shape[:-1], 192)
    if states.numel():
        assert error(outputs, float_outputs(linear, states)) < 0.02


def test_non_contiguous_inputs_give_the_same(activations):
    linear, states = int8_linear(activations), states_of(160, 12)
    assert torch.equal(linear(states.T), linear(states.T.contiguous()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel", [0, 3])
def test_non_finite_inputs_give_non_finite_outputs(activations, value, channel):
    linear, states = int8_linear(activations, outliers=(3,) if activations == "static" else ()), states_of(5, 160)
    expected = linear(states).clone()
    states[2, channel] = value
    outputs = linear(states)
    assert not outputs[2].isfinite().any()
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(outputs[kept], expected[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outliers", [(), (3, 90)])
def test_values_beyond_the_calibrated_range_are_not_cut_off(outliers):
    linear = int8_linear("static", outliers=outliers)
    for states in (3 * states_of(20, 160), states_of(20, 160).index_fill(1, torch.tensor(7), 400.0)):
        assert states.abs().max() > 5
        assert error(linear(states), float_outputs(linear, states)) < 0.02


def test_values_beyond_the_range_are_not_cut_off_beside_a_large_outlier():
    linear = int8_linear("static", outliers=(3,))
    states = states_of(20, 160)
    states[:, 3], states[:, 7] = 300.0, 100.0
    assert error(linear(states), float_outputs(linear, states)) < 0.02


@needs_kernel
def test_values_just_beyond_the_range_are_cut_off():
    linear, states = int8_linear("static"), torch.zeros(1, 160)
    states[0, 5] = 4.9
    cut = states.clone()
    cut[0, 5] = 127 * 8 / 255
    assert error(linear(states), float_outputs(linear, cut)) < 1e-6


def test_outlier_channels_stay_in_float(monkeypatch):
    states = states_of(20, 160)
    states[:, [3, 90]] *= 300
    linear = int8_linear("static", outliers=(3, 90))
    added = []
    monkeypatch.setattr(Int8Linear, "_add_excess", lambda *_: added.append(1))
    assert error(linear(states), float_outputs(linear, states)) < 1e-3
    assert added == []  # outliers do not take part in the limits


def test_range_without_width_gives_the_products_in_float():
    linear, states = int8_linear("static", low=0.0, high=0.0), states_of(4, 160)
    assert error(linear(states), float_outputs(linear, states)) < 1e-6
    assert torch.equal(linear(torch.zeros(1, 160)), linear.bias.detach()[None])


def test_dead_outputs_are_their_bias(activations):
    linear = int8_linear(activations)
    linear.weight[5], linear.weight_scale[5] = 0, 1.0
    weight = linear.weight.clone()
    torch.testing.assert_close(linear(states_of(6, 160))[:, 5], linear.bias[5].expand(6), rtol=0, atol=1e-6)
    assert torch.equal(linear.state_dict()["weight"], weight)


def test_threads_with_a_freshly_loaded_model_get_equal_outputs(activations):
    linear, states = int8_linear(activations), states_of(5, 160)
    expected = copy.deepcopy(linear)(states)
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda _: linear(states), range(32)))
    assert all(torch.equal(each, expected) for each in outputs)


def test_without_the_operators_of_torch_the_product_is_in_float(monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'quantized' object has no attribute 'linear_prepack'")

    monkeypatch.setattr("hf_efficient.models.int8_kernels._supported_builders", lambda: [missing])
    select_kernel.cache_clear()
    linear, states = int8_linear("static"), states_of(4, 160)
    try:
        assert error(linear(states), float_outputs(linear, states)) < 1e-6
    finally:
        select_kernel.cache_clear()


# ---- stored tensors ----


def test_stored_tensors_are_the_same_before_and_after_use(activations, way):
    linear = int8_linear(activations, outliers=(3,) if activations == "static" else ())
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    saved = save(linear.state_dict())
    linear(states_of(2, 160))
    after = linear.state_dict()
    assert after.keys() == before.keys()
    assert after["weight"].dtype == torch.int8
    assert all(torch.equal(after[name], value) and after[name].is_contiguous() for name, value in before.items())
    linear(states_of(2, 160))
    assert save(linear.state_dict()) == saved


def test_stored_weights_are_the_same_whatever_the_sizes_of_scales_and_biases():
    linear = int8_linear("static")
    linear.weight_scale.copy_(torch.logspace(-6, 3, 192))
    linear.bias.data.copy_(torch.linspace(-30, 30, 192).flip(0))
    weight = linear.weight.clone()
    linear(states_of(2, 160))
    assert torch.equal(linear.state_dict()["weight"], weight)


@needs_kernel
def test_plain_weight_is_freed_at_the_first_use():
    linear = int8_linear("static")
    linear(states_of(2, 160))
    assert linear.weight is None
    assert linear.state_dict()["weight"].shape == (192, 160)


def test_loaded_weights_replace_packed_ones(activations, way):
    linear, other, states = int8_linear(activations), int8_linear(activations, seed=1), states_of(4, 160)
    before = linear(states)
    linear.load_state_dict(other.state_dict())
    assert torch.equal(linear(states), other(states))
    assert not torch.equal(linear(states), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_point_types_give_outputs_of_their_type(activations, way, dtype):
    linear, states = int8_linear(activations, outliers=(3,) if activations == "static" else ()), states_of(4, 160)
    expected, weight = float_outputs(linear, states), linear.weight.clone()
    linear(states)
    linear.to(dtype)
    outputs = linear(states.to(dtype))
    assert outputs.dtype == linear.weight_scale.dtype == dtype
    assert error(outputs, expected) < 0.02
    assert torch.equal(linear.state_dict()["weight"], weight)
    assert error(linear.float()(states), expected) < 0.02


def test_moving_a_used_module_moves_its_weight(activations):
    linear = int8_linear(activations)
    linear(states_of(2, 160))
    assert linear.to("meta").weight.device.type == "meta"


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: torch.load(_saved(module), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_compute_the_same(activations, way, copied):
    linear, states = int8_linear(activations), states_of(4, 160)
    linear.register_module("part", Int8Slice(linear, 10, 30))
    expected = linear(states)
    copy_of_it = copied(linear)
    assert torch.equal(copy_of_it(states), expected)
    assert torch.equal(copy_of_it.part(states), expected[:, 10:30])
    assert copy_of_it.part._source[0] is copy_of_it
    assert torch.equal(linear(states), expected)


def _saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return buffer


@needs_kernel
def test_used_module_is_pickled_with_plain_weights_alone():
    linear = int8_linear("static")
    linear(states_of(2, 160))
    state = pickle.loads(pickle.dumps(linear)).__dict__
    assert (state["_packed"], state["_float_weight"]) == (None, None)
    assert torch.equal(state["_buffers"]["weight"], linear.plain_weight())


def _outputs_in_worker(linear, states):
    return linear(states).detach().numpy()


@pytest.mark.slow  # a new process imports torch
def test_used_module_is_sent_to_another_process():
    # In the other process the sizes are those from which a kernel is used.
    linear, states = int8_linear("static", inputs=384, outputs=384), states_of(4, 384)
    expected = linear(states).detach()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        outputs = pool.apply(_outputs_in_worker, (linear, states))
    torch.testing.assert_close(torch.from_numpy(outputs), expected, rtol=1e-5, atol=1e-5)


# ---- gradients ----


def test_gradients_are_those_of_the_float_weight(activations, way):
    linear, states = int8_linear(activations), states_of(3, 5, 160).requires_grad_()
    weights = states_of(3, 5, 192, seed=1)
    (linear(states) * weights).sum().backward()
    gradients = states.grad.clone(), linear.bias.grad.clone()
    states.grad = linear.bias.grad = None
    (nn.functional.linear(states, linear.float_weight(), linear.bias) * weights).sum().backward()
    for actual, expected in zip(gradients, (states.grad, linear.bias.grad), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_outputs_are_the_same_with_and_without_gradients(activations, way):
    linear, states = int8_linear(activations), states_of(4, 160)
    expected = linear(states)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(linear(states), expected)
    assert torch.equal(linear(states.clone().requires_grad_()), expected)


def test_module_first_used_in_inference_mode_allows_gradients(activations, way):
    linear, states = int8_linear(activations), states_of(4, 160).requires_grad_()
    with torch.inference_mode():
        linear(states)
    linear(states).sum().backward()
    assert float(states.grad.abs().sum()) > 0


def test_autocast_gives_close_outputs(activations, way):
    linear, states = int8_linear(activations), states_of(4, 160)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = linear(states), linear(states.bfloat16())
    for output in outputs:
        assert error(output, float_outputs(linear, states)) < 0.02


@pytest.mark.slow  # the first import of the compiler takes seconds
def test_compiled_module_computes_the_same(activations):
    linear, states = int8_linear(activations), states_of(4, 160)
    expected = linear(states)
    compiled = torch.compile(nn.Sequential(linear, nn.Tanh()), backend="eager", dynamic=True)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(compiled(states), expected.tanh(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(compiled(states[:3]), expected[:3].tanh(), rtol=1e-5, atol=1e-5)


# ---- one product for several modules ----


@pytest.fixture
def counted(monkeypatch):
    """Return a list with an entry for every product of `Int8Linear`."""
    calls, multiply = [], Int8Linear._multiply
    monkeypatch.setattr(Int8Linear, "_multiply", lambda self, *args: calls.append(1) or multiply(self, *args))
    return calls


def slices(linear):
    return [Int8Slice(linear, start, start + 64) for start in (0, 64, 128)]


@needs_kernel
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modules_that_get_the_same_tensor_share_a_product(counted, context):
    linear, states = int8_linear("static"), states_of(4, 160)
    expected = linear(states)
    counted.clear()
    with context():
        outputs = [module(states) for module in slices(linear)]
    assert len(counted) == 1
    assert torch.equal(torch.cat(outputs, -1), expected)


@needs_kernel
def test_modules_that_get_different_tensors_compute_their_own_products(counted):
    linear, states, others = int8_linear("static"), states_of(4, 160), states_of(6, 160, seed=1)
    expected, other_expected = linear(states), linear(others)
    counted.clear()
    query, key, value = slices(linear)
    with torch.no_grad():
        outputs = [value(others), query(states), key(others)]
    assert len(counted) == 2
    wanted = other_expected[:, 128:], expected[:, :64], other_expected[:, 64:128]
    assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True))


@pytest.mark.parametrize("in_inference_mode", [False, True])
def test_product_is_computed_again_when_the_tensor_or_the_weights_have_changed(in_inference_mode):
    linear, query = int8_linear("static"), None
    query = Int8Slice(linear, 0, 64)
    with torch.inference_mode(in_inference_mode), torch.no_grad():
        states = states_of(4, 160)
        query(states)
        if not in_inference_mode:
            states.mul_(0.5)
            assert torch.equal(query(states), linear(states)[:, :64])
        linear.load_state_dict(int8_linear("static", seed=1).state_dict())
        assert torch.equal(query(states), linear(states)[:, :64])


def test_slices_pass_gradients():
    linear, states = int8_linear("static"), states_of(4, 160).requires_grad_()
    weights = states_of(3, 4, 64, seed=1)
    sum((module(states) * weight).sum() for module, weight in zip(slices(linear), weights, strict=True)).backward()
    expected = torch.cat(list(weights), -1)
    torch.testing.assert_close(states.grad, expected @ linear.float_weight(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.bias.grad, expected.sum(0), rtol=1e-5, atol=1e-5)


def test_slices_have_no_tensors_of_their_own():
    assert not Int8Slice(int8_linear("static"), 0, 64).state_dict()


# ---- embeddings ----


def test_embeddings_are_integers_times_the_scale_of_their_row():
    embedding = Int8Embedding(20, 8, None)
    embedding.weight.copy_(torch.randint(-127, 128, (20, 8)))
    embedding.weight_scale.copy_(torch.rand(20, 1))
    ids = torch.tensor([[3, 19], [0, 3]])
    expected = (embedding.weight.float() * embedding.weight_scale)[ids]
    assert torch.equal(embedding(ids), expected)
    assert embedding.half()(ids).dtype == torch.float16


# ---- installing ----


def test_install_int8_replaces_linears_and_embeddings():
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(20, 8),
            "layer": nn.ModuleDict({name: nn.Linear(8, size) for name, size in (("q", 8), ("k", 4), ("o", 6))}),
        }
    )
    linears = {"layer.q_k": {"members": ["q", "k"], "outliers": 2}, "layer.o": {"activations": None}}
    install_int8(model, {"activations": "static", "linears": linears, "embeddings": ["table"]})
    layer = model["layer"]
    assert isinstance(model["table"], Int8Embedding)
    assert (layer.q_k.out_features, layer.q_k.outliers, layer.q_k.activations) == (12, 2, "static")
    assert [(layer[name].features.start, layer[name].features.stop) for name in ("q", "k")] == [(0, 8), (8, 12)]
    assert isinstance(layer["o"], Int8Linear)
    assert layer["o"].activations is None
