"""Token classification: a class for each word, such as named entities or parts of speech."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForTokenClassification, PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.measurement.metrics import token_classification_metrics
from hf_efficient.tasks.task import IGNORE_INDEX, Batch, ComputeMetrics, RowEncoder, Task, get_logits

WORD_COLUMNS = (("tokens",), ("words",))
TAG_COLUMNS = ("ner_tags", "tags", "pos_tags", "labels", "label")


def encode_words(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of lists of words; the first token of a word has the word's label, the others -100."""
    encoded = encoder.tokenizer(
        batch[encoder.columns.texts[0]],
        is_split_into_words=True,
        truncation=True,
        max_length=encoder.data.max_length,
        return_token_type_ids=encoder.return_token_type_ids,
    )
    tags_of_rows = encoder.get_labels(batch)
    if tags_of_rows is None:
        return dict(encoded)
    labels = []
    for index, tags in enumerate(tags_of_rows):
        previous_word = None
        row_labels = []
        for word in encoded.word_ids(index):
            is_first_token = word is not None and word != previous_word
            row_labels.append(encoder.label_id(tags[word]) if is_first_token else IGNORE_INDEX)
            previous_word = word
        labels.append(row_labels)
    return {**encoded, "labels": labels}


def token_classification_compute_metrics(
    rows: Dataset, encoded: Dataset, encoder: RowEncoder, config: PreTrainedConfig
) -> ComputeMetrics:
    """Return the function that computes precision, recall and F1 of entities, and accuracy of words."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    return lambda prediction: token_classification_metrics(
        get_logits(prediction), np.asarray(prediction.label_ids), names
    )


def _has_lists_of_words(splits: DatasetDict, data: DataConfig) -> bool:
    columns = splits["train"].column_names
    column = data.text_column or next((name for (name,) in WORD_COLUMNS if name in columns), None)
    return column in columns and isinstance(splits["train"][0][column], list)


TOKEN_CLASSIFICATION = Task(
    "token-classification",
    "token-classification",
    "f1",
    encode_words,
    token_classification_compute_metrics,
    matches=_has_lists_of_words,
    text_columns=WORD_COLUMNS,
    label_columns=TAG_COLUMNS,
    collator=DataCollatorForTokenClassification,
)
