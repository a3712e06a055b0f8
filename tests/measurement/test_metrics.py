import math

import numpy as np
import pytest
import sacrebleu

from hf_efficient.measurement.metrics import (
    Accuracy,
    MacroF1,
    Pearson,
    Spearman,
    classification_metrics,
    question_answering_metrics,
    regression_metrics,
    summary_metrics,
    translation_metrics,
)


def test_classification_has_accuracy_and_macro_f1():
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0], [5.0, 4.0]])  # predicts 0, 1, 1, 0
    metrics = classification_metrics(logits, np.array([0, 1, 0, 0]))
    f1_of_zero, f1_of_one = 2 * 2 / (2 * 2 + 0 + 1), 2 * 1 / (2 * 1 + 1 + 0)
    assert metrics == pytest.approx({"accuracy": 0.75, "f1": (f1_of_zero + f1_of_one) / 2})


def test_macro_f1_weighs_rare_classes_equally():
    logits = np.eye(3)[[0] * 8 + [1, 1]]
    metrics = classification_metrics(logits, np.array([0] * 8 + [1, 2]))
    assert metrics == pytest.approx({"accuracy": 0.9, "f1": (1 + 2 / 3 + 0) / 3})


def test_regression_has_pearson_and_spearman():
    predictions = np.array([[1.0], [2.0], [3.0], [10.0]])
    metrics = regression_metrics(predictions, np.array([0.1, 0.2, 0.4, 0.3]))
    ranks = 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15)
    assert metrics["spearman"] == pytest.approx(ranks)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(predictions[:, 0], [0.1, 0.2, 0.4, 0.3])[0, 1])


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_correlation_of_constant_predictions_is_nan():
    metrics = regression_metrics(np.full((4, 1), 0.5), np.array([1.0, 2.0, 3.0, 4.0]))
    assert math.isnan(metrics["pearson"])
    assert math.isnan(metrics["spearman"])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(Accuracy, {"accuracy": 0.5}), (MacroF1, {"f1": 1 / 3}), (Pearson, None), (Spearman, None)],
)
def test_metrics_of_evaluate_add_batches(metric, expected):
    if expected is None:
        single = metric()
        single.add_batch(predictions=[0.1, 0.2], references=[1.0, 2.0])
        single.add_batch(predictions=[0.3], references=[3.5])
        assert single.compute()[metric.__name__.lower()] == pytest.approx(1, abs=0.02)
        return
    single = metric()
    single.add_batch(predictions=[0, 0], references=[0, 1])
    single.add_batch(predictions=[0, 0], references=[0, 1])
    assert single.compute() == pytest.approx(expected)


def test_answers_are_compared_as_words_with_the_best_reference():
    predictions = ["The cat!", "a dog ran", "", "park"]
    references = [["cat"], ["the dog", "dog ran off"], [], ["in the park"]]
    metrics = question_answering_metrics(predictions, references)
    assert metrics["exact_match"] == 2 / 4
    # 1, 2*2/(2+3), 1, 2*1/(1+2)
    assert metrics["f1"] == pytest.approx((1 + 4 / 5 + 1 + 2 / 3) / 4)


def test_answers_to_unanswerable_questions_are_wrong():
    assert question_answering_metrics(["cat"], [[]]) == {"f1": 0.0, "exact_match": 0.0}
    assert question_answering_metrics([""], [["cat"]]) == {"f1": 0.0, "exact_match": 0.0}


def test_translation_metrics_are_those_of_sacrebleu():
    predictions, references = (
        ["the cat sat on the mat", "a dog ran"],
        ["the cat sat on a mat", "the dog ran in the park"],
    )
    metrics = translation_metrics(predictions, references)
    assert metrics["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score)
    assert 20 < metrics["sacrebleu"] < 60


def test_summary_metrics_are_rouge_of_words():
    metrics = summary_metrics(["the cat sat"], ["the cat ran off"])
    # two of three words predicted, two of four in the reference: 2 * 2 / (3 + 4); one of two and three pairs
    assert metrics == pytest.approx({"rouge1": 400 / 7, "rouge2": 40.0, "rougeL": 400 / 7})
