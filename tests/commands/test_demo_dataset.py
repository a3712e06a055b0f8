import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_efficient.commands import demo_dataset
from hf_efficient.commands.demo_dataset import (
    AMBIGUOUS_MODULE_NAMES,
    TOPIC_MODULES,
    demo_bert_config,
    load_docstring_dataset,
    mask_module_names,
    split_passages,
    train_tokenizer,
)
from hf_efficient.errors import UserError

NAMES = {name.strip("_") for names in TOPIC_MODULES.values() for name in names}

DATASET_SCRIPT = """
import sys
from hf_efficient.commands.demo_dataset import load_docstring_dataset, train_tokenizer
corpus = load_docstring_dataset()
print(corpus["train"]._fingerprint, corpus["validation"]._fingerprint)
print(sorted(train_tokenizer(corpus["train"]["text"], 2000).get_vocab().items()))
print({"antigravity", "this", "idlelib", "turtle", "tkinter", "_tkinter", "test"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def corpus() -> DatasetDict:
    return load_docstring_dataset()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a standard library with the topics red (one, twice) and blue (two, missing)."""
    monkeypatch.setattr(demo_dataset, "TOPIC_MODULES", {"red": ("one", "twice"), "blue": ("two", "missing")})
    monkeypatch.setattr(demo_dataset.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(demo_dataset, "VALIDATION_FRACTION", 0.5)
    numbered = "\n".join(f'def function{i}(): "Function number {i} does nothing at all."' for i in range(20))
    (tmp_path / "one.py").write_text(f"raise SystemExit\n{numbered}")
    (tmp_path / "two.py").write_text("")
    return tmp_path


def texts_by_topic(corpus: DatasetDict) -> dict[str, list[str]]:
    labels = corpus["train"].features["label"]
    pairs = [(labels.int2str(row["label"]), row["text"]) for split in corpus.values() for row in split]
    return {topic: sorted(text for label, text in pairs if label == topic) for topic in labels.names}


def test_every_topic_has_examples_in_both_splits(corpus: DatasetDict) -> None:
    assert corpus["train"].num_rows > 3000
    for split in corpus.values():
        assert split.column_names == ["text", "label"]
        assert split.features["label"].names == list(TOPIC_MODULES)
        assert set(split["label"]) == set(range(len(TOPIC_MODULES)))


def test_docstrings_of_c_modules_are_read(corpus: DatasetDict) -> None:
    assert "Return the arc cosine (measured in radians) of x." in " ".join(texts_by_topic(corpus)["mathematics"])


def test_no_text_occurs_twice(corpus: DatasetDict) -> None:
    texts = [text.lower() for split in corpus.values() for text in split["text"]]
    assert len(set(texts)) == len(texts)


def test_module_names_are_masked_in_all_texts(corpus: DatasetDict) -> None:
    identifier = re.compile(
        r"""\w+(?:\.\w+)+|(?<=[`'"])\w+(?=[`'"])|\bimport \w+|\b\w+ (?:module|package)\b|\bmodule \w+"""
    )
    for split in corpus.values():
        for text in split["text"]:
            words = {word.strip("_").lower() for word in re.findall(r"\w+", text)}
            assert not words & (NAMES - AMBIGUOUS_MODULE_NAMES), text
            parts = {
                part.strip("_").lower() for match in identifier.findall(text) for part in re.split(r"[. ]", match)
            }
            assert not parts & NAMES, text
            assert ">>>" not in text


def test_ambiguous_names_are_module_names() -> None:
    assert AMBIGUOUS_MODULE_NAMES <= NAMES


@pytest.mark.parametrize(
    ("text", "module", "masked"),
    [
        ("Call time.sleep, xml.dom.Node or Lib/random.py.", "os", "Call [MASK], [MASK] or Lib/[MASK]."),
        ("the AsyncIO loop, _zlib and asyncio_loop", "os", "the [MASK] loop, [MASK] and asyncio_loop"),
        ("a string, in time, as JSON", "os", "a string, in time, as JSON"),
        ("a string, in time, as JSON", "string", "a [MASK], in time, as JSON"),
        ("a string, in time, as JSON", "json", "a string, in time, as [MASK]"),
        ("`queue` 'select' ``copy``", "os", "`[MASK]` '[MASK]' ``[MASK]``"),
        (
            "the queue module, module time, the json package",
            "os",
            "the [MASK] module, module [MASK], the [MASK] package",
        ),
        ("we import time here", "os", "we import [MASK] here"),
        ("see https://docs.python.org/3/library/queue.html now", "os", "see [MASK] now"),
        ("self.name of e.g. the end. String", "os", "self.name of e.g. the end. String"),
    ],
)
def test_mask_module_names(text: str, module: str, masked: str) -> None:
    assert mask_module_names(text, module) == masked


def test_imports_and_examples_are_removed() -> None:
    text = "Opens a door for you.\n\n from doors import Door\n import keys as k\n Then it closes.\n >>> door()\n 1"
    assert split_passages(text, "os") == ["Opens a door for you. Then it closes."]


def test_short_paragraphs_are_joined() -> None:
    long, short = "word " * 29 + "end", "a short one here"
    assert split_passages(f"{short}\n\n{long}\n\n{short}\n\n{short}", "os") == [f"{short} {long}", f"{short} {short}"]
    assert split_passages("Only three words", "os") == []


def test_sources_are_parsed_with_nested_definitions_and_not_run(library: Path) -> None:
    (library / "twice").mkdir()
    (library / "twice" / "inner.py").write_text(
        'raise SystemExit\nif True:\n class A:\n  def __f(self):\n   async def g(): "Nested as deep as can be."'
    )
    (library / "twice" / "tests").mkdir()
    (library / "twice" / "tests" / "test_inner.py").write_text('"Tests are no part of the library."')
    red = texts_by_topic(load_docstring_dataset())["red"]
    assert "Nested as deep as can be." in red
    assert len(red) == 21


def test_text_of_two_topics_is_left_out(library: Path) -> None:
    (library / "twice.py").write_text('def f(): "What both of the areas say."\ndef g(): "What one area says again."')
    (library / "_twice.py").write_text('def h(): "What one area says again."')
    (library / "two.py").write_text('def f(): "What BOTH of the areas say."\ndef g(): "What only blue has said."')
    texts = texts_by_topic(load_docstring_dataset())
    assert texts["blue"] == ["What only blue has said."]
    assert [text for text in texts["red"] if text.startswith("What")] == ["What one area says again."]


def test_texts_of_a_class_name_are_in_one_split(library: Path) -> None:
    methods = 'def f(self): "Class {i} has {m} things to say."', 'def g(self): "Class {i} has {m} more things."'
    for module in ("twice", "two"):
        classes = [f"class C{i}:\n " + "\n ".join(methods).format(i=i, m=len(module)) for i in range(20)]
        (library / f"{module}.py").write_text("\n".join(classes))
    corpus = load_docstring_dataset()
    owners = {
        split: [text.split()[1] for text in corpus[split]["text"] if text.startswith("Class")] for split in corpus
    }
    assert len(owners["train"]) + len(owners["validation"]) == 80
    assert owners["train"]
    assert owners["validation"]
    assert not set(owners["train"]) & set(owners["validation"])


def test_c_modules_are_read_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_dataset.sysconfig, "get_path", lambda name: str(tmp_path))
    assert load_docstring_dataset()["train"].num_rows > 500


def test_dataset_and_tokenizer_are_equal_in_another_process_without_side_effects(corpus: DatasetDict) -> None:
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", DATASET_SCRIPT]
    folder = Path(demo_dataset.__file__).parents[1]
    output = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
    fingerprints, vocabulary, imported = output.strip().split("\n")[-3:]
    assert fingerprints == f"{corpus['train']._fingerprint} {corpus['validation']._fingerprint}"
    assert vocabulary == str(sorted(train_tokenizer(corpus["train"]["text"], 2000).get_vocab().items()))
    assert imported == "set()"


def test_tokenizer_is_equal_after_saving_and_loading(corpus: DatasetDict, tmp_path: Path) -> None:
    texts = corpus["train"]["text"][:500]
    tokenizer = train_tokenizer(texts, 1000)
    assert len(tokenizer) == 1000
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert tokenizer.tokenize("Return the [MASK] FILE") == ["return", "the", "[MASK]", "file"]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 128
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_tokenizer_numbers_the_segments_of_pairs() -> None:
    encoded = train_tokenizer(["ab ab", "cd cd"], 30)("ab", "cd")
    assert encoded["token_type_ids"] == [0, 0, 0, 1, 1]


def test_too_small_vocabulary_is_refused_with_the_minimum() -> None:
    with pytest.raises(UserError, match="vocab_size=10 is too small for these texts: give at least 11"):
        train_tokenizer(["abc"], 10)


def test_teacher_accepts_the_tokens_and_has_the_topics_as_labels(corpus: DatasetDict) -> None:
    tokenizer = train_tokenizer(corpus["train"]["text"][:100], 500)
    model = BertForSequenceClassification(demo_bert_config(len(tokenizer), list(TOPIC_MODULES)))
    batch = tokenizer(["word " * 300, "one"], truncation=True, padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == torch.Size([2, len(TOPIC_MODULES)])
    assert [model.config.id2label[i] for i in range(len(TOPIC_MODULES))] == list(TOPIC_MODULES)
    assert model.config.label2id == {topic: index for index, topic in enumerate(TOPIC_MODULES)}
