"""Ranking and rerankers: the rows, the activation of the score, and the loss that belongs to it."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertForSequenceClassification

from hf_efficient import UserError
from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.models.inputs import score_activation
from hf_efficient.tasks.inference import infer_task
from hf_efficient.tasks.score_activation import (
    SIGMOID,
    complete_score_activation,
    configure_score_loss,
    set_score_activation,
)

IDENTITY = "torch.nn.modules.linear.Identity"
ROWS = [
    {"query": "where is anna", "document": "in berlin", "label": 1},
    {"query": "where is anna", "document": "the dog ran", "label": 0},
    {"query": "who ran", "document": "the dog", "label": 1},
]


def reranker_config(**fields):
    return BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1,
        architectures=["BertForSequenceClassification"], **fields
    )  # fmt: skip


def splits_with(labels):
    data = Dataset.from_dict({"label": labels})
    return DatasetDict(train=data, evaluation=data)


def test_columns_and_model_say_that_documents_are_ranked(make_splits):
    assert infer_task(reranker_config(), make_splits(ROWS), DataConfig()).name == "text-ranking"
    # Saved after training with binary cross entropy.
    trained = reranker_config(problem_type="multi_label_classification")
    assert infer_task(trained, make_splits(ROWS), DataConfig()).name == "text-ranking"
    pairs = [{"sentence1": row["query"], "sentence2": row["document"], "label": 0.5} for row in ROWS]
    assert infer_task(trained, make_splits(pairs), DataConfig()).name == "regression"


def test_rows_have_both_texts_and_a_label_of_the_shape_of_the_score(make_splits, encode):
    splits, _ = encode("text-ranking", make_splits(ROWS))
    assert splits["train"]["labels"][:] == [[1.0], [0.0], [1.0]]
    assert set(splits["train"]["token_type_ids"][0]) == {0, 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**row, "label": 1} for row in ROWS], "no query in column 'query' .* different labels .* --task regression"),
        ([{**row, "label": row["label"] - 2} for row in ROWS], "row 1 of the evaluation data .* has -1 .* from 0 on"),
        ([*ROWS, {**ROWS[0], "label": 0.5}, {**ROWS[0], "label": "good"}], "'good' in column 'label'"),
    ],
)
def test_rows_that_cannot_be_ranked_are_refused(make_splits, encode, rows, message):
    rows = [{**row, "label": str(row["label"])} for row in rows]
    with pytest.raises(UserError, match=message):
        encode("text-ranking", make_splits(rows))


@pytest.mark.parametrize(
    ("activation", "labels", "is_ranking", "expected"),
    [
        (SIGMOID, [0.2, 1.0], False, "multi_label_classification"),
        (IDENTITY, [0, 1], True, "multi_label_classification"),
        (IDENTITY, [0, 1], False, "regression"),
        (IDENTITY, [0, 3], True, "regression"),
        (IDENTITY, [0.5, 1], True, "regression"),
        (None, [0.2, 1.0], False, "regression"),
    ],
)
def test_loss_belongs_to_activation_and_labels(activation, labels, is_ranking, expected):
    config = reranker_config()
    if activation:
        set_score_activation(config, activation)
    configure_score_loss(config, None, splits_with(labels), "label", is_ranking, is_new=False)
    assert config.problem_type == expected
    model = BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.tensor([[2, 5, 3], [2, 7, 3]]), "labels": torch.tensor(labels)[:, None].float()}
    with torch.no_grad():
        outputs = model(**inputs)
    loss = torch.nn.BCEWithLogitsLoss() if expected.startswith("multi") else torch.nn.MSELoss()
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, inputs["labels"]))
    # Distillation compares the scores before the activation.
    assert get_head_outputs(model).predicts_numbers


def test_labels_outside_of_a_sigmoid_are_refused():
    config = reranker_config()
    set_score_activation(config, SIGMOID)
    with pytest.raises(UserError, match=r"has the label 4\.5, .* end with a sigmoid .* from 0 to 1"):
        configure_score_loss(config, None, splits_with([0.5, 4.5]), "label", is_ranking=False, is_new=False)


def test_a_new_reranker_has_the_activation_of_its_teacher_or_a_sigmoid():
    teacher, with_teacher, alone = reranker_config(), reranker_config(), reranker_config()
    set_score_activation(teacher, IDENTITY)
    configure_score_loss(with_teacher, teacher, splits_with([0, 1]), "label", is_ranking=True, is_new=True)
    configure_score_loss(alone, None, splits_with([0, 1]), "label", is_ranking=True, is_new=True)
    assert (score_activation(with_teacher), score_activation(alone)) == (IDENTITY, SIGMOID)


def write_settings(folder, modules=1, **settings):
    values = {"activation_fn": IDENTITY, "model_type": "CrossEncoder", "prompts": {}, **settings}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(values))
    (folder / "modules.json").write_text(json.dumps([{"type": f"module.{index}"} for index in range(modules)]))


def test_activation_is_read_from_the_file_of_version_6(tmp_path):
    config = reranker_config()
    complete_score_activation(config, str(tmp_path))
    assert score_activation(config) is None
    write_settings(tmp_path)
    complete_score_activation(config, str(tmp_path))
    assert score_activation(config) == IDENTITY
    # An embedder has no score.
    write_settings(tmp_path, model_type="SentenceTransformer")
    config = reranker_config()
    complete_score_activation(config, str(tmp_path))
    assert score_activation(config) is None


@pytest.mark.parametrize("field", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_activation_is_read_from_the_config_of_older_versions(field):
    value = {"activation_fn": IDENTITY} if field == "sentence_transformers" else IDENTITY
    assert score_activation(reranker_config(**{field: value})) == IDENTITY


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": 2}, "consists of module.0, module.1: only those that are one model"),
        ({"prompts": {"q": "query: "}, "default_prompt_name": "q"}, "puts the prompt 'query: ' in front"),
    ],
)
def test_rerankers_with_other_parts_are_refused(tmp_path, settings, message):
    write_settings(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        complete_score_activation(reranker_config(), str(tmp_path))


def test_settings_that_are_not_json_are_refused(tmp_path):
    (tmp_path / "config_sentence_transformers.json").write_text("{")
    with pytest.raises(UserError, match=r"config_sentence_transformers\.json of .* is not valid JSON"):
        complete_score_activation(reranker_config(), str(tmp_path))


def test_a_folder_that_is_gone_is_no_cross_encoder():
    config = reranker_config()
    complete_score_activation(config, "/no/such/folder", local_files_only=True)
    assert score_activation(config) is None
