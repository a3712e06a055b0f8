import json
import re
from dataclasses import asdict, fields

import pytest
from transformers import HfArgumentParser

from hf_efficient import DistillationConfig

NO_OUTPUTS = {"hard_label_weight": 0.0, "logits_weight": 0.0}
CONFIGS = [
    {},
    {"temperature": 4.0, "temperature_end": 1.0, "hard_label_weight": 0.0, "logits_weight_end": 0.25},
    {"hidden_weight": 1.0, "hidden_distance": "cosine", "layer_map": "0:1,1:3", "relation_heads": 4},
    {"cache_teacher": True, "cache_top_k": 64, "teacher_weights": "0.7,0.3", "teacher_dtype": "bfloat16"},
    {"relation_weight": 2.5, "relations": "values", "attention_weight": 1.0, "embedding_weight": 0.1},
]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature=0 is out of range: give 0.01 to 100; usual values lie between 1 and 10"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range"),
        ({"temperature": float("nan")}, "temperature=nan is not possible: give a finite number"),
        ({"temperature_end": 0.0}, "temperature_end=0.0 is out of range"),
        ({"hard_label_weight": -0.1}, "hard_label_weight=-0.1 must not be negative"),
        ({"hard_label_weight_end": -0.1}, "hard_label_weight_end=-0.1 must not be negative"),
        ({"logits_weight": -2}, "logits_weight=-2 must not be negative"),
        ({"logits_weight_end": -2}, "logits_weight_end=-2 must not be negative"),
        ({"hidden_weight": -1}, "hidden_weight=-1 must not be negative"),
        ({"student_dropout": 1.0}, "student_dropout=1.0 is no probability: give a number from 0 to below 1"),
        ({"embedding_weight": -1}, "embedding_weight=-1 must not be negative"),
        ({"attention_weight": float("nan")}, "attention_weight=nan is not possible: give a finite number"),
        ({"relation_weight": -1}, "relation_weight=-1 must not be negative"),
        (
            NO_OUTPUTS,
            "hard_label_weight, logits_weight, hidden_weight, embedding_weight, attention_weight, relation_weight, "
            "margin_weight are "
            "all 0: nothing would be learned; set at least one of them",
        ),
        ({"hidden_distance": "l1"}, "hidden_distance='l1' is unknown: give one of mse, cosine"),
        ({"teacher_dtype": "int8"}, "teacher_dtype='int8' is unknown: give one of auto, float32, bfloat16, float16"),
        ({"relations": "queries,heads"}, "relations='queries,heads' is unknown: give any of queries, keys, values"),
        ({"relations": ""}, "relations='' is unknown: give any of queries, keys, values"),
        ({"temperature": 1e4}, "temperature=10000.0 is out of range: give 0.01 to 100"),
        ({"temperature_end": float("inf")}, "temperature_end=inf is not possible: give a finite number"),
        ({"temperature": "2"}, "temperature='2' is not possible: give a finite number"),
        ({"cache_teacher": 1}, "cache_teacher=1 is not possible: give True or False"),
        ({"relation_heads": 0}, "relation_heads=0 must be at least 1"),
        ({"cache_teacher": True, "cache_top_k": 0}, "cache_top_k=0 must be at least 1"),
        ({"targets": "silver"}, "targets='silver' is unknown: give one of gold, teacher, both"),
        ({"layer_map": "every"}, "layer_map='every' is unknown: give one of auto, uniform, last, skip"),
        (
            {"layer_map": "skip"},
            "layer_map='skip' has no effect, since no layers are compared: set hidden_weight, embedding_weight, "
            "attention_weight or relation_weight",
        ),
        ({"teacher_weights": "0.7,some"}, "teacher_weights='0.7,some' are not weights: give numbers such as 0.7,0.3"),
        ({"teacher_weights": "0,0"}, "teacher_weights='0,0' are not weights"),
        ({"teacher_weights": "1,-1"}, "teacher_weights='1,-1' are not weights"),
        ({"teacher_weights": "nan,1"}, "teacher_weights='nan,1' are not weights"),
        ({"teacher_weights": "inf,1"}, "teacher_weights='inf,1' are not weights"),
        (
            {"cache_teacher": True, "hidden_weight": 1, "relation_weight": 1},
            "cache_teacher caches the teacher's logits, but hidden_weight, relation_weight needs its intermediate",
        ),
        ({"cache_top_k": 5}, "cache_top_k=5 has no effect without a cache: add cache_teacher=True"),
        (
            {"cache_top_k": 5, "cache_teacher": True, "temperature_end": 1.0},
            "cache_top_k sums up the unlikely classes at one temperature: remove temperature_end or cache_top_k",
        ),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DistillationConfig(**settings)


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_config_round_trips_through_json_and_command_line(settings):
    config = DistillationConfig(**settings)
    assert DistillationConfig(**json.loads(json.dumps(asdict(config)))) == config
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    assert HfArgumentParser(DistillationConfig).parse_args_into_dataclasses(flags) == (config,)


@pytest.mark.parametrize("field", fields(DistillationConfig), ids=lambda field: field.name)
def test_help_of_every_field_is_a_sentence(field):
    text = field.metadata["help"]
    assert text.endswith(".")
    assert text[0].isupper()


def test_final_weight_alone_is_enough():
    config = DistillationConfig(**NO_OUTPUTS, logits_weight_end=1.0)
    assert config.uses_logits
    assert not config.uses_intermediate_outputs


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, (4.0, 0.0, 0.5)), (0.25, (3.25, 0.2, 0.5)), (1.0, (1.0, 0.8, 0.5))]
)
def test_schedules_are_linear_and_fields_without_end_constant(progress, expected):
    config = DistillationConfig(temperature=4.0, temperature_end=1.0, hard_label_weight=0.0, hard_label_weight_end=0.8)
    values = [config.value_at(name, progress) for name in ("temperature", "hard_label_weight", "logits_weight")]
    assert values == pytest.approx(expected)


def test_teacher_weights_are_normalized():
    assert DistillationConfig(teacher_weights="3, 1").normalized_teacher_weights(2) == [0.75, 0.25]
    assert DistillationConfig().normalized_teacher_weights(4) == [0.25] * 4
    message = "teacher_weights='3,1' are 2 weights for 3 teachers: give as many weights as teachers"
    with pytest.raises(ValueError, match=message):
        DistillationConfig(teacher_weights="3,1").normalized_teacher_weights(3)


@pytest.mark.parametrize(
    ("settings", "description"),
    [
        ({}, "labels, the teacher's soft labels (T=2)"),
        ({"temperature_end": 1.0, "hard_label_weight": 0.0}, "the teacher's soft labels (T=2 to 1)"),
        ({"targets": "both", "logits_weight": 0.0}, "labels and targets generated by the teacher"),
        (
            {**NO_OUTPUTS, "hidden_weight": 1, "embedding_weight": 1, "attention_weight": 1, "relation_weight": 1},
            "its hidden states, its embeddings, its attention, its relations of queries, keys, values",
        ),
    ],
    ids=["default", "temperature schedule", "generated targets", "intermediate outputs"],
)
def test_description_names_the_terms_of_the_loss(settings, description):
    assert DistillationConfig(**settings).describe() == description
