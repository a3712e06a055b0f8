import copy

import pytest
import torch
from trainers import (
    InterruptionError,
    accuracy,
    arguments,
    collate,
    livelier,
    losses,
    pad,
    rows,
    set_up_distillation,
    stopping,
    t5,
    written,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    Trainer,
    set_seed,
)

from hf_efficient import (
    CompressionReport,
    DistillationConfig,
    EfficientSeq2SeqTrainer,
    EfficientTrainer,
    PruningConfig,
)
from hf_efficient.distillation.distiller import PROJECTIONS_NAME
from hf_efficient.distillation.losses import soft_label_loss
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models import family_of

NOTHING = {"hard_label_weight": 0.0, "logits_weight": 0.0}
OBJECTIVES = {
    "labels": {"hard_label_weight": 1.0},
    "soft labels": {"logits_weight": 1.0, "temperature": 3.0},
    "hidden states": {"hidden_weight": 1.0},
    "directions of hidden states": {"hidden_weight": 1.0, "hidden_distance": "cosine"},
    "embeddings": {"embedding_weight": 1.0},
    "attention": {"attention_weight": 1.0},
    "relations": {"relation_weight": 1.0},
}
SAME_WIDTH = ("directions of hidden states",)
PARTS = {
    "hard_label_loss": "hard_label_weight",
    "soft_label_loss": "logits_weight",
    "hidden_loss": "hidden_weight",
    "embedding_loss": "embedding_weight",
    "attention_loss": "attention_weight",
    "relation_loss": "relation_weight",
}
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NARROW = {"hidden_size": 16, "num_attention_heads": 2}
GIVEN = ("output_dir", "per_device_train_batch_size", "num_train_epochs", "use_cpu", "report_to", "logging_steps")
GIVEN += ("save_strategy", "disable_tqdm", "learning_rate", "seed")
SMALL = {"scoring_samples": 16, "multiple_of": 4}


def bert(seed=1, model_class=BertForSequenceClassification, **changes):
    set_seed(seed)
    return livelier(model_class(BertConfig(**{**SIZES, **changes})))


def without_labels(examples):
    return {name: value for name, value in collate([{"labels": 0, **e} for e in examples]).items() if name != "labels"}


def build(folder, settings, student, teacher, data=None, pruning=None, collator=collate, **changes):
    seq2seq = isinstance(student, T5ForConditionalGeneration)
    args = arguments(folder, seed=3, **changes)
    if seq2seq:
        args = Seq2SeqTrainingArguments(**{name: getattr(args, name) for name in (*GIVEN, *changes)})
    return (EfficientSeq2SeqTrainer if seq2seq else EfficientTrainer)(
        model=student,
        args=args,
        train_dataset=data or (written() if seq2seq else rows()),
        eval_dataset=None if seq2seq else rows(16, seed=9),
        data_collator=pad if seq2seq else collator,
        compute_metrics=None if seq2seq else accuracy,
        teacher=teacher,
        distillation=DistillationConfig(**settings),
        pruning=pruning,
    )


def learn(trainer, resume=None):
    """Trains with the teacher, and measures nothing."""
    set_up_distillation(trainer)
    Trainer.train(trainer, resume)
    return trainer


def gradients(trainer):
    """Returns the gradients of each optimizer step, of the student and of the projections."""
    found = []
    set_up_distillation(trainer)
    trainer.args.max_grad_norm = 0
    trainer.create_optimizer()
    step = trainer.optimizer.step

    def remember(*args, **kwargs):
        named = [
            *trainer.model.named_parameters(),
            *trainer.distillation_training.distiller.projections.named_parameters("projections"),
        ]
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        return step(*args, **kwargs)

    trainer.optimizer.step = remember
    Trainer.train(trainer)
    return found


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    whole = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    assert whole > 1e-3
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()) + 1e-6 * whole, name


# ---- accumulation ----


@pytest.fixture(params=[*OBJECTIVES, *(f"{name}, of a T5" for name in OBJECTIVES)])
def objective(request):
    """The settings for one objective alone, a student and a teacher."""
    name, _, seq2seq = request.param.partition(", of a ")
    wide = name in SAME_WIDTH
    student = t5(width=32 if wide else 16) if seq2seq else bert(**({} if wide else NARROW))
    return {**NOTHING, **OBJECTIVES[name]}, student, t5(2) if seq2seq else bert(2)


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, objective):
    set_seed(0)
    large = gradients(build(tmp_path, *copy.deepcopy(objective), max_steps=1, per_device_train_batch_size=32))[0]
    set_seed(0)
    small = gradients(build(tmp_path, *objective, max_steps=1, gradient_accumulation_steps=4))[0]
    assert_same_gradients(small, large)


def test_the_last_window_of_an_epoch_is_divided_by_its_own_count(tmp_path, objective):
    data = written(20) if "T5" in type(objective[1]).__name__ else rows(20)
    whole = gradients(build(tmp_path, *copy.deepcopy(objective), data=data, per_device_train_batch_size=20))[0]
    parts = gradients(build(tmp_path, *objective, data=data, gradient_accumulation_steps=4))
    assert len(parts) == 1
    assert_same_gradients(parts[0], whole)


def test_projections_are_among_what_is_compared(tmp_path):
    settings = {**NOTHING, "hidden_weight": 1.0, "embedding_weight": 1.0}
    found = gradients(build(tmp_path, settings, bert(**NARROW), bert(2), max_steps=1))[0]
    names = {name for name in found if name.startswith("projections")}
    assert names == {"projections.hidden_encoder.weight", "projections.embeddings_encoder.weight"}
    assert all(float(found[name].abs().sum()) > 0 for name in names)


def test_every_step_begins_with_no_gradient(tmp_path):
    settings = {**NOTHING, "hidden_weight": 1.0}
    changes = {"num_train_epochs": 3, "per_device_train_batch_size": 32, "learning_rate": 0.0}
    found = gradients(build(tmp_path, settings, bert(**NARROW), bert(2), **changes))
    assert len(found) == 3  # each of all the data and the same weights
    for later in found[1:]:
        assert_same_gradients(later, found[0])


def test_judgements_of_padded_tokens_are_not_counted(tmp_path):
    def judge():
        set_seed(1)
        return livelier(ElectraForPreTraining(ElectraConfig(**{**SIZES, "num_labels": 2}, embedding_size=16)))

    data = rows(32).map(lambda row: {"labels": [number % 2 for number in row["input_ids"]]})
    changes = {"data": data, "collator": lambda examples: pad(examples, filled=0), "max_steps": 1}
    settings = {**NOTHING, "hard_label_weight": 1.0}

    def gradient(**sizes):
        trainer = build(tmp_path, settings, judge(), judge(), **changes, **sizes)
        trainer.eval_dataset = trainer.compute_metrics = None
        return gradients(trainer)[0]

    assert_same_gradients(gradient(gradient_accumulation_steps=4), gradient(per_device_train_batch_size=32))


# ---- the log ----

ALL = {"hard_label_weight": 0.25, "logits_weight": 0.75, "hidden_weight": 2.0, "embedding_weight": 0.5}
ALL |= {"attention_weight": 0.125, "relation_weight": 3.0}


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_the_parts_add_up_in_the_log_with_their_weights(tmp_path, logging_steps):
    # 20 rows in batches of 8, two a window: the second window of an epoch is of one batch of 4.
    trainer = build(
        tmp_path,
        ALL,
        bert(**NARROW),
        bert(2),
        data=rows(20),
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=logging_steps,
    )
    entries = [entry for entry in learn(trainer).state.log_history if "loss" in entry]
    assert len(entries) == 4 // logging_steps
    for entry in entries:
        assert entry["loss"] == pytest.approx(sum(ALL[w] * entry[part] for part, w in PARTS.items()), rel=1e-4)
        assert all(entry[part] > 0 for part in PARTS)


def test_schedules_go_from_the_first_step_to_the_end(tmp_path):
    settings = {"temperature": 5.0, "temperature_end": 1.0, "hard_label_weight": 0.0, "hard_label_weight_end": 1.0}
    settings |= {"logits_weight": 1.0, "logits_weight_end": 0.2}
    student, teacher, data = bert(), bert(2), rows()
    batch = collate(list(data))
    labels = batch.pop("labels")
    with torch.no_grad():
        ours, theirs = student(**batch).logits, teacher(**batch).logits
    hard = float(torch.nn.functional.cross_entropy(ours, labels))
    changes = {"num_train_epochs": 4, "per_device_train_batch_size": 32, "learning_rate": 0.0}
    trainer = learn(build(tmp_path, settings, student, teacher, data=data, **changes))
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, temperature, labels_weigh, teacher_weighs in zip(
        entries, (5.0, 4.0, 3.0, 2.0), (0.0, 0.25, 0.5, 0.75), (1.0, 0.8, 0.6, 0.4), strict=True
    ):
        soft = float(soft_label_loss(ours, theirs, temperature)[0]) / 32
        assert entry["soft_label_loss"] == pytest.approx(soft, rel=1e-4)
        assert entry.get("hard_label_loss", 0.0) == pytest.approx(hard if labels_weigh else 0.0, rel=1e-4)
        assert entry["loss"] == pytest.approx(labels_weigh * hard + teacher_weighs * soft, rel=1e-4)


# ---- checkpoints ----

PROJECTED = {**NOTHING, "hidden_weight": 1.0, "embedding_weight": 1.0, "logits_weight": 0.5}
STEPS = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}


def test_projections_are_in_checkpoints_and_not_in_the_model(tmp_path):
    trainer = learn(build(tmp_path, PROJECTED, bert(**NARROW), bert(2), **STEPS))
    trainer.save_model(str(tmp_path / "final"))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(PROJECTIONS_NAME)}
    assert files == {f"checkpoint-3/{PROJECTIONS_NAME}", f"checkpoint-6/{PROJECTIONS_NAME}"} | {
        f"checkpoint-8/{PROJECTIONS_NAME}"
    }
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "final")
    assert saved.state_dict().keys() == bert().state_dict().keys()


@pytest.mark.parametrize("at", [1, 5], ids=["before a checkpoint", "after one"])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, at):
    def fresh(folder):
        return build(tmp_path / folder, PROJECTED, bert(**NARROW), bert(2), **STEPS)

    whole = fresh("whole")
    learn(whole)
    with pytest.raises(InterruptionError):
        learn(stopping(fresh("broken"), at))
    resumed = fresh("broken")
    checkpoint = tmp_path / "broken" / "checkpoint-3"
    learn(resumed, str(checkpoint) if checkpoint.exists() else None)
    assert_same_state(resumed.model, whole.model)
    assert_same_state(
        resumed.distillation_training.distiller.projections, whole.distillation_training.distiller.projections
    )
    start = fresh("start").model.state_dict()
    assert not torch.equal(start["classifier.weight"], whole.model.state_dict()["classifier.weight"])


def assert_same_state(found, expected):
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]


@pytest.mark.parametrize("at", [4, 7], ids=["before the second round's checkpoint", "after it"])
def test_an_interrupted_pruning_resumes_with_its_projections(tmp_path, at):
    def fresh(folder):
        pruning = PruningConfig(heads=0.5, neurons=0.5, rounds=2, **SMALL)
        changes = {**STEPS, "save_steps": 2}
        trainer = build(tmp_path / folder, PROJECTED, bert(**NARROW), bert(2), pruning=pruning, **changes)
        trainer.build_report = lambda models, exported: CompressionReport()
        return trainer

    whole = fresh("whole")
    whole.train()
    with pytest.raises(InterruptionError):
        stopping(fresh("broken"), at).train()
    resumed = fresh("broken")
    resumed.train(resume_from_checkpoint=True)
    assert_same_state(resumed.model, whole.model)


# ---- the cache ----


@pytest.fixture
def asked(monkeypatch):
    """Counts how often the teacher is asked."""
    calls, ask = [], Teacher.predict
    monkeypatch.setattr(
        Teacher, "predict", lambda self, *args, **kwargs: calls.append(1) or ask(self, *args, **kwargs)
    )
    return calls


CACHED = {"temperature": 2.0, "temperature_end": 1.0, "hard_label_weight": 0.5, "logits_weight": 0.5}


@pytest.mark.parametrize("make", [bert, t5])
@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
def test_a_cached_teacher_teaches_the_same_and_is_not_asked_again(tmp_path, asked, make, changes):
    changes = {**changes, "learning_rate": 1e-2, "num_train_epochs": 2}
    plain_run = learn(build(tmp_path / "a", CACHED, make(), make(2), **changes))
    assert len(asked) == 8
    asked.clear()
    cached = learn(build(tmp_path / "b", {**CACHED, "cache_teacher": True}, make(), make(2), **changes))
    assert len(asked) == 1
    assert losses(cached) == pytest.approx(losses(plain_run), rel=1e-5)
    expected = plain_run.model.state_dict()
    for name, value in cached.model.state_dict().items():
        if not name.endswith("key.bias"):  # which changes nothing, and whose gradient is rounding
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_the_most_likely_answers_of_a_t5_are_enough_to_learn_from(tmp_path, asked):
    settings = {"cache_teacher": True, "cache_top_k": 20, **NOTHING, "logits_weight": 1.0}
    trainer = learn(build(tmp_path, settings, t5(), t5(2), num_train_epochs=6, learning_rate=1e-2))
    assert len(asked) == 1
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]


def test_a_cache_serves_pruning_in_rounds_and_measuring(tmp_path, asked):
    settings = {**CACHED, "cache_teacher": True}
    pruning = PruningConfig(heads=0.5, rounds=2, **SMALL)
    trainer = build(tmp_path, settings, bert(), bert(2), pruning=pruning, num_train_epochs=2)
    trainer.train()
    assert len(asked) == 1
    assert [row.role for row in trainer.report.models] == ["teacher", "student"]
    assert 0 <= trainer.report.row("student").metrics["accuracy"] <= 1


def test_answers_to_data_in_memory_lie_on_disk_and_are_found_again(tmp_path, asked):
    settings = {**CACHED, "cache_teacher": True}
    for folder in ("a", "b"):
        trainer = learn(build(tmp_path / folder, settings, bert(), bert(2)))
        assert len(asked) == 1
        assert trainer.train_dataset.cache_files


def test_data_that_is_no_dataset_cannot_be_cached(tmp_path):
    for data in (rows().to_iterable_dataset(), list(rows())):
        trainer = build(tmp_path, {"cache_teacher": True}, bert(), bert(2), data=data, max_steps=1)
        message = f"keeps what the teacher says in a datasets.Dataset, the training data is a {type(data).__name__}"
        with pytest.raises(ValueError, match=message):
            learn(trainer)


def test_columns_of_ones_own_do_not_stop_the_cache(tmp_path, asked):
    data = rows().add_column("teacher_name", ["Ms Smith"] * 32)
    trainer = learn(build(tmp_path, {"cache_teacher": True}, bert(), bert(2), data=data))
    assert len(asked) == 1
    assert len(losses(trainer)) == 4


# ---- with pruning ----


def spied(trainer):
    """Returns the pairs of layers, and where the student's come from, at each step."""
    seen, training_step = [], trainer.training_step

    def step(*args, **kwargs):
        config = trainer.model.config
        sources = [layer.source for layer in family_of(trainer.model).structure(config).stacks["encoder"]]
        seen.append((list(trainer.distillation_training.distiller.pairs), sources))
        return training_step(*args, **kwargs)

    trainer.training_step = step
    return seen


@pytest.mark.parametrize("schedule", [{"rounds": 2}, {"ramp": 0.5}], ids=str)
def test_layers_that_are_left_learn_the_work_of_those_that_went(tmp_path, schedule):
    student = bert(num_hidden_layers=4)
    settings = {**NOTHING, "hidden_weight": 1.0, "attention_weight": 1.0, "logits_weight": 0.5}
    pruning = PruningConfig(layers=0.5, heads=0.25, **SMALL, **schedule)
    trainer = build(tmp_path, settings, student, None, pruning=pruning, num_train_epochs=2)
    seen = spied(trainer)
    trainer.train()
    assert len(seen) == 8
    for pairs, sources in seen:
        theirs = [following - 1 for following in (*sources[1:], 4)]
        assert pairs == [(f"encoder.{index}", f"encoder.{layer}") for index, layer in enumerate(theirs)]
    assert len(seen[-1][1]) == 2
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["hidden_loss"] > 0 for entry in entries)
    assert trainer.report.stages[-1] == (
        "trained for 4 steps on the teacher's soft labels (T=2), its hidden states, its attention"
    )


# ---- teachers ----


def test_two_teachers_teach_and_are_both_measured(tmp_path):
    teachers = [bert(2), bert(3, num_hidden_layers=1, **NARROW)]
    trainer = build(tmp_path, {"teacher_weights": "0.75,0.25", "logits_weight": 1.0}, bert(), teachers)
    trainer.train()
    assert [row.role for row in trainer.report.models] == ["teacher", "teacher 2", "student"]
    sizes = [sum(p.numel() for p in model.parameters()) for model in (*teachers, trainer.model)]
    assert [row.parameters for row in trainer.report.models] == sizes


def test_two_teachers_are_mixed_by_their_weights(tmp_path):
    teachers, student, data = [bert(2), bert(3)], bert(), rows(8)
    batch = collate(list(data))
    batch.pop("labels")
    with torch.no_grad():
        ours, first, second = (model(**batch).logits for model in (student, *teachers))
    settings = {**NOTHING, "logits_weight": 1.0, "teacher_weights": "3,1", "temperature": 2.0}
    trainer = learn(build(tmp_path, settings, student, teachers, data=data, learning_rate=0.0))
    expected = float(soft_label_loss(ours, 0.75 * first + 0.25 * second, 2.0)[0]) / 8
    assert losses(trainer) == [pytest.approx(expected, rel=1e-4)]


def test_as_many_weights_as_teachers_are_needed(tmp_path):
    trainer = build(tmp_path, {"teacher_weights": "3,1,1"}, bert(), [bert(2), bert(3)])
    with pytest.raises(ValueError, match="are 3 weights for 2 teachers: give as many weights as teachers"):
        learn(trainer)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bf16": True}, torch.bfloat16),
        ({}, torch.float32),
        ({"teacher_dtype": "bfloat16"}, torch.bfloat16),
        ({"bf16": True, "teacher_dtype": "float32"}, torch.float32),
    ],
    ids=str,
)
def test_the_teacher_computes_in_the_precision_of_training_or_its_own(tmp_path, changes, expected):
    settings = {name: changes[name] for name in changes if name == "teacher_dtype"}
    teacher, bf16 = bert(2), changes.get("bf16", False)
    before = copy.deepcopy(teacher.state_dict())
    trainer = learn(build(tmp_path, {**settings, "hidden_weight": 1.0}, bert(), teacher, bf16=bf16))
    assert trainer.distillation_training.distiller.teacher.model.dtype == expected
    assert trainer.teachers[0] is teacher
    assert teacher.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


def test_neither_config_is_touched(tmp_path):
    student, teacher = bert(**NARROW), bert(2)
    configs = [model.config.to_dict() for model in (student, teacher)]
    names = student.state_dict().keys()
    learn(build(tmp_path, ALL, student, teacher))
    found = [model.config.to_dict() for model in (student, teacher)]
    assert found[1] == configs[1]
    differ = {name for name in configs[0] if found[0][name] != configs[0][name]}
    assert differ <= {"use_cache", "problem_type"}  # which stock training sets
    assert student.state_dict().keys() == names


# ---- without labels ----


@pytest.mark.parametrize("settings", [{"logits_weight": 1.0}, {"relation_weight": 1.0}], ids=str)
def test_texts_without_labels_are_learned_from_a_teacher_alone(tmp_path, settings):
    data, settings = rows().remove_columns("labels"), {**NOTHING, **settings}
    trainer = build(tmp_path, settings, bert(), bert(2), data=data, collator=without_labels, num_train_epochs=4)
    found = losses(learn(trainer))
    assert len(found) == 16
    assert found[-1] < found[0]


def test_texts_without_labels_have_no_labels_to_weigh(tmp_path):
    data = rows().remove_columns("labels")
    trainer = build(tmp_path, {"hard_label_weight": 0.5}, bert(), bert(2), data=data, collator=without_labels)
    message = r"the batches have no labels, only input_ids, attention_mask: give labels, .* \(hard_label_weight=0\)"
    with pytest.raises(ValueError, match=message):
        learn(trainer)


def test_unlabelled_texts_give_the_gradient_of_labelled_ones(tmp_path):
    settings, teacher = {**NOTHING, "logits_weight": 1.0}, bert(2)
    data = rows(8)
    with_them = gradients(build(tmp_path, settings, bert(), teacher, data=data, max_steps=1))[0]
    changes = {"data": data.remove_columns("labels"), "collator": without_labels, "max_steps": 1}
    assert_same_gradients(gradients(build(tmp_path, settings, bert(), teacher, **changes))[0], with_them)


def test_models_without_a_task_head_learn_relations(tmp_path):
    settings = {**NOTHING, "relation_weight": 1.0}
    models = bert(model_class=BertModel, **NARROW), bert(2, model_class=BertModel)
    data = rows().remove_columns("labels")
    trainer = build(tmp_path, settings, *models, data=data, collator=without_labels, num_train_epochs=4)
    found = losses(learn(trainer))
    assert found[-1] < 0.9 * found[0]


# ---- what once went wrong ----


def test_a_batch_without_labels_adds_nothing_and_a_window_without_is_refused(tmp_path):
    data = written(16)
    unlabelled = [-100] * 3
    half = data.map(lambda row, index: {"labels": unlabelled if index < 8 else row["labels"]}, with_indices=True)
    settings = {**NOTHING, "hard_label_weight": 1.0}
    # Two batches of eight, drawn as they come: one of them has no label.
    ordered = {"train_sampling_strategy": "sequential"}
    parts = gradients(build(tmp_path, settings, t5(), t5(2), data=half, gradient_accumulation_steps=2, **ordered))
    whole = gradients(build(tmp_path, settings, t5(), t5(2), data=half.select(range(8, 16)), **ordered))
    assert len(parts) == len(whole) == 1
    assert_same_gradients(parts[0], whole[0])
    none = data.map(lambda row: {"labels": unlabelled})
    with pytest.raises(ValueError, match="none of the labels of a whole step counts"):
        learn(build(tmp_path, settings, t5(), t5(2), data=none))


def test_an_optimizer_that_was_given_trains_the_projections_too(tmp_path):
    student = bert(**NARROW)
    trainer = build(tmp_path, {**NOTHING, "hidden_weight": 1.0}, student, bert(2))
    trainer.optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    set_up_distillation(trainer)
    before = trainer.distillation_training.distiller.projections["hidden_encoder"].weight.detach().clone()
    Trainer.train(trainer)
    assert not torch.equal(trainer.distillation_training.distiller.projections["hidden_encoder"].weight, before)


def test_a_model_that_is_its_own_teacher_teaches_as_it_was(tmp_path):
    model = bert()
    trainer = build(tmp_path, {}, model, model)
    assert trainer.teacher is not model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_named_teacher_without_a_head_is_refused(tmp_path):
    bert(model_class=BertModel).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"has no weights for classifier.bias, classifier.weight.*: its logits"):
        build(tmp_path, {}, bert(), str(tmp_path / "base"))
    settings = {"logits_weight": 0.0, "hidden_weight": 1.0}
    assert build(tmp_path, settings, bert(), str(tmp_path / "base")).teacher.num_labels == 3


def test_types_of_tokens_reach_a_teacher_whose_student_knows_none(tmp_path):
    def with_types(examples):
        batch = collate(examples)
        return {**batch, "token_type_ids": torch.ones_like(batch["input_ids"])}

    set_seed(1)
    sizes = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "vocab_size": 60, "num_labels": 3}
    student = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    trainer = build(tmp_path, {}, student, bert(2), collator=with_types)
    seen = []
    trainer.teacher.register_forward_pre_hook(lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    student.register_forward_pre_hook(lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    learn(trainer)
    assert {"token_type_ids" in names for names in seen[:2]} == {True, False}
    set_up_distillation(trainer)
    trainer._signature_columns = None
    trainer._set_signature_columns_if_needed()
    assert "token_type_ids" in trainer._signature_columns
    trainer.evaluate()
    assert "token_type_ids" not in seen[-1]


def test_a_student_learns_what_the_teacher_writes(tmp_path, make_model):
    teacher, student = (
        make_model("T5ForConditionalGeneration", seed=1),
        make_model("T5ForConditionalGeneration", seed=2),
    )
    data = written()
    trainer = build(tmp_path, {"targets": "teacher"}, student, teacher, data=data)
    trainer.args.generation_max_length = 6
    learn(trainer)
    gold, told = data["labels"][:], trainer.train_dataset["labels"][:]
    assert told != gold
    assert all(len(labels) <= 5 for labels in told)
    learn(trainer)  # and not from what it wrote the first time
    assert trainer.train_dataset["labels"][:] == told


def test_targets_need_rows_that_can_be_kept(tmp_path, make_model):
    student = make_model("T5ForConditionalGeneration")
    trainer = build(tmp_path, {"targets": "both"}, student, copy.deepcopy(student), data=list(written()))
    with pytest.raises(ValueError, match="the training data is a list: leave it out"):
        learn(trainer)
