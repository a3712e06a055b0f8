import numpy as np
import pytest
from transformers import EvalPrediction

from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.task import RowEncoder


@pytest.mark.parametrize("nested", [True, False])
def test_translations_are_tokenized_by_their_languages(make_splits, encode, tokenizer, nested):
    pair = {"en": "the cat sat", "de": "wolf ran"}
    splits = make_splits([{"translation": pair} if nested else pair])
    data = DataConfig(source_lang="en", target_lang="de", source_prefix="who: ", max_target_length=4)
    tokenized, _ = encode("translation", splits, data)
    row = tokenized["train"][0]
    assert row["input_ids"] == tokenizer("who: the cat sat")["input_ids"]
    assert row["labels"] == tokenizer("wolf ran", truncation=True, max_length=4)["input_ids"]


def test_a_missing_language_is_refused(make_splits):
    splits = make_splits([{"translation": {"en": "the cat", "de": "wolf"}}])
    with pytest.raises(UserError, match=r"target_lang='fr' is not a language of the data \(en, de\)"):
        TASKS["translation"].get_columns(splits, DataConfig(source_lang="en", target_lang="fr"))


def test_columns_of_summaries_are_named_by_flags(make_splits):
    splits = make_splits([{"body": "the cat sat on the mat", "gist": "cat sat"}])
    data = DataConfig(text_column="body", summary_column="gist")
    assert TASKS["summarization"].get_columns(splits, data) == Columns(("body",), "gist")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("translation", {"sacrebleu": 100.0, "chrf": 100.0}),
        ("summarization", {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}),
    ],
)
def test_generated_tokens_are_compared_as_text(tokenizer, task, expected):
    ids = np.array([tokenizer("the cat sat on the mat")["input_ids"]])
    labels = np.pad(ids, ((0, 0), (0, 2)), constant_values=-100)
    encoder = RowEncoder(Columns(("x",), "y"), tokenizer, DataConfig())
    compute_metrics = TASKS[task].build_compute_metrics(None, None, encoder, None)
    assert compute_metrics(EvalPrediction(np.pad(ids, ((0, 0), (0, 1))), labels)) == pytest.approx(expected)
