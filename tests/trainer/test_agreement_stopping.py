"""Stopping by agreement with the teacher on held-out training rows, and keeping the best weights."""

import math

import pytest
import torch
from trainers import build, classifier, rows, without_report

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.trainer import agreement_stopping
from hf_efficient.trainer.agreement_stopping import CURVE_NAME, WEIGHTS_NAME

CONFIG = DistillationConfig(stop_when_flat=True, hard_label_weight=0.0)


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    """Hold out a quarter of the rows of tiny data, and look at them every second step."""
    for name, value in (("HELD_OUT_FRACTION", 0.25), ("MIN_HELD_OUT_ROWS", 8), ("MIN_STEPS", 2), ("LOOKS", 100)):
        monkeypatch.setattr(agreement_stopping, name, value)


def distil(folder, config=CONFIG, student=None, teacher=None, techniques=None, **changes):
    settings = {"max_steps": 12, "save_strategy": "no", "learning_rate": 3e-3, **changes}
    techniques = {"distillation": config, "teacher": teacher or far_teacher(), **(techniques or {})}
    return without_report(build(folder, model=student, data=rows(64), techniques=techniques, **settings))


def far_teacher():
    """Return a teacher that predicts other classes than the student at first."""
    teacher = classifier()
    with torch.no_grad():
        teacher.classifier.weight.copy_(teacher.classifier.weight.roll(1, 0))
    return teacher


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_training_rows_are_held_out_and_never_trained_on(tmp_path):
    trainer = distil(tmp_path, max_steps=2)
    stopping, held_out = trainer.agreement_stopping, []
    prepare = stopping._prepare
    stopping._prepare = lambda: (held_out.extend(stopping._rows["input_ids"]), prepare())
    trainer.train()
    trained = list(trainer.train_dataset["input_ids"])
    assert (len(trained), len(held_out)) == (48, 16)
    assert sorted(trained + held_out) == sorted(rows(64)["input_ids"])


def test_curve_starts_before_training_and_the_best_weights_are_kept(tmp_path):
    trainer = distil(tmp_path)
    looks = []
    look = trainer.agreement_stopping._look
    trainer.agreement_stopping._look = lambda model, step: (look(model, step), looks.append(weights(model)))
    trainer.train()
    points = trainer.report.training_curve
    assert [point.step for point in points][:2] == [0, 2]
    assert all(0 <= point.agreement <= 1 and point.loss > 0 for point in points)
    best = max(points, key=lambda point: (point.agreement, -point.loss))
    assert best.agreement > points[0].agreement
    expected = looks[points.index(best)]
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer.model).items())
    assert f"the weights of step {best.step:,} are kept" in trainer.stages[-1]
    assert "on 16 held-out training rows" in trainer.stages[-1]


def test_student_that_training_makes_worse_is_kept_as_it_was(tmp_path):
    student = classifier()
    before = weights(student)
    trainer = distil(tmp_path, student=student, teacher=classifier(), learning_rate=0.3, max_steps=24)
    trainer.train()
    assert trainer.report.training_curve[0].agreement == 1.0  # the same model
    assert trainer.state.global_step == 20  # five looks of the second half without a new maximum
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer.model).items())
    assert "training did not raise agreement with the teacher" in trainer.stages[-1]


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (DistillationConfig(), {}),
        (CONFIG, {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "save_steps": 4,
                  "eval_steps": 4}),
    ],
    ids=["not asked for", "models are selected by evaluations"],
)  # fmt: skip
def test_all_rows_are_trained_on_where_nothing_is_looked_at(tmp_path, config, changes):
    trainer = distil(tmp_path, config, max_steps=4, **changes)
    trainer.train()
    assert (len(trainer.train_dataset), trainer.report.training_curve) == (64, ())
    assert "kept" not in trainer.stages[-1]


def test_small_data_is_not_split(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement_stopping, "MIN_HELD_OUT_ROWS", 17)
    trainer = distil(tmp_path, max_steps=2)
    trainer.train()
    assert (len(trainer.train_dataset), trainer.report.training_curve) == (64, ())


def test_each_round_of_pruning_has_its_own_curve(tmp_path):
    pruning = {"pruning": PruningConfig(neurons=0.5, rounds=2)}
    trainer = distil(tmp_path, techniques=pruning, max_steps=8, save_strategy="no")
    trainer.train()
    assert [(point.round, point.step) for point in trainer.report.training_curve if not point.step] == [(1, 0), (2, 0)]
    assert sum("before training" in stage or "untrained" in stage for stage in trainer.stages) == 2


def test_nothing_is_looked_at_while_gates_close(tmp_path):
    pruning = {"pruning": PruningConfig(neurons=0.5, ramp=0.5)}
    trainer = distil(tmp_path, techniques=pruning, max_steps=8)
    trainer.train()
    curve = trainer.report.training_curve
    assert {point.round for point in curve} == {1}
    assert curve[0].step == 0


def test_resumed_training_has_the_same_curve_and_weights(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 12}
    whole = distil(tmp_path / "whole", **settings)
    whole.train()
    folder = tmp_path / "whole" / "checkpoint-4"
    assert (folder / CURVE_NAME).exists()
    assert (folder / WEIGHTS_NAME).exists()
    resumed = distil(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.report.training_curve == whole.report.training_curve
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in weights(resumed.model).items())


def test_loss_is_not_computed_where_the_outputs_of_the_teacher_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement_stopping, "MAX_STORED_OUTPUTS", 3)
    trainer = distil(tmp_path, max_steps=4)
    trainer.train()
    assert [point.loss for point in trainer.report.training_curve] == [None] * len(trainer.report.training_curve)
    assert not any(math.isnan(point.agreement) for point in trainer.report.training_curve)


def test_cached_outputs_of_the_teacher_are_no_inputs(tmp_path):
    config = DistillationConfig(stop_when_flat=True, cache_teacher=True)
    trainer = distil(tmp_path, config, max_steps=4)
    trainer.train()
    assert trainer.report.training_curve[0].agreement < 1
