import copy
import re

import pytest
import torch
from heads import REPRESENTATIVE_HEADS
from trainers import build, losses, stop

from hf_efficient import DistillationConfig, EfficientTrainer, PruningConfig, QuantizationConfig, quantize
from hf_efficient.pruning.selection import remove_units
from hf_efficient.quantization.config import INT8_SCHEMES as SCHEMES
from hf_efficient.quantization.fake_quantization import (
    FakeInt8Embedding,
    FakeInt8Linear,
    disable_fake_quantization,
    enable_fake_quantization,
    quantize_rows,
)
from hf_efficient.quantization.validation import check_quantization


@pytest.fixture(params=SCHEMES)
def config(request):
    return QuantizationConfig(request.param, aware=True)


def test_quantize_rows_uses_a_scale_per_row():
    values = torch.tensor([[1.0, -0.5, 0.3], [100.0, 0.2, -50.0], [0.0, 0.0, 0.0]])
    integers, scales = quantize_rows(values)
    assert torch.equal(integers, integers.round())
    assert integers.tolist() == [[127, -64, 38], [127, 0, -64], [0, 0, 0]]
    torch.testing.assert_close(scales[:2, 0], torch.tensor([1.0, 100.0]) / 127.5)
    assert (integers * scales - values).abs().max() <= 100 / 127.5


def test_quantize_rows_reduces_the_range():
    values = torch.linspace(-1, 1, 1000)[None]
    assert len(quantize_rows(values, -64, 63)[0].unique()) == 128
    assert len(quantize_rows(values)[0].unique()) == 255  # symmetric: -128 is not used


def test_quantize_rows_has_straight_through_gradients():
    values, weights = torch.randn(4, 7, requires_grad=True), torch.randn(4, 7)
    integers, scales = quantize_rows(values)
    (integers * scales * weights).sum().backward()
    torch.testing.assert_close(values.grad, weights)
    assert not scales.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quantization_keeps_the_dtype(make_model, make_batch, dtype, config):
    model = make_model().to(dtype)
    enable_fake_quantization(model, config)
    assert model(**make_batch()).logits.dtype == dtype


@pytest.mark.parametrize(
    ("head", "scheme"), [(head, SCHEMES[number % len(SCHEMES)]) for number, head in enumerate(REPRESENTATIVE_HEADS)]
)
def test_fake_quantized_outputs_are_those_of_the_int8_model(
    make_model, make_batch, outputs, assert_same, head, scheme
):
    config = QuantizationConfig(scheme, aware=True)
    model, batch = make_model(head), make_batch(head)
    expected = outputs(model, batch)
    enable_fake_quantization(model, config)
    fake_quantized = outputs(model, batch)
    assert any(not torch.equal(fake_quantized[name], expected[name]) for name in expected)
    disable_fake_quantization(model)
    assert_same(outputs(quantize(model, config), batch), fake_quantized, atol=1e-5)


def test_fake_quantized_outputs_of_a_pruned_model_are_those_of_the_int8_model(
    make_model, make_batch, outputs, assert_same, select, uneven_shape
):
    model, config = remove_units(make_model(), select(uneven_shape)), QuantizationConfig(aware=True)
    enable_fake_quantization(model, config)
    fake_quantized = outputs(model, make_batch())
    disable_fake_quantization(model)
    assert_same(outputs(quantize(model, config), make_batch()), fake_quantized, atol=1e-5)


def test_range_is_reduced_on_processors_without_vnni(make_model, make_batch, outputs, assert_same, monkeypatch):
    monkeypatch.setattr("torchao.utils.should_reduce_range", lambda device: True)
    model, config = make_model(), QuantizationConfig("int8_dynamic", aware=True)
    enable_fake_quantization(model, config)
    linear = next(module for module in model.modules() if isinstance(module, FakeInt8Linear))
    assert linear.activations == linear.weights == (-64, 63)
    fake_quantized = outputs(model, make_batch())
    disable_fake_quantization(model)
    quantized = quantize(model, config)
    weight = dict(quantized.named_parameters())["bert.encoder.layer.0.output.dense.weight"]
    assert weight.qdata.abs().max() <= 64
    assert_same(outputs(quantized, make_batch()), fake_quantized, atol=1e-5)


def test_enabling_keeps_parameters_and_disabling_restores_modules(make_model, config):
    model = make_model()
    parameters, modules = dict(model.named_parameters()), [type(module) for module in model.modules()]
    enable_fake_quantization(model, config)
    enable_fake_quantization(model, config)
    assert sum(isinstance(module, FakeInt8Linear) for module in model.modules()) == 18
    assert sum(isinstance(module, FakeInt8Embedding) for module in model.modules()) == 3
    assert all(value is parameters[name] for name, value in model.named_parameters())
    disable_fake_quantization(model)
    assert [type(module) for module in model.modules()] == modules
    assert not any(hasattr(module, "activations") for module in model.modules())


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


AWARE = QuantizationConfig(aware=True, compile=False)


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

    def spy(model, config, *args):
        fake_quantized = copy.deepcopy(model)
        enable_fake_quantization(fake_quantized, config)
        pairs.append((fake_quantized, quantize_model(model, config, *args)))
        return pairs[-1][1]

    monkeypatch.setattr("hf_efficient.trainer.run.quantize", spy)
    trainer = train_aware(tmp_path)
    fake_quantized, quantized = pairs[0]
    batch = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        expected = fake_quantized.eval()(**batch).logits
        torch.testing.assert_close(quantized(**batch).logits, expected, rtol=0, atol=1e-5)
    assert trainer.model is quantized
    assert [row.role for row in trainer.report.models][:3] == ["teacher", "student", "quantized"]
    assert trainer.report.stages[0].endswith("soft labels (T=2), with fake quantization")
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
    weight_only = QuantizationConfig("int8_weight_only", aware=True, compile=False)
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
        pair = (
            weight.dequantize() if hasattr(weight, "tensor_data_names") else weight
            for weight in (value, expected[name])
        )
        torch.testing.assert_close(*pair, rtol=0, atol=0)


@pytest.mark.slow  # torch.compile takes a minute
def test_bfloat16_training_reports_the_compiled_model(tmp_path):
    trainer = train_aware(tmp_path, techniques={"quantization": QuantizationConfig(aware=True)}, bf16=True)
    assert all(loss == loss for loss in losses(trainer))
    assert "compiled" in [row.role for row in trainer.report.models]
    assert SCHEMES[0] == trainer.report.configs["quantization"]["scheme"]
