"""Training texts that are nearly the same."""

from datasets import Dataset

from hf_efficient.trainer.training_texts import describe_similar_texts


def test_near_duplicates_are_told():
    same = Dataset.from_dict({"input_ids": [[[1, 2, 3, 4, 5, number]] for number in range(6, 506)]})
    assert "two of them share 71% of their tokens" in describe_similar_texts(same)


def test_texts_that_differ_are_not():
    other = Dataset.from_dict({"input_ids": [[[1, 10 * n, 10 * n + 1], [2, 5 * n]] for n in range(1, 200)]})
    assert describe_similar_texts(other) == ""
    assert describe_similar_texts(None) == ""
