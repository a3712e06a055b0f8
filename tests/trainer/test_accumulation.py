"""The gradient of accumulated batches is that of one large batch, for every objective and for labels alone."""

import copy

import pytest
from trainers import (
    BERT_SIZES,
    NARROW,
    assert_same_gradients,
    bert,
    build,
    build_distillation,
    collate,
    livelier,
    pad,
    rows,
    step_gradients,
    t5,
    train_with_teacher,
    written,
)
from transformers import ElectraConfig, ElectraForPreTraining, set_seed

NO_OBJECTIVE = {"hard_label_weight": 0.0, "logits_weight": 0.0}
LABELS_ONLY = {**NO_OBJECTIVE, "hard_label_weight": 1.0}
OBJECTIVES = {
    "labels": {"hard_label_weight": 1.0},
    "soft labels": {"logits_weight": 1.0, "temperature": 3.0},
    "hidden states": {"hidden_weight": 1.0},
    "directions of hidden states": {"hidden_weight": 1.0, "hidden_distance": "cosine"},
    "embeddings": {"embedding_weight": 1.0},
    "attention": {"attention_weight": 1.0},
    "relations": {"relation_weight": 1.0},
}
OBJECTIVES_OF_EQUAL_WIDTHS = ("directions of hidden states",)
ALL_OBJECTIVES = {"hard_label_weight": 0.25, "logits_weight": 0.75, "hidden_weight": 2.0, "embedding_weight": 0.5}
ALL_OBJECTIVES |= {"attention_weight": 0.125, "relation_weight": 3.0}


def make_student(generates, narrow=True):
    if generates:
        return t5(width=16 if narrow else 32)
    return bert(**(NARROW if narrow else {}))


def make_teacher(generates):
    return t5(2) if generates else bert(2)


def without_labels(examples):
    return {
        name: value for name, value in collate([{"labels": 0, **row} for row in examples]).items() if name != "labels"
    }


@pytest.mark.parametrize("generates", [False, True], ids=["classifier", "seq2seq"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, objective, generates):
    narrow, settings = objective not in OBJECTIVES_OF_EQUAL_WIDTHS, {**NO_OBJECTIVE, **OBJECTIVES[objective]}

    def gradient(**sizes):
        student, teacher = make_student(generates, narrow), make_teacher(generates)
        set_seed(0)  # of the projections
        return step_gradients(build_distillation(tmp_path, settings, student, teacher, max_steps=1, **sizes))[0]

    large = gradient(per_device_train_batch_size=32)
    assert_same_gradients(gradient(gradient_accumulation_steps=4), large)


def test_accumulated_batches_give_the_gradient_of_one_large_batch_without_a_teacher(tmp_path):
    large = step_gradients(build(tmp_path, max_steps=1, per_device_train_batch_size=32))[0]
    small = step_gradients(build(tmp_path, max_steps=1, gradient_accumulation_steps=4))[0]
    assert_same_gradients(small, large)


@pytest.mark.parametrize("generates", [False, True], ids=["classifier", "seq2seq"])
def test_last_window_of_an_epoch_is_divided_by_its_own_count(tmp_path, generates):
    data = written(20) if generates else rows(20)  # one window of batches of 8, 8 and 4

    def gradient(**sizes):
        student, teacher = make_student(generates), make_teacher(generates)
        set_seed(0)
        [step] = step_gradients(build_distillation(tmp_path, ALL_OBJECTIVES, student, teacher, data=data, **sizes))
        return step

    assert_same_gradients(gradient(gradient_accumulation_steps=4), gradient(per_device_train_batch_size=20))


def test_last_window_of_an_epoch_is_divided_by_its_own_count_without_a_teacher(tmp_path):
    [step] = step_gradients(build(tmp_path, data=rows(20), gradient_accumulation_steps=4))
    [expected] = step_gradients(build(tmp_path, data=rows(20), per_device_train_batch_size=20))
    assert_same_gradients(step, expected)


def test_projections_receive_gradients(tmp_path):
    settings = {**NO_OBJECTIVE, "hidden_weight": 1.0, "embedding_weight": 1.0}
    gradients = step_gradients(build_distillation(tmp_path, settings, bert(**NARROW), bert(2), max_steps=1))[0]
    names = {name for name in gradients if name.startswith("projections")}
    assert names == {"projections.hidden_encoder.weight", "projections.embeddings_encoder.weight"}
    assert all(float(gradients[name].abs().sum()) > 0 for name in names)


def test_gradients_are_zeroed_after_every_step(tmp_path):
    settings = {**NO_OBJECTIVE, "hidden_weight": 1.0}
    changes = {"num_train_epochs": 3, "per_device_train_batch_size": 32, "learning_rate": 0.0}
    steps = step_gradients(build_distillation(tmp_path, settings, bert(**NARROW), bert(2), **changes))
    assert len(steps) == 3  # each on all of the data, with the same weights
    for later in steps[1:]:
        assert_same_gradients(later, steps[0])


def test_detection_of_replaced_tokens_does_not_count_padding(tmp_path):
    def detector():
        set_seed(1)
        return livelier(ElectraForPreTraining(ElectraConfig(**{**BERT_SIZES, "num_labels": 2}, embedding_size=16)))

    data = rows(32).map(lambda row: {"labels": [token % 2 for token in row["input_ids"]]})

    def gradient(**sizes):
        changes = {"data": data, "collator": lambda examples: pad(examples, filled=0), "max_steps": 1, **sizes}
        return step_gradients(build_distillation(tmp_path, LABELS_ONLY, detector(), detector(), **changes))[0]

    assert_same_gradients(gradient(gradient_accumulation_steps=4), gradient(per_device_train_batch_size=32))


def test_batch_without_labels_adds_nothing(tmp_path):
    data = written(16)
    half = data.map(lambda row, index: {"labels": [-100] * 3 if index < 8 else row["labels"]}, with_indices=True)

    def gradient(rows, **sizes):
        changes = {"data": rows, "train_sampling_strategy": "sequential", **sizes}
        [step] = step_gradients(build_distillation(tmp_path, LABELS_ONLY, t5(), t5(2), **changes))
        return step

    assert_same_gradients(gradient(half, gradient_accumulation_steps=2), gradient(half.select(range(8, 16))))


def test_step_without_labels_is_refused(tmp_path):
    data = written(16).map(lambda row: {"labels": [-100] * 3})
    trainer = build_distillation(tmp_path, LABELS_ONLY, t5(), t5(2), data=data)
    with pytest.raises(ValueError, match="no label of a whole training step counts, all of them are -100"):
        train_with_teacher(trainer)


def test_unlabelled_texts_give_the_gradient_of_labelled_ones(tmp_path):
    settings, teacher, data = {**NO_OBJECTIVE, "logits_weight": 1.0}, bert(2), rows(8)
    labelled = build_distillation(tmp_path, settings, bert(), teacher, data=data, max_steps=1)
    changes = {"data": data.remove_columns("labels"), "collator": without_labels, "max_steps": 1}
    unlabelled = build_distillation(tmp_path, settings, bert(), copy.deepcopy(teacher), **changes)
    assert_same_gradients(step_gradients(unlabelled)[0], step_gradients(labelled)[0])
