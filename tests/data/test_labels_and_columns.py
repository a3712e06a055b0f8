import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertConfig

from hf_efficient.commands.demo_dataset import train_tokenizer
from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import label_ids, label_names, labels_are_numbers
from hf_efficient.tasks import TASKS, Columns, RowEncoder, find_columns, infer_task

TASK = TASKS["text-classification"]


def splits(features=None, **columns):
    data = Dataset.from_dict(columns, features=features)
    return DatasetDict(train=data, evaluation=data)


def config(*names):
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("sentence1", "sentence2", "label"), ("sentence1", "sentence2")),
        (("premise", "hypothesis", "label"), ("premise", "hypothesis")),
        (("idx", "text", "label"), ("text",)),
        (("question", "sentence", "label"), ("question", "sentence")),
    ],
)
def test_usual_columns_are_found(names, texts):
    data = splits(**{name: [0] for name in names})
    assert find_columns(data, TASK, DataConfig()) == Columns(texts, "label")


def test_flags_name_columns():
    data = splits(a=["x"], b=["y"], c=[0])
    named = DataConfig(text_column="a", text_pair_column="b", label_column="c")
    assert find_columns(data, TASK, named) == Columns(("a", "b"), "c")


def test_class_names_in_another_order_are_mapped_by_name():
    features = Features({"label": ClassLabel(names=["Positive", "Negative"])})
    assert label_ids(splits(features, label=[0, 1]), "label", config("negative", "positive")) == {0: 1, 1: 0}


def test_text_labels_are_mapped_without_regard_to_case():
    assert label_ids(splits(label=["NO", "yes"]), "label", config("no", "yes")) == {"NO": 0, "yes": 1}


def test_numbers_stay_numbers():
    assert label_ids(splits(label=[0, 1]), "label", config("no", "yes")) is None
    assert label_names(splits(label=[2, 0]), "label") == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert label_names(splits(label=["b", "a"]), "label") == ["a", "b"]


@pytest.mark.parametrize("missing", [None, -1])
def test_rows_without_a_label_are_refused(missing):
    with pytest.raises(ValueError, match="rows without a label"):
        label_ids(splits(label=[0, missing]), "label", config("no", "yes"))


def test_float_labels_are_regression():
    data = splits(Features({"label": Value("float32")}), label=[0.5, 2.5])
    assert labels_are_numbers(data, "label")
    assert infer_task(BertConfig(architectures=["BertModel"]), data, DataConfig()).metric == "spearman"
    tuned = BertConfig(architectures=["BertForSequenceClassification"])
    assert infer_task(tuned, data, DataConfig()).metric == "accuracy"
    with pytest.raises(ValueError, match="cannot tell the task from"):
        infer_task(BertConfig(architectures=["BertForNextSentencePrediction"]), data, DataConfig())


def test_pairs_are_tokenized_together_and_cut():
    tokenizer = train_tokenizer(["one two three four five six"], 80)
    data = splits(a=["one two"], b=["three four five six"], label=["yes"])
    encoding = RowEncoder(Columns(("a", "b"), "label"), tokenizer, DataConfig(max_length=8), {"yes": 3})
    encoded = TASK.tokenize(data, encoding)["train"][0]
    assert encoded == {**tokenizer("one two", "three four five six", truncation=True, max_length=8), "labels": 3}
    assert len(encoded["input_ids"]) == 8
    assert set(encoded["token_type_ids"]) == {0, 1}
