"""Metrics of each task, computed locally; those that are metrics of `evaluate` need no download."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score

# Codes of languages that sacreBLEU splits differently, and the tokenizer and the package of each.
_LANGUAGE_CODES = {
    "zh": ("zh", "zho", "cmn", "yue", "chinese"),
    "ja": ("ja", "jpn", "japanese"),
    "ko": ("ko", "kor", "korean"),
    "th": ("th", "tha", "thai", "lo", "lao", "km", "khm", "khmer", "my", "mya", "burmese"),
}
_BLEU_TOKENIZERS = {
    "zh": ("zh", None),
    "ja": ("ja-mecab", "MeCab"),
    "ko": ("ko-mecab", "mecab_ko"),
    "th": ("char", None),
}
_SPACELESS_SCRIPTS = ("THAI", "LAO", "KHMER", "MYANMAR")


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
    """Return Pearson and Spearman correlation of `logits` (examples, 1) with `labels` (examples,) or (examples, 1)."""
    metrics = evaluate.combine([Pearson(), Spearman()])
    result: dict[str, float] = metrics.compute(predictions=logits.reshape(-1), references=labels.reshape(-1))
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

    predictions, references = iob_rows(logits, labels, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are never predicted score zero
        scores = {
            "f1": f1_score(references, predictions),
            "precision": precision_score(references, predictions),
            "recall": recall_score(references, predictions),
            "accuracy": accuracy_score(references, predictions),
        }
    return {name: float(value) for name, value in scores.items()}


def iob_rows(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the predicted and the true tags of each row, as seqeval reads them, of the tokens with a label."""
    names = _iob_names(names)
    rows = list(zip(logits.argmax(-1), labels, strict=True))
    predictions = [[names[tag] for tag in predicted[tags != -100]] for predicted, tags in rows]
    references = [[names[tag] for tag in tags[tags != -100]] for _, tags in rows]
    return predictions, references


def _iob_names(names: Sequence[str]) -> list[str]:
    """Return the names as seqeval reads them: "O" in upper case, and "I-" before names without a prefix of a span."""
    plain = ["O" if name.strip().upper() == "O" else name for name in names]
    has_prefixes = all(name == "O" or re.match(r"[BIESLU]-", name) for name in plain)
    return plain if has_prefixes else [name if name == "O" else f"I-{name}" for name in plain]


def question_answering_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return F1 and exact match, as fractions, of `predictions` against the best of the references of each question.

    Texts are compared as words, without case, punctuation and articles. An empty prediction is correct for a question
    without a reference. Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
    section 6.1.
    """
    return {name: float(np.mean(values)) for name, values in answer_scores(predictions, references).items()}


def answer_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Return F1 and exact match of each question; see `question_answering_metrics`."""
    rows = [
        (_normalized_words(prediction), [_normalized_words(text) for text in texts] or [[]])
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {
        "f1": [max(_word_f1(words, reference) for reference in texts) for words, texts in rows],
        "exact_match": [max(float(words == reference) for reference in texts) for words, texts in rows],
    }


def _normalized_words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def _word_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words."""
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))


def bleu_tokenizer(language: str | None, references: Sequence[str] = ()) -> str:
    """Return the tokenizer of sacreBLEU for a language such as zh, zh-CN or zho_Hans, or for the script of texts.

    Japanese and Korean are split into characters where the package that finds their words is not installed.
    """
    code = re.split(r"[-_.]", (language or "").casefold())[0]
    found = next((key for key, codes in _LANGUAGE_CODES.items() if code in codes), None) or _main_script(references)
    tokenizer, package = _BLEU_TOKENIZERS.get(str(found), ("13a", None))
    return tokenizer if package is None or importlib.util.find_spec(package) else "char"


def bleu_signature(language: str | None, references: Sequence[str] = ()) -> str:
    """Return the signature of sacreBLEU, which says how texts are compared; the scores of others have one too."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize=bleu_tokenizer(language, references))
    bleu.corpus_score(["a"], [["a"]])
    return str(bleu.get_signature())


def rouge_signature() -> str:
    """Return how ROUGE is computed, for reports: the scores of others have other words and stems."""
    version = importlib.metadata.version("rouge_score")
    return f"F1, words of all scripts, English ones stemmed, rouge_score {version}"


def _main_script(texts: Sequence[str]) -> str | None:
    """Return the language whose script most letters of the texts have, if words have no spaces between them there."""
    counts = Counter(_script(character) for text in texts for character in text if character.isalpha())
    if not counts:
        return None
    if counts["kana"] and counts["kana"] + counts["han"] > sum(counts.values()) / 2:
        return "ja"
    main = counts.most_common(1)[0][0]
    return {"han": "zh", "hangul": "ko", "spaceless": "th"}.get(main)


def _script(character: str) -> str:
    name = unicodedata.name(character, "").split(" ")[0]
    if name == "CJK":
        return "han"
    if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"):
        return "kana"
    if name == "HANGUL":
        return "hangul"
    return "spaceless" if name in _SPACELESS_SCRIPTS else "spaced"


class RougeWords:
    """Words of any script, for rouge_score; those of English are the same as in its own tokenizer."""

    def __init__(self, english: Any) -> None:
        self._english = english

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text` in lower case, English ones stemmed."""
        words = []
        word = ""
        for character in unicodedata.normalize("NFKC", text).lower() + " ":
            is_part = unicodedata.category(character)[0] in "LMN"
            is_word = character.isalpha() and _script(character) in ("han", "kana", "spaceless")
            if is_part and not is_word:
                word += character
                continue
            words += [word] if word else []
            words += [character] if is_word else []
            word = ""
        return [part for word in words for part in (self._english.tokenize(word) if word.isascii() else [word])]


def translation_metrics(
    predictions: Sequence[str], references: Sequence[str], language: str | None = None
) -> dict[str, float]:
    """Return sacreBLEU and chrF (0 to 100) of translations into `language` with one reference each."""
    import sacrebleu

    tokenizer = bleu_tokenizer(language, references)
    return {
        "sacrebleu": float(sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenizer).score),
        "chrf": float(sacrebleu.corpus_chrf(predictions, [references]).score),
    }


def summary_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L (0 to 100) of summaries with one reference each.

    English words are stemmed; of scripts without spaces between words each character counts as a word.
    """
    return {name: float(np.mean(values)) for name, values in summary_scores(predictions, references).items()}


def summary_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L (0 to 100) of each summary; see `summary_metrics`."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=RougeWords(DefaultTokenizer(use_stemmer=True)))
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: [100 * float(score[name].fmeasure) for score in scores] for name in names}
