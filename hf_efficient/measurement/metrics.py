"""Metrics of each task, computed locally; those that are metrics of `evaluate` need no download."""

from __future__ import annotations

import string
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score


class _LocalMetric(evaluate.Metric):
    value_type = "int64"

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references, one number for each example",
            features=datasets.Features(
                {"predictions": datasets.Value(self.value_type), "references": datasets.Value(self.value_type)}
            ),
        )


class Accuracy(_LocalMetric):
    """The fraction of predictions that equal their reference."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_LocalMetric):
    """The unweighted mean of the F1 scores of all classes."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, average="macro"))}


class Pearson(_LocalMetric):
    """Pearson correlation of predictions and references; NaN if one of them is constant."""

    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"pearson": float(pearsonr(references, predictions).statistic)}


class Spearman(_LocalMetric):
    """Spearman rank correlation of predictions and references; NaN if one of them is constant."""

    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"spearman": float(spearmanr(references, predictions).statistic)}


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro F1 of `logits` (examples, classes) against `labels` (examples,)."""
    metrics = evaluate.combine([Accuracy(), MacroF1()])
    result: dict[str, float] = metrics.compute(predictions=logits.argmax(-1), references=labels)
    return result


def masked_lm_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy and perplexity of predictions of masked tokens.

    | argument | shape | meaning |
    | --- | --- | --- |
    | scores | (rows, tokens, 2) | negative log probability of the original token; 1 if it was predicted, else 0 |
    | labels | (rows, tokens) | the original tokens, -100 where no token was masked |
    """
    losses, is_correct = scores[labels != -100].astype(np.float64).T
    return {"accuracy": float(is_correct.mean()), "perplexity": float(np.exp(losses.mean()))}


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return Pearson and Spearman correlation of `logits` (examples, 1) with `labels` (examples,)."""
    metrics = evaluate.combine([Pearson(), Spearman()])
    result: dict[str, float] = metrics.compute(predictions=logits.squeeze(-1), references=labels)
    return result


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return micro F1, macro F1 and exact-match accuracy of multi-label classification.

    `logits` and `labels` are (examples, classes); a class is predicted if its probability is above one half.
    """
    predictions = logits > 0
    return {
        "f1": float(f1_score(labels, predictions, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(labels, predictions)),
    }


def token_classification_metrics(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return precision, recall and F1 of complete spans, and accuracy of single words, computed by seqeval.

    | argument | meaning |
    | --- | --- |
    | logits | (rows, tokens, classes) |
    | labels | (rows, tokens), -100 for tokens that are ignored |
    | names | the names of the classes in IOB format: O, B-person, I-person |
    """
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    rows = list(zip(logits.argmax(-1), labels, strict=True))
    predictions = [[names[tag] for tag in predicted[tags != -100]] for predicted, tags in rows]
    references = [[names[tag] for tag in tags[tags != -100]] for _, tags in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are never predicted score zero
        scores = {
            "f1": f1_score(references, predictions),
            "precision": precision_score(references, predictions),
            "recall": recall_score(references, predictions),
            "accuracy": accuracy_score(references, predictions),
        }
    return {name: float(value) for name, value in scores.items()}


def question_answering_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return F1 and exact match, as fractions, of `predictions` against the best of the references of each question.

    Texts are compared as words, without case, punctuation and articles. An empty prediction is correct for a question
    without a reference. Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
    section 6.1.
    """
    rows = [
        (_normalized_words(prediction), [_normalized_words(text) for text in texts] or [[]])
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    exact = [max(float(words == reference) for reference in texts) for words, texts in rows]
    f1 = [max(_word_f1(words, reference) for reference in texts) for words, texts in rows]
    return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}


def _normalized_words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def _word_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words."""
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))


def translation_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return sacreBLEU and chrF (0 to 100) of translations with one reference each."""
    import sacrebleu

    return {
        "sacrebleu": float(sacrebleu.corpus_bleu(predictions, [references]).score),
        "chrf": float(sacrebleu.corpus_chrf(predictions, [references]).score),
    }


def summary_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L (0 to 100) of summaries with one reference each; words are stemmed."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in names}
