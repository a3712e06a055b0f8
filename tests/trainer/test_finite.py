"""Losses, gradients and weights that are not finite stop a run before they replace what is good."""

import pytest
import torch
from accelerate import Accelerator
from trainers import arguments, build, classifier
from transformers import BertForSequenceClassification, TrainerCallback

from hf_efficient import NonFiniteLossError, PruningConfig, QuantizationConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.finite import check_finite_weights, find_non_finite
from hf_efficient.trainer.finite import FiniteChecks

NAN = float("nan")


class NanGradient(TrainerCallback):
    """Makes a gradient NaN after step 2, while the loss is finite."""

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == 2:
            model.classifier.bias.register_hook(lambda gradient: gradient * NAN)


@pytest.fixture
def checks(tmp_path):
    return FiniteChecks(arguments(tmp_path), Accelerator(cpu=True))


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_loss_that_is_not_finite_is_an_error_that_names_the_step(checks, value):
    checks.watch_loss(torch.tensor(1.0), 3)
    with pytest.raises(NonFiniteLossError, match=f"the loss is {value} at step 3"):
        checks.watch_loss(torch.tensor(value), 3)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_gradients_that_are_not_finite_are_found_before_the_step(checks, value):
    with pytest.raises(NonFiniteLossError, match=f"gradients is {value} at step 7.*smaller learning rate"):
        checks.watch_norm(torch.tensor(value), 7)
    checks.watch_loss(torch.tensor(1.0), 8)


def test_on_other_devices_the_first_value_that_is_not_finite_is_kept_until_it_is_read(checks, monkeypatch):
    monkeypatch.setattr("hf_efficient.trainer.finite.waits_for_device", lambda value: True)
    for step in range(9):
        checks.watch_loss(torch.tensor(NAN if step >= 7 else 1.0), step)
        checks.watch_norm(torch.tensor(NAN if step >= 6 else 1.0), step + 1)
    with pytest.raises(NonFiniteLossError, match="gradients is nan at step 7, while the loss is finite"):
        checks.check()
    checks.check()


def test_only_the_first_weight_that_is_not_finite_is_named():
    model = classifier()
    assert find_non_finite(model.named_parameters()) is None
    model.classifier.bias.data[0] = float("inf")
    assert find_non_finite(model.named_parameters()) == "classifier.bias"
    with pytest.raises(UserError, match=r"the teacher has weights that are NaN or infinite, in classifier.bias"):
        check_finite_weights(model, "the teacher")


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_nan_gradient_keeps_the_only_checkpoint(tmp_path, max_grad_norm, accumulation):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "num_train_epochs": 2}
    settings |= {"max_grad_norm": max_grad_norm, "gradient_accumulation_steps": accumulation}
    trainer = build(tmp_path, **settings)
    trainer.add_callback(NanGradient())
    with pytest.raises(NonFiniteLossError, match="at step 3, while the loss is finite"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert find_non_finite(saved.named_parameters()) is None


@pytest.mark.parametrize(
    "techniques",
    [{}, {"pruning": PruningConfig(heads=0.5, rounds=2, scoring_samples=16)}],
    ids=["plain", "rounds"],
)
@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_weights_that_overflow_in_the_last_step_are_not_the_result(tmp_path, techniques, save_strategy):
    settings = {"max_steps": 1, "learning_rate": 1e38, "save_strategy": save_strategy, "save_steps": 1}
    trainer = build(tmp_path, techniques=techniques, **settings)
    with pytest.raises(NonFiniteLossError, match=r"after step 1: they are not saved.*\(now 1e\+38\)"):
        trainer.train()
    assert not list(tmp_path.rglob("checkpoint-*/model.safetensors"))
    assert not (tmp_path / "model.safetensors").exists()


def test_model_with_nan_weights_is_not_saved_and_not_compressed(tmp_path):
    model = classifier()
    trainer = build(tmp_path, model=model, techniques={"quantization": QuantizationConfig("int8_dynamic")})
    model.classifier.bias.data[0] = NAN
    with pytest.raises(UserError, match=r"the model has weights that are NaN or infinite, in classifier\.bias"):
        trainer.train()
    with pytest.raises(NonFiniteLossError, match="not saved"):
        trainer.save_model()
