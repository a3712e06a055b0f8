"""Each task from rows to tokens, and from answers to numbers that are known in advance."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import BertConfig, EvalPrediction, T5Config

from hf_efficient.commands.demo_dataset import train_tokenizer
from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import label_ids, label_names
from hf_efficient.tasks import TASKS, Columns, RowEncoder, find_columns, infer_task

WORDS = "the cat sat on mat dog ran in park who where what anna berlin lives wolf gang"
TOKENIZER = train_tokenizer([WORDS, "a b c d e f g h i j k l m n o p q r s t u v w x y z"], 200)
BASE = BertConfig(architectures=["BertModel"])
TAGS = ["O", "B-person", "I-person", "B-place"]


def both(rows, features=None):
    data = Dataset.from_list(rows, features=features)
    return DatasetDict(train=data, evaluation=data)


def encode(task, splits, data=None, config=BASE, numbers=None):
    data = data or DataConfig()
    columns = find_columns(splits, TASKS[task], data)
    encoding = RowEncoder(columns, TOKENIZER, data, numbers, classes=config.num_labels)
    return TASKS[task].tokenize(splits, encoding), encoding


def test_what_is_evaluated_on_does_not_change_what_is_trained_on():
    settings = {"train_file": "a.csv", "max_eval_samples": 7}, {"test_file": "b.csv"}, {"max_length": 16}
    splits = both([{"text": "the cat sat on the mat", "label": 0}])
    prints = [encode("text-classification", splits, DataConfig(**each))[0]["train"]._fingerprint for each in settings]
    assert prints[0] == prints[1] != prints[2]


# ---- classes of words ----


def tagged():
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    return both([{"tokens": ["anna", "wolfgang", "ran", "berlin"], "ner_tags": [1, 2, 0, 3]}], features)


def test_words_of_several_tokens_are_labelled_once():
    splits = tagged()
    config = BertConfig(id2label=dict(enumerate(TAGS)), label2id={name: index for index, name in enumerate(TAGS)})
    assert label_names(splits, "ner_tags") == TAGS
    numbers = label_ids(splits, "ner_tags", config)
    encoded, _ = encode("token-classification", splits, config=config, numbers=numbers)
    row = encoded["train"][0]
    tokens = TOKENIZER.convert_ids_to_tokens(row["input_ids"])
    assert sum(token.startswith("##") for token in tokens) >= 1
    labelled = [(token, label) for token, label in zip(tokens, row["labels"], strict=True) if label != -100]
    assert [label for _, label in labelled] == [1, 2, 0, 3]
    assert not any(token.startswith("##") or token.startswith("[") for token, _ in labelled)


def test_tags_are_judged_as_whole_spans():
    config = BertConfig(id2label=dict(enumerate(TAGS)))
    labels = np.array([[-100, 1, 2, 0, 3, -100]])
    said = np.array([[0, 1, 0, 0, 3, 2]])  # the person is cut short, the place is right
    judge = TASKS["token-classification"].judge(None, None, None, config)
    found = judge(EvalPrediction(np.eye(4)[said], labels))
    assert found == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.75}


# ---- several classes ----


def test_several_classes_are_one_hot_each():
    splits = both([{"text": "the cat", "labels": ["b", "c"]}, {"text": "the dog", "labels": []}])
    assert infer_task(BASE, splits, DataConfig()).name == "multi-label-classification"
    assert label_names(splits, "labels") == ["b", "c"]
    config = BertConfig(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    numbers = label_ids(splits, "labels", config)
    encoded, _ = encode("multi-label-classification", splits, config=config, numbers=numbers)
    assert encoded["train"]["labels"][:] == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_several_classes_are_judged_one_by_one_and_together():
    judge = TASKS["multi-label-classification"].judge(None, None, None, None)
    found = judge(EvalPrediction(np.array([[1.0, -1, 2], [-1, -1, 3]]), np.array([[1.0, 0, 1], [0, 1, 1]])))
    # micro: 3 right of 3 said and of 4 there; per class: 1, 0, 1
    assert found == pytest.approx({"f1": 6 / 7, "f1_macro": 2 / 3, "accuracy": 0.5})


# ---- spans ----

CONTEXT = "the cat sat on the mat . the dog ran in the park . anna lives in berlin . the cat ran"


def asked():
    return both(
        [
            {
                "id": "1",
                "question": " where lives anna",
                "context": CONTEXT,
                "answers": {"text": ["berlin"], "answer_start": [CONTEXT.index("berlin")]},
            },
            {
                "id": "2",
                "question": "who sat",
                "context": CONTEXT,
                "answers": {"text": ["sat on the mat"], "answer_start": [CONTEXT.index("sat")]},
            },
        ]
    )


def test_long_texts_are_read_in_windows_that_overlap():
    splits = asked()
    assert infer_task(BASE, splits, DataConfig()).name == "question-answering"
    encoded, _ = encode("question-answering", splits, DataConfig(max_length=20))
    rows = encoded["evaluation"].to_list()
    assert len(rows) >= 4
    assert all(len(row["input_ids"]) <= 20 for row in rows)
    for number, text in ((0, "berlin"), (1, "sat on the mat")):
        windows = [row for row in rows if row["example"] == number]
        told = [
            CONTEXT[row["offset_mapping"][row["start_positions"]][0] : row["offset_mapping"][row["end_positions"]][1]]
            for row in windows
            if row["start_positions"]
        ]
        assert told
        assert set(told) == {text}
        read = {place[0] for row in windows for place in row["offset_mapping"] if place[0] != -1}
        assert {0, CONTEXT.index("berlin")} <= read


def test_the_likeliest_span_of_all_windows_is_the_answer():
    splits = asked()
    encoded, encoding = encode("question-answering", splits, DataConfig(max_length=20))
    rows = encoded["evaluation"]
    width = max(len(ids) for ids in rows["input_ids"])
    starts = np.full((len(rows), width), -5.0)
    ends = starts.copy()
    for window, row in enumerate(rows):
        sure = 3.0 if row["start_positions"] else 1.0  # windows without the answer say something too, less surely
        starts[window, row["start_positions"] or 5] = sure
        ends[window, row["end_positions"] or 5] = sure
        ends[window, 0] = 9.0  # the question is no answer
    judge = TASKS["question-answering"].judge(splits["evaluation"], rows, encoding, None)
    labels = (np.array(rows["start_positions"]), np.array(rows["end_positions"]))
    assert judge(EvalPrediction((starts, ends), labels)) == {"f1": 1.0, "exact_match": 1.0}
    for window, row in enumerate(rows):
        if row["example"] == 1:
            starts[window, row["start_positions"] or 5] = -9.0  # no answer can begin there now
    assert judge(EvalPrediction((starts, ends), labels))["exact_match"] == 0.5


def test_questions_without_an_answer_are_right_when_nothing_is_said():
    splits = both(
        [{"question": "who", "context": "the cat sat", "answers": {"text": [], "answer_start": []}}] * 2,
        Features(
            {
                "question": Value("string"),
                "context": Value("string"),
                "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
            }
        ),
    )
    encoded, encoding = encode("question-answering", splits)
    rows = encoded["evaluation"]
    assert rows["start_positions"][:] == [0, 0]
    logits = np.zeros((2, len(rows["input_ids"][0])))
    logits[0, 0] = 2.0
    logits[1, -2] = 2.0  # the last word of the text
    judge = TASKS["question-answering"].judge(splits["evaluation"], rows, encoding, None)
    assert judge(EvalPrediction((logits, logits), None)) == {"f1": 0.5, "exact_match": 0.5}


# ---- choices ----

SWAG = {"sent1": "the cat", "sent2": "it", "ending0": "ran", "ending1": "sat", "ending2": "lives", "ending3": "on"}


@pytest.mark.parametrize(
    ("row", "second"),
    [
        (SWAG, "it ran"),
        ({"premise": "the cat", "choice1": "ran", "choice2": "sat"}, "ran"),
    ],
)
def test_every_choice_is_read_beside_what_comes_before(row, second):
    splits = both([{**row, "label": 1}])
    assert infer_task(BASE, splits, DataConfig()).name == "multiple-choice"
    encoded, _ = encode("multiple-choice", splits)
    found = encoded["train"][0]
    assert len(found["input_ids"]) == len([name for name in row if name.startswith(("ending", "choice"))])
    assert found["input_ids"][0] == TOKENIZER("the cat", second)["input_ids"]
    batch = TASKS["multiple-choice"].collator(TOKENIZER)([found, found])
    assert batch["input_ids"].shape[:2] == (2, len(found["input_ids"]))
    assert batch["labels"].tolist() == [1, 1]


# ---- what is written ----


@pytest.mark.parametrize("nested", [True, False])
def test_translations_are_found_by_their_languages(nested):
    pair = {"en": "the cat sat", "de": "wolf ran"}
    splits = both([{"translation": pair} if nested else pair])
    data = DataConfig(source_lang="en", target_lang="de", source_prefix="who: ", max_target_length=4)
    assert infer_task(T5Config(architectures=["T5ForConditionalGeneration"]), splits, data).name == "translation"
    encoded, _ = encode("translation", splits, data)
    assert encoded["train"][0]["input_ids"] == TOKENIZER("who: the cat sat")["input_ids"]
    assert encoded["train"][0]["labels"] == TOKENIZER("wolf ran", truncation=True, max_length=4)["input_ids"]


def test_a_language_that_is_not_there_is_named():
    splits = both([{"translation": {"en": "the cat", "de": "wolf"}}])
    with pytest.raises(ValueError, match="target_lang='fr' is no language of the data, which has en, de"):
        find_columns(splits, TASKS["translation"], DataConfig(source_lang="en", target_lang="fr"))


def test_summaries_have_their_flags():
    splits = both([{"body": "the cat sat on the mat", "gist": "cat sat"}])
    data = DataConfig(text_column="body", summary_column="gist")
    assert infer_task(T5Config(architectures=["T5ForConditionalGeneration"]), splits, data).name == "summarization"
    assert find_columns(splits, TASKS["summarization"], data) == Columns(("body",), "gist")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("translation", {"sacrebleu": 100.0, "chrf": 100.0}),
        ("summarization", {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}),
    ],
)
def test_what_is_written_is_judged_as_text(task, expected):
    ids = np.array([TOKENIZER("the cat sat on the mat")["input_ids"]])
    labels = np.pad(ids, ((0, 0), (0, 2)), constant_values=-100)
    judge = TASKS[task].judge(None, None, RowEncoder(Columns(("x",), "y"), TOKENIZER, DataConfig()), None)
    assert judge(EvalPrediction(np.pad(ids, ((0, 0), (0, 1))), labels)) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "task"), TASKS.items())
def test_every_task_knows_its_class_and_metric(name, task):
    assert task.name == name
    assert task.head in ("ForConditionalGeneration", f"For{task.auto_class.__name__.partition('For')[2]}")
    assert task.metric
