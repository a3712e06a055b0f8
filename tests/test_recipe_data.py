"""The held-out rows of the benchmark of recipes: no phrase of theirs is trained on."""

import importlib
import sys
from pathlib import Path

import pytest
from datasets import Dataset

SENTENCES = [
    "this film is a slow and moving tale of two brothers",
    "the plot makes no sense and the jokes are old",
    "one of the best films that i have seen this year",
    "a dull script with actors who look bored all the time",
]
# A sentence that shares five consecutive words with the first one, and a phrase of the first one.
OVERLAPPING, PHRASE = "they say a slow and moving tale was told", "moving tale of two"


@pytest.fixture(scope="module")
def hold_out_sentences():
    """Import the function from the folder of the benchmarks."""
    folder = str(Path(__file__).parents[1] / "scripts" / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("recipe_data").hold_out_sentences
    finally:
        sys.path.remove(folder)


def phrases(sentence):
    words = sentence.split()
    return [" ".join(words[start : start + 3]) for start in range(0, len(words) - 2, 2)]


@pytest.mark.parametrize("seed", range(4))
def test_sentences_are_held_out_with_all_of_their_phrases(hold_out_sentences, seed):
    texts = [text for sentence in SENTENCES for text in (sentence, *phrases(sentence))]
    train, held_out = hold_out_sentences(Dataset.from_dict({"sentence": texts}), 1, seed)
    (sentence,) = [text for text in held_out["sentence"] if text in SENTENCES]
    assert set(held_out["sentence"]) == {sentence, *phrases(sentence)}
    assert not [text for text in train["sentence"] if text in sentence]
    assert len(train) + len(held_out) == len(texts)


def test_rows_that_share_many_words_with_a_held_out_sentence_are_in_neither_part(hold_out_sentences):
    rows = Dataset.from_dict({"sentence": [SENTENCES[0], OVERLAPPING, PHRASE, "good"]})
    parts = [hold_out_sentences(rows, 1, seed) for seed in range(6)]
    held_out = {tuple(part["sentence"]): list(train["sentence"]) for train, part in parts}
    assert held_out == {(SENTENCES[0], PHRASE): ["good"], (OVERLAPPING,): [PHRASE, "good"]}
