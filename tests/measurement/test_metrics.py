import math

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from hf_efficient.measurement import metrics as metrics_module
from hf_efficient.measurement.metrics import (
    Accuracy,
    MacroF1,
    Pearson,
    Spearman,
    bleu_signature,
    bleu_tokenizer,
    classification_metrics,
    question_answering_metrics,
    regression_metrics,
    summary_metrics,
    token_classification_metrics,
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


IDENTICAL = {
    "Arabic": "القطة جلست على السجادة",
    "Chinese": "猫坐在垫子上。",
    "Hindi": "बिल्ली चटाई पर बैठी",
    "Russian": "Кошка сидела на коврике",
    "Japanese": "猫はマットの上に座った",
    "Korean": "고양이가 매트 위에 앉았다",
    "Thai": "แมวนั่งบนเสื่อ",
    "Greek": "η γάτα κάθισε στο χαλί",
    "French": "le garçon a été là",
}


@pytest.mark.parametrize("language", IDENTICAL)
def test_identical_texts_of_any_script_have_the_highest_scores(language):
    text = IDENTICAL[language]
    assert summary_metrics([text], [text]) == pytest.approx({"rouge1": 100, "rouge2": 100, "rougeL": 100})
    assert translation_metrics([text], [text])["sacrebleu"] == pytest.approx(100)
    other = IDENTICAL["Hindi" if language != "Hindi" else "Russian"]
    assert summary_metrics([other], [text])["rouge1"] == 0


def test_rouge_of_english_is_that_of_rouge_score():
    predictions, references = ["The runners' running_shoes: 2.5 x!", "A cat"], ["runner shoes run 2.5", "cats sat"]
    scorer = RougeScorer(("rouge1", "rouge2", "rougeL"), use_stemmer=True)
    scores = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
    expected = {name: 50 * sum(score[name].fmeasure for score in scores) for name in scores[0]}
    assert summary_metrics(predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("language", "references", "tokenizer"),
    [
        ("zh", (), "zh"),
        ("zh-CN", (), "zh"),
        ("zho_Hans", (), "zh"),
        ("ja", (), "char"),  # ja-mecab with the package MeCab
        ("kor_Hang", (), "char"),
        ("de", (), "13a"),
        (None, ("the cat",), "13a"),
        ("target", ("猫坐在垫子上",), "zh"),
        ("target", ("猫はマットの上に座った",), "char"),
        ("target", ("Кошка",), "13a"),
    ],
)
def test_bleu_splits_texts_by_their_language(language, references, tokenizer, monkeypatch):
    monkeypatch.setattr(metrics_module.importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer(language, references) == tokenizer
    assert f"tok:{tokenizer}" in bleu_signature(language, references)


def test_chinese_translations_are_not_compared_by_sentence():
    prediction, reference = "猫坐在垫子上看书。", "猫坐在垫子上看报。"
    expected = sacrebleu.corpus_bleu([prediction], [[reference]], tokenize="zh").score
    assert translation_metrics([prediction], [reference], "zh")["sacrebleu"] == pytest.approx(expected)
    assert expected > 50


@pytest.mark.parametrize(
    ("names", "f1"), [(["O", "ORG", "PER"], 0.5), (["o", "B-ORG", "B-PER"], 0.5), (["PER", "O", "ORG"], 0.5)]
)
def test_outside_is_found_by_its_name_and_names_need_no_prefix(names, f1):
    outside = next(index for index, name in enumerate(names) if name.upper() == "O")
    first, second = (index for index in range(3) if index != outside)
    labels = np.array([[first, outside, second, outside]])
    predicted = np.array([[first, outside, first, outside]])
    assert token_classification_metrics(np.eye(3)[predicted], labels, names)["f1"] == f1
