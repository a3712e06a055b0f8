"""`hf-efficient compress` for every task: from a base model and a file to a small model that loads."""

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
from hf_efficient.cli import main
from hf_efficient.commands.arguments import parse_flags
from hf_efficient.commands.job import build_job_config

WORDS = "anna wolf ran sat in berlin paris the park who where it rains snows"
T5 = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "vocab_size": 200}
LANGUAGES = {"source_lang": "en", "target_lang": "de", "max_target_length": 12}


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tagged_rows(count):
    rows = []
    for i in range(count):
        words = [("anna", "wolf")[i % 2], "ran", "in", ("berlin", "paris")[i % 3 % 2]]
        rows.append({"tokens": words, "ner_tags": ["B-who", "O", "O", "B-where"]})
    return rows


def question_rows(count):
    rows = []
    for i in range(count):
        name, place = ("anna", "wolf")[i % 2], ("berlin", "paris")[i % 3 % 2]
        text = f"{name} ran in {place}"
        answer = (name, place)[i % 2]
        answers = {"text": [answer], "answer_start": [text.index(answer)]}
        rows.append({"question": ("who ran", "where")[i % 2], "context": text, "answers": answers})
    return rows


def choice_rows(count):
    ends = ("rains", "snows")
    choices = {"choice1": "it rains", "choice2": "it snows"}
    return [{"premise": f"it {ends[i % 2]}", **choices, "label": i % 2} for i in range(count)]


def multi_label_rows(count):
    return [
        {"text": " ".join(word for bit, word in ((1, "rains"), (2, "snows")) if i & bit) or "sat",
         "labels": [name for bit, name in ((1, "rain"), (2, "snow")) if i & bit]}
        for i in range(count)
    ]  # fmt: skip


def translation_rows(count):
    words = ("anna", "wolf", "berlin", "paris")
    pairs = [(" ".join([words[i % 4]] * 4), " ".join([words[(i + 1) % 4]] * 4)) for i in range(count)]
    return [{"translation": {"en": source, "de": target}} for source, target in pairs]


TASKS = {
    "token-classification": (tagged_rows, "f1", AutoModelForTokenClassification),
    "question-answering": (question_rows, "f1", AutoModelForQuestionAnswering),
    "multiple-choice": (choice_rows, "accuracy", AutoModelForMultipleChoice),
    "multi-label-classification": (multi_label_rows, "f1", AutoModelForSequenceClassification),
    "translation": (translation_rows, "sacrebleu", AutoModelForSeq2SeqLM),
}
LEARNABLE = ("token-classification", "question-answering")  # in seconds, from random weights


def prepare(directory, task, **changes):
    """Writes a base model and a few rows of the task into `directory` and returns the flags of a job on them."""
    rows, *_ = TASKS[task]
    set_seed(0)
    generates = task == "translation"
    config = T5Config(**T5, decoder_start_token_id=0, eos_token_id=3, pad_token_id=0)
    model = T5ForConditionalGeneration(config) if generates else BertModel(tiny_config())
    save_model(directory / "base", model, (WORDS,))
    values = {
        "model_name_or_path": directory / "base",
        "train_file": write_rows(directory / "train.jsonl", rows(64)),
        "validation_file": write_rows(directory / "dev.jsonl", rows(12)),
        "output_dir": directory / "out",
        "num_train_epochs": 8 if task in LEARNABLE else 1,
        "learning_rate": 5e-3,
        "report_to": "none",
        "save_strategy": "no",
        "compile": False,
        "max_length": 32,
        **(LANGUAGES if generates else {}),
        **changes,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def measure(directory, model_dir, task):
    languages = ["--source_lang", "en", "--target_lang", "de"] if task == "translation" else []
    command = ["measure", str(model_dir), "--validation_file", str(directory / "dev.jsonl"), *languages]
    command += ["--max_length", "32", "--max_target_length", "12", "--latency_sequence_length", "8"]
    assert main([*command, "--output_dir", str(directory / "measured")]) == 0
    return CompressionReport.load(directory / "measured").models[0].metrics


@pytest.mark.parametrize("task", TASKS)
def test_base_model_becomes_a_small_model_for_the_task(tmp_path, task):
    _, metric, auto_class = TASKS[task]
    out = tmp_path / "out"
    assert main(["compress", *prepare(tmp_path, task, neurons=0.5, scheme="int8_weight_only")]) == 0
    report = CompressionReport.load(out)
    assert report.metric == metric
    assert [row.role for row in report.models] == ["teacher", "student", "quantized"]
    for row in report.models:
        assert row.metrics[metric] >= (0.7 if task in LEARNABLE else 0)
    assert report.row("student").parameters < report.row("teacher").parameters
    model = auto_class.from_pretrained(out, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    if task == "translation":
        assert "|tok:13a|" in report.configs["metrics"]["sacrebleu"]
        texts = tokenizer("wolf wolf wolf wolf", return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**texts, max_new_tokens=12)
        assert ids.shape[1] > 1
    if task == "token-classification":
        with torch.no_grad():
            predictions = model(**tokenizer("anna ran in paris", return_tensors="pt")).logits[0, 1:-1].argmax(-1)
        names = [model.config.id2label[int(index)] for index in predictions]
        assert names[0] == "B-who"
        assert names[-1] == "B-where"
    # The command that evaluates without a trainer computes the metrics that the trainer reported.
    teacher = tmp_path / "base" if task == "translation" else out / "_teacher"
    assert measure(tmp_path, teacher, task)[metric] == pytest.approx(report.row("teacher").metrics[metric])
    assert measure(tmp_path, out, task)[metric] == pytest.approx(report.row("quantized").metrics[metric])


def test_trimmed_tokenizer_reads_the_prefix_as_before(tmp_path):
    prefix = "who rains "
    arguments = prepare(tmp_path, "translation", source_prefix=prefix, vocabulary=True, neurons=0.3)
    assert main(["compress", *arguments]) == 0
    full, trimmed = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("base", "out"))
    assert len(trimmed) < len(full)
    assert trimmed.tokenize(prefix) == full.tokenize(prefix)


def test_generation_arguments_of_the_flags_are_used(tmp_path):
    arguments = prepare(tmp_path, "translation", generation_num_beams=3)
    config = build_job_config(parse_flags(arguments, "compress", "", ""))
    assert config.training.generation_num_beams == 3


def test_unknown_layout_lists_columns_and_flags(tmp_path, capsys):
    arguments = prepare(tmp_path, "translation")
    for name in ("train.jsonl", "dev.jsonl"):
        write_rows(tmp_path / name, [{"left": "anna", "right": "wolf"}])
    assert main(["compress", *arguments]) == 2
    assert "source_lang='en' is not a language of the data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
