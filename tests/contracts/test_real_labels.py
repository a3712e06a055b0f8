"""How people write labels, answers and tags, and what each task understands: an input kind x task table."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from reviews import flags, save_model, tiny_config
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertJapaneseTokenizer,
    BertModel,
    RobertaConfig,
    RobertaTokenizer,
    T5Config,
    set_seed,
)

from hf_efficient import EfficientTrainer, PruningConfig, QuantizationConfig, prune, quantize
from hf_efficient.cli import main
from hf_efficient.commands.demo_dataset import train_tokenizer
from hf_efficient.commands.heads import configure_head
from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.data.label_checks import check_classes
from hf_efficient.data.label_names import model_label_names
from hf_efficient.data.labels import Classes
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import max_positions
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.answers import read_answer
from hf_efficient.tasks.class_ids import describe_data, find_class_ids
from hf_efficient.tasks.inference import infer_task, with_label_column
from hf_efficient.tasks.input_length import bound_max_length, longest_text
from hf_efficient.tasks.multiple_choice import read_choice
from hf_efficient.tasks.task import RowEncoder
from hf_efficient.tasks.tokenizers import adapt_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on mat dog ran in park who anna berlin lives"], 200)


def write(path, rows):
    """Write rows as JSON lines, or lines of text as CSV."""
    if isinstance(rows, str):
        path = path.with_suffix(".csv")
        path.write_text(rows)
    else:
        path = path.with_suffix(".jsonl")
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def understand(splits, tokenizer, config, data=None, task=None):
    """Return the task, the names of its classes by id, and the labels that a model with this config gets."""
    splits, data = with_label_column(splits, data or DataConfig())
    task = TASKS[task] if task else infer_task(config, splits, data)
    columns = task.get_columns(splits, data)
    classes = task.find_classes(splits, columns)
    if not (config.architectures or [""])[0].endswith(task.head):
        configure_head(config, None, task, classes)
    names = model_label_names(config)
    ids = None if classes is None else find_class_ids(task, classes, names)
    adapt_tokenizer(tokenizer, config, task.needs_offsets, task.reads_words)
    is_multi_hot = classes is not None and classes.is_multi_hot
    encoder = RowEncoder(columns, tokenizer, data, ids, None, len(names), is_multi_hot)
    tokenized = task.tokenize(splits, encoder)
    line = describe_data(task, classes, names, splits, tokenized, encoder)
    assert line.startswith(f"{task.name}: texts in ")
    return task.name, names, tokenized["train"][:].get("labels"), line


def labelled(*labels):
    return [{"text": f"the cat {index}", "label": label} for index, label in enumerate(labels)]


def csv(*labels):
    return "text,label\n" + "\n".join(f"the cat {index},{label}" for index, label in enumerate(labels))


def many(*labels):
    return [{"text": "the cat", "labels": label} for label in labels]


def tagged(words, tags):
    return [{"tokens": words, "ner_tags": tags}] * 2


CLASS, LISTS, NUMBER = "text-classification", "multi-label-classification", "regression"
TAGS = "token-classification"
THREE = ["LABEL_0", "LABEL_1", "LABEL_2"]

# A new head: rows (lines of CSV, or objects of JSON), the task, the names of the classes, the labels of the rows.
NEW_HEADS = {
    "names": (csv("pos", "neg", "pos"), CLASS, ["neg", "pos"], [1, 0, 1]),
    "names with spaces around": (csv("pos", " neg", "neg "), CLASS, ["neg", "pos"], [1, 0, 0]),
    "names that look like nothing": (csv("null", "NA", "None"), CLASS, ["NA", "None", "null"], [2, 0, 1]),
    "yes and no": (csv("yes", "no"), CLASS, ["no", "yes"], [1, 0]),
    "integers as texts": (csv("0", "1", "0"), CLASS, ["LABEL_0", "LABEL_1"], [0, 1, 0]),
    "integers": (labelled(0, 1, 0), CLASS, ["LABEL_0", "LABEL_1"], [0, 1, 0]),
    "integers from 1": (csv(1, 5, 3), CLASS, ["1", "3", "5"], [0, 2, 1]),
    "negative integers": (labelled(-1, 0, 1), CLASS, ["-1", "0", "1"], [0, 1, 2]),
    "signed integers": (csv("+1", "-1"), CLASS, ["-1", "1"], [1, 0]),
    "a large integer": (csv(0, 1000000), CLASS, ["0", "1000000"], [0, 1]),
    "ten in order of numbers": (csv(10, 9, 2), CLASS, ["2", "9", "10"], [2, 1, 0]),
    "words that are other words in capitals": (csv("Pos", "pos", "neg"), CLASS, ["Pos", "neg", "pos"], [0, 2, 1]),
    "names with commas": (csv('"a, b"', "c"), CLASS, ["a, b", "c"], [0, 1]),
    "codes": (csv("007", "010"), CLASS, ["007", "010"], [0, 1]),
    "whole floats as texts": (csv("1.0", "2", "1"), CLASS, ["1", "2"], [0, 1, 0]),
    "whole floats": (labelled(0.0, 1.0), CLASS, ["LABEL_0", "LABEL_1"], [0, 1]),
    "booleans": (labelled(True, False), CLASS, ["False", "True"], [1, 0]),
    "booleans as texts": (csv("true", "FALSE"), CLASS, ["False", "True"], [1, 0]),
    "numbers as texts": (csv("2.5", "1", "0.25"), NUMBER, ["LABEL_0"], [[2.5], [1.0], [0.25]]),
    "numbers": (labelled(2.5, 1.0, -0.5), NUMBER, ["LABEL_0"], [[2.5], [1.0], [-0.5]]),
    "numbers with exponents": (csv("1e-3", "2"), NUMBER, ["LABEL_0"], [[0.001], [2.0]]),
    "lists of names": (many(["b", "a"], ["c"], []), LISTS, ["a", "b", "c"], [[1, 1, 0], [0, 0, 1], [0, 0, 0]]),
    "lists of ids": (many([0, 2], [1]), LISTS, ["LABEL_0", "LABEL_1", "LABEL_2"], [[1, 0, 1], [0, 1, 0]]),
    "multi-hot integers": (many([1, 0, 1], [0, 0, 1]), LISTS, THREE, [[1, 0, 1], [0, 0, 1]]),
    "multi-hot floats": (many([1.0, 0.0], [0.0, 1.0]), LISTS, ["LABEL_0", "LABEL_1"], [[1, 0], [0, 1]]),
    "multi-hot booleans": (many([True, False], [True, True]), LISTS, ["LABEL_0", "LABEL_1"], [[1, 0], [1, 1]]),
    "one of two, multi-hot": (many([1, 0], [0, 1]), LISTS, ["LABEL_0", "LABEL_1"], [[1, 0], [0, 1]]),
    "multi-hot vectors as texts": ("text,labels\nthe cat,[1 0 1]\nthe dog,[0 0 0]\n", LISTS,
                                   THREE, [[1, 0, 1], [0, 0, 0]]),
    "multi-hot vectors with blanks": ("text,labels\nthe cat,1 0 1\nthe dog,0 0 0\n", LISTS,
                                      THREE, [[1, 0, 1], [0, 0, 0]]),
    "multi-hot vectors with commas": ("text,labels\nthe cat,\"1,0,1\"\nthe dog,\"0,0,0\"\n", LISTS,
                                      THREE, [[1, 0, 1], [0, 0, 0]]),
    "multi-hot tuples as texts": ("text,labels\nthe cat,\"(1, 0, 1)\"\nthe dog,\"(0, 0, 0)\"\n", LISTS,
                                  THREE, [[1, 0, 1], [0, 0, 0]]),
    "multi-hot truth values as texts": ("text,labels\nthe cat,\"[True, False]\"\nthe dog,\"[True, True]\"\n", LISTS,
                                        ["LABEL_0", "LABEL_1"], [[1, 0], [1, 1]]),
    "sets as texts": ("text,labels\nthe cat,\"{'b', 'a'}\"\nthe dog,\"{'b'}\"\n", LISTS, ["a", "b"],
                      [[1, 1], [0, 1]]),
    "lists as texts": ("text,labels\nthe cat,\"['a', 'b']\"\nthe dog,[]\n", LISTS, ["a", "b"], [[1, 1], [0, 0]]),
    "a column for each class": ("id,text,rude,mild,kind\n0,the cat,1,0,1\n1,the dog,0,0,1\n", LISTS,
                                ["rude", "mild", "kind"], [[1, 0, 1], [0, 0, 1]]),
    "a boolean column for each class": ([{"text": "the cat", "b": True, "a": False}] * 2, LISTS, ["b", "a"],
                                        [[1, 0], [1, 0]]),
    "names of tags": (tagged(["anna", "ran"], ["B-PER", "O"]), TAGS, ["B-PER", "O"], None),
    "tags and words as texts": ("tokens,ner_tags\nanna ran,B-PER O\ndog ran,O O\n", TAGS, ["B-PER", "O"], None),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEW_HEADS)
def test_a_new_head_has_the_labels_of_the_data(tmp_path, tokenizer, kind):
    rows, task, names, labels = NEW_HEADS[kind]
    file = write(tmp_path / "train", rows)
    splits = load_splits(DataConfig(train_file=file, validation_file=file), seed=0)
    config = BertConfig(architectures=["BertModel"], vocab_size=200)
    found_task, found_names, found, line = understand(splits, tokenizer, config)
    assert (found_task, found_names) == (task, names)
    assert config.label2id == {name: index for index, name in enumerate(names)}
    assert labels is None or found == labels
    assert labels is None or np.asarray(found).dtype == (np.int64 if task == CLASS else np.float64)
    assert "0.0% of the texts truncated to 128" in line


# A model with a head: its names by id, the labels of the data, the ids they get (None: refused), config changes.
HEADS = {
    "names in another order": (["pos", "neg"], ["neg", "pos"], [1, 0], {}),
    "names in another case": (["POSITIVE", "NEGATIVE"], ["negative", "positive"], [1, 0], {}),
    "ids": (["neg", "pos"], [0, 1], [0, 1], {}),
    "ids as texts": (["neg", "pos"], ["0", "1.0"], [0, 1], {}),
    "booleans": (["neg", "pos"], [True, False], [1, 0], {}),
    "booleans by name": (["true", "false"], [True, False], [0, 1], {}),
    "numbers that are names": (["5", "1"], [1, 5], [1, 0], {}),
    "names without label2id": (["pos", "neg"], ["neg", "pos"], [1, 0], {"label2id": None}),
    "a stale label2id": (["pos", "neg"], ["neg", "pos"], [1, 0], {"label2id": {"LABEL_0": 0, "LABEL_1": 1}}),
    "texts in label2id": (["pos", "neg"], ["neg", "pos"], [1, 0], {"label2id": {"pos": "0", "neg": "1"}}),
    "names in label2id only": (["LABEL_0", "LABEL_1"], ["neg", "pos"], [1, 0], {"label2id": {"pos": 0, "neg": 1}}),
    "no architectures": (["pos", "neg"], ["neg", "pos"], [1, 0], {"architectures": None}),
    "no architectures, other names": (["pos", "neg"], ["bad", "good"], None, {"architectures": None}),
    "other names": (["pos", "neg"], ["bad", "good"], None, {}),
    "names of a head without names": (["LABEL_0", "LABEL_1"], ["bad", "good"], None, {}),
    "ids outside": (["pos", "neg"], [1, 2], None, {}),
    "negative ids": (["pos", "neg"], [-1, 1], None, {}),
    "numbers for classes": (["pos", "neg"], [0.5, 1.0], None, {}),
    "one output, integers": (["LABEL_0"], [0, 1], [[0.0], [1.0]], {}),
    "one output, booleans": (["LABEL_0"], [True, False], [[1.0], [0.0]], {}),
    "one output, texts of numbers": (["LABEL_0"], ["2.5", "1"], [[2.5], [1.0]], {}),
    "one output, names": (["LABEL_0"], ["yes", "no"], None, {}),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_labels_of_a_model_are_followed_or_the_data_is_refused(tokenizer, kind):
    names, labels, expected, changes = HEADS[kind]
    values = {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(names)), **changes}
    config = BertConfig(vocab_size=200, **values)
    split = Dataset.from_list(labelled(*labels))
    splits = DatasetDict(train=split, evaluation=split)
    if expected is not None:
        assert understand(splits, tokenizer, config)[2] == expected
        return
    with pytest.raises(UserError) as refusal:
        understand(splits, tokenizer, config)
    message = str(refusal.value)
    assert all(name in message for name in names) or "regression needs a number" in message


def test_classes_with_names_keep_their_order_and_are_found_by_name(tokenizer):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg", "none"])})
    split = Dataset.from_list(labelled(1, 0), features=features)
    splits = DatasetDict(train=split, evaluation=split)
    base = BertConfig(architectures=["BertModel"], vocab_size=200)
    assert understand(splits, tokenizer, base)[1:3] == (["pos", "neg", "none"], [1, 0])
    head = {"architectures": ["BertForSequenceClassification"], "vocab_size": 200}
    assert understand(splits, tokenizer, BertConfig(id2label={0: "neg", 1: "pos"}, **head))[2] == [0, 1]
    with pytest.raises(UserError, match="'pos', 'neg', 'none'; the model has 2, 0 to 1: bad, good"):
        understand(splits, tokenizer, BertConfig(id2label={0: "bad", 1: "good"}, **head))


def test_lists_of_classes_with_names_are_ids_or_vectors(tokenizer):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["x", "y", "z"]))})
    for rows in (many([0, 2], [1]), many([1, 0, 1], [0, 1, 0])):
        split = Dataset.from_list(rows, features=features)
        config = BertConfig(architectures=["BertModel"], vocab_size=200)
        found = understand(DatasetDict(train=split, evaluation=split), tokenizer, config)
        assert found[:3] == (LISTS, ["x", "y", "z"], [[1, 0, 1], [0, 1, 0]])


def test_columns_of_classes_can_be_named_and_follow_the_model(tokenizer):
    split = Dataset.from_list([{"text": "the cat", "a": 1, "b": 0, "c": 0}] * 2)
    config = BertConfig(
        architectures=["BertForSequenceClassification"], id2label={0: "b", 1: "a"}, vocab_size=200,
        problem_type="multi_label_classification",
    )  # fmt: skip
    splits = DatasetDict(train=split, evaluation=split)
    found = understand(splits, tokenizer, config, DataConfig(text_column="text", label_column="a, b"))
    assert found[:3] == (LISTS, ["b", "a"], [[0, 1]] * 2)
    with pytest.raises(UserError, match="the data has no column d, only text, a, b, c"):
        understand(splits, tokenizer, config, DataConfig(text_column="text", label_column="a,d"))


def test_types_may_differ_between_train_and_validation(tokenizer):
    train, evaluation = Dataset.from_list(labelled(1, 2, 3)), Dataset.from_list(labelled("1.0", "2", "3"))
    config = BertConfig(architectures=["BertModel"], vocab_size=200)
    assert understand(DatasetDict(train=train, evaluation=evaluation), tokenizer, config)[1] == ["1", "2", "3"]


ANSWER = {"question": "who ran", "context": "the cat ran"}
# Rows that cannot be used: the task, the rows, the sentence.
REFUSED = {
    "an empty label": (CLASS, csv("a", "", "b"), r"row 2 of the training data, train\.csv .* has no label"),
    "a number that is missing": (NUMBER, csv("2.5", "", "1"), "row 2 of the training data.* has no label"),
    "a number that is a word": (NUMBER, csv("2.5", "n/a"), "row 2 of the training data.* has 'n/a' in column 'label'"),
    "a decimal comma": (NUMBER, labelled("2,5", "1"), "row 1 .* has '2,5' in column 'label': regression needs"),
    "a word among numbers": (None, csv("2.5", "nan", "1"), "row 2 .* has 'nan' .*, and most rows have numbers such"),
    "decimal commas": (None, csv('"2,5"', '"3"', '"1,5"'), "row 1 .* has '2,5' .*, which may be a number or a list"),
    "an object for a label": (None, labelled({"name": "a"}, {"name": "b"}), "row 1 .* which is not a label"),
    "a summary that is missing": (
        "summarization",
        "document,summary\nthe cat,\nthe dog,dog\n",
        "row 1 .* has no label .'' in column 'summary'",
    ),
    "languages as one text": (
        "translation",
        [{"translation": "{'en': 'a', 'de': 'b'}"}] * 2,
        "row 1 .* an object with a text for each language is needed",
    ),
    "a translation that is empty": (
        "translation",
        [{"translation": {"en": "the cat", "de": " "}}, {"translation": {"en": "the cat", "de": "wolf"}}],
        "row 1 .* has no text for 'de'",
    ),
    "two columns that may hold labels": (
        None,
        "sentence_A,sentence_B,relatedness_score,entailment_label\na,b,4.5,NEUTRAL\n",
        "give --label_column, such as relatedness_score or entailment_label$",
    ),
    "words and tags on lines": (None, "anna B-PER\nran O\n", "must be written as JSON lines such as"),
    "one row of numbers": (NUMBER, csv("2.5"), "the evaluation data has 1 row in column 'label'"),
    "a list for one class": (CLASS, labelled(["a"], ["b"]), r"row 1 .* has \['a'\] in column 'label', which is not a"),
    "a vector with a two": (LISTS, many([1, 2, 1], [0, 1, 0]), r"row 1 .* has \[1, 2, 1\] .* neither a list of"),
    "soft labels": (LISTS, many([0.3, 0.7], [1.0, 0.0]), r"row 1 .* has \[0.3, 0.7\]"),
    "no text": (CLASS, [{"text": "a", "label": 0}, {"text": None, "label": 1}], "row 2 .* has None in column 'text'"),
    "a number for a text": (CLASS, [{"text": 5, "label": i} for i in range(2)], "row 1 .* has 5 in column 'text'"),
    "tags without names": (TAGS, tagged(["anna", "ran"], [1, 0]), "numbers without names .* which is O"),
    "too few tags": (TAGS, tagged(["anna", "ran"], ["B-PER"]), "2 words in column 'tokens' and 1 tags"),
    "tags as one text": (TAGS, tagged(["anna", "ran"], "B-PER O"), "'ner_tags' is one text"),
    "a word that is missing": (TAGS, tagged(["anna", None], ["B-PER", "O"]), "row 1 .* has None in column 'tokens'"),
    "an answer from nowhere": ("question-answering", [{**ANSWER, "answers": "dog"}], "'dog' in column 'answers'"),
    "a choice that is missing": (
        "multiple-choice",
        [{"premise": "it", "choice1": "ran", "choice2": None, "label": 0}],
        "row 1 .* has None in column 'choice2'",
    ),
    "a choice out of range": (
        "multiple-choice",
        [{"premise": "it", "choice1": "ran", "choice2": "sat", "label": 2}],
        "row 1 .* has 2 in column 'label': the number of the right choice is needed, 0 to 1",
    ),
    "a language that is missing": (
        "translation",
        [{"translation": {"en": "the cat", "de": "wolf"}}, {"translation": {"en": "the cat"}}],
        "row 2 .* has no text for 'de' in column 'translation'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_rows_that_cannot_be_used_are_named(tmp_path, tokenizer, kind):
    task, rows, sentence = REFUSED[kind]
    data = DataConfig(source_lang="en", target_lang="de")
    if isinstance(rows, str):
        file = write(tmp_path / "train", rows)
        splits = load_splits(dataclasses.replace(data, train_file=file, validation_file=file), seed=0)
    else:
        splits = DatasetDict(train=Dataset.from_list(rows), evaluation=Dataset.from_list(rows))
    config = T5Config(vocab_size=200) if task == "translation" else BertConfig(vocab_size=200)
    config.architectures = ["Model"]
    with pytest.raises(UserError, match=sentence):
        understand(splits, tokenizer, config, data, task)


@pytest.mark.parametrize(
    "value",
    [
        "cat",
        ["cat"],
        {"text": ["cat"], "answer_start": [4]},
        {"text": "cat", "answer_start": 4},
        [{"text": "cat", "answer_start": 4}],
        {"text": ["cat"], "answer_start": [0]},
        {"text": ["cat"]},
        "{'text': ['cat'], 'answer_start': [4]}",
    ],
)
def test_answers_have_many_forms(value):
    assert read_answer(value, "the cat ran") == {"text": ["cat"], "answer_start": [4]}


@pytest.mark.parametrize("value", [None, "", [], {"text": [], "answer_start": []}, [""]])
def test_no_answer_has_many_forms(value):
    assert read_answer(value, "the cat ran") == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1), ("1", 1), ("B", 1), (1.0, 1), ("C", None), (2, None), ("x", None)]
)
def test_the_right_choice_is_a_number_or_a_letter(value, number):
    assert read_choice(value, 2) == number


def test_integer_tags_take_their_names_from_the_model(tokenizer):
    split = Dataset.from_list(tagged(["anna", "ran"], [1, 0]))
    config = BertConfig(architectures=["BertForTokenClassification"], id2label={0: "O", 1: "B-PER"}, vocab_size=200)
    found = understand(DatasetDict(train=split, evaluation=split), tokenizer, config)
    assert [label for label in found[2][0] if label != -100] == [1, 0]


def test_texts_and_questions_longer_than_the_model_are_cut(tokenizer, caplog):
    data, words = DataConfig(), "the cat sat on the mat " * 10
    config = BertConfig(vocab_size=200, max_position_embeddings=24)
    bounded = bound_max_length(data, tokenizer, [config])
    assert bounded.max_length == 24
    assert bound_max_length(DataConfig(max_length=8), tokenizer, [config]).max_length == 8
    assert max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert max_positions(T5Config()) is None
    rows = [{"text": "the cat", "label": 0}, {"text": words, "label": 1}]
    encoder = RowEncoder(Columns(("text",), "label"), tokenizer, bounded, {0: 0, 1: 1})
    splits = DatasetDict(train=Dataset.from_list(rows), evaluation=Dataset.from_list(rows))
    encoded = TASKS[CLASS].tokenize(splits, encoder)["train"]
    assert longest_text(splits["train"], encoded, TASKS[CLASS], encoder) == (62, 1)
    question = {"question": words, "context": words + "anna lives in berlin", "answers": "berlin"}
    encoder = RowEncoder(Columns(("question", "context"), "answers"), tokenizer, bounded)
    split = Dataset.from_list([question])
    windows = TASKS["question-answering"].tokenize(DatasetDict(train=split, evaluation=split), encoder)["train"]
    assert max(map(len, windows["input_ids"])) <= 24
    assert any(windows["start_positions"])
    assert "1 questions are longer than half of max_length" in caplog.text


def test_tokenizers_are_adapted_or_refused(caplog):
    def fresh(**changes):
        tokenizer = train_tokenizer(["the cat sat"], 200)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        return tokenizer

    config = BertConfig(vocab_size=200)
    adapt_tokenizer(tokenizer := fresh(padding_side="left", pad_token=None), config, needs_offsets=False)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", tokenizer.convert_ids_to_tokens(0))
    assert tokenizer.pad(tokenizer(["the cat", "the"]))["attention_mask"][1][-1] == 0
    with pytest.raises(UserError, match="is not that of the model, whose table has 5 tokens"):
        adapt_tokenizer(fresh(), BertConfig(vocab_size=5), needs_offsets=False)


def slow_tokenizer(tmp_path):
    """Return a tokenizer that splits each word into characters, and does not tell which word a token is of."""
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"])
    )
    options = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character"}
    return BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), **options)


def test_words_are_tagged_with_a_tokenizer_without_offsets(tmp_path):
    slow = slow_tokenizer(tmp_path)
    assert not slow.is_fast
    split = Dataset.from_list(
        [{"tokens": ["anna", "ran"], "ner_tags": ["B-PER", "O"]}, {"tokens": [], "ner_tags": []}]
    )
    splits = DatasetDict(train=split, evaluation=split)
    config = BertConfig(architectures=["BertModel"], vocab_size=200)
    task, names, labels, _ = understand(splits, slow, config, DataConfig(max_length=8))
    assert (task, names) == (TAGS, ["B-PER", "O"])
    assert labels == [[-100, 0, -100, -100, -100, 1, -100, -100], [-100, -100]]
    encoder = RowEncoder(Columns(("tokens",), None), slow, DataConfig())
    encoded = TASKS[TAGS].tokenize(DatasetDict(train=split), encoder)["train"]
    assert slow.decode(encoded[0]["input_ids"]) == "[CLS] a n n a r a n [SEP]"


def test_questions_need_a_tokenizer_with_offsets(tmp_path):
    rows = [{"question": "who ran", "context": "the cat ran", "answers": "cat"}]
    split = Dataset.from_list(rows)
    config = BertConfig(architectures=["BertModel"], vocab_size=200)
    with pytest.raises(UserError, match=r"fast tokenizer .* or name it with --tokenizer_name"):
        understand(DatasetDict(train=split, evaluation=split), slow_tokenizer(tmp_path), config)


def test_labels_that_look_alike_are_named(caplog):
    names = ("Pos", "pos ", "caf\u00e9", "cafe\u0301", "a", "b", "a;b")
    counts = {name: Counter(range(len(names))) for name in ("train", "evaluation")}
    check_classes(Classes("label", names, {}, None, counts), has_head=False)
    assert "the labels 'Pos' and 'pos ' differ only in case" in caplog.text
    assert "'caf\\xe9' and 'cafe\\u0301' differ only in" in caplog.text
    assert "the label 'a;b' consists of other labels: give --task multi-label-classification" in caplog.text
    assert len(caplog.messages) == 3


def test_texts_that_datasets_has_taken_for_numbers_are_refused_with_the_remedy(tmp_path, tokenizer):
    (tmp_path / "rows.csv").write_text("text,label\n1,0\n2,1\n")
    splits = load_dataset("csv", data_files=str(tmp_path / "rows.csv"))
    splits["evaluation"] = splits["train"]
    with pytest.raises(UserError, match="download the files of the dataset and give them as --train_file"):
        understand(splits, tokenizer, BertConfig(architectures=["BertModel"], vocab_size=200))
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.csv").rename(tmp_path / "folder" / "rows.csv")
    splits = load_splits(DataConfig(dataset_name=str(tmp_path / "folder")), seed=0)
    assert {*splits["train"]["text"], *splits["evaluation"]["text"]} == {"1", "2"}


STALE = {"stale": {"LABEL_0": 0, "LABEL_1": 1}, "missing": None, "other order": {"good": 0, "bad": 1}}
FORMS = {
    "pruned": lambda model: prune(model, PruningConfig(heads=0.5, neurons=0.5, criterion="magnitude")),
    "int8": lambda model: quantize(model, QuantizationConfig("int8_dynamic")),
    "codebook": lambda model: quantize(model, QuantizationConfig("codebook", bits=4)),
    "trained": lambda model: EfficientTrainer(model).model,
}


@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("form", FORMS)
def test_every_config_that_is_written_has_both_maps_of_labels(tmp_path, form, stale):
    model = BertForSequenceClassification(tiny_config(id2label={0: "bad", 1: "good"}))
    model.config.label2id = STALE[stale]
    FORMS[form](model).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}


def test_byte_level_tokenizers_see_a_space_before_every_word(tmp_path):
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "Ġ": 7, "Ġa": 8, "Ġb": 9}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[("Ġ", "a"), ("Ġ", "b")])
    adapt_tokenizer(tokenizer, RobertaConfig(vocab_size=10), needs_offsets=True)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, RobertaTokenizer.from_pretrained(tmp_path)):
        assert each(["a", "b"], is_split_into_words=True)["input_ids"] == [0, 8, 9, 2]


JOBS = {
    "multi-hot columns": ("text,good,bad\n" + "the good film,1,0\nthe bad film,0,1\n" * 8, LISTS, ["good", "bad"]),
    "labels from one": ("text,label\n" + "the good film,5\nthe bad film,1\n" * 8, CLASS, ["1", "5"]),
}


@pytest.mark.parametrize("kind", JOBS)
def test_a_job_says_what_it_understood_and_saves_the_names(tmp_path, caplog, kind):
    rows, task, names = JOBS[kind]
    set_seed(0)
    save_model(tmp_path / "model", BertModel(tiny_config(id2label=None, label2id=None)))
    file = write(tmp_path / "train", rows + f"{'the long film ' * 90},1{',0' if task == LISTS else ''}\n")
    arguments = flags(
        tmp_path,
        train_file=file,
        validation_file=file,
        max_steps=1,
        num_train_epochs=1,
        multiple_of=None,
        compile=None,
    )
    assert main(["compress", *arguments]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(names)}
    line = next(message for message in caplog.messages if message.startswith(f"{task}: "))
    assert "longest text" in line
    assert "5.9% of the texts truncated to 64" in line
    assert f"{names[0]} " in line


def test_more_classes_than_a_head_without_config_has_are_refused(tmp_path, capsys):
    folder = save_model(tmp_path / "model", BertForSequenceClassification(tiny_config()))
    values = json.loads((folder / "config.json").read_text())
    for name in ("architectures", "id2label", "label2id"):
        values.pop(name, None)
    (folder / "config.json").write_text(json.dumps(values))
    file = write(tmp_path / "train", "text,label\n" + "a,x\nb,y\nc,z\n" * 4)
    assert main(["compress", *flags(tmp_path, train_file=file, validation_file=file, max_steps=1)]) == 2
    assert "have other shapes than its config.json and the labels of the data" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_teacher_with_a_padded_table_shares_the_tokenizer(tmp_path):
    for name, size in (("model", 200), ("teacher", 256)):
        set_seed(0)
        save_model(tmp_path / name, BertForSequenceClassification(tiny_config(vocab_size=size)))
    file = write(tmp_path / "train", "text,label\n" + "the good film,positive\nthe bad film,negative\n" * 8)
    data = {"train_file": file, "validation_file": file, "teacher_name_or_path": tmp_path / "teacher"}
    assert main(["compress", *flags(tmp_path, **data, max_steps=1)]) == 0


def test_a_head_without_architectures_is_kept(tmp_path):
    set_seed(0)
    names = {0: "positive", 1: "negative"}
    folder = save_model(
        tmp_path / "model",
        BertForSequenceClassification(tiny_config(id2label=names, label2id={n: i for i, n in names.items()})),
    )
    values = json.loads((folder / "config.json").read_text())
    values.pop("architectures")
    (folder / "config.json").write_text(json.dumps(values))
    file = write(tmp_path / "train", "text,label\n" + "the good film,positive\nthe bad film,negative\n" * 8)
    assert main(["compress", *flags(tmp_path, train_file=file, validation_file=file, max_steps=1)]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["0"] == "positive"
