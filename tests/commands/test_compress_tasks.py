"""The main job for every task: from a base model and a file to a small model that loads, by one command."""

import json

import pytest
import torch
from reviews import save_model, tiny_config
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_efficient import CompressionReport
from hf_efficient.cli import main, parse_job

WORDS = "anna wolf ran sat in berlin paris the park who where it rains snows"
T5 = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "vocab_size": 200}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tagged(count):
    rows = []
    for i in range(count):
        words = [("anna", "wolf")[i % 2], "ran", "in", ("berlin", "paris")[i % 3 % 2]]
        rows.append({"tokens": words, "ner_tags": ["B-who", "O", "O", "B-where"]})
    return rows


def asked(count):
    rows = []
    for i in range(count):
        name, place = ("anna", "wolf")[i % 2], ("berlin", "paris")[i % 3 % 2]
        text = f"{name} ran in {place}"
        right = (name, place)[i % 2]
        answers = {"text": [right], "answer_start": [text.index(right)]}
        rows.append({"question": ("who ran", "where")[i % 2], "context": text, "answers": answers})
    return rows


def chosen(count):
    ends = ("rains", "snows")
    choices = {"choice1": "it rains", "choice2": "it snows"}
    return [{"premise": f"it {ends[i % 2]}", **choices, "label": i % 2} for i in range(count)]


def several(count):
    return [
        {"text": " ".join(word for bit, word in ((1, "rains"), (2, "snows")) if i & bit) or "sat",
         "labels": [name for bit, name in ((1, "rain"), (2, "snow")) if i & bit]}
        for i in range(count)
    ]  # fmt: skip


def paired(count):
    words = ("anna", "wolf", "berlin", "paris")
    pairs = [(" ".join([words[i % 4]] * 4), " ".join([words[(i + 1) % 4]] * 4)) for i in range(count)]
    return [{"translation": {"en": text, "de": written}} for text, written in pairs]


TASKS = {
    "token-classification": (tagged, "f1", AutoModelForTokenClassification),
    "question-answering": (asked, "f1", AutoModelForQuestionAnswering),
    "multiple-choice": (chosen, "accuracy", AutoModelForMultipleChoice),
    "multi-label-classification": (several, "f1", AutoModelForSequenceClassification),
    "translation": (paired, "sacrebleu", AutoModelForSeq2SeqLM),
}
LEARNT = ("token-classification", "question-answering")  # in seconds, from nothing


@pytest.fixture
def job(tmp_path):
    """Returns a function from a task to the flags of a job on a base model and a few rows."""

    def flags(task, **changes):
        rows, *_ = TASKS[task]
        set_seed(0)
        writes = task == "translation"
        config = T5Config(**T5, decoder_start_token_id=0, eos_token_id=3, pad_token_id=0)
        model = T5ForConditionalGeneration(config) if writes else BertModel(tiny_config())
        save_model(tmp_path / "base", model, (WORDS,))
        values = {
            "model_name_or_path": tmp_path / "base",
            "train_file": write(tmp_path / "train.jsonl", rows(64)),
            "validation_file": write(tmp_path / "dev.jsonl", rows(12)),
            "output_dir": tmp_path / "out",
            "num_train_epochs": 8 if task in LEARNT else 1,
            "learning_rate": 5e-3,
            "report_to": "none",
            "save_strategy": "no",
            "compile": False,
            "max_length": 32,
            **({"source_lang": "en", "target_lang": "de", "max_target_length": 12} if writes else {}),
            **changes,
        }
        return [part for name, value in values.items() for part in (f"--{name}", str(value))]

    return flags


@pytest.mark.parametrize("task", TASKS)
def test_from_a_base_model_to_a_small_one(job, tmp_path, task):
    _, metric, auto = TASKS[task]
    assert main(["compress", *job(task, neurons=0.5, scheme="int8_weight_only")]) == 0
    report = CompressionReport.load(tmp_path / "out")
    assert report.metric == metric
    assert [row.role for row in report.models] == ["teacher", "student", "quantized"]
    for row in report.models:
        assert row.metrics[metric] >= (0.7 if task in LEARNT else 0)
    assert report.row("student").parameters < report.row("teacher").parameters
    model = auto.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    if task == "translation":
        texts = tokenizer("wolf wolf wolf wolf", return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**texts, max_new_tokens=12)
        assert ids.shape[1] > 1
    if task == "token-classification":
        with torch.no_grad():
            said = model(**tokenizer("anna ran in paris", return_tensors="pt")).logits[0, 1:-1].argmax(-1)
        names = [model.config.id2label[int(index)] for index in said]
        assert names[0] == "B-who"
        assert names[-1] == "B-where"


@pytest.mark.parametrize("task", TASKS)
def test_measure_finds_what_the_job_reported(job, tmp_path, task):
    _, metric, _ = TASKS[task]
    assert main(["compress", *job(task)]) == 0
    languages = ["--source_lang", "en", "--target_lang", "de"] if task == "translation" else []
    command = ["measure", str(tmp_path / "out"), "--validation_file", str(tmp_path / "dev.jsonl"), *languages]
    command += ["--max_length", "32", "--max_target_length", "12", "--latency_sequence_length", "8"]
    assert main([*command, "--output_dir", str(tmp_path / "measured")]) == 0
    found = CompressionReport.load(tmp_path / "measured").models[0].metrics[metric]
    assert found == pytest.approx(CompressionReport.load(tmp_path / "out").row("model").metrics[metric])


def test_a_trimmed_tokenizer_reads_the_prefix_as_before(job, tmp_path):
    prefix = "who rains "
    arguments = job("translation", source_prefix=prefix, vocabulary=True, target_generation_speedup=1.05)
    assert main(["compress", *arguments]) == 0
    whole, small = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("base", "out"))
    assert len(small) < len(whole)
    assert small.tokenize(prefix) == whole.tokenize(prefix)


def test_generation_settings_of_the_flags_are_taken(job):
    arguments = job("translation", generation_num_beams=3)
    assert parse_job(arguments).training.generation_num_beams == 3


def test_an_unknown_layout_lists_columns_and_flags(job, tmp_path, capsys):
    arguments = job("translation")
    write(tmp_path / "train.jsonl", [{"left": "anna", "right": "wolf"}])
    write(tmp_path / "dev.jsonl", [{"left": "anna", "right": "wolf"}])
    assert main(["compress", *arguments]) == 2
    said = capsys.readouterr().err
    assert "source_lang='en' is no language of the data, which has left, right: give --source_lang" in said
    assert not (tmp_path / "out").exists()
