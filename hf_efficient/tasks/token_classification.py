"""Token classification: a class for each word, such as named entities or parts of speech."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from transformers import DataCollatorForTokenClassification, PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.data.label_values import parse_list, split_words
from hf_efficient.data.labels import IGNORED_TAG
from hf_efficient.data.rows import describe_row
from hf_efficient.errors import UserError
from hf_efficient.measurement.metrics import token_classification_metrics
from hf_efficient.measurement.row_metrics import token_classification_row_metrics
from hf_efficient.tasks.task import IGNORE_INDEX, Batch, RowEncoder, Task, TaskMetrics, read_logits

WORD_COLUMNS = (("tokens",), ("words",))
TAG_COLUMNS = ("ner_tags", "tags", "pos_tags", "labels", "label")


def encode_words(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of lists of words; the first token of a word has the word's label, the others -100."""
    rows = [split_words(value) for value in batch[encoder.columns.texts[0]]]
    encoded, words_of_rows = (_tokenize if encoder.tokenizer.is_fast else _tokenize_each_word)(rows, encoder)
    tags_of_rows = encoder.get_labels(batch)
    if tags_of_rows is None:
        return encoded
    labels = []
    for words, tags in zip(words_of_rows, map(split_words, tags_of_rows), strict=True):
        previous_word = None
        row_labels = []
        for word in words:
            if word is None or word == previous_word or tags[word] == IGNORED_TAG:
                row_labels.append(IGNORE_INDEX)
            else:
                row_labels.append(encoder.label_id(tags[word]))
            previous_word = word
        labels.append(row_labels)
    return {**encoded, "labels": labels}


def _tokenize(rows: list[list[str]], encoder: RowEncoder) -> tuple[dict[str, Any], list[list[int | None]]]:
    """Return the tokens of each row, and the word that each token is of; None for special tokens."""
    encoded = encoder.tokenizer(
        rows,
        is_split_into_words=True,
        truncation=True,
        max_length=encoder.data.max_length,
        return_token_type_ids=encoder.return_token_type_ids,
    )
    return dict(encoded), [encoded.word_ids(index) for index in range(len(rows))]


def _tokenize_each_word(rows: list[list[str]], encoder: RowEncoder) -> tuple[dict[str, Any], list[list[int | None]]]:
    """Do the same with a tokenizer that does not tell which word a token is of."""
    tokenizer, encoded, words_of_rows = encoder.tokenizer, [], []
    count = encoder.data.max_length - tokenizer.num_special_tokens_to_add()
    for row in rows:
        tokens = [(index, token) for index, word in enumerate(row) for token in tokenizer.tokenize(word)][:count]
        ids = tokenizer.convert_tokens_to_ids([token for _, token in tokens])
        with_special = tokenizer.build_inputs_with_special_tokens(ids)
        start = next(i for i in range(len(with_special)) if with_special[i : i + len(ids)] == ids)
        end = len(with_special) - start - len(ids)
        words_of_rows.append([*[None] * start, *(index for index, _ in tokens), *[None] * end])
        encoded.append(with_special)
    inputs = {"input_ids": encoded, "attention_mask": [[1] * len(ids) for ids in encoded]}
    if encoder.return_token_type_ids or "token_type_ids" in tokenizer.model_input_names:
        inputs["token_type_ids"] = [[0] * len(ids) for ids in encoded]
    return inputs, words_of_rows


def check_tagged_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a row is not a list of words, with as many tags."""
    (column,), tag_column = encoder.columns.texts, encoder.columns.label
    for index, value in enumerate(split[column]):
        words = split_words(value)
        bad = [word for word in words if not isinstance(word, str)]
        if bad:
            raise UserError(
                f"{describe_row(split, index, name)} has {bad[0]!r} in column {column!r}, where a list of words is "
                "needed"
            )
    if tag_column not in split.column_names:
        return
    for index, (value, tags) in enumerate(zip(split[column], split[tag_column], strict=True)):
        if isinstance(value, list) and parse_list(tags) is None:
            raise UserError(
                f"{describe_row(split, index, name)} has {tags!r} in column {tag_column!r}, and {column!r} is a list: "
                f"{tag_column!r} is one text, where a list with one tag for each word is needed"
            )
        num_words, num_tags = len(split_words(value)), len(split_words(tags))
        if num_words != num_tags or (isinstance(value, list) and not isinstance(split_words(tags), list)):
            raise UserError(
                f"{describe_row(split, index, name)} has {num_words} words in column {column!r} and {num_tags} tags "
                f"in column {tag_column!r}: give one tag for each word"
            )


def token_classification_compute_metrics(
    rows: Dataset, encoded: Dataset, encoder: RowEncoder, config: PreTrainedConfig
) -> TaskMetrics:
    """Return the function that computes precision, recall and F1 of entities, and accuracy of words."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    return TaskMetrics(
        lambda prediction: (*read_logits(prediction), names),
        token_classification_metrics,
        token_classification_row_metrics,
    )


def _has_lists_of_words(splits: DatasetDict, data: DataConfig) -> bool:
    columns = splits["train"].column_names
    column = data.text_column or next((name for (name,) in WORD_COLUMNS if name in columns), None)
    if column not in columns:
        return False
    has_tags = any(name in columns for name in TAG_COLUMNS[:3])
    return isinstance(splits["train"][0][column], list) or (data.text_column is None and has_tags)


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
    check_rows=check_tagged_rows,
    read_labels=split_words,
    reads_words=True,
    names_classes=True,
)
