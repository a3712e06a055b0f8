import pytest
import torch
from torch.nn import functional as F

from hf_efficient import DistillationConfig
from hf_efficient.distillation.activations import VALUES, capture_activations
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.losses import attention_loss, relation_loss, squared_error
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models.surgery import extract_submodel
from hf_efficient.pruning.selection import Selection, remove_units

NO_OUTPUTS = {"hard_label_weight": 0.0, "logits_weight": 0.0}
SMALL = {"hidden_size": 16, "num_attention_heads": 2}
ALL_TERMS = {
    **NO_OUTPUTS,
    "hidden_weight": 1.0,
    "embedding_weight": 1.0,
    "attention_weight": 1.0,
    "relation_weight": 1.0,
}
COSINE = {**NO_OUTPUTS, "hidden_weight": 1.0, "hidden_distance": "cosine"}
FIRST_ATTENTION = {**NO_OUTPUTS, "attention_weight": 1.0, "layer_map": "0:0"}
NAMES = ("hidden_loss", "embedding_loss", "attention_loss", "relation_loss")
# Every kind of layer, of stack and of batch.
HEADS = [
    ("BertForSequenceClassification", ALL_TERMS),
    ("BertForSequenceClassification", COSINE),
    ("DistilBertForMaskedLM", ALL_TERMS),
    ("ElectraModel", ALL_TERMS),
    ("T5ForConditionalGeneration", ALL_TERMS),
    ("T5ForConditionalGeneration", COSINE),
    ("BertForMultipleChoice", ALL_TERMS),
    ("T5ForSequenceClassification", ALL_TERMS),
    ("MT5Model", ALL_TERMS),
    ("CamembertForQuestionAnswering", ALL_TERMS),
]


def prepared_distiller(student, teacher, settings):
    distiller = Distiller(Teacher([teacher]), DistillationConfig(**settings))
    distiller.prepare(student)
    return distiller


def loss_sums(student, teacher, batch, settings):
    """Return the sum of each term of the loss by its name and unit."""
    distiller = prepared_distiller(student, teacher, settings)
    with distiller.capture() as activations:
        outputs = student(**batch)
    return {(term.name, term.unit): float(term.sum.detach()) for term in distiller(batch, outputs, activations)}


def with_padding(batch, head):
    """Append three padding tokens to the inputs and the labels."""
    padding_values = {"input_ids": 7, "attention_mask": 0, "token_type_ids": 1, "labels": -100}
    padded = {
        name: F.pad(value, (0, 3), value=padding_values[name]) if name in padding_values and value.dim() > 1 else value
        for name, value in batch.items()
    }
    if head == "T5ForSequenceClassification":
        padded["input_ids"][:, 9:] = 0  # T5 takes the logits at the last end token
    return padded


@pytest.mark.parametrize(("head", "settings"), HEADS)
def test_losses_of_an_equal_student_are_zero(make_model, make_batch, head, settings):
    batch = make_batch(head, labelled="For" in head)
    stacks = ["encoder", "decoder"] if "T5" in head else ["encoder"]
    names = NAMES if settings is ALL_TERMS else NAMES[:1]
    with torch.no_grad():  # like the teacher: T5 uses other kernels when gradients are required
        sums = loss_sums(make_model(head), make_model(head), batch, settings)
    assert list(sums) == [(name, stack) for stack in stacks for name in names]
    assert set(sums.values()) == {0.0}
    assert min(loss_sums(make_model(head, seed=1), make_model(head), batch, settings).values()) > 0.01


@pytest.mark.parametrize(("head", "settings"), HEADS)
def test_padding_changes_no_loss_and_no_count(make_model, make_batch, head, settings):
    batch = make_batch(head, labelled="For" in head)
    padded = with_padding(batch, head)
    student, teacher = make_model(head, seed=1), make_model(head)
    expected = loss_sums(student, teacher, batch, settings)
    assert loss_sums(student, teacher, padded, settings) == pytest.approx(expected, rel=1e-4)
    distiller = prepared_distiller(student, teacher, settings)
    assert {unit: int(count) for unit, count in distiller.counts(padded).items()} == {
        unit: int(count) for unit, count in distiller.counts(batch).items()
    }


def test_hidden_loss_is_averaged_over_the_pairs_of_layers(make_model, make_batch):
    student, teacher, batch = make_model(seed=1, num_hidden_layers=2), make_model(num_hidden_layers=4), make_batch()
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        states, targets = (model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher))
    expected = sum(squared_error(states[i + 1], targets[j + 1], mask)[0] for i, j in ((0, 1), (1, 3))) / 2
    sums = loss_sums(student, teacher, batch, {**NO_OUTPUTS, "hidden_weight": 1.0})
    assert sums["hidden_loss", "encoder"] == pytest.approx(float(expected), rel=1e-5)
    only_last = loss_sums(student, teacher, batch, {**NO_OUTPUTS, "hidden_weight": 1.0, "layer_map": "1:3"})
    expected = squared_error(states[2], targets[4], mask)[0]
    assert only_last["hidden_loss", "encoder"] == pytest.approx(float(expected), rel=1e-5)


def test_relation_loss_is_of_the_last_pair_and_averaged_over_the_requested_kinds(make_model, make_batch):
    student, teacher, batch = make_model(seed=1, **SMALL), make_model(), make_batch()
    states = []
    for model in (student, teacher):
        with torch.no_grad(), capture_activations(model, [(VALUES, "encoder.2")]) as activations:
            model(**batch)
        states.append(activations[VALUES, "encoder.2"])
    expected, _ = relation_loss(*states, 8, batch["attention_mask"])
    settings = {**NO_OUTPUTS, "relation_weight": 1.0, "relations": "values", "relation_heads": 8}
    sums = loss_sums(student, teacher, batch, settings)
    assert sums["relation_loss", "encoder"] == pytest.approx(float(expected), rel=1e-5)
    kinds = [
        loss_sums(student, teacher, batch, {**settings, "relations": kind}) for kind in ("queries", "keys", "values")
    ]
    all_kinds = loss_sums(student, teacher, batch, {**settings, "relations": "queries,keys,values"})
    mean = sum(kind["relation_loss", "encoder"] for kind in kinds) / 3
    assert all_kinds["relation_loss", "encoder"] == pytest.approx(mean, rel=1e-5)


def test_relation_heads_that_do_not_divide_both_widths_are_refused(make_model, make_batch):
    settings = {**NO_OUTPUTS, "relation_weight": 1.0, "relation_heads": 3}
    message = "relation_heads=3 does not divide the widths of the queries, 32 of the student and 32 of the teacher"
    with pytest.raises(ValueError, match=message):
        loss_sums(make_model(), make_model(), make_batch(), settings)
    settings["relation_heads"] = 32
    with pytest.raises(ValueError, match="relation_heads=32 does not divide the widths of the queries, 16 of the"):
        loss_sums(make_model(**SMALL), make_model(), make_batch(), settings)


def test_teacher_with_other_tokens_is_refused(make_model, make_batch):
    student, batch = make_model(), make_batch()
    distiller = prepared_distiller(student, make_model(), {**NO_OUTPUTS, "hidden_weight": 1.0})
    with distiller.capture() as activations:
        outputs = student(**batch)
    distiller.teacher.predict = lambda *_: ({}, {key: value[:, :4] for key, value in activations.items()})
    message = "the teacher's states are of \\(3, 4\\) rows and tokens, the student's of \\(3, 9\\): both need the same"
    with pytest.raises(ValueError, match=message):
        distiller(batch, outputs, activations)


def test_attention_scores_are_those_of_the_model(make_model, make_batch):
    student, teacher, batch = make_model(seed=1), make_model(), make_batch()
    scores = []
    for model in (student, teacher):
        states = model.bert.embeddings(batch["input_ids"], batch["token_type_ids"])
        layer = model.bert.encoder.layer[0].attention.self
        queries, keys = (linear(states).view(3, 9, 4, 8).transpose(1, 2) for linear in (layer.query, layer.key))
        scores.append(queries @ keys.transpose(-1, -2) / 8**0.5)
    expected, _ = attention_loss(*scores, batch["attention_mask"])
    sums = loss_sums(student, teacher, batch, FIRST_ATTENTION)
    assert sums["attention_loss", "encoder"] == pytest.approx(float(expected.detach()), rel=1e-5)


# ---- pruned students ----


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "T5ForConditionalGeneration"])
def test_kept_heads_are_compared_with_themselves(make_model, make_batch, select, head):
    teacher, batch = make_model(head), make_batch(head, labelled=True)
    student = remove_units(teacher, select("uneven widths", head))
    # In the first layer the kept heads have the teacher's inputs, and they are not the teacher's first heads.
    sums = loss_sums(student, teacher, batch, FIRST_ATTENTION)
    assert max(sums.values()) == pytest.approx(0, abs=1e-9)
    assert min(loss_sums(student, make_model(head, seed=1), batch, FIRST_ATTENTION).values()) > 0.01
    all_layers = loss_sums(student, teacher, batch, {**FIRST_ATTENTION, "layer_map": "auto"})
    assert min(all_layers.values()) > 0.001


def test_kept_heads_are_found_in_a_pruned_teacher(make_model, make_batch, select):
    model, batch = make_model(), make_batch()
    teacher = remove_units(model, select("a layer gone"))  # heads 0, 2, 3 of the first layer
    selection = select("a layer gone")
    units = {**selection.units, "encoder.0.attention": (2, 3)}
    student = remove_units(model, Selection(selection.layers, units))
    sums = loss_sums(student, teacher, batch, FIRST_ATTENTION)
    assert sums["attention_loss", "encoder"] == pytest.approx(0, abs=1e-9)


def mean_attention_loss(student, teacher, batch):
    """Return the attention loss of the first layers of two T5 encoders, between the means over their heads."""
    scores = []
    for model in (student, teacher):
        layer = model.encoder.block[0].layer[0]
        states = layer.layer_norm(model.shared(batch["input_ids"]))
        attention = layer.SelfAttention
        queries, keys = (linear(states).view(3, 9, -1, 8).transpose(1, 2) for linear in (attention.q, attention.k))
        scores.append((queries @ keys.transpose(-1, -2) / 8**0.5).mean(1, keepdim=True))
    return float(attention_loss(*scores, batch["attention_mask"])[0].detach())


def test_heads_of_a_stock_shape_are_compared_by_their_mean(make_model, make_batch):
    # T5 with the same two heads in all layers is a stock T5, whose config does not tell which heads they were.
    teacher, batch = make_model("T5EncoderModel"), make_batch("T5EncoderModel")
    units = {f"encoder.{i}.attention": (1, 3) for i in range(3)}
    units |= {f"encoder.{i}.feed_forward": tuple(range(64)) for i in range(3)}
    student = extract_submodel(teacher, [f"encoder.{i}" for i in range(3)], units)
    assert student.config.num_heads == 2
    sums = loss_sums(student, teacher, batch, FIRST_ATTENTION)
    expected = mean_attention_loss(student, teacher, batch)
    assert sums["attention_loss", "encoder"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{"num_heads": 2}, {"num_heads": 8}], ids=str)
def test_different_numbers_of_heads_are_compared_by_their_mean(make_model, make_batch, changes):
    student, teacher = make_model("T5EncoderModel", seed=1, **changes), make_model("T5EncoderModel")
    batch = make_batch("T5EncoderModel")
    sums = loss_sums(student, teacher, batch, FIRST_ATTENTION)
    assert sums["attention_loss", "encoder"] == pytest.approx(mean_attention_loss(student, teacher, batch), rel=1e-4)


def test_layers_without_heads_are_left_out_of_attention(make_model, make_batch, select):
    teacher, batch = make_model(), make_batch()
    student = remove_units(teacher, select("a block without heads"))
    settings = {**NO_OUTPUTS, "attention_weight": 1.0, "hidden_weight": 1.0}
    intermediate = prepared_distiller(student, teacher, settings).intermediate
    assert [student_layer for student_layer, _ in intermediate.pairs] == ["encoder.0", "encoder.1", "encoder.2"]
    assert list(intermediate.matching_heads) == [("encoder.0", "encoder.0"), ("encoder.2", "encoder.2")]
    sums = loss_sums(student, teacher, batch, settings)
    assert list(sums) == [("hidden_loss", "encoder"), ("attention_loss", "encoder")]


def test_student_without_heads_is_refused(make_model, select):
    selection = select("uneven widths")
    units = {name: () if name.endswith("attention") else kept for name, kept in selection.units.items()}
    student = remove_units(make_model(), Selection(selection.layers, units))
    message = "no layer of the student's encoder in the layer_map has attention heads: remove attention_weight"
    with pytest.raises(ValueError, match=message):
        prepared_distiller(student, make_model(), {"relation_weight": 1.0})
