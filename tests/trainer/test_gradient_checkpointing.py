"""Gradient checkpointing saves memory and changes nothing else, under every technique, dropout included."""

import warnings

import pytest
import torch
from trainers import arguments, build, classifier, losses, pad, t5, written
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hf_efficient import DistillationConfig, EfficientSeq2SeqTrainer, PruningConfig, QuantizationConfig
from hf_efficient.models import family_of

SMALL = {"scoring_samples": 16, "multiple_of": 4}
INSIDE = {"hidden_weight": 1.0, "attention_weight": 1.0, "relation_weight": 1.0, "embedding_weight": 1.0}
TECHNIQUES = {
    "labels": {},
    "soft labels": {"distillation": DistillationConfig()},
    "what is inside": {"distillation": DistillationConfig(**INSIDE)},
    "gates": {"pruning": PruningConfig(target_flops=1.5, ramp=0.6, **SMALL), "distillation": DistillationConfig()},
    "rounds": {"pruning": PruningConfig(heads=0.5, neurons=0.5, rounds=2, **SMALL)},
    "zeros": {"pruning": PruningConfig(weights=0.5, ramp=0.6, **SMALL)},
    # Weights alone: an activation that is rounded moves by a whole step where its last bit differs.
    "8 bits": {
        "quantization": QuantizationConfig("int8_weight_only", aware=True),
        "distillation": DistillationConfig(),
    },
}


def bert_trainer(folder, techniques, **changes):
    teacher = {"teacher": classifier(dropout=0.1)} if "distillation" in techniques else {}
    model = classifier(dropout=0.1)
    return build(folder, model=model, techniques={**techniques, **teacher}, num_train_epochs=2, **changes)


def t5_trainer(folder, techniques, **changes):
    given = arguments(folder, num_train_epochs=2, seed=3, **changes)
    names = ("output_dir", "per_device_train_batch_size", "num_train_epochs", "use_cpu", "report_to", "logging_steps")
    names += ("save_strategy", "disable_tqdm", "learning_rate", "seed", *changes)
    teacher = {"teacher": t5(2)} if "distillation" in techniques else {}
    return EfficientSeq2SeqTrainer(
        model=t5(dropout=0.1),
        args=Seq2SeqTrainingArguments(**{name: getattr(given, name) for name in names}),
        train_dataset=written(),
        data_collator=pad,
        **techniques,
        **teacher,
    )


@pytest.mark.parametrize("make", [bert_trainer, t5_trainer], ids=["bert", "t5"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_it_changes_no_loss_and_no_gradient(tmp_path, make, name):
    plain, saving = (
        Gradients(make(tmp_path / str(saves), TECHNIQUES[name], activation_checkpointing=saves, learning_rate=0.0))
        for saves in (False, True)
    )
    assert len(plain.steps) >= 8
    assert losses(saving.trainer) == pytest.approx(losses(plain.trainer), abs=1e-6)
    for found, expected in zip(saving.steps, plain.steps, strict=True):
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            assert float((found[key] - gradient).abs().max()) <= 1e-6 * max(1.0, float(gradient.abs().max())), key
    assert saving.saved
    assert not plain.saved


class Gradients(TrainerCallback):
    """Trains, and keeps the gradients of every step: without a learning rate all steps see the same weights."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.saved = trainer, [], False
        trainer.add_callback(self)
        trainer.train()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.saved = any(module.gradient_checkpointing for module in checkpointed(model))
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def checkpointed(model):
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def test_the_old_name_of_the_argument_does_the_same(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = bert_trainer(
            tmp_path,
            TECHNIQUES["what is inside"],
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        trainer.train()
    assert all(module.gradient_checkpointing for module in checkpointed(trainer.model))


@pytest.mark.parametrize("name", ["soft labels", "gates"])
def test_the_teacher_is_never_checkpointed(tmp_path, name):
    techniques = {key: value for key, value in TECHNIQUES[name].items() if key != "teacher"}
    for made in (
        bert_trainer(tmp_path / "named", techniques, activation_checkpointing=True),
        build(tmp_path / "own", techniques=techniques, num_train_epochs=2, activation_checkpointing=True),
    ):
        made.train()
        assert checkpointed(made.teacher)
        assert not any(module.gradient_checkpointing for module in checkpointed(made.teacher))


@pytest.mark.parametrize("name", ["labels", "what is inside", "gates"])
def test_it_goes_with_accumulation(tmp_path, name):
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    plain = bert_trainer(tmp_path / "a", TECHNIQUES[name], **changes)
    plain.train()
    saving = bert_trainer(tmp_path / "b", TECHNIQUES[name], activation_checkpointing=True, **changes)
    saving.train()
    assert losses(saving) == pytest.approx(losses(plain), abs=1e-6)


def test_its_forward_pass_keeps_less(tmp_path):
    """Counts the bytes that the graph keeps for the backward pass, without what the parameters are."""

    def kept(**changes):
        trainer = bert_trainer(tmp_path / str(len(changes)), {}, max_steps=1, **changes)
        parameters = {parameter.data_ptr() for parameter in trainer.model.parameters()}
        total = []

        def pack(tensor):
            if tensor.data_ptr() not in parameters:
                total.append(tensor.numel() * tensor.element_size())
            return tensor

        forward = trainer.compute_loss

        def watched(*args, **kwargs):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return forward(*args, **kwargs)

        trainer.compute_loss = watched
        trainer.train()
        assert family_of(trainer.model)
        return sum(total)

    assert kept(activation_checkpointing=True) < 0.5 * kept()
