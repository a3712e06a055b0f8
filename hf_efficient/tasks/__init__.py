"""Tasks that a model is fine-tuned for: `TASKS`, a dict by name.

Owns: for each task its Auto class, columns, tokenization, data collator and metrics; inferring the task of a model.
Takes: `DatasetDict`s and a `DataConfig`.
Gives: token ids, and the `compute_metrics` of a `Trainer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_efficient.registry import Registry

if TYPE_CHECKING:
    from hf_efficient.tasks.task import Task

# Data without a fine-tuned model is for the first task that matches its columns; the last task matches the rest.
TASKS: Registry[Task] = Registry(
    {
        "translation": "hf_efficient.tasks.seq2seq:TRANSLATION",
        "summarization": "hf_efficient.tasks.seq2seq:SUMMARIZATION",
        "question-answering": "hf_efficient.tasks.question_answering:QUESTION_ANSWERING",
        "token-classification": "hf_efficient.tasks.token_classification:TOKEN_CLASSIFICATION",
        "multiple-choice": "hf_efficient.tasks.multiple_choice:MULTIPLE_CHOICE",
        "multi-label-classification": "hf_efficient.tasks.classification:MULTI_LABEL",
        "text-ranking": "hf_efficient.tasks.ranking:RANKING",
        "regression": "hf_efficient.tasks.classification:REGRESSION",
        "sentence-similarity": "hf_efficient.tasks.sentence_similarity:SENTENCE_SIMILARITY",
        "fill-mask": "hf_efficient.tasks.masked_lm:MASKED_LM",
        "text-classification": "hf_efficient.tasks.classification:CLASSIFICATION",
    }
)
