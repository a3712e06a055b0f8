import copy
import re

import pytest
import torch
from trainers import build, losses

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


def test_each_row_is_rounded_to_its_own_scale():
    values = torch.tensor([[1.0, -0.5, 0.3], [100.0, 0.2, -50.0], [0.0, 0.0, 0.0]])
    found, scales = quantize_rows(values)
    assert torch.equal(found, found.round())
    assert found.tolist() == [[127, -64, 38], [127, 0, -64], [0, 0, 0]]
    torch.testing.assert_close(scales[:2, 0], torch.tensor([1.0, 100.0]) / 127.5)
    assert (found * scales - values).abs().max() <= 100 / 127.5


def test_fewer_steps_where_sums_would_overflow():
    values = torch.linspace(-1, 1, 1000)[None]
    assert len(quantize_rows(values, -64, 63)[0].unique()) == 128
    assert len(quantize_rows(values)[0].unique()) == 255  # symmetric: none is as far down as -128


def test_gradients_pass_as_if_nothing_was_rounded():
    values, weights = torch.randn(4, 7, requires_grad=True), torch.randn(4, 7)
    found, scales = quantize_rows(values)
    (found * scales * weights).sum().backward()
    torch.testing.assert_close(values.grad, weights)
    assert not scales.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_precision_stays(make_model, make_batch, dtype, config):
    model = make_model().to(dtype)
    enable_fake_quantization(model, config)
    assert model(**make_batch()).logits.dtype == dtype


def test_what_was_trained_computes_as_what_ships(make_model, make_batch, outputs, assert_same, config, any_head):
    model, batch = make_model(any_head), make_batch(any_head)
    expected = outputs(model, batch)
    enable_fake_quantization(model, config)
    found = outputs(model, batch)
    assert any(not torch.equal(found[name], expected[name]) for name in expected)
    shipped = quantize(restored(model), config)
    assert_same(outputs(shipped, batch), found, atol=1e-5)


def restored(model):
    disable_fake_quantization(model)
    return model


def test_a_pruned_model_computes_as_what_ships(
    make_model, make_batch, outputs, assert_same, select, uneven_shape, config
):
    model = remove_units(make_model(), select(uneven_shape))
    enable_fake_quantization(model, config)
    found = outputs(model, make_batch())
    assert_same(outputs(quantize(restored(model), config), make_batch()), found, atol=1e-5)


def test_processors_without_vnni_get_fewer_steps(make_model, make_batch, outputs, assert_same, monkeypatch):
    monkeypatch.setattr("torchao.utils.should_reduce_range", lambda device: True)
    model, config = make_model(), QuantizationConfig("int8_dynamic", aware=True)
    enable_fake_quantization(model, config)
    linear = next(module for module in model.modules() if isinstance(module, FakeInt8Linear))
    assert linear.activations == linear.weights == (-64, 63)
    found = outputs(model, make_batch())
    shipped = quantize(restored(model), config)
    weight = dict(shipped.named_parameters())["bert.encoder.layer.0.output.dense.weight"]
    assert weight.qdata.abs().max() <= 64
    assert_same(outputs(shipped, make_batch()), found, atol=1e-5)


def test_preparing_changes_no_parameter_and_restoring_no_trace(make_model, config):
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


def test_what_is_skipped_is_not_rounded(make_model):
    model = make_model()
    enable_fake_quantization(model, QuantizationConfig(aware=True, skip_modules="query, embeddings"))
    rounded = [
        name for name, module in model.named_modules() if isinstance(module, (FakeInt8Linear, FakeInt8Embedding))
    ]
    assert len(rounded) == 15
    assert not any("query" in name or "embeddings" in name for name in rounded)


def test_nothing_to_round_is_refused(make_model):
    config = QuantizationConfig(aware=True, quantize_embeddings=False, skip_modules="layer")
    for act in (enable_fake_quantization, check_quantization):
        with pytest.raises(ValueError, match="nothing to quantize in BertForSequenceClassification"):
            act(make_model(), config)


def test_a_scheme_is_needed():
    with pytest.raises(ValueError, match=re.escape("aware=True trains for 8 bits, scheme is None: give scheme")):
        QuantizationConfig(None, aware=True)


# ---- in the trainer ----


def trained(folder, resume=None, **changes):
    techniques = {
        "quantization": QuantizationConfig(aware=True),
        "distillation": DistillationConfig(),
        **changes.pop("techniques", {}),
    }
    torch.manual_seed(0)
    trainer = build(folder, techniques=techniques, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_rounds_and_what_ships_is_what_was_trained(tmp_path, monkeypatch):
    seen, convert = [], quantize

    def spy(model, config, *args):
        rounding = copy.deepcopy(model)
        enable_fake_quantization(rounding, config)
        seen.append((rounding, convert(model, config, *args)))
        return seen[-1][1]

    monkeypatch.setattr("hf_efficient.trainer.trainer.quantize", spy)
    trainer = trained(tmp_path)
    rounding, shipped = seen[0]
    batch = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        torch.testing.assert_close(shipped(**batch).logits, rounding.eval()(**batch).logits, rtol=0, atol=1e-5)
    assert trainer.model is shipped
    assert [row.role for row in trainer.report.models][:3] == ["teacher", "student", "quantized"]
    assert trainer.report.stages[0].endswith("soft labels (T=2), rounding as in 8 bits")
    assert not any(isinstance(module, FakeInt8Linear) for module in trainer.teacher.modules())


def test_each_training_step_rounds(tmp_path, monkeypatch):
    rounding, step = [], EfficientTrainer.training_step

    def spy(self, model, *args, **kwargs):
        rounding.append(any(isinstance(module, FakeInt8Linear) for module in model.modules()))
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(EfficientTrainer, "training_step", spy)
    pruning = PruningConfig(heads=0.5, rounds=2, scoring_samples=16, multiple_of=4)
    trainer = trained(tmp_path, techniques={"pruning": pruning}, num_train_epochs=2)
    assert len(rounding) == 8
    assert all(rounding)
    assert trainer.report.row("quantized").ratios.size > 1
    student = type(trainer.model).from_pretrained(tmp_path / "_student")
    assert not any(isinstance(module, FakeInt8Linear) for module in student.modules())


def test_accumulated_batches_learn_the_same(tmp_path):
    techniques = {"quantization": QuantizationConfig(aware=True, scheme="int8_weight_only"), "distillation": None}
    whole = trained(tmp_path / "a", techniques=techniques)
    parts = trained(
        tmp_path / "b", techniques=techniques, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    expected = trained(tmp_path / "whole", **changes).model.state_dict()
    begun = build(
        tmp_path / "parts",
        techniques={"quantization": QuantizationConfig(aware=True), "distillation": DistillationConfig()},
        **changes,
    )
    step, left = begun.training_step, [3]

    def stop(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    begun.training_step = stop
    with pytest.raises(KeyboardInterrupt):
        begun.train()
    found = trained(tmp_path / "parts", resume=True, **changes).model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        left, right = (v.dequantize() if hasattr(v, "tensor_data_names") else v for v in (value, expected[name]))
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_bfloat16_trains_too(tmp_path):
    trainer = trained(tmp_path, bf16=True)
    assert all(loss == loss for loss in losses(trainer))
    assert SCHEMES[0] == trainer.report.configs["quantization"]["scheme"]
