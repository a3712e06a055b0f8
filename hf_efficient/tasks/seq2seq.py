"""Texts that are written anew: translations and summaries."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForSeq2Seq, EvalPrediction, PreTrainedConfig, PreTrainedTokenizerBase

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.metrics import summary_metrics, translation_metrics
from hf_efficient.tasks.task import IGNORED, Batch, Columns, Metrics, RowEncoder, Task

PAIRS = "translation"
SUMMARY_COLUMNS = (("document",), ("article",), ("dialogue",), ("text",), ("content",), ("source",))
SUMMARY_LABELS = ("summary", "highlights", "abstract", "target", "labels")


def encode_seq2seq(batch: Batch, encoding: RowEncoder) -> dict[str, Any]:
    """Return tokens of what is read, behind the prefix, and of what is to be written."""
    data, (source,) = encoding.data, encoding.columns.texts
    texts, targets = batch[source], batch.get(str(encoding.columns.label))
    if source == PAIRS:
        texts, targets = ([pair[name] for pair in texts] for name in (data.source_lang, data.target_lang))
    prefix = data.source_prefix or ""
    encoded = encoding.tokens([prefix + text for text in texts])
    if targets is not None:
        length = data.max_target_length
        encoded["labels"] = encoding.tokenizer(text_target=targets, truncation=True, max_length=length)["input_ids"]
    return encoded


def translation_compute_metrics(
    rows: Dataset, encoded: Dataset, encoding: RowEncoder, config: PreTrainedConfig
) -> Metrics:
    """Return sacreBLEU and chrF of what was generated."""
    return lambda prediction: translation_metrics(*decode_predictions(prediction, encoding.tokenizer))


def summarization_compute_metrics(
    rows: Dataset, encoded: Dataset, encoding: RowEncoder, config: PreTrainedConfig
) -> Metrics:
    """Return ROUGE of what was generated."""
    return lambda prediction: summary_metrics(*decode_predictions(prediction, encoding.tokenizer))


def decode_predictions(prediction: EvalPrediction, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Return the texts that were generated and those that were asked for."""
    padding = tokenizer.pad_token_id
    generated = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    texts = []
    for ids in (generated, prediction.label_ids):
        known = np.where(np.asarray(ids) == IGNORED, padding, ids)
        texts.append([text.strip() for text in tokenizer.batch_decode(known, skip_special_tokens=True)])
    return texts[0], texts[1]


def _languages(splits: DatasetDict, data: DataConfig) -> Columns | None:
    """Return the columns of the two languages. Raises ValueError: they are not named, or not there."""
    columns = splits["train"].column_names
    known = list(splits["train"][0][PAIRS]) if PAIRS in columns else columns
    for flag in ("source_lang", "target_lang"):
        if getattr(data, flag) not in known:
            raise UserError(
                f"{flag}={getattr(data, flag)!r} is no language of the data, which has {', '.join(known)}: give "
                "--source_lang and --target_lang"
            )
    if PAIRS in columns:
        return Columns((PAIRS,), PAIRS)
    return Columns((str(data.source_lang),), data.target_lang)


def _matches(splits: DatasetDict, data: DataConfig) -> bool:
    return PAIRS in splits["train"].column_names or bool(data.source_lang and data.target_lang)


TRANSLATION = Task(
    "translation",
    "translation",
    "sacrebleu",
    encode_seq2seq,
    translation_compute_metrics,
    recognize=_matches,
    find=_languages,
    collator=DataCollatorForSeq2Seq,
    classes=False,
    writes=True,
)
SUMMARIZATION = Task(
    "summarization",
    "summarization",
    "rougeL",
    encode_seq2seq,
    summarization_compute_metrics,
    text_columns=SUMMARY_COLUMNS,
    label_columns=SUMMARY_LABELS,
    collator=DataCollatorForSeq2Seq,
    classes=False,
    writes=True,
)
