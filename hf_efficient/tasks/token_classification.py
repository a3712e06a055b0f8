"""A class for every word: names of people and places, parts of speech."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForTokenClassification, PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.measurement.metrics import token_classification_metrics
from hf_efficient.tasks.task import IGNORED, Batch, Metrics, RowEncoder, Task, get_logits

WORD_COLUMNS = (("tokens",), ("words",))
TAG_COLUMNS = ("ner_tags", "tags", "pos_tags", "labels", "label")


def encode_words(batch: Batch, encoding: RowEncoder) -> dict[str, Any]:
    """Return tokens of lists of words; the first token of a word has its label, others none that counts."""
    encoded = encoding.tokenizer(
        batch[encoding.columns.texts[0]],
        is_split_into_words=True,
        truncation=True,
        max_length=encoding.data.max_length,
        return_token_type_ids=encoding.token_types,
    )
    known = encoding.labels(batch)
    if known is None:
        return dict(encoded)
    labels = []
    for index, tags in enumerate(known):
        words, before = encoded.word_ids(index), None
        row = []
        for word in words:
            row.append(IGNORED if word is None or word == before else encoding.number(tags[word]))
            before = word
        labels.append(row)
    return {**encoded, "labels": labels}


def token_classification_compute_metrics(
    rows: Dataset, encoded: Dataset, encoding: RowEncoder, config: PreTrainedConfig
) -> Metrics:
    """Return precision, recall and F1 of whole spans, and accuracy of words."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    return lambda prediction: token_classification_metrics(
        get_logits(prediction), np.asarray(prediction.label_ids), names
    )


def _matches(splits: DatasetDict, data: DataConfig) -> bool:
    columns = splits["train"].column_names
    text = data.text_column or next((name for (name,) in WORD_COLUMNS if name in columns), None)
    return text in columns and isinstance(splits["train"][0][text], list)


TOKEN_CLASSIFICATION = Task(
    "token-classification",
    "token-classification",
    "f1",
    encode_words,
    token_classification_compute_metrics,
    recognize=_matches,
    text_columns=WORD_COLUMNS,
    label_columns=TAG_COLUMNS,
    collator=DataCollatorForTokenClassification,
)
