import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import BertConfig, T5Config

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.tasks.inference import get_task, infer_task

TEXT = {"text": "the cat", "label": 0}
TRANSLATION = {"translation": {"en": "the cat", "de": "wolf"}}
ANSWERS = {"question": "who", "context": "the cat", "answers": {"text": ["cat"], "answer_start": [4]}}
SWAG = {"sent1": "the cat", "sent2": "it", **{f"ending{index}": "ran" for index in range(4)}, "label": 1}


def infer(architecture, row, data=None, features=None, **config):
    rows = [] if row is None else [row]
    split = Dataset.from_list(rows, features=features)
    splits = DatasetDict(train=split, evaluation=split) if rows else DatasetDict()
    make_config = T5Config if architecture.startswith("T5") else BertConfig
    return infer_task(make_config(architectures=[architecture], **config), splits, data or DataConfig()).name


@pytest.mark.parametrize(
    ("architecture", "row", "config", "task"),
    [
        ("BertForSequenceClassification", None, {}, "text-classification"),
        ("BertForSequenceClassification", None, {"num_labels": 1}, "regression"),
        ("BertForSequenceClassification", None, {"problem_type": "regression", "num_labels": 2}, "regression"),
        (
            "BertForSequenceClassification",
            None,
            {"problem_type": "multi_label_classification"},
            "multi-label-classification",
        ),
        ("BertForTokenClassification", None, {}, "token-classification"),
        ("BertForQuestionAnswering", None, {}, "question-answering"),
        ("BertForMultipleChoice", None, {}, "multiple-choice"),
        ("T5ForConditionalGeneration", None, {}, "summarization"),
        ("T5ForConditionalGeneration", TRANSLATION, {}, "translation"),
        ("T5ForConditionalGeneration", TEXT, {}, "summarization"),
        ("BertForMaskedLM", TEXT, {}, "text-classification"),
        ("BertModel", None, {}, "text-classification"),
    ],
)
def test_the_head_of_a_model_determines_its_task(architecture, row, config, task):
    assert infer(architecture, row, **config) == task


def test_a_fine_tuned_classifier_stays_one_whatever_the_labels():
    assert infer("BertForSequenceClassification", {"text": "the cat", "label": 0.5}) == "text-classification"


@pytest.mark.parametrize(
    ("row", "features", "task"),
    [
        (TEXT, None, "text-classification"),
        ({"text": "the cat", "label": 0.5}, {"text": Value("string"), "label": Value("float32")}, "regression"),
        ({"text": "the cat", "labels": ["b", "c"]}, None, "multi-label-classification"),
        ({"tokens": ["anna"], "ner_tags": [1]}, None, "token-classification"),
        (ANSWERS, None, "question-answering"),
        (SWAG, None, "multiple-choice"),
        ({"premise": "the cat", "choice1": "ran", "choice2": "sat", "label": 1}, None, "multiple-choice"),
        (
            {"text": "the cat", "labels": [0.0]},
            {"text": Value("string"), "labels": List(Value("float32"))},
            "multi-label-classification",
        ),
    ],
)
def test_the_columns_of_the_data_determine_the_task_of_a_base_model(row, features, task):
    assert infer("BertModel", row, features=features and Features(features)) == task


def test_translation_is_inferred_from_its_languages():
    data = DataConfig(source_lang="en", target_lang="de")
    assert infer("T5ForConditionalGeneration", {"en": "the cat", "de": "wolf"}, data) == "translation"


def test_unsupported_heads_and_names_are_refused():
    with pytest.raises(UserError, match=r"cannot tell the task from .*NextSentencePrediction.*: give --task, one of"):
        infer("BertForNextSentencePrediction", TEXT)
    with pytest.raises(UserError, match="task='parsing' is not supported: give one of translation, summarization"):
        get_task("parsing")
