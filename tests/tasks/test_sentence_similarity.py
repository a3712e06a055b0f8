"""The task sentence-similarity: any texts are training data, and pairs with scores are evaluated."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from embedders import pairs, save_embedder, texts
from transformers import AutoConfig, AutoTokenizer

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.models.sentence_files import AutoSentenceEmbedder
from hf_efficient.tasks.evaluator import TaskEvaluator
from hf_efficient.tasks.inference import get_task, infer_task
from hf_efficient.tasks.sentence_similarity import SENTENCE_SIMILARITY, TextsCollator, adapt_data, group_texts
from hf_efficient.tasks.task import RowEncoder


def splits(train, evaluation):
    return DatasetDict(train=Dataset.from_list(train), evaluation=Dataset.from_list(evaluation))


@pytest.fixture
def folder(tmp_path):
    return save_embedder(tmp_path / "model", prompts={"query": "man "}, default_prompt_name="query")


def encode(folder, data, config=None):
    config = config or DataConfig()
    columns = SENTENCE_SIMILARITY.get_columns(data, config, needs_labels=False)
    return SENTENCE_SIMILARITY.tokenize(data, RowEncoder(columns, AutoTokenizer.from_pretrained(folder), config))


def test_training_texts_need_neither_a_label_nor_the_columns_of_the_evaluation_data(folder):
    encoded = encode(folder, splits([{"anything": text} for text in texts(3)], pairs(4)))
    assert "labels" not in encoded["train"].column_names
    assert [len(ids) for ids in encoded["train"]["input_ids"]] == [1, 1, 1]
    assert [len(ids) for ids in encoded["evaluation"]["input_ids"]] == [2, 2, 2, 2]
    expected = torch.tensor([row["score"] for row in pairs(4)])
    torch.testing.assert_close(torch.tensor(encoded["evaluation"]["labels"]), expected / expected.max())


def test_scores_that_are_cosines_are_not_scaled(folder):
    rows = [{"sentence1": "man", "sentence2": "dog", "score": score} for score in (-0.5, 0.25)]
    assert encode(folder, splits([{"text": "man"}], rows))["evaluation"]["labels"][:] == [-0.5, 0.25]


def test_a_batch_holds_the_texts_of_its_rows_one_after_the_other(folder):
    rows = encode(folder, splits([{"text": "man"}], pairs(3)))["evaluation"]
    batch = TextsCollator(AutoTokenizer.from_pretrained(folder))(list(rows))
    assert batch["input_ids"].shape[0] == 6
    for index in range(3):
        for position in range(2):
            ids, mask = (batch[name][2 * index + position] for name in ("input_ids", "attention_mask"))
            assert ids[mask.bool()].tolist() == rows[index]["input_ids"][position]
    grouped = group_texts(torch.arange(12.0).view(6, 2), batch["labels"])
    assert grouped[1].tolist() == [[4, 5], [6, 7]]


def test_the_prompt_and_the_length_of_the_embedder_are_used(folder):
    model = AutoSentenceEmbedder.from_pretrained(folder)
    data = adapt_data(DataConfig(), model)
    assert (data.max_length, data.source_prefix) == (24, "man ")
    assert adapt_data(DataConfig(max_length=8, source_prefix=""), model).source_prefix == ""
    prompted, plain = (encode(folder, splits([{"text": text}], pairs(2)), given)["train"]["input_ids"][0][0]
                       for text, given in (("dog", data), ("man dog", DataConfig())))  # fmt: skip
    assert prompted == plain


def test_metrics_are_those_of_sentence_transformers(folder):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    rows = pairs(40)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = AutoSentenceEmbedder.from_pretrained(folder).eval()
    data = adapt_data(DataConfig(), model)
    evaluator = TaskEvaluator.from_splits(
        splits([{"text": "man"}], rows), config, tokenizer, SENTENCE_SIMILARITY, data, 1
    )
    metrics, _, by_row = evaluator.evaluate(model)
    columns = ([row[name] for row in rows] for name in ("sentence1", "sentence2", "score"))
    reference = EmbeddingSimilarityEvaluator(*columns, main_similarity="cosine")
    expected = reference(library.SentenceTransformer(str(folder), device="cpu"))
    assert metrics["spearman"] == pytest.approx(expected["spearman_cosine"], abs=1e-6)
    assert metrics["pearson"] == pytest.approx(expected["pearson_cosine"], abs=1e-6)
    assert by_row["spearman"].value() == pytest.approx(metrics["spearman"])


def test_the_task_is_that_of_a_folder_with_modules(folder):
    assert infer_task(AutoConfig.from_pretrained(folder), DatasetDict(), DataConfig()) is SENTENCE_SIMILARITY
    assert get_task("feature-extraction") is SENTENCE_SIMILARITY


@pytest.mark.parametrize(
    ("train", "evaluation", "config", "message"),
    [
        ([{"a": "x", "b": "y"}], pairs(2), {}, "cannot tell which of the columns a, b"),
        ([{"text": "x"}], pairs(2), {"text_column": "absent"}, "not a column of the data"),
        ([{"text": "x"}], [{**row, "score": 1.0} for row in pairs(3)], {}, "at least two different numbers"),
        ([{"text": "x"}], [{**row, "score": "much"} for row in pairs(3)], {}, "needs a number"),
    ],
)
def test_data_that_cannot_be_used_is_refused(folder, train, evaluation, config, message):
    with pytest.raises(UserError, match=message):
        encode(folder, splits(train, evaluation), DataConfig(**config))
