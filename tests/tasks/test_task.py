import subprocess
import sys

import pytest
from datasets import Dataset

from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.task import RowEncoder, iterate_texts, model_columns


@pytest.mark.parametrize(("name", "task"), TASKS.items())
def test_every_task_has_its_name_head_and_metric(name, task):
    assert task.name == name
    assert task.head in ("ConditionalGeneration", task.auto_class.__name__.partition("For")[2])
    assert task.metric


def test_names_are_listed_without_importing_datasets():
    code = (
        "import sys; from hf_efficient.tasks import TASKS; assert 'fill-mask' in list(TASKS); "
        "sys.exit(bool({'datasets', 'transformers', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tokenized_rows_are_cached_whatever_their_source(make_splits, encode):
    splits = make_splits([{"text": "the cat sat on the mat", "label": 0}])

    def fingerprint(**fields):
        return encode("text-classification", splits, DataConfig(**fields))[0]["train"]._fingerprint

    first = fingerprint(train_file="a.csv", max_eval_samples=7, dataset_title="cats")
    assert fingerprint(test_file="b.csv") == first
    assert fingerprint(max_length=16) != first


def test_pairs_are_tokenized_together_and_truncated(tokenizer, make_splits):
    splits = make_splits([{"a": "the cat", "b": "dog ran in park", "label": "yes"}])
    encoder = RowEncoder(Columns(("a", "b"), "label"), tokenizer, DataConfig(max_length=8), {"yes": 3})
    row = TASKS["text-classification"].tokenize(splits, encoder)["train"][0]
    assert row == {**tokenizer("the cat", "dog ran in park", truncation=True, max_length=8), "labels": 3}
    assert len(row["input_ids"]) == 8
    assert set(row["token_type_ids"]) == {0, 1}


def test_texts_of_rows_include_targets_of_generated_text():
    pairs = Dataset.from_list([{"translation": {"en": "the cat", "de": "wolf"}}])
    assert list(iterate_texts(pairs, TASKS["translation"], Columns(("translation",), "translation"))) == [
        "the cat",
        "wolf",
    ]
    words = Dataset.from_list([{"tokens": ["the", "cat"], "tags": [0, 1]}])
    assert list(iterate_texts(words, TASKS["token-classification"], Columns(("tokens",), "tags"))) == ["the cat"]
    articles = Dataset.from_list([{"text": "the cat sat", "summary": "cat"}])
    assert list(iterate_texts(articles, TASKS["summarization"], Columns(("text",), "summary"))) == [
        "the cat sat",
        "cat",
    ]


def test_only_columns_that_a_model_reads_are_kept():
    rows = Dataset.from_list([{"input_ids": [1], "example": 0, "offset_mapping": [[0, 1]]}])
    assert model_columns(rows).column_names == ["input_ids"]
