"""Tests of training that rounds as the int8 model will."""

import copy
import re

import pytest
import torch
from heads import REPRESENTATIVE_HEADS
from trainers import build, losses, stop

from hf_efficient import DistillationConfig, EfficientTrainer, PruningConfig, QuantizationConfig, quantize
from hf_efficient.models.int8 import range_to_scale
from hf_efficient.pruning.selection import remove_units
from hf_efficient.quantization.calibration import InputStatistics
from hf_efficient.quantization.config import INT8_SCHEMES as SCHEMES
from hf_efficient.quantization.fake_quantization import (
    FakeInt8Embedding,
    FakeInt8Linear,
    disable_fake_quantization,
    enable_fake_quantization,
    outlier_mask,
    round_inputs,
    round_rows,
    round_tokens,
    set_input_statistics,
)
from hf_efficient.quantization.int8 import calibrate
from hf_efficient.quantization.validation import check_quantization
from hf_efficient.trainer.quantization import RANGES_NAME

pytestmark = pytest.mark.usefixtures("kernels_for_tiny_weights")

STATISTICS = InputStatistics(low=-1.0, high=3.0, lowest=-2.0, highest=10.0, outliers=(2,))


@pytest.fixture(params=SCHEMES)
def config(request):
    return QuantizationConfig(request.param, aware=True)


@pytest.fixture
def fake_and_quantized(make_batch):
    """Return the outputs functions' models: one with fake quantization, and the int8 model of the same weights."""

    def build_both(model, config, head):
        statistics = None
        if config.needs_calibration:
            batches = [make_batch(head, seed=seed) for seed in (1, 2)]
            statistics = calibrate(model, config, batches, second_moments=False)
        fake = copy.deepcopy(model)
        enable_fake_quantization(fake, config)
        if statistics is not None:
            set_input_statistics(fake, config, statistics)
        return fake, quantize(model, config, statistics=statistics)

    return build_both


def assert_close_in_the_middle(actual, expected):
    """Check that two models have the same outputs except where a value is rounded the other way."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        difference, size = (actual[name] - value).abs().float(), float(value.abs().max())
        assert float(difference.median()) <= 1e-5 * max(size, 1), name
        assert float(difference.max()) <= 0.05 * max(size, 1), name


# ---- rounding ----


def test_round_rows_gives_the_values_that_int8_can_store():
    values = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    scale = values.abs().amax(1, keepdim=True) / 64
    torch.testing.assert_close(round_rows(values, 64), (values / scale).round() * scale)


def test_round_tokens_uses_the_largest_value_of_each_token():
    states = torch.tensor([[1.0, 0.5, -0.2], [100.0, 0.3, -50.0], [0.0, 0.0, 0.0]])
    expected = [[1.0, 64 / 127, -25 / 127], [100.0, 0.0, -64 / 127 * 100], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(round_tokens(states), torch.tensor(expected))


def test_round_inputs_cuts_off_within_the_limits_and_keeps_larger_values_and_outliers():
    states = torch.tensor([[0.5, 5.0, 77.7], [0.5, 12.0, 0.1], [-1.5, 2.1, 0.1]])
    scale, zero_point = range_to_scale(-1.0, 3.0)
    low, high = -zero_point * scale, (255 - zero_point) * scale
    near = (torch.tensor([0.5, 2.1]) / scale).round() * scale
    statistics = InputStatistics(-1.0, 3.0, -2.0, 10.0, (2,))
    expected = torch.tensor([[near[0], high, 77.7], [near[0], 12.0, 0.1], [low, near[1], 0.1]])
    torch.testing.assert_close(round_inputs(states, statistics, outlier_mask(statistics, 3, states.device)), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda v: round_rows(v, 64),
        round_tokens,
        lambda v: round_inputs(v, STATISTICS, outlier_mask(STATISTICS, 7, v.device)),
    ],
)
def test_gradients_are_straight_through(function):
    values, weights = torch.randn(4, 7, requires_grad=True), torch.randn(4, 7)
    (function(values) * weights).sum().backward()
    torch.testing.assert_close(values.grad, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quantization_keeps_the_dtype(make_model, make_batch, dtype, config):
    model = make_model()
    statistics = calibrate(model, config, [make_batch()], second_moments=False)
    model.to(dtype)
    enable_fake_quantization(model, config)
    set_input_statistics(model, config, statistics)
    assert model(**make_batch()).logits.dtype == dtype


# ---- the same as the int8 model ----


@pytest.mark.parametrize(
    ("head", "scheme"), [(head, SCHEMES[number % len(SCHEMES)]) for number, head in enumerate(REPRESENTATIVE_HEADS)]
)
def test_fake_quantized_outputs_are_those_of_the_int8_model(
    make_model, make_batch, outputs, fake_and_quantized, head, scheme
):
    model, batch = make_model(head), make_batch(head)
    fake, quantized = fake_and_quantized(model, QuantizationConfig(scheme, aware=True), head)
    expected, fake_outputs = outputs(model, batch), outputs(fake, batch)
    assert any(not torch.equal(fake_outputs[name], expected[name]) for name in expected)
    assert_close_in_the_middle(outputs(quantized, batch), fake_outputs)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linears_that_stay_in_float_are_trained_in_float(make_model, scheme):
    model = make_model("MT5ForConditionalGeneration")
    feed_forward = model.encoder.block[1].layer[-1].DenseReluDense
    feed_forward.wi_1.weight.data[5] *= 100
    enable_fake_quantization(model, QuantizationConfig(scheme, aware=True))
    assert isinstance(feed_forward.wi_1, FakeInt8Linear)
    assert isinstance(feed_forward.wo, FakeInt8Linear) == (scheme == "int8_static")


def test_fake_quantized_outputs_of_a_pruned_model_are_those_of_the_int8_model(
    make_model, make_batch, outputs, select, uneven_shape, fake_and_quantized
):
    model = remove_units(make_model(), select(uneven_shape))
    fake, quantized = fake_and_quantized(model, QuantizationConfig(aware=True), "BertForSequenceClassification")
    assert_close_in_the_middle(outputs(quantized, make_batch()), outputs(fake, make_batch()))


@pytest.mark.parametrize("size", [1.0, 20.0])
def test_fake_quantized_linear_is_the_int8_linear(make_model, make_batch, fake_and_quantized, config, size):
    model = make_model()
    model.bert.encoder.layer[1].intermediate.dense.bias.data[5] = 100.0  # an outlier channel
    fake, quantized = fake_and_quantized(model, config, "BertForSequenceClassification")
    fake_linear, linear = (m.bert.encoder.layer[1].output.dense for m in (fake, quantized))
    states = size * torch.rand(40, 64, generator=torch.Generator().manual_seed(0))  # partly beyond the range
    torch.testing.assert_close(linear(states), fake_linear(states), rtol=1e-5, atol=1e-4)


# ---- enabling and disabling ----


def test_enabling_keeps_parameters_and_disabling_restores_modules(make_model, config):
    model = make_model()
    parameters, modules = dict(model.named_parameters()), [type(module) for module in model.modules()]
    enable_fake_quantization(model, config)
    enable_fake_quantization(model, config)
    assert sum(isinstance(module, FakeInt8Linear) for module in model.modules()) == 18
    assert sum(isinstance(module, FakeInt8Embedding) for module in model.modules()) == 2
    assert all(value is parameters[name] for name, value in model.named_parameters())
    disable_fake_quantization(model)
    assert [type(module) for module in model.modules()] == modules
    assert not any(hasattr(module, "statistics") for module in model.modules())


def test_skipped_modules_are_not_fake_quantized(make_model):
    model = make_model()
    enable_fake_quantization(model, QuantizationConfig(aware=True, skip_modules="query, embeddings"))
    fake_quantized = [
        name for name, module in model.named_modules() if isinstance(module, (FakeInt8Linear, FakeInt8Embedding))
    ]
    assert len(fake_quantized) == 15
    assert not any("query" in name or "embeddings" in name for name in fake_quantized)


def test_a_config_that_skips_everything_is_refused(make_model):
    config = QuantizationConfig(aware=True, quantize_embeddings=False, skip_modules="layer")
    for function in (enable_fake_quantization, check_quantization):
        with pytest.raises(ValueError, match="nothing to quantize in BertForSequenceClassification"):
            function(make_model(), config)


def test_aware_without_a_scheme_is_refused():
    with pytest.raises(ValueError, match=re.escape("aware=True trains for int8, and scheme is None: give scheme")):
        QuantizationConfig(None, aware=True)


# ---- in the trainer ----


AWARE = QuantizationConfig(aware=True)


def build_aware(folder, techniques=None, **changes):
    techniques = {"quantization": AWARE, "distillation": DistillationConfig(), **(techniques or {})}
    torch.manual_seed(0)
    return build(folder, techniques=techniques, **changes)


def train_aware(folder, resume=None, **changes):
    trainer = build_aware(folder, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trained_model_computes_as_the_quantized_one(tmp_path, monkeypatch):
    pairs, quantize_model = [], quantize

    def spy(model, config, calibration, statistics):
        fake_quantized = copy.deepcopy(model)
        enable_fake_quantization(fake_quantized, config)
        set_input_statistics(fake_quantized, config, statistics)
        pairs.append((fake_quantized, quantize_model(model, config, calibration, statistics)))
        return pairs[-1][1]

    monkeypatch.setattr("hf_efficient.trainer.run.quantize", spy)
    trainer = train_aware(tmp_path)
    fake_quantized, quantized = pairs[0]
    batch = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        expected = fake_quantized.eval()(**batch).logits
        assert_close_in_the_middle({"logits": quantized(**batch).logits}, {"logits": expected})
    assert trainer.model is quantized
    assert [row.role for row in trainer.report.models][:3] == ["teacher", "student", "quantized"]
    assert trainer.report.stages[0].endswith("its hidden states, without dropout, with fake quantization")
    assert not any(isinstance(module, FakeInt8Linear) for module in trainer.teacher.modules())


def test_every_training_step_uses_fake_quantization(tmp_path, monkeypatch):
    uses_fake_quantization, step = [], EfficientTrainer.training_step

    def spy(self, model, *args, **kwargs):
        uses_fake_quantization.append(any(isinstance(module, FakeInt8Linear) for module in model.modules()))
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(EfficientTrainer, "training_step", spy)
    pruning = PruningConfig(heads=0.5, rounds=2, scoring_samples=16, multiple_of=4)
    trainer = train_aware(tmp_path, techniques={"pruning": pruning}, num_train_epochs=2)
    assert len(uses_fake_quantization) == 8
    assert all(uses_fake_quantization)
    assert trainer.report.row("quantized").ratios.size > 1
    student = type(trainer.model).from_pretrained(tmp_path / "_student")
    assert not any(isinstance(module, FakeInt8Linear) for module in student.modules())


def test_gradient_accumulation_gives_the_losses_of_large_batches(tmp_path):
    weight_only = QuantizationConfig("int8_weight_only", aware=True)
    techniques = {"quantization": weight_only, "distillation": None}
    expected = losses(train_aware(tmp_path / "a", techniques=techniques))
    accumulated = train_aware(
        tmp_path / "b", techniques=techniques, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert losses(accumulated) == pytest.approx(expected, rel=1e-4)


def test_interrupted_run_resumes_to_the_same_weights(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    expected = train_aware(tmp_path / "complete", **changes).model.state_dict()
    stop(build_aware(tmp_path / "resumed", **changes), at=3)
    resumed = train_aware(tmp_path / "resumed", resume=True, **changes).model.state_dict()
    assert resumed.keys() == expected.keys()
    for name, value in resumed.items():
        assert torch.equal(value, expected[name]), name


def test_ranges_follow_the_weights_first_and_are_fixed_then(tmp_path, monkeypatch):
    calibrated, trainer = [], build_aware(tmp_path, num_train_epochs=5)  # 20 steps

    def spy(model, *args, **kwargs):
        calibrated.append(trainer.state.global_step)
        return calibrate(model, *args, **kwargs)

    monkeypatch.setattr("hf_efficient.trainer.quantization.calibrate", spy)
    trainer.train()
    assert calibrated == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    statistics = trainer.quantization_training.statistics
    linear = trainer.model.bert.encoder.layer[1].output.dense
    observed = statistics["encoder.layer.1.output.dense"]
    assert linear.input_range.tolist() == pytest.approx([observed.low, observed.high])
    assert observed.second_moments is None


def test_ranges_are_saved_in_checkpoints_and_restored(tmp_path):
    trainer = train_aware(tmp_path, save_strategy="steps", save_steps=4, num_train_epochs=1)
    assert (tmp_path / "checkpoint-4" / RANGES_NAME).exists()
    restored = build_aware(tmp_path).quantization_training
    restored.load_state(tmp_path / "checkpoint-4")
    assert restored.statistics == trainer.quantization_training.statistics


def test_model_quantized_after_training_without_fake_quantization_is_calibrated(tmp_path):
    trainer = train_aware(tmp_path, techniques={"quantization": QuantizationConfig()})
    assert trainer.quantization_training.statistics is None
    activations = {layer.output.dense.activations for layer in trainer.model.bert.encoder.layer}
    assert activations == {"static"}


def test_drawing_calibration_batches_keeps_the_order_of_training(tmp_path):
    techniques = {"quantization": QuantizationConfig("int8_weight_only", aware=True)}
    plain = losses(train_aware(tmp_path / "plain", techniques=techniques, learning_rate=0.0))
    calibrated = losses(train_aware(tmp_path / "calibrated", learning_rate=0.0))
    assert calibrated == pytest.approx(plain, rel=0.05)


def test_bfloat16_training_has_finite_losses(tmp_path):
    trainer = train_aware(tmp_path, bf16=True)
    assert all(loss == loss for loss in losses(trainer))
    assert trainer.report.configs["quantization"]["scheme"] == SCHEMES[0]
