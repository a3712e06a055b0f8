"""Metrics as `evaluate` knows them, computed by scikit-learn and scipy, so that none is downloaded."""

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
            inputs_description="predictions and references, one number each for every example",
            features=datasets.Features(
                {"predictions": datasets.Value(self.value_type), "references": datasets.Value(self.value_type)}
            ),
        )


class Accuracy(_LocalMetric):
    """The fraction of predictions that equal their reference."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_LocalMetric):
    """The F1 score of every class, averaged with equal weight."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, average="macro"))}


class Pearson(_LocalMetric):
    """Pearson's correlation of predictions and references; not a number where one of them is constant."""

    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"pearson": float(pearsonr(references, predictions).statistic)}


class Spearman(_LocalMetric):
    """Spearman's rank correlation of predictions and references; not a number where one of them is constant."""

    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"spearman": float(spearmanr(references, predictions).statistic)}


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro F1 of `logits` (examples, classes) against `labels` (examples,)."""
    metrics = evaluate.combine([Accuracy(), MacroF1()])
    result: dict[str, float] = metrics.compute(predictions=logits.argmax(-1), references=labels)
    return result


def masked_lm_metrics(judged: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy and perplexity of guesses at masked tokens.

    | argument | shape | meaning |
    | --- | --- | --- |
    | judged | (rows, tokens, 2) | minus the log probability of the token that was there, and whether it was guessed |
    | labels | (rows, tokens) | the tokens that were there, -100 where none was masked |
    """
    lost, right = judged[labels != -100].astype(np.float64).T
    return {"accuracy": float(right.mean()), "perplexity": float(np.exp(lost.mean()))}


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation of `logits` (examples, 1) with `labels` (examples,)."""
    metrics = evaluate.combine([Pearson(), Spearman()])
    result: dict[str, float] = metrics.compute(predictions=logits.squeeze(-1), references=labels)
    return result


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return micro and macro F1, and how many rows have just the right classes.

    `logits` and `labels` are (examples, classes); a class is predicted where its probability is above one half.
    """
    chosen = logits > 0
    return {
        "f1": float(f1_score(labels, chosen, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(labels, chosen, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(labels, chosen)),
    }


def token_classification_metrics(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return precision, recall and F1 of whole spans, and accuracy of single words, by seqeval.

    | argument | shape |
    | --- | --- |
    | logits | (rows, tokens, classes) |
    | labels | (rows, tokens), -100 where none counts |
    | names | the classes, in the IOB format: O, B-person, I-person |
    """
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    rows = list(zip(logits.argmax(-1), labels, strict=True))
    said = [[names[tag] for tag in tags[known != -100]] for tags, known in rows]
    right = [[names[tag] for tag in known[known != -100]] for _, known in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are never predicted count as zero
        scores = {
            "f1": f1_score(right, said),
            "precision": precision_score(right, said),
            "recall": recall_score(right, said),
            "accuracy": accuracy_score(right, said),
        }
    return {name: float(value) for name, value in scores.items()}


def question_answering_metrics(said: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1, as fractions, of answers against the best of those that are right.

    Texts are compared as words, without case, punctuation and articles; a question without an answer is right when
    nothing was said. Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
    section 6.1.
    """
    rows = zip(said, answers, strict=True)
    pairs = [(_words(text), [_words(known) for known in right] or [[]]) for text, right in rows]
    exact = [max(float(words == known) for known in right) for words, right in pairs]
    overlap = [max(_overlap(words, known) for known in right) for words, right in pairs]
    return {"f1": float(np.mean(overlap)), "exact_match": float(np.mean(exact))}


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words."""
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def translation_metrics(said: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Return sacreBLEU and chrF, 0 to 100, of translations against one reference each."""
    import sacrebleu

    return {
        "sacrebleu": float(sacrebleu.corpus_bleu(said, [right]).score),
        "chrf": float(sacrebleu.corpus_chrf(said, [right]).score),
    }


def summary_metrics(said: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 100, of summaries against one reference each; words are stemmed."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(known, text) for text, known in zip(said, right, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in names}
