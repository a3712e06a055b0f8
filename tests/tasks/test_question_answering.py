import numpy as np
import pytest
from datasets import Features, List, Value
from transformers import EvalPrediction

from hf_efficient.data.config import DataConfig
from hf_efficient.tasks import TASKS

CONTEXT = "the cat sat on the mat . the dog ran in the park . anna lives in berlin . the cat ran"


@pytest.fixture
def splits(make_splits):
    answers = {" where lives anna": "berlin", "who sat": "sat on the mat"}
    return make_splits(
        [
            {
                "id": str(number),
                "question": question,
                "context": CONTEXT,
                "answers": {"text": [answer], "answer_start": [CONTEXT.index(answer)]},
            }
            for number, (question, answer) in enumerate(answers.items())
        ]
    )


def test_long_contexts_are_split_into_overlapping_windows(splits, encode):
    tokenized, _ = encode("question-answering", splits, DataConfig(max_length=20))
    rows = tokenized["evaluation"].to_list()
    assert len(rows) >= 4
    assert all(len(row["input_ids"]) <= 20 for row in rows)
    for example, text in ((0, "berlin"), (1, "sat on the mat")):
        windows = [row for row in rows if row["example"] == example]
        spans = {
            CONTEXT[row["offset_mapping"][row["start_positions"]][0] : row["offset_mapping"][row["end_positions"]][1]]
            for row in windows
            if row["start_positions"]
        }
        assert spans == {text}
        starts = {offset[0] for row in windows for offset in row["offset_mapping"] if offset[0] != -1}
        assert {0, CONTEXT.index("berlin")} <= starts


def test_the_best_span_of_all_windows_is_the_prediction(splits, encode):
    tokenized, encoder = encode("question-answering", splits, DataConfig(max_length=20))
    rows = tokenized["evaluation"]
    width = max(len(ids) for ids in rows["input_ids"])
    starts = np.full((len(rows), width), -5.0)
    ends = starts.copy()
    for window, row in enumerate(rows):
        score = 3.0 if row["start_positions"] else 1.0  # windows without the answer have a lower score
        starts[window, row["start_positions"] or 5] = score
        ends[window, row["end_positions"] or 5] = score
        ends[window, 0] = 9.0  # the question cannot be the answer
    compute_metrics = TASKS["question-answering"].build_compute_metrics(splits["evaluation"], rows, encoder, None)
    labels = (np.array(rows["start_positions"]), np.array(rows["end_positions"]))
    assert compute_metrics(EvalPrediction((starts, ends), labels)) == {"f1": 1.0, "exact_match": 1.0}
    for window, row in enumerate(rows):
        if row["example"] == 1:
            starts[window, row["start_positions"] or 5] = -9.0  # the answer no longer starts here
    assert compute_metrics(EvalPrediction((starts, ends), labels))["exact_match"] == 0.5


def test_an_empty_prediction_is_right_for_a_question_without_an_answer(make_splits, encode):
    splits = make_splits(
        [{"question": "who", "context": "the cat sat", "answers": {"text": [], "answer_start": []}}] * 2,
        Features(
            {
                "question": Value("string"),
                "context": Value("string"),
                "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
            }
        ),
    )
    tokenized, encoder = encode("question-answering", splits)
    rows = tokenized["evaluation"]
    assert rows["start_positions"][:] == [0, 0]
    logits = np.zeros((2, len(rows["input_ids"][0])))
    logits[0, 0] = 2.0
    logits[1, -2] = 2.0  # the last word of the context
    compute_metrics = TASKS["question-answering"].build_compute_metrics(splits["evaluation"], rows, encoder, None)
    assert compute_metrics(EvalPrediction((logits, logits), None)) == {"f1": 0.5, "exact_match": 0.5}
