import json
import re
from dataclasses import asdict, fields

import pytest
import torch
from torch.nn import functional as F
from transformers import HfArgumentParser

from hf_efficient import DistillationConfig
from hf_efficient.distillation.activations import HIDDEN, VALUES, capture_activations
from hf_efficient.distillation.distiller import Distiller, check_same_task
from hf_efficient.distillation.losses import attention_loss, relation_loss, squared_error
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models.surgery import extract_submodel
from hf_efficient.pruning.selection import Selection, remove_units

NOTHING = {"hard_label_weight": 0.0, "logits_weight": 0.0}
SMALL = {"hidden_size": 16, "num_attention_heads": 2}
# By the name of its part of the loss, what asks for it alone.
INSIDE = {
    "hidden states": {"hidden_weight": 1.0},
    "directions of hidden states": {"hidden_weight": 1.0, "hidden_distance": "cosine"},
    "embeddings": {"embedding_weight": 1.0},
    "attention": {"attention_weight": 1.0},
    "relations": {"relation_weight": 1.0},
}
PARTS = ("hidden_loss", "hidden_loss", "embedding_loss", "attention_loss", "relation_loss")


@pytest.fixture(params=INSIDE)
def inside(request):
    """The settings that ask for one objective alone."""
    return {**NOTHING, **INSIDE[request.param]}


def parts_of(student, teacher, batch, settings, progress=0.0):
    """Returns the parts of the distance, and the distiller."""
    distiller = Distiller(Teacher([teacher]), DistillationConfig(**settings))
    distiller.prepare(student)
    with distiller.capture() as signals:
        outputs = student(**batch)
    return distiller(batch, outputs, signals, progress), distiller


def totals(student, teacher, batch, settings):
    return {
        (part.name, part.unit): float(part.sum.detach()) for part in parts_of(student, teacher, batch, settings)[0]
    }


# ---- the config ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature=0 must be above 0; usual values lie between 1 and 10"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"temperature": float("nan")}, "temperature=nan must be above 0"),
        ({"temperature_end": 0.0}, "temperature_end=0.0 must be above 0"),
        ({"hard_label_weight": -0.1}, "hard_label_weight=-0.1 must not be negative"),
        ({"hard_label_weight_end": -0.1}, "hard_label_weight_end=-0.1 must not be negative"),
        ({"logits_weight": -2}, "logits_weight=-2 must not be negative"),
        ({"logits_weight_end": -2}, "logits_weight_end=-2 must not be negative"),
        ({"hidden_weight": -1}, "hidden_weight=-1 must not be negative"),
        ({"embedding_weight": -1}, "embedding_weight=-1 must not be negative"),
        ({"attention_weight": float("nan")}, "attention_weight=nan must not be negative"),
        ({"relation_weight": -1}, "relation_weight=-1 must not be negative"),
        (
            NOTHING,
            "hard_label_weight, logits_weight, hidden_weight, embedding_weight, attention_weight, relation_weight are "
            "all 0: nothing would be learned; give one a weight",
        ),
        ({"hidden_distance": "l1"}, "hidden_distance='l1' is unknown: give one of mse, cosine"),
        ({"teacher_dtype": "int8"}, "teacher_dtype='int8' is unknown: give one of auto, float32, bfloat16, float16"),
        ({"relations": "queries,heads"}, "relations='queries,heads' is unknown: give any of queries, keys, values"),
        ({"relations": ""}, "relations='' is unknown: give any of queries, keys, values"),
        ({"relation_heads": 0}, "relation_heads=0 must be at least 1"),
        ({"cache_teacher": True, "cache_top_k": 0}, "cache_top_k=0 must be at least 1"),
        ({"layer_map": "every"}, "layer_map='every' is unknown: give one of auto, uniform, last, skip"),
        ({"teacher_weights": "0.7,some"}, "teacher_weights='0.7,some' are no weights: give numbers such as 0.7,0.3"),
        ({"teacher_weights": "0,0"}, "teacher_weights='0,0' are no weights"),
        ({"teacher_weights": "1,-1"}, "teacher_weights='1,-1' are no weights"),
        ({"teacher_weights": "nan,1"}, "teacher_weights='nan,1' are no weights"),
        ({"teacher_weights": "inf,1"}, "teacher_weights='inf,1' are no weights"),
        (
            {"cache_teacher": True, "hidden_weight": 1, "relation_weight": 1},
            "cache_teacher keeps the teacher's answers, hidden_weight, relation_weight needs what is inside it",
        ),
        ({"cache_top_k": 5}, "cache_top_k=5 shrinks a cache that there is not: add cache_teacher=True"),
        (
            {"cache_top_k": 5, "cache_teacher": True, "temperature_end": 1.0},
            "cache_top_k sums up unlikely answers at one temperature: leave out temperature_end, or cache_top_k",
        ),
    ],
)
def test_bad_config_is_told_what_to_do(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DistillationConfig(**settings)


CONFIGS = [
    {},
    {"temperature": 4.0, "temperature_end": 1.0, "hard_label_weight": 0.0, "logits_weight_end": 0.25},
    {"hidden_weight": 1.0, "hidden_distance": "cosine", "layer_map": "0:1,1:3", "relation_heads": 4},
    {"cache_teacher": True, "cache_top_k": 64, "teacher_weights": "0.7,0.3", "teacher_dtype": "bfloat16"},
    {"relation_weight": 2.5, "relations": "values", "attention_weight": 1.0, "embedding_weight": 0.1},
]


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_config_survives_json_and_the_command_line(settings):
    config = DistillationConfig(**settings)
    assert DistillationConfig(**json.loads(json.dumps(asdict(config)))) == config
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    assert HfArgumentParser(DistillationConfig).parse_args_into_dataclasses(flags) == (config,)


@pytest.mark.parametrize("field", fields(DistillationConfig), ids=lambda field: field.name)
def test_every_field_has_a_help_of_sentences(field):
    text = field.metadata["help"]
    assert text.endswith(".")
    assert text[0].isupper()


def test_a_weight_that_only_comes_is_enough():
    config = DistillationConfig(**NOTHING, logits_weight_end=1.0)
    assert config.uses_logits
    assert not config.uses_intermediate_outputs


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, (4.0, 0.0, 0.5)), (0.25, (3.25, 0.2, 0.5)), (1.0, (1.0, 0.8, 0.5))]
)
def test_schedules_are_linear_and_what_has_no_end_stays(progress, expected):
    config = DistillationConfig(temperature=4.0, temperature_end=1.0, hard_label_weight=0.0, hard_label_weight_end=0.8)
    found = [config.value_at(name, progress) for name in ("temperature", "hard_label_weight", "logits_weight")]
    assert found == pytest.approx(expected)


def test_shares_of_teachers_sum_to_one():
    assert DistillationConfig(teacher_weights="3, 1").normalized_teacher_weights(2) == [0.75, 0.25]
    assert DistillationConfig().normalized_teacher_weights(4) == [0.25] * 4
    message = "teacher_weights='3,1' weighs 2 teachers, there are 3: give as many weights as teachers"
    with pytest.raises(ValueError, match=message):
        DistillationConfig(teacher_weights="3,1").normalized_teacher_weights(3)


# ---- the same task ----


def test_other_vocabulary_is_refused(make_model):
    message = "the teacher has a vocabulary of 120 tokens and the student one of 100: they must share a tokenizer"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_task(make_model(), make_model(vocab_size=120))


def named(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({"num_labels": 2}, {"num_labels": 3}),
        (named("bad", "good"), named("good", "bad")),
        (named("bad", "good"), named("bad", "good", "neutral")),
        (named("bad", "good"), {"num_labels": 2}),
    ],
    ids=["other number", "other order", "one more", "unnamed"],
)
def test_other_labels_are_refused(make_model, student, teacher):
    student, teacher = make_model(**student), make_model(**teacher)
    message = (
        f"the teacher predicts {teacher.config.id2label} and the student {student.config.id2label}: give both the same"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_task(student, teacher)


@pytest.mark.parametrize("changes", [{"num_labels": 2}, named("bad", "good")])
def test_same_labels_pass(make_model, changes):
    check_same_task(make_model(**changes), make_model(**changes, num_hidden_layers=2))


# ---- soft labels ----


def test_soft_labels_use_the_temperature_of_their_time(make_model, make_batch):
    batch, student, teacher = make_batch(labelled=True), make_model(seed=1), make_model()
    settings = {"temperature": 5.0, "temperature_end": 1.0, "logits_weight": 0.5, "logits_weight_end": 0.0}
    ours, theirs = student(**batch).logits, teacher(**batch).logits
    for progress, temperature, weight in ((0.0, 5.0, 0.5), (0.5, 3.0, 0.25)):
        (part,), _ = parts_of(student, teacher, batch, settings, progress)
        soft = [F.log_softmax(logits / temperature, -1) for logits in (ours, theirs)]
        expected = temperature**2 * F.kl_div(*soft, reduction="sum", log_target=True)
        torch.testing.assert_close(part.sum, expected)
        assert (part.name, part.weight, part.unit) == ("soft_label_loss", weight, "soft")
    assert parts_of(student, teacher, batch, settings, 1.0)[0] == []


def test_the_student_gets_a_gradient_and_the_teacher_none(make_model, make_batch):
    batch, student, teacher = make_batch(labelled=True), make_model(seed=1), make_model()
    settings = {**NOTHING, "logits_weight": 1.0, "hidden_weight": 1.0, "relation_weight": 1.0}
    parts, _ = parts_of(student, teacher, batch, settings)
    sum(part.sum for part in parts).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not [n for n, p in student.named_parameters() if p.grad is None]


def test_the_student_is_no_part_of_the_distiller(make_model):
    student, teacher = make_model(), make_model()
    distiller = Distiller(Teacher([teacher]), DistillationConfig(hidden_weight=1.0))
    distiller.prepare(student)
    ours = {id(parameter) for parameter in student.parameters()}
    assert not ours & {id(parameter) for parameter in distiller.parameters()}


# ---- inside ----

EVERY_KIND = ["BertForSequenceClassification", "DistilBertForMaskedLM", "ElectraModel", "T5ForConditionalGeneration"]
EVERY_KIND += ["BertForMultipleChoice", "T5ForSequenceClassification", "MT5Model", "CamembertForQuestionAnswering"]


@pytest.mark.parametrize("head", EVERY_KIND)
def test_inside_a_student_that_equals_its_teacher_loses_nothing(make_model, make_batch, inside, head):
    batch = make_batch(head, labelled="For" in head)
    stacks = ["encoder", "decoder"] if "T5" in head else ["encoder"]
    with torch.no_grad():  # as the teacher computes: T5 takes other kernels where gradients are wanted
        found = totals(make_model(head), make_model(head), batch, inside)
    assert [unit for _, unit in found] == stacks
    assert set(found.values()) == {0.0}
    assert min(totals(make_model(head, seed=1), make_model(head), batch, inside).values()) > 0.01


@pytest.mark.parametrize("head", EVERY_KIND)
def test_inside_padding_changes_nothing(make_model, make_batch, inside, head):
    batch = make_batch(head, labelled="For" in head)
    filled = {"input_ids": 7, "attention_mask": 0, "token_type_ids": 1, "labels": -100}
    more = {
        name: F.pad(value, (0, 3), value=filled[name]) if name in filled and value.dim() > 1 else value
        for name, value in batch.items()
    }
    if head == "T5ForSequenceClassification":
        more["input_ids"][:, 9:] = 0
    student, teacher = make_model(head, seed=1), make_model(head)
    expected = totals(student, teacher, batch, inside)
    assert totals(student, teacher, more, inside) == pytest.approx(expected, rel=1e-4)
    distiller = parts_of(student, teacher, batch, inside)[1]
    assert {unit: int(count) for unit, count in distiller.counts(more).items()} == {
        unit: int(count) for unit, count in distiller.counts(batch).items()
    }


def test_units_count_the_tokens_of_their_stack(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    distiller = Distiller(Teacher([make_model(head)]), DistillationConfig(hidden_weight=1.0))
    distiller.prepare(make_model(head))
    found = distiller.counts(make_batch(head, labelled=True))
    assert {unit: int(count) for unit, count in found.items()} == {"soft": 16, "encoder": 18, "decoder": 16}


def test_hidden_states_of_all_pairs_are_averaged(make_model, make_batch):
    student, teacher, batch = make_model(seed=1, num_hidden_layers=2), make_model(num_hidden_layers=4), make_batch()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = (model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher))
    expected = sum(squared_error(ours[i + 1], theirs[j + 1], real)[0] for i, j in ((0, 1), (1, 3))) / 2
    found = totals(student, teacher, batch, {**NOTHING, "hidden_weight": 1.0})
    assert found["hidden_loss", "encoder"] == pytest.approx(float(expected), rel=1e-5)
    only_last = totals(student, teacher, batch, {**NOTHING, "hidden_weight": 1.0, "layer_map": "1:3"})
    expected = squared_error(ours[2], theirs[4], real)[0]
    assert only_last["hidden_loss", "encoder"] == pytest.approx(float(expected), rel=1e-5)


def test_relations_are_of_the_last_pair_and_of_the_kinds_asked_for(make_model, make_batch):
    student, teacher, batch = make_model(seed=1, **SMALL), make_model(), make_batch()
    states = []
    for model in (student, teacher):
        with capture_activations(model, [(VALUES, "encoder.2")]) as seen:
            model(**batch)
        states.append(seen[VALUES, "encoder.2"])
    expected, _ = relation_loss(*states, 8, batch["attention_mask"])
    settings = {**NOTHING, "relation_weight": 1.0, "relations": "values", "relation_heads": 8}
    found = totals(student, teacher, batch, settings)
    assert found["relation_loss", "encoder"] == pytest.approx(float(expected), rel=1e-5)
    kinds = [
        totals(student, teacher, batch, {**settings, "relations": kind}) for kind in ("queries", "keys", "values")
    ]
    every = totals(student, teacher, batch, {**settings, "relations": "queries,keys,values"})
    mean = sum(kind["relation_loss", "encoder"] for kind in kinds) / 3
    assert every["relation_loss", "encoder"] == pytest.approx(mean, rel=1e-5)


def test_relation_heads_that_divide_one_width_only_are_refused(make_model, make_batch):
    settings = {**NOTHING, "relation_weight": 1.0, "relation_heads": 3}
    message = "relation_heads=3 does not divide the widths of the queries, 32 of the student and 32 of the teacher"
    with pytest.raises(ValueError, match=message):
        parts_of(make_model(), make_model(), make_batch(), settings)
    settings["relation_heads"] = 32
    with pytest.raises(ValueError, match="relation_heads=32 does not divide the widths of the queries, 16 of the"):
        parts_of(make_model(**SMALL), make_model(), make_batch(), settings)


def test_attention_of_a_layer_is_that_of_the_model(make_model, make_batch):
    student, teacher, batch = make_model(seed=1), make_model(), make_batch()
    settings = {**NOTHING, "attention_weight": 1.0, "layer_map": "0:0"}
    scores = []
    for model in (student, teacher):
        states = model.bert.embeddings(batch["input_ids"], batch["token_type_ids"])
        layer = model.bert.encoder.layer[0].attention.self
        queries, keys = (f(states).view(3, 9, 4, 8).transpose(1, 2) for f in (layer.query, layer.key))
        scores.append(queries @ keys.transpose(-1, -2) / 8**0.5)
    expected, _ = attention_loss(*scores, batch["attention_mask"])
    found = totals(student, teacher, batch, settings)["attention_loss", "encoder"]
    assert found == pytest.approx(float(expected), rel=1e-5)


# ---- other widths ----


def test_projections_are_made_where_widths_differ_and_learn(make_model, make_batch):
    batch = make_batch(labelled=True)
    settings = {**NOTHING, "hidden_weight": 1.0, "embedding_weight": 1.0}
    parts, distiller = parts_of(make_model(**SMALL), make_model(), batch, settings)
    shapes = {name: tuple(module.weight.shape) for name, module in distiller.projections.items()}
    assert shapes == {"hidden_encoder": (32, 16), "embeddings_encoder": (32, 16)}
    sum(part.sum for part in parts).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in distiller.projections.parameters())
    assert all(module.bias is None for module in distiller.projections.values())
    before = dict(distiller.projections.items())
    distiller.prepare(make_model(**SMALL))  # what is learned stays when the student is pruned on
    assert all(module is before[name] for name, module in distiller.projections.items())


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"hidden_weight": 1.0}, {"hidden_encoder", "hidden_decoder"}),
        ({"embedding_weight": 1.0}, {"embeddings_encoder", "embeddings_decoder"}),
        ({"relation_weight": 1.0}, set()),
        ({"attention_weight": 1.0}, set()),
    ],
    ids=str,
)
def test_projections_are_those_that_are_needed(make_model, make_batch, settings, names):
    head = "T5ForConditionalGeneration"
    batch = make_batch(head, labelled=True)
    student = make_model(head, d_model=16, num_heads=2)
    parts, distiller = parts_of(student, make_model(head), batch, {**NOTHING, **settings})
    assert distiller.projections.keys() == names
    assert all(part.sum.isfinite() for part in parts)


def test_a_projection_that_undoes_the_difference_leaves_none(make_model, make_batch):
    batch, teacher = make_batch(), make_model()
    distiller = Distiller(Teacher([teacher]), DistillationConfig(**NOTHING, hidden_weight=1.0, layer_map="0:0"))
    distiller.prepare(make_model(**SMALL))
    with torch.no_grad(), capture_activations(teacher, [(HIDDEN, "encoder.0")]) as theirs:
        teacher(**batch)
    projection = distiller.projections["hidden_encoder"].weight
    with torch.no_grad():
        projection.copy_(torch.cat([torch.eye(16), torch.zeros(16, 16)]))
    target = theirs[HIDDEN, "encoder.0"]
    (part,) = distiller(batch, None, {(HIDDEN, "encoder.0"): target[..., :16]})
    rest = target[..., 16:][batch["attention_mask"].bool()]
    assert float(part.sum.detach()) == pytest.approx(float(rest.square().sum()) / 32, rel=1e-5)


def test_directions_of_other_spaces_do_not_compare(make_model):
    config = DistillationConfig(hidden_weight=1.0, hidden_distance="cosine")
    message = "the student's has 16 dimensions and the teacher's 32: use mse, which learns a projection"
    with pytest.raises(ValueError, match=message):
        Distiller(Teacher([make_model()]), config).prepare(make_model(**SMALL))


# ---- pruned students ----


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "T5ForConditionalGeneration"])
def test_heads_that_are_left_compare_with_themselves(make_model, make_batch, select, head):
    teacher, batch = make_model(head), make_batch(head, labelled=True)
    student = remove_units(teacher, select("uneven widths", head))
    # In the first layer the kept heads read what the teacher's read, and they are not the teacher's first.
    settings = {**NOTHING, "attention_weight": 1.0, "layer_map": "0:0"}
    found = totals(student, teacher, batch, settings)
    assert max(found.values()) == pytest.approx(0, abs=1e-9)
    assert min(totals(student, make_model(head, seed=1), batch, settings).values()) > 0.01
    every = totals(student, teacher, batch, {**settings, "layer_map": "auto"})
    assert min(every.values()) > 0.001


def test_heads_that_are_left_of_a_pruned_teacher_are_found_too(make_model, make_batch, select):
    model, batch = make_model(), make_batch()
    teacher = remove_units(model, select("a layer gone"))  # heads 0, 2, 3 of the first layer
    selection = select("a layer gone")
    left = {**selection.units, "encoder.0.attention": (2, 3)}
    student = remove_units(model, Selection(selection.layers, left))
    settings = {**NOTHING, "attention_weight": 1.0, "layer_map": "0:0"}
    assert totals(student, teacher, batch, settings)["attention_loss", "encoder"] == pytest.approx(0, abs=1e-9)


def test_heads_of_a_stock_shape_compare_with_themselves_or_by_their_mean(make_model, make_batch):
    # T5 with the same two heads left everywhere is a stock T5 of two heads, which does not know which they were.
    teacher, batch = make_model("T5EncoderModel"), make_batch("T5EncoderModel")
    units = {f"encoder.{i}.attention": (1, 3) for i in range(3)}
    units |= {f"encoder.{i}.feed_forward": tuple(range(64)) for i in range(3)}
    student = extract_submodel(teacher, [f"encoder.{i}" for i in range(3)], units)
    assert student.config.num_heads == 2
    settings = {**NOTHING, "attention_weight": 1.0, "layer_map": "0:0"}
    by_mean = mean_of_heads(student, teacher, batch)
    found = totals(student, teacher, batch, settings)["attention_loss", "encoder"]
    assert found == pytest.approx(0, abs=1e-9) or found == pytest.approx(by_mean, rel=1e-4)


def mean_of_heads(student, teacher, batch):
    """The attention loss of the first layers of two T5s of other numbers of heads."""
    scores = []
    for model in (student, teacher):
        layer = model.encoder.block[0].layer[0]
        states = layer.layer_norm(model.shared(batch["input_ids"]))
        attention = layer.SelfAttention
        queries, keys = (f(states).view(3, 9, -1, 8).transpose(1, 2) for f in (attention.q, attention.k))
        scores.append((queries @ keys.transpose(-1, -2) / 8**0.5).mean(1, keepdim=True))
    return float(attention_loss(*scores, batch["attention_mask"])[0].detach())


@pytest.mark.parametrize("changes", [{"num_heads": 2}, {"num_heads": 8}], ids=str)
def test_other_numbers_of_heads_compare_by_their_mean(make_model, make_batch, changes):
    student, teacher = make_model("T5EncoderModel", seed=1, **changes), make_model("T5EncoderModel")
    batch = make_batch("T5EncoderModel")
    found = totals(student, teacher, batch, {**NOTHING, "attention_weight": 1.0, "layer_map": "0:0"})
    assert found["attention_loss", "encoder"] == pytest.approx(mean_of_heads(student, teacher, batch), rel=1e-4)


def test_layers_that_do_not_attend_are_left_out(make_model, make_batch, select):
    teacher, batch = make_model(), make_batch()
    student = remove_units(teacher, select("a block without heads"))
    parts, distiller = parts_of(student, teacher, batch, {**NOTHING, "attention_weight": 1.0, "hidden_weight": 1.0})
    assert [mine for mine, _ in distiller.pairs] == ["encoder.0", "encoder.1", "encoder.2"]
    assert list(distiller._heads) == [("encoder.0", "encoder.0"), ("encoder.2", "encoder.2")]
    assert [part.name for part in parts] == ["hidden_loss", "attention_loss"]


def test_where_no_layer_attends_it_says_so(make_model, select):
    selection = select("uneven widths")
    units = {name: () if name.endswith("attention") else kept for name, kept in selection.units.items()}
    student = remove_units(make_model(), Selection(selection.layers, units))
    distiller = Distiller(Teacher([make_model()]), DistillationConfig(relation_weight=1.0))
    message = "no layer of the student's encoder that the layer_map names attends any more: leave out attention_weight"
    with pytest.raises(ValueError, match=message):
        distiller.prepare(student)


# ---- which teachers ----


def test_several_teachers_cannot_be_looked_into(make_model, inside):
    message = "2 teachers answer together, but hidden states, embeddings, attention and relations compare with one"
    with pytest.raises(ValueError, match=message):
        Distiller(Teacher([make_model(), make_model()], [0.5, 0.5]), DistillationConfig(**inside))


def test_a_teacher_without_answers_teaches_no_soft_labels(make_model):
    message = "BertModel has no task head whose answers compare: set logits_weight=0 and give hidden_weight or"
    with pytest.raises(ValueError, match=message):
        Distiller(Teacher([make_model("BertModel")]), DistillationConfig())


def test_relations_alone_need_no_task_head(make_model, make_batch):
    student, teacher = make_model("BertModel", seed=1, **SMALL), make_model("BertModel")
    parts, distiller = parts_of(student, teacher, make_batch(), {**NOTHING, "relation_weight": 1.0})
    assert [(part.name, part.unit) for part in parts] == [("relation_loss", "encoder")]
    assert {unit: int(count) for unit, count in distiller.counts(make_batch()).items()} == {"encoder": 18}
    parts[0].sum.backward()
    assert float(student.encoder.layer[2].attention.self.value.weight.grad.abs().sum()) > 0


def test_a_headless_teacher_teaches_a_student_that_has_a_head(make_model, make_batch):
    found = totals(make_model(seed=1), make_model("BertModel"), make_batch(), {**NOTHING, "relation_weight": 1.0})
    assert found["relation_loss", "encoder"] > 0.01
