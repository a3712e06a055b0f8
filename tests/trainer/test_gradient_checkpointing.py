"""Gradient checkpointing saves memory and changes nothing else, with every technique, dropout included."""

import warnings

import pytest
import torch
from trainers import arguments, build, classifier, losses, pad, seq2seq_arguments, t5, without_report, written
from transformers import TrainerCallback

from hf_efficient import DistillationConfig, EfficientSeq2SeqTrainer, PruningConfig, QuantizationConfig

SMALL = {"scoring_samples": 16, "multiple_of": 4}
INTERMEDIATE = {"hidden_weight": 1.0, "attention_weight": 1.0, "relation_weight": 1.0, "embedding_weight": 1.0}
TECHNIQUES = {
    "labels": {},
    "soft labels": {"distillation": DistillationConfig()},
    "intermediate outputs": {"distillation": DistillationConfig(**INTERMEDIATE)},
    "gates": {"pruning": PruningConfig(heads=0.5, ramp=0.6, **SMALL), "distillation": DistillationConfig()},
    "rounds": {"pruning": PruningConfig(heads=0.5, neurons=0.5, rounds=2, **SMALL)},
    "connections": {"pruning": PruningConfig(weights=0.5, ramp=0.6, **SMALL)},
    # Of weights only: a rounded activation changes by a full step if its last bit differs.
    "fake quantization": {
        "quantization": QuantizationConfig("int8_weight_only", aware=True),
        "distillation": DistillationConfig(),
    },
}


def build_bert(folder, techniques, **changes):
    teacher = {"teacher": classifier(dropout=0.1)} if "distillation" in techniques else {}
    model, changes = classifier(dropout=0.1), {"num_train_epochs": 1, **changes}
    return without_report(build(folder, model=model, techniques={**techniques, **teacher}, **changes))


def build_t5(folder, techniques, **changes):
    teacher = {"teacher": t5(2)} if "distillation" in techniques else {}
    trainer = EfficientSeq2SeqTrainer(
        model=t5(dropout=0.1),
        args=seq2seq_arguments(arguments(folder, seed=3, **changes)),
        train_dataset=written(),
        data_collator=pad,
        **techniques,
        **teacher,
    )
    return without_report(trainer)


def checkpointed_modules(model):
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


class GradientRecorder(TrainerCallback):
    """Trains, and records the gradients of every step; with a learning rate of 0 all have the same weights."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.used_checkpointing = trainer, [], False
        trainer.add_callback(self)
        trainer.train()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.used_checkpointing = any(module.gradient_checkpointing for module in checkpointed_modules(model))
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((build_bert, name) for name in TECHNIQUES),
        *((build_t5, name) for name in ("labels", "intermediate outputs", "gates")),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_checkpointing_changes_no_loss_and_no_gradient(tmp_path, make, name):
    expected, recorded = (
        GradientRecorder(make(tmp_path / str(on), TECHNIQUES[name], activation_checkpointing=on, learning_rate=0.0))
        for on in (False, True)
    )
    assert len(expected.steps) >= 4
    assert losses(recorded.trainer) == pytest.approx(losses(expected.trainer), abs=1e-6)
    for gradients, expected_gradients in zip(recorded.steps, expected.steps, strict=True):
        assert gradients.keys() == expected_gradients.keys()
        for key, value in expected_gradients.items():
            assert float((gradients[key] - value).abs().max()) <= 1e-6 * max(1.0, float(value.abs().max())), key
    assert recorded.used_checkpointing
    assert not expected.used_checkpointing


def test_old_name_of_the_argument_has_the_same_effect(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = build_bert(
            tmp_path,
            TECHNIQUES["intermediate outputs"],
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            max_steps=1,
        )
        trainer.train()
    assert all(module.gradient_checkpointing for module in checkpointed_modules(trainer.model))


@pytest.mark.parametrize("teacher", ["given", "copied"])
def test_teacher_is_never_checkpointed(tmp_path, teacher):
    if teacher == "given":
        trainer = build_bert(tmp_path, TECHNIQUES["soft labels"], activation_checkpointing=True)
    else:
        trainer = build(tmp_path, techniques=TECHNIQUES["gates"], activation_checkpointing=True)
    without_report(trainer).train()
    assert checkpointed_modules(trainer.teacher)
    assert not any(module.gradient_checkpointing for module in checkpointed_modules(trainer.teacher))


def test_checkpointing_works_with_accumulation(tmp_path):
    techniques = TECHNIQUES["intermediate outputs"]
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    expected = build_bert(tmp_path / "a", techniques, **changes)
    expected.train()
    trainer = build_bert(tmp_path / "b", techniques, activation_checkpointing=True, **changes)
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(expected), abs=1e-6)


def test_checkpointing_halves_the_memory_that_the_forward_pass_keeps(tmp_path):
    def kept_bytes(**changes):
        """Return the bytes that the graph keeps for the backward pass, without the parameters."""
        trainer = build_bert(tmp_path / str(len(changes)), {}, max_steps=1, **changes)
        parameters = {parameter.data_ptr() for parameter in trainer.model.parameters()}
        sizes, compute_loss = [], trainer.compute_loss

        def pack(tensor):
            if tensor.data_ptr() not in parameters:
                sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        def record(*args, **kwargs):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return compute_loss(*args, **kwargs)

        trainer.compute_loss = record
        trainer.train()
        return sum(sizes)

    assert kept_bytes(activation_checkpointing=True) < 0.5 * kept_bytes()
