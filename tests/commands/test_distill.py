import csv

import pytest
import torch
from reviews import BAD, GOOD, flags, save_model, tiny_config
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from hf_efficient import CompressionReport
from hf_efficient.cli import main


def distill(job_dir, **changes):
    assert main(["distill", *flags(job_dir, **changes)]) == 0
    return CompressionReport.load(job_dir / "out")


def write_unlabelled_rows(job_dir):
    with (job_dir / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence"])
        writer.writerows([f"the {word} film number {n} was {word}"] for n in range(4) for word in (*GOOD, *BAD))


def test_student_of_some_layers_learns_from_the_model(job_dir):
    report = distill(job_dir, student_layers=1, hidden_weight=1.0)
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert report.stages[0] == "student: layers 1 of the teacher"
    assert "labels, the teacher's soft labels (T=2)" in report.stages[1]
    assert "hidden states" in report.stages[1]
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert (type(model).__name__, model.config.num_hidden_layers) == ("BertForSequenceClassification", 1)
    assert report.row("student").metrics["accuracy"] > 0.9
    assert "TinyBERT" in (job_dir / "out" / "README.md").read_text()


def test_new_student_of_another_width_learns_from_relations(job_dir):
    config = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"
    weights = {"relation_weight": 1.0, "embedding_weight": 1.0}
    report = distill(job_dir, student_config=config, **weights, num_train_epochs=25, learning_rate=1e-2)
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert model.config.hidden_size == 16
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert report.row("student").metrics["accuracy"] > 0.9
    assert not list((job_dir / "out").glob("projections*"))
    assert "MiniLMv2" in (job_dir / "out" / "README.md").read_text()


def test_several_teachers_are_averaged_by_their_weights(job_dir):
    names = [str(job_dir / "model"), str(job_dir / "model")]
    argv = flags(job_dir, teacher_weights="3,1", cache_teacher=True)
    assert main(["distill", *argv, "--teacher_name_or_path", *names]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [row.role for row in report.models] == ["teacher", "teacher 2", "student"]
    assert report.configs["distillation"]["teacher_weights"] == "3,1"


def test_base_model_gets_the_labels_of_its_teacher(job_dir):
    model = BertModel(tiny_config(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1}))
    save_model(job_dir / "base", model)
    write_unlabelled_rows(job_dir)
    report = distill(
        job_dir,
        model_name_or_path=job_dir / "base",
        teacher_name_or_path=job_dir / "model",
        hard_label_weight=0.0,
        num_train_epochs=20,
    )
    student = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert student.config.id2label == {0: "negative", 1: "positive"}
    assert report.row("student").metrics["accuracy"] > 0.9


@pytest.mark.parametrize("cache_teacher", [False, True])
def test_a_teacher_with_another_tokenizer_reads_the_texts(job_dir, cache_teacher):
    save_model(job_dir / "student", BertModel(tiny_config()), texts=("film was good bad great awful lovely dull",) * 9)
    report = distill(
        job_dir,
        model_name_or_path=job_dir / "student",
        teacher_name_or_path=job_dir / "model",
        hard_label_weight=0.0,
        cache_teacher=cache_teacher,
        num_train_epochs=20,
    )
    assert report.row("teacher").metrics["accuracy"] > 0.9
    assert report.row("student").metrics["accuracy"] > 0.9


def test_hidden_states_of_a_teacher_with_another_tokenizer_are_refused(job_dir, capsys):
    save_model(job_dir / "other", BertForSequenceClassification(tiny_config()), texts=("words about ships",))
    assert main(["distill", *flags(job_dir, teacher_name_or_path=job_dir / "other", hidden_weight=1)]) == 2
    assert "are those of other tokens" in " ".join(capsys.readouterr().err.split())
    assert not (job_dir / "out" / "config.json").exists()


def test_student_learns_from_text_without_labels(job_dir):
    write_unlabelled_rows(job_dir)
    report = distill(job_dir, student_layers=1, hard_label_weight=0, logits_weight=1)
    assert report.row("student").metrics["accuracy"] > 0.9
    assert report.row("teacher").metrics["accuracy"] > 0.9


def test_text_without_labels_is_refused_for_hard_labels(job_dir, capsys):
    write_unlabelled_rows(job_dir)
    assert main(["distill", *flags(job_dir, student_layers=1)]) == 2
    assert "give --label_column" in capsys.readouterr().err


@pytest.mark.parametrize(
    "weights", [{}, {"hard_label_weight": 0, "logits_weight": 0, "relation_weight": 1.0}], ids=str
)
def test_masked_language_model_is_distilled_without_a_task(job_dir, weights):
    torch.manual_seed(0)
    save_model(job_dir / "general", BertForMaskedLM(tiny_config()))
    changes = {
        "model_name_or_path": job_dir / "general",
        "task": "fill-mask",
        "student_layers": 1,
        "num_train_epochs": 1,
        **weights,
    }
    report = distill(job_dir, **changes)
    assert report.metric == "accuracy"
    assert report.row("student").metrics["perplexity"] > 1
    assert AutoModelForMaskedLM.from_pretrained(job_dir / "out").config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "there is no teacher: name one"),
        ({"student_layers": 1, "heads": 0.5}, "distill neither prunes nor quantizes"),
        ({"student_layers": 1, "scheme": "int8_dynamic"}, "distill neither prunes nor quantizes"),
        ({"student_layers": 1, "student_config": "hidden_size=16"}, "each define the student: give one"),
        ({"student_layers": 3}, "a student of 3 layers cannot be taken from 2: give 1 to 2"),
        ({"student_layers": "0,5"}, "keeps no layers: give a number such as 3"),
        ({"student_config": "hidden_size=30"}, "hidden_size=30 is not a multiple of num_attention_heads=4"),
        ({"student_config": "size=30"}, "does not change a BertConfig"),
        ({"student_layers": 1, "layer_map": "0:7", "hidden_weight": 1}, "the student has 1 layers and the teacher 2"),
        (
            {"student_layers": 1, "cache_teacher": True, "hidden_weight": 1},
            "needs its intermediate outputs at every step",
        ),
        ({"student_layers": 1, "layer_map": "last"}, "layer_map='last' has no effect, since no layers are compared"),
        (
            {"student_layers": 1, "cache_teacher": True, "cache_top_k": 2},
            "cache_top_k=2 is for many classes per token",
        ),
    ],
    ids=str,
)
def test_distill_refuses_what_it_cannot_do(job_dir, capsys, changes, sentence):
    assert main(["distill", *flags(job_dir, **changes)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (job_dir / "out" / "config.json").exists()
