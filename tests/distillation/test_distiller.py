import re

import pytest
import torch
from torch.nn import functional as F

from hf_efficient import DistillationConfig
from hf_efficient.distillation.activations import HIDDEN, capture_activations
from hf_efficient.distillation.distiller import Distiller, check_same_task
from hf_efficient.distillation.teacher import Teacher

NO_OUTPUTS = {"hard_label_weight": 0.0, "logits_weight": 0.0}
SMALL = {"hidden_size": 16, "num_attention_heads": 2}


def terms_and_distiller(student, teacher, batch, settings, progress=0.0):
    distiller = Distiller(Teacher([teacher]), DistillationConfig(**settings))
    distiller.prepare(student)
    with distiller.capture() as activations:
        outputs = student(**batch)
    return distiller(batch, outputs, activations, progress), distiller


# ---- the same task ----


def test_different_vocabulary_is_refused(make_model):
    message = "the teacher has a vocabulary of 120 tokens and the student one of 100: they must share a tokenizer"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_task(make_model(), make_model(vocab_size=120))


def label_map(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({"num_labels": 2}, {"num_labels": 3}),
        (label_map("bad", "good"), label_map("good", "bad")),
        (label_map("bad", "good"), label_map("bad", "good", "neutral")),
        (label_map("bad", "good"), {"num_labels": 2}),
    ],
    ids=["other number", "other order", "one more", "default names"],
)
def test_different_labels_are_refused(make_model, student, teacher):
    student, teacher = make_model(**student), make_model(**teacher)
    message = (
        f"the teacher predicts {teacher.config.id2label} and the student {student.config.id2label}: give both the same"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_task(student, teacher)


@pytest.mark.parametrize("changes", [{"num_labels": 2}, label_map("bad", "good")])
def test_same_labels_pass(make_model, changes):
    check_same_task(make_model(**changes), make_model(**changes, num_hidden_layers=2))


# ---- soft labels ----


def test_soft_label_loss_follows_the_schedules(make_model, make_batch):
    batch, student, teacher = make_batch(labelled=True), make_model(seed=1), make_model()
    settings = {"temperature": 5.0, "temperature_end": 1.0, "logits_weight": 0.5, "logits_weight_end": 0.0}
    logits = student(**batch).logits, teacher(**batch).logits
    for progress, temperature, weight in ((0.0, 5.0, 0.5), (0.5, 3.0, 0.25)):
        (term,), _ = terms_and_distiller(student, teacher, batch, settings, progress)
        log_probabilities = [F.log_softmax(values / temperature, -1) for values in logits]
        expected = temperature**2 * F.kl_div(*log_probabilities, reduction="sum", log_target=True)
        torch.testing.assert_close(term.sum, expected)
        assert (term.name, term.weight, term.unit) == ("soft_label_loss", weight, "soft")
    assert terms_and_distiller(student, teacher, batch, settings, 1.0)[0] == []


def test_gradients_reach_the_student_and_not_the_teacher(make_model, make_batch):
    batch, student, teacher = make_batch(labelled=True), make_model(seed=1), make_model()
    settings = {**NO_OUTPUTS, "logits_weight": 1.0, "hidden_weight": 1.0, "relation_weight": 1.0}
    terms, _ = terms_and_distiller(student, teacher, batch, settings)
    sum(term.sum for term in terms).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not [name for name, parameter in student.named_parameters() if parameter.grad is None]


def test_parameters_of_the_student_are_not_those_of_the_distiller(make_model):
    student, teacher = make_model(), make_model()
    distiller = Distiller(Teacher([teacher]), DistillationConfig(hidden_weight=1.0))
    distiller.prepare(student)
    student_ids = {id(parameter) for parameter in student.parameters()}
    assert not student_ids & {id(parameter) for parameter in distiller.parameters()}


def test_counts_are_the_tokens_of_each_stack(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    distiller = Distiller(Teacher([make_model(head)]), DistillationConfig(hidden_weight=1.0))
    distiller.prepare(make_model(head))
    counts = distiller.counts(make_batch(head, labelled=True))
    assert {unit: int(count) for unit, count in counts.items()} == {"soft": 16, "encoder": 18, "decoder": 16}


# ---- projections ----


def test_projections_between_different_widths_are_trained(make_model, make_batch):
    batch = make_batch(labelled=True)
    settings = {**NO_OUTPUTS, "hidden_weight": 1.0, "embedding_weight": 1.0}
    terms, distiller = terms_and_distiller(make_model(**SMALL), make_model(), batch, settings)
    shapes = {name: tuple(module.weight.shape) for name, module in distiller.projections.items()}
    assert shapes == {"hidden_encoder": (32, 16), "embeddings_encoder": (32, 16)}
    sum(term.sum for term in terms).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in distiller.projections.parameters())
    assert all(module.bias is None for module in distiller.projections.values())
    before = dict(distiller.projections.items())
    distiller.prepare(make_model(**SMALL))  # as after each round of pruning
    assert all(module is before[name] for name, module in distiller.projections.items())


def test_projections_are_part_of_the_distiller(make_model):
    distiller = Distiller(Teacher([make_model()]), DistillationConfig(hidden_weight=1.0))
    distiller.prepare(make_model(**SMALL))
    assert "projections.hidden_encoder.weight" in dict(distiller.named_parameters())


def test_saved_projections_are_loaded(make_model, tmp_path):
    config = DistillationConfig(**NO_OUTPUTS, hidden_weight=1.0)
    first, second = (Distiller(Teacher([make_model()]), config) for _ in range(2))
    for distiller in (first, second):
        distiller.prepare(make_model(**SMALL))
    weights = [distiller.projections["hidden_encoder"].weight for distiller in (first, second)]
    assert not torch.equal(*weights)
    first.save_projections(tmp_path)
    second.load_projections(tmp_path)
    assert torch.equal(*weights)


def test_without_projections_nothing_is_saved_or_loaded(make_model, tmp_path):
    distiller = Distiller(Teacher([make_model()]), DistillationConfig(hidden_weight=1.0))
    distiller.prepare(make_model())
    distiller.save_projections(tmp_path)
    assert list(tmp_path.iterdir()) == []
    distiller.load_projections(tmp_path)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"hidden_weight": 1.0}, ["hidden_encoder", "hidden_decoder"]),
        ({"embedding_weight": 1.0}, ["embeddings_encoder", "embeddings_decoder"]),
        ({"relation_weight": 1.0}, []),
        ({"attention_weight": 1.0}, []),
    ],
    ids=str,
)
def test_only_required_projections_are_created(make_model, make_batch, settings, names):
    head = "T5ForConditionalGeneration"
    batch = make_batch(head, labelled=True)
    student = make_model(head, d_model=16, num_heads=2)
    terms, distiller = terms_and_distiller(student, make_model(head), batch, {**NO_OUTPUTS, **settings})
    assert distiller.projections.keys() == set(names)
    assert all(term.sum.isfinite() for term in terms)


def test_hidden_loss_is_the_error_of_the_projected_states(make_model, make_batch):
    batch, teacher = make_batch(), make_model()
    distiller = Distiller(Teacher([teacher]), DistillationConfig(**NO_OUTPUTS, hidden_weight=1.0, layer_map="0:0"))
    distiller.prepare(make_model(**SMALL))
    with torch.no_grad(), capture_activations(teacher, [(HIDDEN, "encoder.0")]) as activations:
        teacher(**batch)
    projection = distiller.projections["hidden_encoder"].weight
    with torch.no_grad():
        projection.copy_(torch.cat([torch.eye(16), torch.zeros(16, 16)]))
    target = activations[HIDDEN, "encoder.0"]
    (term,) = distiller(batch, None, {(HIDDEN, "encoder.0"): target[..., :16]})
    remaining = target[..., 16:][batch["attention_mask"].bool()]
    assert float(term.sum.detach()) == pytest.approx(float(remaining.square().sum()) / 32, rel=1e-5)


def test_cosine_distance_between_different_widths_is_refused(make_model):
    config = DistillationConfig(hidden_weight=1.0, hidden_distance="cosine")
    message = "the student's has 16 dimensions and the teacher's 32: use mse, which learns a projection"
    with pytest.raises(ValueError, match=message):
        Distiller(Teacher([make_model()]), config).prepare(make_model(**SMALL))


# ---- teachers ----


@pytest.mark.parametrize("weight", ["hidden_weight", "embedding_weight", "attention_weight", "relation_weight"])
def test_intermediate_outputs_of_several_teachers_are_refused(make_model, weight):
    message = "there are 2 teachers, but hidden states, embeddings, attention and relations are compared with one"
    with pytest.raises(ValueError, match=message):
        Distiller(Teacher([make_model(), make_model()], [0.5, 0.5]), DistillationConfig(**{weight: 1.0}))


def test_soft_labels_of_a_teacher_without_task_head_are_refused(make_model):
    message = "BertModel has no task head, so it has no logits to compare: set logits_weight=0, and hidden_weight or"
    with pytest.raises(ValueError, match=message):
        Distiller(Teacher([make_model("BertModel")]), DistillationConfig())


def test_relations_need_no_task_head(make_model, make_batch):
    student, teacher = make_model("BertModel", seed=1, **SMALL), make_model("BertModel")
    terms, distiller = terms_and_distiller(student, teacher, make_batch(), {**NO_OUTPUTS, "relation_weight": 1.0})
    assert [(term.name, term.unit) for term in terms] == [("relation_loss", "encoder")]
    assert {unit: int(count) for unit, count in distiller.counts(make_batch()).items()} == {"encoder": 18}
    terms[0].sum.backward()
    assert float(student.encoder.layer[2].attention.self.value.weight.grad.abs().sum()) > 0


def test_student_with_task_head_learns_relations_of_a_teacher_without(make_model, make_batch):
    settings = {**NO_OUTPUTS, "relation_weight": 1.0}
    (term,), _ = terms_and_distiller(make_model(seed=1), make_model("BertModel"), make_batch(), settings)
    assert (term.name, term.unit) == ("relation_loss", "encoder")
    assert float(term.sum.detach()) > 0.01
