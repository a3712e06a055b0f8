"""Training with a teacher: the log, checkpoints, cached outputs, pruning, several teachers, data without labels."""

import copy
from types import SimpleNamespace

import pytest
import torch
from trainers import (
    NARROW,
    InterruptionError,
    arguments,
    bert,
    build_distillation,
    collate,
    log_entries,
    losses,
    rows,
    set_up_distillation,
    stopping,
    t5,
    train_with_teacher,
    without_report,
    written,
)
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Trainer,
    set_seed,
)

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.distillation.distiller import PROJECTIONS_NAME
from hf_efficient.distillation.losses import soft_label_loss
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models import family_of
from hf_efficient.trainer.distillation import DistillationTraining

NO_OBJECTIVE = {"hard_label_weight": 0.0, "logits_weight": 0.0}
ALL_OBJECTIVES = {"hard_label_weight": 0.25, "logits_weight": 0.75, "hidden_weight": 2.0, "embedding_weight": 0.5}
ALL_OBJECTIVES |= {"attention_weight": 0.125, "relation_weight": 3.0}
WEIGHTS_OF_TERMS = {
    "hard_label_loss": "hard_label_weight",
    "soft_label_loss": "logits_weight",
    "hidden_loss": "hidden_weight",
    "embedding_loss": "embedding_weight",
    "attention_loss": "attention_weight",
    "relation_loss": "relation_weight",
}
SMALL = {"scoring_samples": 16, "multiple_of": 4}


def without_labels(examples):
    batch = collate([{"labels": 0, **row} for row in examples])
    return {name: value for name, value in batch.items() if name != "labels"}


# ---- the log ----


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_logged_loss_is_the_weighted_sum_of_the_logged_terms(tmp_path, logging_steps):
    # 20 rows in batches of 8, two a window: the second window of an epoch is one batch of 4.
    changes = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "logging_steps": logging_steps}
    trainer = build_distillation(tmp_path, ALL_OBJECTIVES, bert(**NARROW), bert(2), data=rows(20), **changes)
    entries = log_entries(train_with_teacher(trainer))
    assert len(entries) == 4 // logging_steps
    for entry in entries:
        terms = [ALL_OBJECTIVES[weight] * entry[term] for term, weight in WEIGHTS_OF_TERMS.items()]
        assert entry["loss"] == pytest.approx(sum(terms), rel=1e-4)
        assert min(terms) > 0


def test_schedules_run_from_the_first_step_to_the_last(tmp_path):
    settings = {"temperature": 5.0, "temperature_end": 1.0, "hard_label_weight": 0.0, "hard_label_weight_end": 1.0}
    settings |= {"logits_weight": 1.0, "logits_weight_end": 0.2}
    student, teacher, data = bert(), bert(2), rows()
    batch = collate(list(data))
    labels = batch.pop("labels")
    with torch.no_grad():
        student_logits, teacher_logits = student(**batch).logits, teacher(**batch).logits
    label_loss = float(torch.nn.functional.cross_entropy(student_logits, labels))
    changes = {"num_train_epochs": 4, "per_device_train_batch_size": 32, "learning_rate": 0.0}
    trainer = train_with_teacher(build_distillation(tmp_path, settings, student, teacher, data=data, **changes))
    schedules = (5.0, 4.0, 3.0, 2.0), (0.0, 0.25, 0.5, 0.75), (1.0, 0.8, 0.6, 0.4)
    for entry, temperature, label_weight, teacher_weight in zip(log_entries(trainer), *schedules, strict=True):
        teacher_loss = float(soft_label_loss(student_logits, teacher_logits, temperature)[0]) / 32
        assert entry["soft_label_loss"] == pytest.approx(teacher_loss, rel=1e-4)
        assert entry.get("hard_label_loss", 0.0) == pytest.approx(label_loss if label_weight else 0.0, rel=1e-4)
        assert entry["loss"] == pytest.approx(label_weight * label_loss + teacher_weight * teacher_loss, rel=1e-4)


# ---- checkpoints ----

WITH_PROJECTIONS = {**NO_OBJECTIVE, "hidden_weight": 1.0, "embedding_weight": 1.0, "logits_weight": 0.5}
STEPS = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}


def build_with_projections(folder, **changes):
    return build_distillation(folder, WITH_PROJECTIONS, bert(**NARROW), bert(2), **{**STEPS, **changes})


def build_pruning_with_projections(folder):
    pruning = PruningConfig(heads=0.5, neurons=0.5, rounds=2, **SMALL)
    return without_report(build_with_projections(folder, pruning=pruning, save_steps=2))


@pytest.fixture(scope="module")
def complete_training(tmp_path_factory):
    """Return the folder and the trainer of eight steps without an interruption."""
    folder = tmp_path_factory.mktemp("complete_training")
    return folder, train_with_teacher(build_with_projections(folder))


@pytest.fixture(scope="module")
def complete_pruning(tmp_path_factory):
    """Return the trainer of two rounds without an interruption."""
    trainer = build_pruning_with_projections(tmp_path_factory.mktemp("complete_pruning"))
    trainer.train()
    return trainer


def test_projections_are_saved_in_checkpoints_but_not_with_the_model(tmp_path, complete_training):
    folder, trainer = complete_training
    trainer.save_model(str(tmp_path / "final"))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob(PROJECTIONS_NAME)}
    assert files == {f"checkpoint-{step}/{PROJECTIONS_NAME}" for step in (3, 6, 8)}
    assert not list(tmp_path.rglob(PROJECTIONS_NAME))
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "final")
    assert saved.state_dict().keys() == bert().state_dict().keys()


@pytest.mark.parametrize("interrupted_at", [1, 5], ids=["before a checkpoint", "after a checkpoint"])
def test_resumed_training_ends_with_the_same_weights(tmp_path, complete_training, assert_same_weights, interrupted_at):
    _, complete = complete_training
    with pytest.raises(InterruptionError):
        train_with_teacher(stopping(build_with_projections(tmp_path), interrupted_at))
    checkpoint = tmp_path / "checkpoint-3"
    assert checkpoint.exists() == (interrupted_at > 3)
    resumed = build_with_projections(tmp_path)
    untrained = copy.deepcopy(resumed.model.classifier.weight)
    train_with_teacher(resumed, str(checkpoint) if checkpoint.exists() else None)
    assert_same_weights(resumed.model, complete.model)
    assert_same_weights(
        resumed.distillation_training.distiller.projections, complete.distillation_training.distiller.projections
    )
    assert not torch.equal(untrained, complete.model.classifier.weight)


@pytest.mark.parametrize("interrupted_at", [4, 7], ids=["before a checkpoint", "after a checkpoint"])
def test_resumed_pruning_ends_with_the_same_weights(tmp_path, complete_pruning, assert_same_weights, interrupted_at):
    with pytest.raises(InterruptionError):
        stopping(build_pruning_with_projections(tmp_path), interrupted_at).train()
    assert (tmp_path / "_round-2" / "checkpoint-2").exists() == (interrupted_at == 7)
    resumed = build_pruning_with_projections(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, complete_pruning.model)


# ---- cached outputs of the teacher ----

CACHED = {"temperature": 2.0, "temperature_end": 1.0, "hard_label_weight": 0.5, "logits_weight": 0.5}
WITH_CACHE = {**CACHED, "cache_teacher": True}


@pytest.fixture
def teacher_calls(monkeypatch):
    """Return a list that grows by one with every batch that a teacher predicts."""
    calls, predict = [], Teacher.predict
    monkeypatch.setattr(
        Teacher, "predict", lambda self, *args, **kwargs: calls.append(1) or predict(self, *args, **kwargs)
    )
    return calls


@pytest.mark.parametrize(("make", "accumulation"), [(bert, 2), (t5, 1)], ids=["classifier", "seq2seq"])
def test_cached_teacher_gives_the_same_training_and_predicts_once(tmp_path, teacher_calls, make, accumulation):
    changes = {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-2, "num_train_epochs": 2}
    expected = train_with_teacher(build_distillation(tmp_path / "a", CACHED, make(), make(2), **changes))
    assert len(teacher_calls) == 8
    teacher_calls.clear()
    cached = train_with_teacher(build_distillation(tmp_path / "b", WITH_CACHE, make(), make(2), **changes))
    assert len(teacher_calls) == 1
    assert losses(cached) == pytest.approx(losses(expected), rel=1e-5)
    weights = expected.model.state_dict()
    for name, value in cached.model.state_dict().items():
        if not name.endswith("key.bias"):  # it has no effect, so its gradient is rounding error
            torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)


def test_most_likely_tokens_of_the_teacher_are_enough_to_train_on(tmp_path, teacher_calls):
    settings = {"cache_teacher": True, "cache_top_k": 20, **NO_OBJECTIVE, "logits_weight": 1.0}
    trainer = build_distillation(tmp_path, settings, t5(), t5(2), num_train_epochs=6, learning_rate=1e-2)
    values = losses(train_with_teacher(trainer))
    assert len(teacher_calls) == 1
    assert values[-1] < 0.5 * values[0]


def test_cache_is_used_in_all_rounds_of_a_pruning_and_not_in_evaluation(tmp_path, teacher_calls):
    pruning = PruningConfig(heads=0.5, rounds=2, **SMALL)
    trainer = build_distillation(tmp_path, WITH_CACHE, bert(), bert(2), pruning=pruning, num_train_epochs=2)
    trainer.train()
    assert len(teacher_calls) == 1
    assert [row.role for row in trainer.report.models] == ["teacher", "student"]
    assert 0 <= trainer.report.row("student").metrics["accuracy"] <= 1


def test_cache_of_data_in_memory_is_a_file_that_later_runs_read(tmp_path, teacher_calls):
    for folder in ("a", "b"):
        trainer = build_distillation(tmp_path / folder, WITH_CACHE, bert(), bert(2))
        set_up_distillation(trainer)
        assert len(teacher_calls) == 1
        assert trainer.train_dataset.cache_files


@pytest.mark.parametrize("kind", ["IterableDataset", "list"])
def test_cache_is_refused_for_data_that_is_not_a_dataset(tmp_path, kind):
    data = rows().to_iterable_dataset() if kind == "IterableDataset" else list(rows())
    trainer = build_distillation(tmp_path, {"cache_teacher": True}, bert(), bert(2), data=data, max_steps=1)
    message = f"cache_teacher=True stores outputs of the teacher in a datasets.Dataset, .* is a {kind}: leave it out"
    with pytest.raises(ValueError, match=message):
        set_up_distillation(trainer)


def test_cache_accepts_data_with_another_teacher_column(tmp_path, teacher_calls):
    data = rows().add_column("teacher_name", ["Ms Smith"] * 32)
    trainer = build_distillation(tmp_path, {"cache_teacher": True}, bert(), bert(2), data=data)
    assert len(losses(train_with_teacher(trainer))) == 4
    assert len(teacher_calls) == 1


# ---- with pruning ----


def record_layer_pairs(trainer):
    """Return a list that receives, at each step, the mapped layers and the original indices of the student's."""
    steps, training_step = [], trainer.training_step

    def step(*args, **kwargs):
        structure = family_of(trainer.model).structure(trainer.model.config)
        sources = [layer.source for layer in structure.stacks["encoder"]]
        steps.append((list(trainer.distillation_training.distiller.intermediate.pairs), sources))
        return training_step(*args, **kwargs)

    trainer.training_step = step
    return steps


@pytest.mark.parametrize("schedule", [{"rounds": 2}, {"ramp": 0.5}], ids=["rounds", "ramp"])
def test_remaining_layers_are_compared_with_the_last_layer_that_they_replace(tmp_path, schedule):
    settings = {**NO_OBJECTIVE, "hidden_weight": 1.0, "attention_weight": 1.0, "logits_weight": 0.5}
    pruning = PruningConfig(layers=0.5, heads=0.25, **SMALL, **schedule)
    student = bert(num_hidden_layers=4)
    trainer = build_distillation(tmp_path, settings, student, None, pruning=pruning, num_train_epochs=2)
    steps = record_layer_pairs(without_report(trainer))
    trainer.train()
    assert len(steps) == 8
    for pairs, sources in steps:
        teacher_layers = [following - 1 for following in (*sources[1:], 4)]
        assert pairs == [(f"encoder.{index}", f"encoder.{layer}") for index, layer in enumerate(teacher_layers)]
    assert len(steps[-1][1]) == 2
    assert all(entry["hidden_loss"] > 0 for entry in log_entries(trainer))
    assert trainer.stages[-1] == (
        "trained for 4 steps on the teacher's soft labels (T=2), its hidden states, its attention, without dropout"
    )


# ---- teachers ----


def test_distiller_exists_during_training_only(tmp_path):
    trainer = without_report(build_distillation(tmp_path, {}, bert(), bert(2), max_steps=1))
    assert trainer.distillation_training.distiller is None
    trainer.train()
    assert trainer.distillation_training.distiller is None
    assert trainer.accumulated_loss.distiller is None
    assert set(log_entries(trainer)[0]) >= {"soft_label_loss", "hard_label_loss"}


def test_two_teachers_are_both_in_the_report(tmp_path):
    teachers = [bert(2), bert(3, num_hidden_layers=1, **NARROW)]
    settings = {"teacher_weights": "0.75,0.25", "logits_weight": 1.0}
    trainer = build_distillation(tmp_path, settings, bert(), teachers, max_steps=1)
    trainer.train()
    assert [row.role for row in trainer.report.models] == ["teacher", "teacher 2", "student"]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (*teachers, trainer.model)]
    assert [row.parameters for row in trainer.report.models] == sizes


def test_logits_of_two_teachers_are_averaged_by_their_weights(tmp_path):
    teachers, student, data = [bert(2), bert(3)], bert(), rows(8)
    batch = collate(list(data))
    batch.pop("labels")
    with torch.no_grad():
        student_logits, first, second = (model(**batch).logits for model in (student, *teachers))
    settings = {**NO_OBJECTIVE, "logits_weight": 1.0, "teacher_weights": "3,1", "temperature": 2.0}
    trainer = build_distillation(tmp_path, settings, student, teachers, data=data, learning_rate=0.0)
    expected = float(soft_label_loss(student_logits, 0.75 * first + 0.25 * second, 2.0)[0]) / 8
    assert losses(train_with_teacher(trainer)) == [pytest.approx(expected, rel=1e-4)]


def test_more_weights_than_teachers_are_refused(tmp_path):
    trainer = build_distillation(tmp_path, {"teacher_weights": "3,1,1"}, bert(), [bert(2), bert(3)])
    with pytest.raises(ValueError, match="are 3 weights for 2 teachers: give as many weights as teachers"):
        set_up_distillation(trainer)


@pytest.mark.parametrize(
    ("bf16", "teacher_dtype", "expected"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (False, "bfloat16", torch.bfloat16),
        (True, "float32", torch.float32),
    ],
    ids=str,
)
def test_teacher_computes_in_the_precision_of_training_or_the_requested_one(tmp_path, bf16, teacher_dtype, expected):
    settings = {"teacher_dtype": teacher_dtype, "hidden_weight": 1.0}
    trainer = build_distillation(tmp_path, settings, bert(), bert(2), bf16=bf16)
    set_up_distillation(trainer)
    assert trainer.distillation_training.distiller.teacher.model.dtype == expected
    assert trainer.teacher.dtype == torch.float32


def test_teacher_given_is_not_changed_by_training_in_bf16(tmp_path):
    teacher = bert(2)
    before = copy.deepcopy(teacher.state_dict())
    trainer = build_distillation(tmp_path, {"hidden_weight": 1.0}, bert(), teacher, bf16=True, max_steps=2)
    assert all(torch.isfinite(torch.tensor(losses(train_with_teacher(trainer)))))
    assert trainer.teachers[0] is teacher
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_configs_of_student_and_teacher_are_not_changed(tmp_path):
    student, teacher = bert(**NARROW), bert(2)
    before = [model.config.to_dict() for model in (student, teacher)]
    names = student.state_dict().keys()
    train_with_teacher(build_distillation(tmp_path, ALL_OBJECTIVES, student, teacher, max_steps=1))
    after = [model.config.to_dict() for model in (student, teacher)]
    assert after[1] == before[1]
    changed = {name for name in before[0] if after[0][name] != before[0][name]}
    assert changed <= {"use_cache", "problem_type"}  # set by every training with transformers
    assert student.state_dict().keys() == names


def test_model_given_as_its_own_teacher_is_copied(tmp_path):
    model = bert()
    trainer = without_report(build_distillation(tmp_path, {}, model, model))
    assert trainer.teacher is not model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_teacher_given_by_name_needs_a_trained_head_for_soft_labels(tmp_path):
    bert(model_class=BertModel).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"has no weights for classifier.bias, classifier.weight.*: its logits"):
        build_distillation(tmp_path, {}, bert(), str(tmp_path / "base"))
    settings = {"logits_weight": 0.0, "hidden_weight": 1.0}
    assert build_distillation(tmp_path, settings, bert(), str(tmp_path / "base")).teacher.num_labels == 3


def test_token_types_reach_the_teacher_of_a_student_without_them(tmp_path):
    def collate_with_token_types(examples):
        batch = collate(examples)
        return {**batch, "token_type_ids": torch.ones_like(batch["input_ids"])}

    set_seed(1)
    sizes = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "vocab_size": 60, "num_labels": 3}
    student = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    trainer = build_distillation(tmp_path, {}, student, bert(2), collator=collate_with_token_types, max_steps=1)
    calls = {"student": [], "teacher": []}
    for role, model in (("student", student), ("teacher", trainer.teacher)):
        model.register_forward_pre_hook(
            lambda _, args, kwargs, role=role: calls[role].append(set(kwargs)), with_kwargs=True
        )
    train_with_teacher(trainer)
    assert ["token_type_ids" in names for names in (calls["student"][0], calls["teacher"][0])] == [False, True]
    trainer._signature_columns = None
    assert "token_type_ids" in trainer.get_signature_columns()
    trainer.evaluate()
    assert len(calls["student"]) > 1
    assert "token_type_ids" not in calls["student"][-1]


def test_optimizer_given_trains_the_projections_too(tmp_path):
    student = bert(**NARROW)
    trainer = build_distillation(tmp_path, {**NO_OBJECTIVE, "hidden_weight": 1.0}, student, bert(2), max_steps=1)
    trainer.optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    set_up_distillation(trainer)
    weight = trainer.distillation_training.distiller.projections["hidden_encoder"].weight
    before = weight.detach().clone()
    Trainer.train(trainer)
    assert not torch.equal(weight, before)


def test_reentrant_checkpointing_is_refused_for_attention_and_relations(tmp_path):
    changes = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = build_distillation(tmp_path, {"relation_weight": 1.0}, bert(), bert(2), **changes)
    with pytest.raises(ValueError, match="reentrant checkpointing hides queries, keys and values from the loss: give"):
        set_up_distillation(trainer)
    set_up_distillation(build_distillation(tmp_path, {"hidden_weight": 1.0}, bert(), bert(2), **changes))


def test_projections_are_refused_with_fsdp(tmp_path):
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type="StateDictType.FULL_STATE_DICT")
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    training = DistillationTraining(DistillationConfig(hidden_weight=1.0), arguments(tmp_path), accelerator)
    with pytest.raises(ValueError, match=r"not the projections .*: use relation_weight, which compares across widths"):
        training.setup(bert(**NARROW), [bert(2)])
    assert training.setup(bert(), [bert(2)]) is training.distiller


# ---- without labels ----


@pytest.mark.parametrize("objective", ["logits_weight", "relation_weight"])
def test_texts_without_labels_are_enough_to_train_on_a_teacher(tmp_path, objective):
    settings, data = {**NO_OBJECTIVE, objective: 1.0}, rows().remove_columns("labels")
    changes = {"data": data, "collator": without_labels, "num_train_epochs": 4}
    values = losses(train_with_teacher(build_distillation(tmp_path, settings, bert(), bert(2), **changes)))
    assert len(values) == 16
    assert values[-1] < values[0]


def test_texts_without_labels_and_a_weight_of_labels_are_refused(tmp_path):
    changes = {"data": rows().remove_columns("labels"), "collator": without_labels}
    trainer = build_distillation(tmp_path, {"hard_label_weight": 0.5}, bert(), bert(2), **changes)
    message = r"the batches have no labels, only input_ids, attention_mask: give labels, .* \(hard_label_weight=0\)"
    with pytest.raises(ValueError, match=message):
        train_with_teacher(trainer)


def test_models_without_a_task_head_are_trained_on_relations(tmp_path):
    settings = {**NO_OBJECTIVE, "relation_weight": 1.0}
    student, teacher = bert(model_class=BertModel, **NARROW), bert(2, model_class=BertModel)
    changes = {"data": rows().remove_columns("labels"), "collator": without_labels, "num_train_epochs": 4}
    values = losses(train_with_teacher(build_distillation(tmp_path, settings, student, teacher, **changes)))
    assert values[-1] < 0.9 * values[0]


# ---- generated targets ----


def test_student_is_trained_on_targets_that_the_teacher_generates(tmp_path, make_model):
    teacher, student = (make_model("T5ForConditionalGeneration", seed=seed) for seed in (1, 2))
    data = written()
    trainer = build_distillation(tmp_path, {"targets": "teacher"}, student, teacher, data=data, max_steps=1)
    trainer.args.generation_max_length = 6
    train_with_teacher(trainer)
    generated = trainer.train_dataset["labels"][:]
    assert generated != data["labels"][:]
    assert all(len(labels) <= 5 for labels in generated)
    set_up_distillation(trainer)  # generated from the original data, not from the targets of the first time
    assert trainer.train_dataset["labels"][:] == generated


def test_generated_targets_are_refused_for_data_that_is_not_a_dataset(tmp_path, make_model):
    student = make_model("T5ForConditionalGeneration")
    changes = {"data": list(written())}
    trainer = build_distillation(tmp_path, {"targets": "both"}, student, copy.deepcopy(student), **changes)
    with pytest.raises(ValueError, match=r"targets='both' stores .* the training data is a list: leave it out"):
        set_up_distillation(trainer)
