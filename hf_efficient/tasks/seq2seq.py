"""Tasks whose predictions are generated text: translation and summarization."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForSeq2Seq, EvalPrediction, PreTrainedConfig, PreTrainedTokenizerBase

from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import check_no_missing_labels
from hf_efficient.data.rows import describe_row
from hf_efficient.data.texts import check_texts
from hf_efficient.errors import UserError
from hf_efficient.measurement.metrics import bleu_signature, rouge_signature, summary_metrics, translation_metrics
from hf_efficient.measurement.row_metrics import summary_row_metrics, translation_row_metrics
from hf_efficient.tasks.task import IGNORE_INDEX, Batch, RowEncoder, Task, TaskMetrics

# A column of dicts with a text for each language.
TRANSLATION_COLUMN = "translation"
DOCUMENT_COLUMNS = (("document",), ("article",), ("dialogue",), ("text",), ("content",), ("source",))
SUMMARY_COLUMNS = ("summary", "highlights", "abstract", "target", "labels")


def encode_seq2seq(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of the source texts, each after the prefix, and the tokens of the targets as labels."""
    data, (source_column,) = encoder.data, encoder.columns.texts
    sources, targets = batch[source_column], batch.get(str(encoder.columns.label))
    if source_column == TRANSLATION_COLUMN:
        sources, targets = ([pair[name] for pair in sources] for name in (data.source_lang, data.target_lang))
    prefix = data.source_prefix or ""
    encoded = encoder.tokenize([prefix + text for text in sources])
    if targets is not None:
        labels = encoder.tokenizer(text_target=targets, truncation=True, max_length=data.max_target_length)
        encoded["labels"] = labels["input_ids"]
    return encoded


def check_generation_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a row lacks the source or the target text."""
    if encoder.columns.texts != (TRANSLATION_COLUMN,):
        label = str(encoder.columns.label)
        check_texts(
            split, name, [column for column in (*encoder.columns.texts, label) if column in split.column_names]
        )
        if label in split.column_names:
            check_no_missing_labels(DatasetDict({name: split}), label)
        return
    for index, pair in enumerate(split[TRANSLATION_COLUMN]):
        for language in (encoder.data.source_lang, encoder.data.target_lang):
            text = (pair or {}).get(language)
            if not isinstance(text, str) or (language == encoder.data.target_lang and not text.strip()):
                raise UserError(
                    f"{describe_row(split, index, name)} has no text for {language!r} in column "
                    f"{TRANSLATION_COLUMN!r}: add it, or remove the row"
                )


def translation_compute_metrics(
    rows: Dataset, encoded: Dataset, encoder: RowEncoder, config: PreTrainedConfig
) -> TaskMetrics:
    """Return the function that computes sacreBLEU and chrF of generated texts."""
    language = encoder.data.target_lang
    return TaskMetrics(
        lambda prediction: (*decode_predictions(prediction, encoder.tokenizer), language),
        translation_metrics,
        translation_row_metrics,
    )


def translation_settings(rows: Dataset, encoder: RowEncoder) -> dict[str, str]:
    """Return the signature of sacreBLEU."""
    language, column = encoder.data.target_lang, str(encoder.columns.label)
    targets = [pair[language] for pair in rows[column]] if column == TRANSLATION_COLUMN else list(rows[column])
    return {"sacrebleu": bleu_signature(language, targets)}


def summarization_settings(rows: Dataset, encoder: RowEncoder) -> dict[str, str]:
    """Return how ROUGE is computed."""
    return {"rouge": rouge_signature()}


def summarization_compute_metrics(
    rows: Dataset, encoded: Dataset, encoder: RowEncoder, config: PreTrainedConfig
) -> TaskMetrics:
    """Return the function that computes ROUGE of generated texts."""
    return TaskMetrics(
        lambda prediction: decode_predictions(prediction, encoder.tokenizer), summary_metrics, summary_row_metrics
    )


def decode_predictions(prediction: EvalPrediction, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Return the generated texts and the target texts."""
    predictions = prediction.predictions
    generated = predictions[0] if isinstance(predictions, tuple) else predictions
    texts = []
    for ids in (generated, prediction.label_ids):
        decodable = np.where(np.asarray(ids) == IGNORE_INDEX, tokenizer.pad_token_id, ids)
        texts.append([text.strip() for text in tokenizer.batch_decode(decodable, skip_special_tokens=True)])
    return texts[0], texts[1]


def _find_language_columns(splits: DatasetDict, data: DataConfig) -> Columns:
    """Return the columns of the two languages. Raises UserError if one is not given or does not exist."""
    columns = splits["train"].column_names
    has_pairs = TRANSLATION_COLUMN in columns
    languages = columns
    if has_pairs:
        pairs = splits["train"][TRANSLATION_COLUMN][:]
        for index, pair in enumerate(pairs):
            if not isinstance(pair, dict | None):
                raise UserError(
                    f"{describe_row(splits['train'], index, 'train')} has {pair!r} in column {TRANSLATION_COLUMN!r}: "
                    'an object with a text for each language is needed, as {"en": "a", "de": "b"} in JSON, or a '
                    "column for each language"
                )
        languages = list(dict.fromkeys(key for pair in pairs for key in pair or {}))
    for flag in ("source_lang", "target_lang"):
        if getattr(data, flag) not in languages:
            raise UserError(
                f"{flag}={getattr(data, flag)!r} is not a language of the data ({', '.join(languages)}): "
                "give --source_lang and --target_lang"
            )
    if has_pairs:
        return Columns((TRANSLATION_COLUMN,), TRANSLATION_COLUMN)
    return Columns((str(data.source_lang),), data.target_lang)


def _has_languages(splits: DatasetDict, data: DataConfig) -> bool:
    return TRANSLATION_COLUMN in splits["train"].column_names or bool(data.source_lang and data.target_lang)


TRANSLATION = Task(
    "translation",
    "translation",
    "sacrebleu",
    encode_seq2seq,
    translation_compute_metrics,
    matches=_has_languages,
    metric_settings=translation_settings,
    find_columns=_find_language_columns,
    collator=DataCollatorForSeq2Seq,
    check_rows=check_generation_rows,
    has_classes=False,
    generates=True,
)
SUMMARIZATION = Task(
    "summarization",
    "summarization",
    "rougeL",
    encode_seq2seq,
    summarization_compute_metrics,
    metric_settings=summarization_settings,
    text_columns=DOCUMENT_COLUMNS,
    label_columns=SUMMARY_COLUMNS,
    check_rows=check_generation_rows,
    collator=DataCollatorForSeq2Seq,
    has_classes=False,
    generates=True,
)
